//! A connection as its requests see it, and what a worker has of its own: the steps of the pipeline that need either.
//!
//! Nothing here decides: verdicts come from the floors below.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use hyper::Response;

use super::Gateway;
use crate::admit::{Choice, Permitted};
use crate::ask::Ask;
use crate::cut::unless_cut;
use crate::failure::Failure;
use crate::gate::{self, Doors, Gated};
use crate::guard::Watch;
use crate::identify::Caller;
use crate::outcome::{Code, Refusal};
use crate::policy::Listen;
use crate::record::{Accepted, Record, Recorder};
use crate::registry::{Connection, StreamEntry, StreamFacts};
use crate::snapshot::Snapshot;
use crate::upstream::{self, AnswerBody, Outgoing, Pools};

/// What one worker has of its own beside what all share.
pub struct Station {
    /// What all share.
    pub gateway: Arc<Gateway>,
    /// Its connections to upstreams.
    pub pools: Pools,
    /// Its way to the audit log.
    pub recorder: Arc<Recorder>,
}

/// One connection, as its requests see it.
pub struct Visit {
    pub(super) station: Rc<Station>,
    pub(super) connection: Arc<Connection>,
    pub(super) watch: Watch,
    pub(super) over: Cell<bool>,
}

impl Visit {
    /// A connection's visit, before its guard is known.
    #[must_use]
    pub fn new(station: Rc<Station>, connection: Arc<Connection>) -> Visit {
        Visit { station, connection, watch: Watch::default(), over: Cell::new(false) }
    }

    /// With its guard's watch.
    #[must_use]
    pub fn watched(mut self, watch: Watch) -> Visit {
        self.watch = watch;
        self
    }

    /// The gateway.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.station.gateway
    }

    /// Whether everything was said that there is to say: a client without a certificate was told so.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The partner side's settings in force.
    #[must_use]
    pub fn listen(&self) -> Listen {
        self.gateway().current().policy.listen.clone()
    }

    pub(super) fn peer(&self) -> Result<&crate::peer::Peer, Refusal> {
        self.connection.peer().ok_or_else(|| {
            let message = "Connect with a client certificate: this gateway knows its partners by nothing else.";
            Refusal::new(Code::ClientCertificateRequired, message)
        })
    }

    /// The guard's verdict on the bytes, then the gate's on the head.
    pub(super) fn gate(&self, head: &Parts, snapshot: &Snapshot) -> Result<Gated, Refusal> {
        if let Some(refusal) = self.watch.withheld(head.uri.path()) {
            return Err(refusal);
        }
        let policy = &snapshot.policy;
        gate::judge(head, Doors { server_names: &policy.server_names, purpose_header: &policy.purpose_header })
    }

    /// Counts the connection for its organization.
    pub(super) fn bind(&self, caller: &Caller) -> Result<(), Refusal> {
        let org = caller.org();
        if self.connection.org().is_none()
            && let Some(peer) = self.connection.peer()
        {
            let now = self.gateway().clock.now().wall;
            self.gateway().recorder.metrics.client_certificate(&org.id, peer.leaf(), now);
        }
        if self.gateway().registry.bind(&self.connection, &org.id, org.connections) {
            return Ok(());
        }
        let message = "This organization holds as many connections as it may. Use those that stand.";
        Err(Refusal::new(Code::ConcurrencyLimitExceeded, message))
    }

    pub(super) fn enter(
        &self,
        caller: &Caller,
        permitted: &Permitted,
        choice: &Choice,
        ask: &Ask,
        record: &Record,
    ) -> StreamEntry {
        let facts = StreamFacts {
            request_id: record.request_id().clone(),
            org: caller.org().id.clone(),
            purpose: permitted.purpose().clone(),
            model: ask.model.clone(),
            group: choice.group_id().cloned(),
            route: ask.route,
        };
        self.gateway().registry.open(&self.connection, facts, record.opened())
    }

    /// Sends the request, unless access is withdrawn meanwhile. An [`Accepted`] proves that its audit line is written.
    pub(super) async fn send(
        &self,
        snapshot: &Snapshot,
        choice: &Choice,
        outgoing: Outgoing,
        entry: &StreamEntry,
        _: &Accepted,
        record: &mut Record,
    ) -> Result<Response<AnswerBody>, Failure> {
        let clock = &self.gateway().clock;
        let forwarded = clock.now();
        record.facts().forwarded = Some(forwarded);
        let endpoint = snapshot.endpoint(&choice.upstream).ok_or(Failure::Lost)?;
        let sending = upstream::send(&self.station.pools, endpoint, outgoing);
        let sent = match unless_cut(entry.stream().cut(), sending).await {
            Ok(sent) => sent.map_err(Failure::Upstream),
            Err(cause) => Err(Failure::Cut(cause)),
        };
        match &sent {
            Ok(response) => {
                endpoint.series().answered(response.status().as_u16(), clock.now().mono.since(forwarded.mono));
            }
            Err(Failure::Upstream(failed)) => endpoint.series().failed(failed.code),
            Err(_) => {}
        }
        sent
    }
}
