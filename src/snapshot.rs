//! A policy with everything that was made from it: what handshakes are judged by, and how upstreams are reached.
//!
//! Replaced whole. A request takes one and keeps it to its end.

use std::sync::Arc;

use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::record::Stamp;
use crate::tls::{self, Acceptance, Revoked, Terms};
use crate::upstream::{Endpoint, Unusable};

/// One policy, ready to serve.
pub struct Snapshot {
    /// What may be.
    pub policy: Arc<Policy>,
    /// What records say of it.
    pub stamp: Stamp,
    /// Who is let in.
    pub acceptance: Arc<Acceptance>,
    /// How upstreams are reached, in the order of the policy.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How operators are judged, where they come with certificates.
    pub operators: Option<Arc<rustls::ServerConfig>>,
}

impl Snapshot {
    /// Makes everything that a policy needs to serve. Endpoints that did not change are taken over from `previous`,
    /// and with them their connections.
    ///
    /// # Errors
    /// When an upstream's or the operators' TLS cannot be set up.
    pub fn new(
        policy: Policy,
        revoked: Revoked,
        metrics: &Metrics,
        previous: Option<&Snapshot>,
    ) -> Result<Snapshot, Unusable> {
        let terms = Terms {
            identity: policy.identity.clone(),
            authorities: policy.authorities.clone(),
            server_names: policy.server_names.clone(),
            explain: policy.explain_missing,
            longest: policy.longest_certificate,
            revoked,
        };
        let known = previous.map(|snapshot| snapshot.endpoints.as_slice()).unwrap_or_default();
        let endpoint = |upstream: &Arc<crate::policy::Upstream>| {
            let same = known.iter().find(|endpoint| endpoint.reaches(upstream)).cloned();
            same.map_or_else(|| Endpoint::new(upstream, metrics.upstream(&upstream.name)).map(Arc::new), Ok)
        };
        let endpoints = policy.models.upstreams().iter().map(endpoint).collect::<Result<_, _>>()?;
        let admin = policy.settings.admin.tls.as_ref();
        let operators = admin.map(|(certificate, key, authority)| {
            let made = tls::operators(certificate, key.expose().as_bytes(), authority);
            made.map_err(|Unusable(what)| Unusable(format!("admin.tls: {what}")))
        });
        let operators = operators.transpose()?;
        let stamp = Stamp::of(policy.generation, policy.hash);
        Ok(Snapshot { policy: Arc::new(policy), stamp, acceptance: Acceptance::new(terms), endpoints, operators })
    }

    /// The endpoint of an upstream.
    #[must_use]
    pub fn endpoint(&self, upstream: &crate::policy::Upstream) -> Option<&Arc<Endpoint>> {
        self.endpoints.iter().find(|endpoint| endpoint.reaches(upstream))
    }
}
