//! What may be: an immutable snapshot, compiled from files, replaced whole.
//!
//! [`load`] reads every file once, notes every mistake of all of them, and either returns a policy that is right in
//! every part or nothing. A policy holds no counters, locks or sockets; it remembers only which seat in the ledger
//! belongs to whom and which rates were in force, so that no reload refills anything.

mod audited;
mod compile;
mod diff;
mod direction;
mod ends;
mod file;
mod footprint;
mod limits;
mod listen;
mod lists;
mod logged;
mod mask;
mod mistake;
mod models;
mod org;
mod pattern;
mod quantity;
mod renamed;
mod resolved;
mod revocations;
mod sides;
mod sink;
mod summary;
mod syntax;

pub use audited::AuditSettings;
pub use diff::{Change, Diff, bereft, prefixed};
pub use footprint::{Footprint, inode};
pub use limits::Written;
pub use listen::{AdminAddress, AdminSettings, Drain, Listen, Quota, Settings, is_host_name};
pub use logged::{LogSettings, log_filter};
pub use mask::urls as mask_urls;
pub use mistake::{Mistake, Mistakes, Place, Source, Told, closest};
pub use models::{Group, Models, NONTEXT, Upstream};
pub use org::{Identity, Mark, ModelGrant, Org, Status};
pub use pattern::Pattern;
pub use quantity::duration;
pub use renamed::Renames;
pub use resolved::{Binding, Held};
pub use revocations::{Kind as RevocationKind, Revocations, Revoked};
pub use summary::Summary;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use zeroize::Zeroizing;

use crate::clock::{Now, Wall};
use crate::limits::{Level, LimitId};
use crate::names::{AuthorityName, Hashing, OrgId, PurposeId};
use crate::peer::{Leaf, Sha256};
use crate::trust::{Authority, Believed, Secret, SecretRef, ServerIdentity, is_pasted, regular};
use file::{At, Table};
use sink::Sink;

/// One purpose of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    /// Its id.
    pub id: PurposeId,
    /// What it means.
    pub text: String,
    /// Whether a case reference is needed.
    pub case_required: bool,
}

/// All purposes, by id.
type Catalog = BTreeMap<PurposeId, Purpose>;

/// Everything that may be.
#[derive(Clone)]
pub struct Policy {
    /// Counts from 1; one more for every policy that differs from the one before.
    pub generation: u64,
    /// The digest of everything that was read.
    pub hash: Sha256,
    /// When it was loaded.
    pub loaded_at: Wall,
    /// The partner side.
    pub listen: Listen,
    /// What needs a restart.
    pub settings: Settings,
    /// Names that SNI and Host must hold, in lower case.
    pub server_names: Arc<[String]>,
    /// The gateway's certificate.
    pub identity: Arc<ServerIdentity>,
    /// Who may vouch for partners.
    pub authorities: Arc<[Arc<Authority>]>,
    /// Where their revocation lists are read.
    lists: BTreeMap<AuthorityName, PathBuf>,
    /// How far their revocation lists have come, those of policies before this one included.
    pub believed: Believed,
    /// Every authority needs a fresh CRL.
    pub revocation_required: bool,
    /// A missing client certificate is explained instead of refused.
    pub explain_missing: bool,
    /// The longest a partner's certificate may be valid.
    pub longest_certificate: Option<Duration>,
    /// The header that declares the purpose.
    pub purpose_header: HeaderName,
    /// The catalogue.
    pub purposes: Catalog,
    /// Groups and upstreams.
    pub models: Models,
    /// How quotas are enforced.
    pub quota: Quota,
    /// The audit log.
    pub audit: AuditSettings,
    /// Logging.
    pub log: LogSettings,
    /// Legal, but odd.
    pub warnings: Vec<Mistake>,
    /// The files, for explanations.
    pub sources: Vec<Source>,
    /// Where rules of the main file are written: `catalog/research` → place.
    pub places: HashMap<String, Place>,
    /// Organizations as their files have them, and where.
    drafts: Arc<[org::Draft]>,
    orgs: BTreeMap<OrgId, Arc<Org>>,
    marks: HashMap<(AuthorityName, Mark), (OrgId, usize), Hashing>,
    memory: limits::Memory,
    directories: Vec<PathBuf>,
    /// The folder of the main file: its paths begin there.
    pub base: PathBuf,
    /// What needs a restart, as the process found it when it started; none where that is what stands here.
    fixed: Option<Arc<BTreeMap<String, String>>>,
}

/// Whom a certificate belongs to.
#[derive(Debug)]
pub enum Owner<'a> {
    /// Exactly one organization, by one of its identities.
    One(&'a Arc<Org>, &'a Identity),
    /// Nobody.
    Nobody,
    /// Two organizations, which loading could not foresee.
    Many,
}

impl Policy {
    /// An organization.
    #[must_use]
    pub fn org(&self, id: &str) -> Option<&Arc<Org>> {
        self.orgs.get(id)
    }

    /// All organizations, by id.
    pub fn orgs(&self) -> impl Iterator<Item = &Arc<Org>> {
        self.orgs.values()
    }

    /// The organization that a certificate belongs to, by the most specific of its identities that fits: whoever pins
    /// one certificate says of it alone where it may come from, be that less than its name allows or more.
    #[must_use]
    pub fn owner(&self, authority: &AuthorityName, leaf: &Leaf) -> Owner<'_> {
        let marks = [
            Some(Mark::Leaf(leaf.sha256)),
            Some(Mark::Spki(leaf.spki_sha256)),
            leaf.uri.clone().map(Mark::Uri),
            leaf.dns.clone().map(Mark::Dns),
        ];
        let mut found = None;
        for mark in marks.into_iter().flatten() {
            let Some((org, index)) = self.marks.get(&(authority.clone(), mark)) else { continue };
            match found {
                Some((known, _)) if known != org => return Owner::Many,
                Some(_) => {}
                None => found = Some((org, *index)),
            }
        }
        let owner = found.and_then(|(org, index)| {
            let org = self.orgs.get(org)?;
            Some(Owner::One(org, org.identities.get(index)?))
        });
        owner.unwrap_or(Owner::Nobody)
    }

    /// What a limit is called for people and in metrics: its place in the configuration.
    #[must_use]
    pub fn named(&self, limit: &LimitId) -> String {
        diff::named(limit, &self.purposes)
    }

    /// Names that a purpose and a model group share.
    pub fn shared_names(&self) -> impl Iterator<Item = &str> {
        self.purposes.keys().map(PurposeId::as_str).filter(|name| self.models.group(name).is_some())
    }

    /// What every request is held against, level by level; some come more than once.
    pub fn levels(&self) -> impl Iterator<Item = &Level> {
        let orgs = || self.orgs.values();
        orgs().flat_map(|org| org.plans.values()).flat_map(|plan| &plan.levels).chain(orgs().map(|org| &org.own))
    }

    /// What [`load`] read: the directories to watch.
    #[must_use]
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// The same policy, if no list of it is older than what was `believed` before this process was.
    ///
    /// # Errors
    /// Every list that was rolled back.
    pub fn hold_to(mut self, believed: &Believed) -> Result<Policy, Mistakes> {
        let mut found = Vec::new();
        for authority in self.authorities.iter() {
            for message in authority.crls().iter().filter_map(|crl| believed.rolled_back(crl)) {
                let place = self.places.get(&format!("authority/{}/crl", authority.name())).cloned();
                found.push(Mistake { place, message, hint: None });
            }
        }
        if !found.is_empty() {
            return Err(Mistakes { sources: self.sources, found, ..Mistakes::default() });
        }
        self.believed = self.believed.and(believed);
        Ok(self)
    }

    /// What nobody is let in by, in words: certificates of authorities that had ended when they were loaded, and
    /// revocation lists that were overdue, or whose time had not come.
    pub fn closed(&self) -> impl Iterator<Item = String> {
        let now = self.loaded_at;
        self.authorities.iter().flat_map(move |authority| ends::ended(authority, now).chain(ends::shut(authority, now)))
    }

    /// Whether the time of a revocation list has come that had not when it was read: reading it again puts it in force.
    #[must_use]
    pub fn list_is_due(&self, now: Wall) -> bool {
        self.authorities.iter().any(|authority| authority.list_is_due(now))
    }

    /// `file:line:column` of a rule.
    #[must_use]
    pub fn locate(&self, rule: &str) -> Option<String> {
        let place = match rule.strip_prefix("org/").and_then(|rest| rest.split_once('/')) {
            None => self.places.get(rule)?,
            Some((org, rule)) => {
                self.drafts.iter().find(|draft| draft.id.value.as_str() == org)?.place(rule, &self.purposes)?
            }
        };
        let (file, line, column) = mistake::line_of(&self.sources, place)?;
        Some(format!("{}:{line}:{column}", file.display()))
    }
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy").field("generation", &self.generation).field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// Reads and compiles everything that `path` leads to. `previous` is the policy in force, if any.
///
/// # Errors
/// Every mistake, with the files to show them in.
pub fn load(path: &Path, previous: Option<&Policy>, now: Now) -> Result<Policy, Mistakes> {
    let sink = Sink::default();
    let files = Files::new(path);
    match compile::compile(path, &files, &sink, previous, now) {
        Some(policy) if sink.is_clean() => Ok(policy),
        _ => Err(sink.noted()),
    }
}

/// Every file that was read, each once, and the digest of them all.
struct Files {
    base: PathBuf,
    read: RefCell<Vec<(PathBuf, Sha256)>>,
}

impl Files {
    fn new(path: &Path) -> Files {
        let base = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Files { base: base.to_owned(), read: RefCell::default() }
    }

    /// The main file, which is read before any other.
    fn main(&self) -> Option<PathBuf> {
        self.read.borrow().first().map(|(path, _)| path.clone())
    }

    /// A path as the configuration means it.
    fn resolve(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    fn bytes(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        let bytes = regular::read(path)?;
        self.read.borrow_mut().push((path.to_owned(), Sha256::of(&bytes)));
        Ok(bytes)
    }

    /// The path of a file that the configuration names; `what` stands there instead where its content was pasted.
    fn path(&self, at: &At<String>, what: &str, sink: &Sink) -> Option<PathBuf> {
        if is_pasted(&at.value) {
            let hint = Some("keep it in a file, and write the file's path".into());
            sink.wrong(Some(&at.place), format!("{what} stands here in the clear; only its path may"), hint);
            return None;
        }
        Some(self.resolve(&at.value))
    }

    /// Reads a file that the configuration names.
    fn read(&self, at: &At<String>, sink: &Sink) -> Option<Vec<u8>> {
        let path = self.path(at, "a file's content", sink)?;
        match self.bytes(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                sink.wrong(Some(&at.place), format!("cannot read {}: {error}", path.display()), None);
                None
            }
        }
    }

    /// Fetches the secret that `key` refers to.
    fn secret(&self, table: &Table<'_>, key: &'static str) -> Option<Secret> {
        let at = table.text(key)?;
        let reference = models::secret_ref(&at, table.sink())?;
        match reference.resolve(&self.base) {
            Ok(secret) => {
                // A rotated secret is another policy: its digest counts, salted by the place it comes from.
                let parts = [at.value.as_str(), "\n", secret.expose()];
                let mut salted = Zeroizing::new(String::with_capacity(parts.iter().map(|part| part.len()).sum()));
                parts.into_iter().for_each(|part| salted.push_str(part));
                let digest = Sha256::of(salted.as_bytes());
                self.read.borrow_mut().push((PathBuf::from(&at.value), digest));
                if let SecretRef::File(path) = &reference {
                    self.read.borrow_mut().push((self.base.join(path), digest));
                }
                Some(secret)
            }
            Err(unresolved) => {
                table.sink().wrong(Some(&at.place), unresolved.to_string(), None);
                None
            }
        }
    }

    /// Reads a private key that the configuration names by its path, written as such or as a reference.
    fn key(&self, at: &At<String>, sink: &Sink) -> Option<Secret> {
        let path = self.path(at, "a secret", sink)?;
        let path = at.value.strip_prefix("file:").map_or(path, |path| self.resolve(path));
        match SecretRef::File(path.clone()).resolve(Path::new("")) {
            Ok(secret) => {
                self.read.borrow_mut().push((path, Sha256::of(secret.expose().as_bytes())));
                Some(secret)
            }
            Err(unresolved) => {
                sink.wrong(Some(&at.place), unresolved.to_string(), None);
                None
            }
        }
    }

    /// One digest over names and contents.
    fn hash(&self) -> Sha256 {
        let read = self.read.borrow();
        let mut read: Vec<_> = read.iter().collect();
        read.sort();
        read.dedup();
        let all: String = read.iter().map(|(path, digest)| format!("{} {digest}\n", path.display())).collect();
        Sha256::of(all.as_bytes())
    }

    /// The directories in which something would change if one of the files did: its own, and where its path goes by a
    /// link, that of the link and where the link leads.
    fn directories(&self) -> Vec<PathBuf> {
        let read = self.read.borrow();
        // Of ten thousand files in one directory only the links need be followed one by one.
        let is_link = |path: &Path| std::fs::read_link(path).is_ok();
        let ways: BTreeSet<PathBuf> = read
            .iter()
            .filter_map(|(path, _)| if is_link(path) { Some(path.clone()) } else { Some(path.parent()?.join("any")) })
            .collect();
        let mut directories = Vec::new();
        ways.iter().for_each(|way| footprint::leading_to(way, &mut directories));
        directories.retain(|directory| directory.is_dir());
        directories.sort();
        directories.dedup();
        directories
    }
}

#[cfg(test)]
mod tests;
