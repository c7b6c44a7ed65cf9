//! The TLS files of the other two sides, upstreams and operators: held to what a connection needs, each flaw told where
//! its file is named, and what ends noted while there is time.

use super::ends::warn_soon;
use super::file::Table;
use crate::clock::Wall;
use crate::trust::{Subject, certified, ends, roots};

/// What the files of a side are called, and what they hold where they are there.
pub(super) struct Side<'a> {
    pub authority: (&'static str, Option<&'a [u8]>),
    pub certificate: &'static str,
    pub key: &'static str,
    /// Certificate and key.
    pub identity: Option<(&'a [u8], &'a [u8])>,
}

/// Notes what is wrong with a side's files.
pub(super) fn check(table: &Table<'_>, side: &Side<'_>) {
    let wrong = |key: &'static str, what: &str| table.wrong_at(key, format!("`{key}`: {what}"), None);
    if let (key, Some(pem)) = side.authority
        && let Err(flaw) = roots(pem)
    {
        wrong(key, &flaw.message);
    }
    let flaws = side.identity.and_then(|(certificate, key)| certified(certificate, key).err());
    for flaw in flaws.into_iter().flatten() {
        wrong(if flaw.subject == Subject::PrivateKey { side.key } else { side.certificate }, &flaw.message);
    }
}

/// Notes where the first of a file's certificates has ended or ends soon; `what` names it.
pub(super) fn note_end(table: &Table<'_>, key: &'static str, pem: &[u8], what: &str, now: Wall) {
    if let (Some(at), Some(ends)) = (table.text(key), ends(pem)) {
        warn_soon(table.sink(), &at.place, what, ends, now);
    }
}
