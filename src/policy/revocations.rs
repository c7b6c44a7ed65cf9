//! What was withdrawn by hand, beside the policy and independent of any authority.

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::peer::Leaf;

/// What a withdrawal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An organization.
    Organization,
    /// A certificate, by its SHA-256.
    CertificateSha256,
    /// Every certificate of an authority.
    Authority,
    /// A purpose, for everybody.
    Purpose,
    /// A model, for everybody.
    Model,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 5] =
        [Kind::Organization, Kind::CertificateSha256, Kind::Authority, Kind::Purpose, Kind::Model];

    /// The word in requests and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Organization => "organization",
            Kind::CertificateSha256 => "certificate_sha256",
            Kind::Authority => "authority",
            Kind::Purpose => "purpose",
            Kind::Model => "model",
        }
    }

    /// What an operator is told of the withdrawal that decides: which it is, and the command that ends it.
    #[must_use]
    pub fn told(self, target: &str) -> String {
        let (what, option) = match self {
            Kind::Organization => ("organization", "org"),
            Kind::CertificateSha256 => ("certificate", "cert"),
            Kind::Authority => ("authority", "authority"),
            Kind::Purpose => ("purpose", "purpose"),
            Kind::Model => ("model", "model"),
        };
        format!("the {what} {target} was revoked by command; `portcullis restore --{option} {target}` gives it back")
    }
}

/// One withdrawal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// What it is about.
    pub kind: Kind,
    /// Which one.
    pub target: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// Why.
    pub reason: Option<String>,
}

/// All withdrawals: a snapshot that is replaced whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations(Vec<Revoked>);

impl Revocations {
    /// Reads what [`Revocations::to_bytes`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Revocations, serde_json::Error> {
        serde_json::from_slice(bytes).map(Revocations)
    }

    /// For the file that keeps them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&self.0).unwrap_or_default()
    }

    /// All of them, the oldest first.
    #[must_use]
    pub fn all(&self) -> &[Revoked] {
        &self.0
    }

    /// With one more; one that is there already keeps its date.
    #[must_use]
    pub fn with(&self, kind: Kind, target: &str, reason: Option<String>, now: Wall) -> Revocations {
        let mut all = self.0.clone();
        if !self.holds(kind, target) {
            all.push(Revoked { kind, target: target.to_owned(), since: now.to_string(), reason });
        }
        Revocations(all)
    }

    /// Without one.
    #[must_use]
    pub fn without(&self, kind: Kind, target: &str) -> Revocations {
        let stays = |revoked: &&Revoked| revoked.kind != kind || revoked.target != target;
        Revocations(self.0.iter().filter(stays).cloned().collect())
    }

    /// Whether `target` was withdrawn.
    #[must_use]
    pub fn holds(&self, kind: Kind, target: &str) -> bool {
        self.0.iter().any(|revoked| revoked.kind == kind && revoked.target == target)
    }

    /// What withdraws a certificate, if anything does: its authority's withdrawal, or its own.
    #[must_use]
    pub fn certificate(&self, authority: &str, leaf: &Leaf) -> Option<Kind> {
        if self.0.is_empty() {
            return None;
        }
        if self.holds(Kind::Authority, authority) {
            return Some(Kind::Authority);
        }
        self.holds(Kind::CertificateSha256, &leaf.sha256.to_string()).then_some(Kind::CertificateSha256)
    }
}
