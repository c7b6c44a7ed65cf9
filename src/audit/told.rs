//! What the lines say that tell of no request: one shape a kind, so that every line is as its schema says.
//!
//! The shapes hold what their tellers know and decide nothing. What is not known is left out, never `null`. The lines
//! of requests are the record's own.

use serde::{Deserialize, Serialize};

use crate::outcome::Handshake;
use crate::peer::Sha256;

/// `start`: the gateway that writes from here on.
#[derive(Debug, Serialize)]
pub struct Started<'a> {
    /// Its version.
    pub version: &'a str,
    /// Its configuration's main file.
    pub config: &'a std::path::Path,
    /// The policy in force.
    pub generation: u64,
    /// Its hash.
    pub config_hash: Sha256,
}

/// `handshake_refused`.
#[derive(Debug, Serialize)]
pub struct HandshakeRefused<'a> {
    /// Where it came from.
    pub peer: std::net::SocketAddr,
    /// How it failed.
    pub result: Handshake,
    /// More of that, for the operator.
    pub detail: &'a str,
    /// The certificate that was shown, if it came to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presented: Option<Presented<'a>>,
}

/// A certificate that was shown in a handshake that failed. It stands apart from the `certificate` of other lines, which
/// is the client's own: here nobody has proved to hold its key.
#[derive(Debug, Serialize)]
pub struct Presented<'a> {
    /// Its digest.
    pub sha256: Sha256,
    /// Its issuer, as it says itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<&'a str>,
    /// Its serial number, as it says itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<&'a str>,
    /// The configured authority that signed it, where that was verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<&'a str>,
    /// Whose it is, where an authority signed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<&'a str>,
}

/// `dropped`: lines that could not be kept, by kind; or the sum of several such lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dropped {
    /// Requests that went through unrecorded (`on_failure = "open"`).
    #[serde(skip_serializing_if = "is_zero")]
    pub accepted: u64,
    /// Ends of such requests.
    #[serde(skip_serializing_if = "is_zero")]
    pub closed: u64,
    /// Refused requests beyond what is kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub refused: u64,
    /// Refused handshakes beyond what is kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub handshake_refused: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Dropped {
    /// Adds what a `dropped` line tells.
    pub fn add(&mut self, record: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Dropped>(record) else { return };
        self.accepted = self.accepted.saturating_add(line.accepted);
        self.closed = self.closed.saturating_add(line.closed);
        self.refused = self.refused.saturating_add(line.refused);
        self.handshake_refused = self.handshake_refused.saturating_add(line.handshake_refused);
    }

    /// Whether every line was kept.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Dropped::default()
    }

    /// How many of each kind, in words.
    #[must_use]
    pub fn words(&self, between: &str) -> String {
        let Dropped { accepted, closed, refused, handshake_refused } = *self;
        let kinds = [
            ("accepted", accepted),
            ("closed", closed),
            ("refused", refused),
            ("handshake_refused", handshake_refused),
        ];
        let words: Vec<String> = kinds.iter().filter(|(_, n)| *n > 0).map(|(kind, n)| format!("{kind}={n}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(between) }
    }
}

/// `reload`: one that was, applied or refused.
#[derive(Debug, Clone, Serialize)]
pub struct Reload {
    /// When.
    pub at: String,
    /// What asked for it.
    pub trigger: &'static str,
    /// Who asked for it.
    pub by: String,
    /// `applied` or `rejected`.
    pub result: &'static str,
    /// The policy in force afterwards.
    pub generation: u64,
    /// Its hash.
    pub hash: String,
    /// The difference, or the mistakes.
    pub text: String,
}

/// `revoke` and `restore`.
#[derive(Debug, Serialize)]
pub struct Withdrawal<'a> {
    /// What kind of thing is withdrawn, or given back.
    pub kind_of_target: &'static str,
    /// Which one.
    pub target: &'a str,
    /// Why, in the operator's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// Who asked for it.
    pub by: &'a str,
    /// Streams that were cut.
    pub streams: usize,
    /// Connections that were cut.
    pub connections: usize,
}

/// `drain`.
#[derive(Debug, Serialize)]
pub struct Drained<'a> {
    /// Who asked for it.
    pub by: &'a str,
    /// Streams that were open then.
    pub streams: usize,
}
