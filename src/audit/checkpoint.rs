//! Signed checkpoints: the log's size and root, vouched for by a key of its own.
//!
//! The text is a C2SP `tlog-checkpoint` (origin, size, root, extension lines), the envelope a C2SP `signed-note` with
//! an Ed25519 signature, so any transparency-log tool can check one. What is signed is never taken back: the keeper
//! signs only what is on disk.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::prelude::{BASE64_STANDARD, Engine};
use zeroize::Zeroizing;

use crate::audit::chain::Chain;
use crate::audit::identity::BodySecret;
use crate::audit::tree::Frontier;
use crate::names::is_key_name;
use crate::peer::Sha256;
use crate::trust::signing_key;

/// The signature type byte of Ed25519 in key ids and key texts.
const ED25519_TYPE: u8 = 1;
/// What begins a signature line (an em dash and a space).
const SIGNATURE: &str = "\u{2014} ";
/// Extension line: the hash of the last record.
const RESUME: &str = "resume ";
/// Extension lines: the roots of the complete subtrees, largest first.
const SUBTREE: &str = "subtree ";
/// Extension line: the records before were removed by retention.
const RETIRED: &str = "retired";
/// Extension line: the segment before was taken away while it was written, and the chain goes on without it.
const BRIDGE: &str = "bridge";

/// Size and root of a log, as its text says them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// Number of records.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Sha256,
    /// Further lines, each without its end.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// A checkpoint of a tree.
    #[must_use]
    pub fn of(origin: &str, tree: &Frontier) -> Checkpoint {
        Checkpoint { origin: origin.to_owned(), size: tree.size(), root: tree.root(), extensions: Vec::new() }
    }

    /// A checkpoint that carries all that further records depend on: each segment begins with one, so that it can be
    /// continued and verified without the segments before it.
    #[must_use]
    pub fn resumable(origin: &str, chain: &Chain) -> Checkpoint {
        let mut checkpoint = Checkpoint::of(origin, chain.tree());
        checkpoint.extensions.push(format!("{RESUME}{}", BASE64_STANDARD.encode(chain.prev().0)));
        let subtrees = chain.tree().nodes().iter().map(|node| format!("{SUBTREE}{}", BASE64_STANDARD.encode(node.0)));
        checkpoint.extensions.extend(subtrees);
        checkpoint
    }

    /// The same, saying that the records before it were retired: only then may they be missing.
    #[must_use]
    pub fn retiring(origin: &str, chain: &Chain) -> Checkpoint {
        let mut checkpoint = Checkpoint::resumable(origin, chain);
        checkpoint.extensions.push(RETIRED.to_owned());
        checkpoint
    }

    /// A resumable one, saying that the chain goes on in the segment beside it, because the one before was taken away.
    #[must_use]
    pub fn bridging(origin: &str, chain: &Chain) -> Checkpoint {
        let mut checkpoint = Checkpoint::resumable(origin, chain);
        checkpoint.extensions.push(BRIDGE.to_owned());
        checkpoint
    }

    /// Whether it says so.
    #[must_use]
    pub fn bridges(&self) -> bool {
        self.extensions.iter().any(|line| line == BRIDGE)
    }

    /// What a resumable checkpoint carries, if it fits its own root.
    #[must_use]
    pub fn resume(&self) -> Option<Chain> {
        let prev = self.extensions.iter().find_map(|line| line.strip_prefix(RESUME)).and_then(decode_hash)?;
        let subtrees = self.extensions.iter().filter_map(|line| line.strip_prefix(SUBTREE));
        let nodes: Option<Vec<Sha256>> = subtrees.map(decode_hash).collect();
        let tree = Frontier::from_parts(self.size, nodes?)?;
        (tree.root() == self.root).then(|| Chain::resume(prev, tree))
    }

    /// Whether it says that the records before it were retired.
    #[must_use]
    pub fn retires(&self) -> bool {
        self.extensions.iter().any(|line| line == RETIRED)
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.origin, self.size, BASE64_STANDARD.encode(self.root.0));
        for line in &self.extensions {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    fn parse(text: &str) -> Option<Checkpoint> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty())?.to_owned();
        let digits = lines.next()?;
        let size: u64 = digits.parse().ok()?;
        if size.to_string() != digits {
            return None;
        }
        let root = decode_hash(lines.next()?)?;
        Some(Checkpoint { origin, size, root, extensions: lines.map(str::to_owned).collect() })
    }

    /// Reads a signed note, provided that one of `keys` signed it under the checkpoint's own origin.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn open(note: &str, keys: &[VerifyingKey]) -> Result<Checkpoint, String> {
        let (text, signatures) = note.rsplit_once("\n\n").ok_or("it is not a signed note")?;
        let text = format!("{text}\n");
        let checkpoint = Checkpoint::parse(&text).ok_or("its text is not a checkpoint")?;
        let mut known = false;
        for line in signatures.lines() {
            let (name, bytes) =
                line.strip_prefix(SIGNATURE).and_then(|l| l.split_once(' ')).ok_or("a signature line is malformed")?;
            let bytes = BASE64_STANDARD.decode(bytes).map_err(|_| "a signature is not base64")?;
            let by =
                |key: &&VerifyingKey| key.name == name && name == checkpoint.origin && bytes.starts_with(&key.id());
            for key in keys.iter().filter(by) {
                known = true;
                if key.verifies(text.as_bytes(), bytes.get(4..).unwrap_or_default()) {
                    return Ok(checkpoint);
                }
            }
        }
        Err(if known { "its signature does not verify" } else { "no known key signed it" }.to_owned())
    }
}

fn decode_hash(text: &str) -> Option<Sha256> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok().map(Sha256)
}

/// Splits a file of signed notes, one after another; what stands behind the last complete one comes apart (a write
/// that was cut short leaves it).
#[must_use]
pub fn notes(file: &str) -> (Vec<&str>, &str) {
    let (mut notes, mut rest) = (Vec::new(), file);
    while let Some(length) = note_length(rest) {
        let (note, behind) = rest.split_at(length);
        notes.push(note);
        rest = behind;
    }
    (notes, rest)
}

/// Length of the note at the beginning: text, an empty line, signature lines, each ended.
fn note_length(file: &str) -> Option<usize> {
    let mut end = file.find("\n\n")? + 2;
    let first = end;
    while let Some(line) = file.get(end..).filter(|rest| rest.starts_with(SIGNATURE)) {
        end += line.find('\n')? + 1;
    }
    (end > first).then_some(end)
}

/// The key that signs checkpoints. Its secret half leaves it only as PEM, for the file it is kept in.
pub struct Signer {
    name: String,
    pair: Ed25519KeyPair,
}

impl Signer {
    /// A new key. `None` when the name cannot be a key name, or the machine gives no randomness.
    #[must_use]
    pub fn generate(name: &str) -> Option<Signer> {
        let pair = Ed25519KeyPair::generate().ok()?;
        is_key_name(name).then(|| Signer { name: name.to_owned(), pair })
    }

    /// A key from PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` makes it.
    ///
    /// # Errors
    /// What is wrong with it, for people; never the key's bytes.
    pub fn from_pem(name: &str, pem: &[u8]) -> Result<Signer, String> {
        if !is_key_name(name) {
            return Err(format!("origin {name:?} must be without white space and +"));
        }
        Ok(Signer { name: name.to_owned(), pair: signing_key(pem)? })
    }

    /// The key as PKCS#8 PEM.
    #[must_use]
    pub fn to_pem(&self) -> Option<Zeroizing<String>> {
        let der = self.pair.to_pkcs8v1().ok()?;
        let text = Zeroizing::new(BASE64_STANDARD.encode(der.as_ref()));
        let mut pem = Zeroizing::new("-----BEGIN PRIVATE KEY-----\n".to_owned());
        for (index, letter) in text.chars().enumerate() {
            if index > 0 && index % 64 == 0 {
                pem.push('\n');
            }
            pem.push(letter);
        }
        pem.push_str("\n-----END PRIVATE KEY-----\n");
        Some(pem)
    }

    /// What keys for bodies are derived from, where no other secret is named.
    #[must_use]
    pub fn body_secret(&self) -> Option<BodySecret> {
        Some(BodySecret::new(self.pair.to_pkcs8v1().ok()?.as_ref()))
    }

    /// The log's name, which is the key's.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.name
    }

    /// What others check signatures with.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut public = [0; 32];
        public.iter_mut().zip(self.pair.public_key().as_ref()).for_each(|(to, from)| *to = *from);
        VerifyingKey { name: self.name.clone(), public }
    }

    /// The checkpoint as a signed note.
    #[must_use]
    pub fn sign(&self, checkpoint: &Checkpoint) -> String {
        let text = checkpoint.text();
        let mut signature = self.verifying_key().id().to_vec();
        signature.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        format!("{text}\n{SIGNATURE}{} {}\n", self.name, BASE64_STANDARD.encode(signature))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.verifying_key())
    }
}

/// The public half, under the name it signs for; its text is the C2SP form `name+id+key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    public: [u8; 32],
}

impl VerifyingKey {
    /// The log's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads a file of keys, one a line.
    ///
    /// # Errors
    /// What is wrong with the first line that is not a key.
    pub fn read_all(file: &str) -> Result<Vec<VerifyingKey>, String> {
        file.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::parse).collect()
    }

    /// Whether it is the same key, under whichever name.
    #[must_use]
    pub fn is_same_pair(&self, other: &VerifyingKey) -> bool {
        self.public == other.public
    }

    fn id(&self) -> [u8; 4] {
        let mut named = self.name.as_bytes().to_vec();
        named.extend_from_slice(&[b'\n', ED25519_TYPE]);
        named.extend_from_slice(&self.public);
        let [a, b, c, d, ..] = Sha256::of(&named).0;
        [a, b, c, d]
    }

    fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.public).verify(text, signature).is_ok()
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut typed = vec![ED25519_TYPE];
        typed.extend_from_slice(&self.public);
        write!(f, "{}+{:08x}+{}", self.name, u32::from_be_bytes(self.id()), BASE64_STANDARD.encode(typed))
    }
}

impl FromStr for VerifyingKey {
    type Err = String;
    fn from_str(text: &str) -> Result<VerifyingKey, String> {
        let mut parts = text.splitn(3, '+');
        let (name, id, key) = (parts.next(), parts.next(), parts.next());
        let (Some(name), Some(id), Some(key)) = (name, id, key) else {
            return Err("it is not a verifier key (name+id+key)".to_owned());
        };
        let typed = BASE64_STANDARD.decode(key).unwrap_or_default();
        let public = match typed.split_first() {
            Some((&ED25519_TYPE, public)) => public.try_into().map_err(|_| "the key is not 32 bytes long")?,
            _ => return Err("it is not an Ed25519 key".to_owned()),
        };
        let found = VerifyingKey { name: name.to_owned(), public };
        if !is_key_name(name) || id != format!("{:08x}", u32::from_be_bytes(found.id())) {
            return Err("its key id does not belong to its name and key".to_owned());
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use signed_note::{Note, StandardVerifier, VerifierList};

    use super::*;
    use crate::audit::tree::Leaf;

    fn tree(n: u8) -> Frontier {
        let mut tree = Frontier::default();
        (0..n).for_each(|i| tree.push(Leaf::from([i].as_slice()).hash()));
        tree
    }

    #[test]
    fn an_independent_implementation_verifies_a_checkpoint() {
        let signer = Signer::generate("gateway.example/audit").unwrap();
        let note = signer.sign(&Checkpoint::of(signer.origin(), &tree(5)));
        let verifier = StandardVerifier::new(&signer.verifying_key().to_string()).unwrap();
        let read = Note::from_bytes(note.as_bytes()).unwrap();
        let (verified, unknown) = read.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
        assert_eq!((verified.len(), unknown.len()), (1, 0));
        assert!(read.text().starts_with(b"gateway.example/audit\n5\n"));
    }

    #[test]
    fn keys_survive_their_texts() {
        let signer = Signer::generate("gateway.example/audit").unwrap();
        let key = signer.verifying_key();
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        let again = Signer::from_pem(signer.origin(), signer.to_pem().unwrap().as_bytes()).unwrap();
        assert_eq!(again.verifying_key(), key);
        assert!(!format!("{signer:?}").contains("PRIVATE"));
        for bad in ["", "a+b", "a+00000000+AAAA", &key.to_string().replace("gateway", "gatevay")] {
            assert!(bad.parse::<VerifyingKey>().is_err(), "{bad}");
        }
        assert!(Signer::generate("two words").is_none());
    }

    #[test]
    fn only_a_known_key_and_an_unchanged_text_open() {
        let signer = Signer::generate("a").unwrap();
        let keys = [signer.verifying_key()];
        let chain = Chain::resume(Sha256([7; 32]), tree(6));
        let checkpoint = Checkpoint::retiring("a", &chain);
        let note = signer.sign(&checkpoint);
        assert_eq!(Checkpoint::open(&note, &keys), Ok(checkpoint.clone()));
        assert_eq!((checkpoint.resume(), checkpoint.retires()), (Some(chain.clone()), true));
        assert!(!Checkpoint::resumable("a", &chain).retires());
        assert_eq!(Checkpoint::of("a", &tree(6)).resume(), None);
        for (index, _) in note.char_indices() {
            let mut changed = note.clone().into_bytes();
            changed[index] ^= 1;
            if let Ok(changed) = String::from_utf8(changed) {
                assert!(Checkpoint::open(&changed, &keys).is_err(), "byte {index}");
            }
        }
        let stranger = Signer::generate("a").unwrap();
        assert!(Checkpoint::open(&stranger.sign(&checkpoint), &keys).is_err());
        assert!(Checkpoint::open(&signer.sign(&Checkpoint::of("b", &tree(6))), &keys).is_err());
    }

    #[test]
    fn notes_in_a_file_come_apart_and_a_torn_one_stays_behind() {
        let signer = Signer::generate("a").unwrap();
        let (one, two) = (signer.sign(&Checkpoint::of("a", &tree(1))), signer.sign(&Checkpoint::of("a", &tree(2))));
        let file = format!("{one}{two}");
        assert_eq!(notes(&file), (vec![one.as_str(), two.as_str()], ""));
        for cut in one.len() + 1..file.len() {
            if let Some(part) = file.get(..cut) {
                assert_eq!(notes(part), (vec![one.as_str()], part.get(one.len()..).unwrap()), "{cut}");
            }
        }
    }
}
