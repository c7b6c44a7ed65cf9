//! From files to a policy: everything is read, then checked across files, then put together.

mod build;
mod checks;
mod header;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;
use std::sync::Arc;

use http::HeaderName;

use self::build::build;
use self::checks::{Checked, Known};
use self::header::header_for_the_purpose;
use super::audited;
use super::ends::{ended, shut, warn_of_authority, warn_of_lists, warn_soon};
use super::file::{At, Table, parse};
use super::listen;
use super::logged;
use super::mistake::Place;
use super::models::{self, Models};
use super::org::{self, Draft};
use super::sink::Sink;
use super::summary::fixed;
use super::{Catalog, Files, Policy, Purpose};
use crate::clock::Now;
use crate::names::{AuthorityName, PurposeId};
use crate::trust::{Authority, Believed, Crl, Flaw, Rules, ServerIdentity, Subject};

/// Reads the main file and everything it leads to.
pub(super) fn compile(path: &Path, files: &Files, sink: &Sink, previous: Option<&Policy>, now: Now) -> Option<Policy> {
    let text = text(path, files, sink)?;
    let file = sink.add(path, &text);
    let believed = previous.map(|policy| policy.believed.clone()).unwrap_or_default();
    parse(file, &text, sink, |root| {
        Compiler { root, files, sink, previous, believed, now, places: RefCell::default() }.run()
    })
}

/// The most that one file of the configuration may hold, in bytes: a partner's has a few thousand, the parser needs a
/// hundred times that, and whatever lies in the directory is read.
const MOST: usize = 1 << 20;

/// Reads a file of the configuration, which is text.
fn text(path: &Path, files: &Files, sink: &Sink) -> Option<String> {
    let bytes = files.bytes(path).map_err(|error| sink.unreadable(path, "", error, None)).ok()?;
    if bytes.len() > MOST {
        let why = format!("a file of the configuration may have {} MiB at most", MOST >> 20);
        sink.unreadable(path, "", why, None);
        return None;
    }
    let no_text = |error: FromUtf8Error| {
        let fine = error.utf8_error().valid_up_to();
        let mut bytes = error.into_bytes();
        bytes.truncate(fine);
        let text = String::from_utf8(bytes).unwrap_or_default();
        sink.unreadable(path, &text, "it is not UTF-8 text", Some("save it as UTF-8".into()));
    };
    String::from_utf8(bytes).map_err(no_text).ok()
}

/// Who may vouch for partners.
struct Authorities {
    loaded: Vec<Arc<Authority>>,
    /// Where their revocation lists are read.
    lists: BTreeMap<AuthorityName, PathBuf>,
    /// Whether these are all that are named.
    whole: bool,
}

struct Compiler<'a> {
    root: &'a Table<'a>,
    files: &'a Files,
    sink: &'a Sink,
    previous: Option<&'a Policy>,
    believed: Believed,
    now: Now,
    places: RefCell<HashMap<String, Place>>,
}

impl Compiler<'_> {
    fn run(&self) -> Option<Policy> {
        let listen = self.root.required_table("listen").map(|table| listen::listen(&table));
        let identity = listen.as_ref().and_then(|read| self.server_identity(read));
        let (authorities, auth) = self.authorities();
        let admin = listen::admin(self.root, self.files, listen.as_ref(), self.now.wall);
        let (quota, state) = listen::quota(self.root, self.files);
        let (audit, audit_directory) = audited::audit(self.root, self.files, |rule, at| self.note(rule, at));
        let log = logged::log(self.root);
        let (purpose_header, purposes, catalogue) = self.purposes();
        let (models, (groups, served)) = models::read(self.root, self.files, self.now.wall);
        let orgs = self.root.text("orgs");
        let orgs_place = orgs.as_ref().map(|at| &at.place);
        let directory = self.files.resolve(orgs.as_ref().map_or("orgs.d", |at| at.value.as_str()));
        self.apart(&directory, &state, &audit_directory);
        let (drafts, orgs) = self.drafts(&directory, orgs_place, &quota.timezone);
        self.root.finish();
        // A file that does not parse is not held against the others.
        if self.sink.is_broken(self.root.place().file) {
            return None;
        }
        let known = Known { purposes: catalogue, groups, models: served, authorities: authorities.whole, orgs };
        self.check(&drafts, &purposes, &models, &authorities.loaded, known);
        let Authorities { loaded: authorities, lists, .. } = authorities;
        // From here on references are followed: only what was found right may be.
        if !self.sink.is_clean() {
            return None;
        }
        let listen = listen?;
        let built = build(&drafts, (&models, &purposes), self.previous, self.now);
        let identity = identity?;
        if let Some(at) = &listen.certificate {
            warn_soon(self.sink, &at.place, "the server's certificate", identity.not_after(), self.now.wall);
        }
        let hash = self.files.hash();
        let stays = |policy: &&Policy| policy.hash == hash && !policy.list_is_due(self.now.wall);
        let same = self.previous.filter(stays).map(|policy| policy.generation);
        let next = self.previous.map_or(1, |policy| policy.generation + 1);
        Some(Policy {
            generation: same.unwrap_or(next),
            hash,
            loaded_at: self.now.wall,
            settings: super::Settings {
                address: listen.address?,
                workers: listen.workers,
                admin,
                state: state.value,
                audit_directory: audit_directory.value,
            },
            listen: listen.listen,
            server_names: listen.server_names.into_iter().map(|at| at.value).collect(),
            identity: Arc::new(identity),
            believed: self.believed.clone().with(authorities.iter().flat_map(|authority| authority.in_force())),
            authorities: authorities.into(),
            lists,
            revocation_required: auth.required,
            explain_missing: auth.explain,
            longest_certificate: auth.longest,
            purpose_header,
            purposes,
            models,
            quota,
            audit,
            log,
            warnings: self.sink.warnings.take(),
            sources: self.sink.sources.take(),
            places: self.places.take(),
            drafts: drafts.into(),
            orgs: built.orgs,
            marks: built.marks,
            memory: built.memory,
            directories: self.files.directories(),
            base: self.files.base.clone(),
            fixed: self.previous.map(|first| first.fixed.clone().unwrap_or_else(|| Arc::new(fixed(first)))),
        })
    }

    /// Holds the files to each other.
    fn check(
        &self,
        drafts: &[Draft],
        purposes: &Catalog,
        models: &Models,
        authorities: &[Arc<Authority>],
        known: Known,
    ) {
        let (places, now) = (&self.places.borrow(), self.now.wall);
        Checked { sink: self.sink, purposes, models, authorities, known, places, now }.check(drafts);
    }

    /// Remembers where a rule stands, for explanations.
    fn note(&self, rule: impl Into<String>, place: &Place) {
        self.places.borrow_mut().insert(rule.into(), place.clone());
    }

    fn flawed(&self, flaws: Vec<Flaw>, certificate: &Place, other: Option<&Place>) {
        for flaw in flaws {
            let place = match flaw.subject {
                Subject::PrivateKey | Subject::Crl => other.unwrap_or(certificate),
                Subject::Certificate | Subject::Authority => certificate,
            };
            self.sink.wrong(Some(place), flaw.message, None);
        }
    }

    fn server_identity(&self, read: &listen::ListenRead) -> Option<ServerIdentity> {
        let (certificate, key) = (read.certificate.as_ref()?, read.private_key.as_ref()?);
        let pem = (self.files.read(certificate, self.sink), self.files.key(key, self.sink));
        let (Some(certificate_pem), Some(key_pem)) = pem else { return None };
        match ServerIdentity::load(&certificate_pem, key_pem.expose().as_bytes(), self.now.wall) {
            Ok(identity) => {
                for name in read.server_names.iter().filter(|name| !identity.is_for(&name.value)) {
                    let what = "have it issued for this name, too, or take the name out";
                    self.sink.odd(Some(&name.place), format!("the certificate is not for {}: {what}", name.value));
                }
                Some(identity)
            }
            Err(flaws) => {
                self.flawed(flaws, &certificate.place, Some(&key.place));
                None
            }
        }
    }

    fn authorities(&self) -> (Authorities, listen::ClientAuth) {
        let nothing = listen::ClientAuth { required: true, explain: false, longest: None };
        let none = Authorities { loaded: Vec::new(), lists: BTreeMap::new(), whole: false };
        let Some(table) = self.root.required_table("client_auth") else { return (none, nothing) };
        let auth = listen::client_auth(&table);
        self.note("client_auth", table.place());
        let rules = Rules { revocation_required: auth.required, server_auth: false };
        let tables = table.tables("authorities");
        if table.is_without("authorities") {
            self.sink.wrong(Some(table.place()), "`authorities` is missing or empty: nobody could connect", None);
        }
        let mut loaded: Vec<Arc<Authority>> = Vec::new();
        let mut lists = BTreeMap::new();
        for entry in &tables {
            let Some((authority, list)) = self.authority(entry, rules) else { continue };
            lists.extend(list.map(|list| (authority.name().clone(), list)));
            if loaded.iter().any(|known| known.name() == authority.name()) {
                self.sink.wrong(Some(entry.place()), format!("there are two authorities {}", authority.name()), None);
            }
            if let Some(twin) = loaded.iter().find(|known| known.spki_sha256() == authority.spki_sha256()) {
                let what = format!(
                    "{} and {} have the same key: no chain would belong to exactly one",
                    twin.name(),
                    authority.name()
                );
                self.sink.wrong(Some(entry.place()), what, None);
            }
            let (name, now) = (authority.name(), self.now.wall);
            let place = |rule: String| self.places.borrow().get(&rule).cloned();
            if let Some(file) = place(format!("authority/{name}")) {
                warn_of_authority(self.sink, &file, &authority, now);
            }
            if let Some(crl) = place(format!("authority/{name}/crl")) {
                warn_of_lists(self.sink, &crl, &authority, now);
            }
            loaded.push(Arc::new(authority));
        }
        table.finish();
        let whole = !tables.is_empty() && loaded.len() == tables.len();
        if whole {
            self.somebody_gets_in(&loaded);
        }
        (Authorities { loaded, lists, whole }, auth)
    }

    /// An authority that has ended, or whose list is overdue, holds nothing up but its own partners; but where no other is
    /// left, a gateway would only seem to run. One that runs goes on with overdue lists: what takes somebody else's place
    /// away must not wait for them.
    fn somebody_gets_in(&self, authorities: &[Arc<Authority>]) {
        let now = self.now.wall;
        let is_shut = |authority: &Authority| match self.previous {
            None => authority.is_shut(now),
            Some(_) => authority.has_ended(now),
        };
        if !authorities.iter().all(|authority| is_shut(authority)) {
            return;
        }
        let places = self.places.borrow();
        for authority in authorities {
            let (file, list) =
                (format!("authority/{}", authority.name()), format!("authority/{}/crl", authority.name()));
            let lists = shut(authority, now).map(|what| (&list, what));
            let told = ended(authority, now).map(|what| (&file, what)).chain(lists);
            for (place, what) in told {
                let hint = "no authority is left that could let anybody in".to_owned();
                self.sink.wrong(places.get(place), what, Some(hint));
            }
        }
    }

    /// One authority, and where its revocation lists are read.
    fn authority(&self, table: &Table<'_>, rules: Rules) -> Option<(Authority, Option<PathBuf>)> {
        let name = table.required("name").and_then(|at| match at.value.parse::<AuthorityName>() {
            Ok(name) => Some(name),
            Err(error) => {
                self.sink.wrong(Some(&at.place), format!("`name` {error}"), None);
                None
            }
        });
        let file = table.required("file");
        let pem = file.as_ref().and_then(|at| self.files.read(at, self.sink));
        let crl = table.text("crl");
        let list = crl.as_ref().map(|at| self.files.read(at, self.sink));
        let server_auth = table.boolean("allow_server_auth").is_some_and(|at| at.value);
        table.finish();
        let (name, file) = (name?, file?);
        self.note(format!("authority/{name}"), &file.place);
        if let Some(crl) = &crl {
            self.note(format!("authority/{name}/crl"), &crl.place);
        }
        let (Some(pem), Some(list)) = (pem, list.map_or(Some(None), |list| list.map(Some))) else { return None };
        let rules = Rules { server_auth, ..rules };
        match Authority::load(name, &pem, list.as_deref(), rules, &self.believed, self.now.wall) {
            Ok(authority) => Some((authority.beside(&self.in_force()), crl.map(|at| self.files.resolve(&at.value)))),
            Err(flaws) => {
                self.flawed(flaws, &file.place, crl.as_ref().map(|at| &at.place));
                None
            }
        }
    }

    /// The revocation lists that are in force.
    fn in_force(&self) -> Vec<Arc<Crl>> {
        let authorities = self.previous.iter().flat_map(|policy| policy.authorities.iter());
        authorities.flat_map(|authority| authority.in_force()).cloned().collect()
    }

    /// The header that declares a purpose, the catalogue, and whether all of that was understood.
    fn purposes(&self) -> (HeaderName, Catalog, bool) {
        let default = HeaderName::from_static("portcullis-purpose");
        let Some(table) = self.root.required_table("purpose") else { return (default, BTreeMap::new(), false) };
        let header = table.parsed("header", header_for_the_purpose);
        let mut purposes = BTreeMap::new();
        let catalog = table.required_table("catalog");
        let mut whole = catalog.is_some();
        catalog.iter().for_each(|catalog| self.note("catalog", catalog.place()));
        for (name, entry) in catalog.iter().flat_map(Table::entries) {
            let id: PurposeId = match name.value.parse() {
                Ok(id) => id,
                Err(error) => {
                    self.sink.wrong(Some(&name.place), format!("the purpose {error}"), None);
                    whole = false;
                    continue;
                }
            };
            let (text, case_required) = match (entry.as_text(), entry.as_table()) {
                (Some(text), _) => (text, false),
                (None, Some(inside)) => {
                    let text = inside.required("text").map(|at| at.value).unwrap_or_default();
                    let case = inside.parsed("case", |case| match case {
                        "required" => Ok(true),
                        "optional" => Ok(false),
                        _ => Err("must be \"required\" or \"optional\""),
                    });
                    inside.finish();
                    (text, case.is_some_and(|at| at.value))
                }
                (None, None) => {
                    entry.mismatch("a sentence, or { text, case }");
                    whole = false;
                    continue;
                }
            };
            self.note(format!("catalog/{id}"), &name.place);
            purposes.insert(id.clone(), Purpose { id, text, case_required });
        }
        table.finish();
        (header.map_or(default, |at| at.value), purposes, whole)
    }

    /// What the gateway writes lies in directories of its own: one log's files are not another's, and each would be
    /// read as the other, or watched as configuration.
    fn apart(&self, orgs: &Path, state: &At<PathBuf>, audit: &At<PathBuf>) {
        if real(&state.value) == real(&audit.value) {
            let what = "the audit log and the state of quotas may not lie in one directory";
            self.sink.wrong(Some(&state.place), what, None);
        }
        for at in [state, audit].into_iter().filter(|at| real(&at.value) == real(orgs)) {
            let what = "this is the directory of the organizations' files, where every change is looked at";
            self.sink.wrong(Some(&at.place), what, None);
        }
    }

    /// Every organization's file, in order of name; and whether all could be read.
    fn drafts(&self, directory: &Path, place: Option<&Place>, timezone: &jiff::tz::TimeZone) -> (Vec<Draft>, bool) {
        let listing = std::fs::read_dir(directory).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| PathBuf::from(entry.file_name()))).collect::<Result<Vec<_>, _>>()
        });
        let mut names = match listing {
            Ok(names) => names,
            // Where the main file breaks off before it says where they are, that is the one mistake.
            Err(_) if place.is_none() && self.sink.is_broken(self.root.place().file) => return (Vec::new(), false),
            Err(error) => {
                self.sink.wrong(place, format!("cannot read {}: {error}", directory.display()), None);
                return (Vec::new(), false);
            }
        };
        let hidden = |name: &Path| name.as_os_str().as_encoded_bytes().starts_with(b".");
        names.retain(|name| name.extension().is_some_and(|extension| extension == "toml") && !hidden(name));
        // Of names alone the bytes are compared, which ten thousand paths would be taken apart for.
        names.sort_unstable_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
        let paths: Vec<PathBuf> = names.iter().map(|name| directory.join(name)).collect();
        let is = |path: &Path, main: &Path| path.file_name() == main.file_name() && real(path) == real(main);
        if self.files.main().is_some_and(|main| paths.iter().any(|path| is(path, &main))) {
            let what = "the organizations' files need a directory of their own: the main file lies in this one";
            self.sink.wrong(place, what, Some("orgs = \"orgs.d\"".into()));
            return (Vec::new(), false);
        }
        if paths.is_empty() {
            self.sink.odd(place, format!("{} holds no organization", directory.display()));
        }
        let drafts: Vec<Draft> = paths.iter().filter_map(|path| self.draft(path, timezone)).collect();
        let whole = drafts.len() == paths.len();
        (drafts, whole)
    }

    fn draft(&self, path: &Path, timezone: &jiff::tz::TimeZone) -> Option<Draft> {
        let text = text(path, self.files, self.sink)?;
        let file = self.sink.add(path, &text);
        let draft = parse(file, &text, self.sink, |table| org::read(table, timezone));
        draft.filter(|_| !self.sink.is_broken(file))
    }
}

/// Where a path leads, as far as it leads anywhere.
pub(super) fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
