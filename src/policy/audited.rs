//! What the configuration says of the audit log: where it lies, how it is kept, and who vouches for it.
//!
//! Nothing is opened here but the key that signs: what cannot sign is a mistake before anything runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Files;
use super::compile::real;
use super::file::{At, Table};
use super::listen::{directory, seconds, word};
use super::mistake::Place;
use super::models::is_private;
use crate::names::is_key_name;
use crate::trust::{Secret, signing_key};

/// `[audit]`, without its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// No audit, no request.
    pub closed: bool,
    /// Records are made durable before requests go on.
    pub power: bool,
    /// Places outside.
    pub checkpoints: Vec<String>,
    /// Segment size.
    pub rotate_size: u64,
    /// Segment age.
    pub rotate_age: Duration,
    /// Retention.
    pub keep: Duration,
    /// The log's name.
    pub origin: Option<String>,
    /// The signing key, PEM or base64 of its PKCS #8 form.
    pub signing_key: Option<Secret>,
    /// Lines say which body it was.
    pub body_hmac: bool,
    /// What keys for that are derived from, if not from the signing key.
    pub body_hmac_secret: Option<Secret>,
}

/// Reads `[audit]`, and where the log lies; `note` is told where each place outside is named.
pub(super) fn audit(root: &Table<'_>, files: &Files, note: impl Fn(String, &Place)) -> (AuditSettings, At<PathBuf>) {
    let default = |place: &Place| At { value: PathBuf::from("/var/log/portcullis"), place: place.clone() };
    let day = 86_400;
    let mut settings = AuditSettings {
        closed: true,
        power: false,
        checkpoints: Vec::new(),
        rotate_size: 256 << 20,
        rotate_age: seconds(day),
        keep: seconds(400 * day),
        origin: None,
        signing_key: None,
        body_hmac: false,
        body_hmac_secret: None,
    };
    let Some(table) = root.table("audit") else { return (settings, default(root.place())) };
    let at = table.text("directory");
    let directory = at.map_or_else(|| default(table.place()), |at| directory(at, files, table.sink()));
    settings.closed = word(&table, "on_failure", &[("closed", true), ("open", false)], true);
    settings.power = word(&table, "durability", &[("process", false), ("power", true)], false);
    settings.checkpoints = outside(&table, files, &directory.value, note);
    if let Some(rotate) = table.table("rotate") {
        settings.rotate_size = rotate.size("size").map_or(settings.rotate_size, |at| at.value).max(4096);
        settings.rotate_age = rotate.lasting("age").unwrap_or(settings.rotate_age);
        rotate.finish();
    }
    settings.keep = table.lasting("keep").unwrap_or(settings.keep);
    settings.origin = table.parsed("origin", origin).map(|at| at.value);
    settings.signing_key = files.secret(&table, "signing_key");
    if let Some(key) = &settings.signing_key
        && let Err(what) = signing_key(key.expose().as_bytes())
    {
        let hint = Some("`openssl genpkey -algorithm ed25519` makes one".into());
        table.wrong_at("signing_key", format!("`signing_key`: {what}"), hint);
    }
    settings.body_hmac = table.boolean("body_hmac").is_some_and(|at| at.value);
    settings.body_hmac_secret = files.secret(&table, "body_hmac_secret");
    table.finish();
    (settings, directory)
}

fn origin(name: &str) -> Result<String, &'static str> {
    let wanted = "must be a name without white space and +, such as \"gateway.example/audit\"";
    if is_key_name(name) { Ok(name.to_owned()) } else { Err(wanted) }
}

fn outside(table: &Table<'_>, files: &Files, log: &Path, note: impl Fn(String, &Place)) -> Vec<String> {
    let known = |at: &At<String>| {
        let named = |scheme| at.value.strip_prefix(scheme).is_some_and(|rest: &str| !rest.trim().is_empty());
        let uri = at.value.parse::<http::Uri>().ok();
        let uri = uri.filter(|uri| uri.authority().is_some_and(|host| !host.as_str().contains('@')));
        let fine = match uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.host()?))) {
            Some(("https", _)) => true,
            Some(("http", host)) => is_private(host.trim_matches(['[', ']'])),
            _ => named("dir:") || named("command:"),
        };
        if !fine {
            let hint = "\"dir:PATH\", \"command:…\" or \"https://…\" (http:// for loopback and private addresses)";
            let what = format!("unknown place for checkpoints {:?}", at.value);
            table.sink().wrong(Some(&at.place), what, Some(hint.into()));
        }
        if at.value.strip_prefix("dir:").is_some_and(|path| real(&files.resolve(path)) == real(log)) {
            let what = "these checkpoints would lie beside the log: who can rewrite it can rewrite them";
            table.sink().odd(Some(&at.place), format!("{what}; name a place outside"));
        }
        note(format!("audit/checkpoints/{}", at.value), &at.place);
        fine
    };
    table.list("checkpoints", str::parse::<String>).entries.into_iter().filter(known).map(|at| at.value).collect()
}
