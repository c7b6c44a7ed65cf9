//! Configuration: a policy, or mistakes that stand where they say.
//!
//! An input is the main file, and after each line `### name.toml` a file of `orgs.d`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use portcullis::clock::{Mono, Now, Wall};
use portcullis::policy::{Mistake, Mistakes, Source, load};
use portcullis::trust::issue::{DevAuthority, Holder};

use crate::engine::Verdict;
use crate::must;

pub const WORDS: &[&str] = &[
    "=",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "\"",
    "'",
    "\"\"\"",
    "#",
    "\n",
    "\r\n",
    ".",
    ",",
    "true",
    "1e9",
    "inf",
    "nan",
    "1979-05-27T07:32:00Z",
    "0x_",
    "\\u00e9",
    "\u{e9}",
    "\u{feff}",
    "\u{202e}",
    "[listen]\n",
    "[client_auth]\n",
    "[admin]\n",
    "[purpose.catalog]\n",
    "[[upstream]]\n",
    "[model.x]\n",
    "[quota]\n",
    "[audit]\n",
    "[log]\n",
    "match = [\"*\"]\n",
    "\"env:\"",
    "\"file:key\"",
    "\"file:\"",
    "\"0s\"",
    "\"-1s\"",
    "\"99999999999999999999s\"",
    "\"16MiB\"",
    "\"0.0.0.0:0\"",
    "\"[::1]:8443\"",
    "\"http://10.0.0.1\"",
    "\"https://user:pw@x/\"",
    "\"Europe/Berlin\"",
    "\n### acme.toml\n",
    "\n### other.toml\n",
    "id = \"acme\"\n",
    "parent = \"acme\"\n",
    "requests_per_minute = ",
    "tokens_per_day = ",
    "cost_per_month = \"1.5\"\n",
    "status = \"suspended\"\n",
];

const NOW: Now = Now { mono: Mono(0), wall: Wall(1_795_000_000_000_000_000) };
const SECRET: &str = "sk-never-to-be-seen";

/// A folder with certificates and a key, into which each input's files are put.
struct Place {
    folder: tempfile::TempDir,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let year = Duration::from_secs(365 * 86_400);
    let authority = DevAuthority::create("partners", NOW.wall, year).unwrap();
    let server = authority.issue(&Holder::Server(&["gateway.example"]), NOW.wall, year).unwrap();
    write("certs/partners-ca.pem", authority.certificate());
    write("certs/partners.crl", &authority.crl(&[], 1, NOW.wall, year).unwrap());
    write("certs/server.pem", &server.certificate);
    write("certs/server.key", &server.key);
    write("config/key", SECRET);
    Place { folder }
});

impl Place {
    /// Writes an input's files in place of those before.
    fn hold(&self, input: &[u8]) -> PathBuf {
        let config = self.folder.path().join("config");
        let orgs = config.join("orgs.d");
        let _ = fs::remove_dir_all(&orgs);
        fs::create_dir_all(&orgs).unwrap();
        let mut file = config.join("portcullis.toml");
        let mut content = Vec::new();
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            if let Some(name) = file_named(line) {
                fs::write(&file, &content).unwrap();
                content.clear();
                file = orgs.join(name);
            } else {
                content.extend_from_slice(line);
            }
        }
        fs::write(&file, &content).unwrap();
        config.join("portcullis.toml")
    }
}

/// The file that begins after this line: a short name, without a folder.
fn file_named(line: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(line).ok()?.strip_prefix("### ")?.trim_end();
    let stem = name.strip_suffix(".toml")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    (!stem.is_empty() && stem.len() < 30 && name.bytes().all(plain)).then_some(name)
}

pub fn config(input: &[u8]) -> Verdict {
    let path = PLACE.hold(input);
    match load(&path, None, NOW) {
        Ok(policy) => {
            must!(policy.generation == 1 && !policy.server_names.is_empty(), "a policy without a name: {policy:?}");
            must!(policy.listen.max_connections > 0 && policy.listen.max_body > 0, "a policy that takes nothing");
            placed(&policy.warnings, &policy.sources)?;
            for (rule, place) in &policy.places {
                placed(&[Mistake { place: Some(place.clone()), message: rule.clone(), hint: None }], &policy.sources)?;
                must!(policy.locate(rule).is_some(), "{rule} stands nowhere");
            }
            let again = load(&path, Some(&policy), NOW);
            let same = again.as_ref().is_ok_and(|again| again.generation == 1 && again.hash == policy.hash);
            must!(same, "read again, it is another: {again:?}");
            let warned: Vec<&str> = policy.warnings.iter().map(|warning| kind(&warning.message)).collect();
            Ok(format!("a policy, {} organizations, {warned:?}", policy.orgs().count().min(3)))
        }
        Err(mistakes) => wrong(&mistakes),
    }
}

/// Mistakes are told, each in its place, for people and for programs, and without a secret.
fn wrong(mistakes: &Mistakes) -> Verdict {
    must!(!mistakes.found.is_empty(), "refused without a mistake");
    placed(&mistakes.found, &mistakes.sources)?;
    let (text, styled) = (mistakes.render(false), mistakes.render(true));
    let json = mistakes.to_json();
    must!(json.as_array().is_some_and(|list| list.len() == mistakes.found.len()), "programs are told {json}");
    must!(!(text + &styled + &json.to_string()).contains(SECRET), "the secret is told");
    let first = mistakes.found.first().map(|mistake| kind(&mistake.message)).unwrap_or_default();
    Ok(first.to_owned())
}

fn placed(mistakes: &[Mistake], sources: &[Source]) -> Result<(), String> {
    let shown = Mistakes { sources: sources.to_vec(), ..Mistakes::default() };
    for mistake in mistakes {
        must!(!mistake.message.trim().is_empty(), "a mistake without words");
        let Some(place) = &mistake.place else { continue };
        let source = sources.get(place.file).ok_or_else(|| format!("{mistake:?} is in a file that nobody read"))?;
        let inside = source.text.get(place.span.clone()).is_some();
        must!(inside, "{mistake:?} is outside the {} bytes of {}", source.text.len(), source.path.display());
        must!(shown.line_of(place).is_some(), "{mistake:?} has no line");
        must!(source.path.starts_with(Path::new(PLACE.folder.path())), "{} was read", source.path.display());
    }
    Ok(())
}

/// What a sentence is about: its beginning, up to what it quotes.
fn kind(message: &str) -> &str {
    message.split(['`', '"', '/', '\'']).next().unwrap_or_default()
}
