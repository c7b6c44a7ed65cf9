//! Taking access away: whoever may not stay is found in the register and cut.
//!
//! After every change (a policy, a withdrawal by hand, time itself) each live connection is judged as if it came now,
//! and each stream's purpose and model as if it were asked for now.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::admit;
use crate::clock::Now;
use crate::gateway::Gateway;
use crate::identify;
use crate::names::OrgId;
use crate::outcome::{Code, Ending, Handshake};
use crate::policy::{Org, Revocations};
use crate::registry::{Cause, Connection, Stream};
use crate::snapshot::Snapshot;

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Connections that were cut.
    pub connections: usize,
    /// Streams that were cut.
    pub streams: Vec<Arc<Stream>>,
}

/// Judges every live connection and stream, and cuts those that may not stay.
pub fn sweep(gateway: &Gateway) -> Swept {
    let (snapshot, revoked, now) = (gateway.current(), gateway.revocations.load_full(), gateway.clock.now());
    let mut swept = Swept::default();
    for connection in gateway.registry.connections() {
        if let Some(cause) = judge(&connection, &snapshot, &revoked, now)
            && connection.cut().pull(cause)
        {
            swept.connections += 1;
        }
    }
    for stream in gateway.registry.streams() {
        let cause = stream.connection().cut().cause().or_else(|| judge_stream(&stream, &snapshot, &revoked, now));
        if let Some(cause) = cause
            && stream.cut().pull(cause)
        {
            swept.streams.push(stream);
        }
    }
    gateway.registry.recompute_expiry();
    swept
}

/// Judges one connection that was not in the register yet when the last sweep went through it.
pub fn recheck(gateway: &Gateway, connection: &Connection) {
    let (snapshot, revoked) = (gateway.current(), gateway.revocations.load_full());
    if let Some(cause) = judge(connection, &snapshot, &revoked, gateway.clock.now()) {
        connection.cut().pull(cause);
    }
}

/// Cuts everything that remains, for one reason: drain's deadline.
pub fn end_all(gateway: &Gateway) {
    let cause = Cause { code: Code::Draining, ending: Ending::Drained, at: gateway.clock.now().mono };
    gateway.registry.streams().iter().for_each(|stream| {
        stream.cut().pull(cause);
    });
    gateway.registry.connections().iter().for_each(|connection| {
        connection.cut().pull(cause);
    });
}

/// Waits until the streams of a sweep have left the register, and measures how long that took.
pub async fn measure(gateway: &Gateway, streams: Vec<Arc<Stream>>, trigger: Now) {
    if streams.is_empty() {
        return;
    }
    // A stream that left is held by nobody but this list.
    for _ in 0..1000 {
        if streams.iter().all(|stream| Arc::strong_count(stream) == 1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gateway.recorder.metrics.revocation(gateway.clock.now().mono.since(trigger.mono));
}

fn judge(connection: &Connection, snapshot: &Snapshot, revoked: &Revocations, now: Now) -> Option<Cause> {
    let peer = connection.peer()?;
    let cut = |code| Some(Cause { code, ending: Ending::Severed, at: now.mono });
    match identify::identify(&snapshot.policy, revoked, peer, now.wall) {
        // A connection that never belonged to anybody is told why, request by request, instead of being cut; only its
        // certificate can cut it.
        Err(refusal) if connection.org().is_none() && !about_certificate(refusal.code) => return None,
        Err(refusal) => return cut(removed(refusal.code)),
        Ok(caller) if connection.org().is_some_and(|org| *org != caller.org().id) => {
            return cut(Code::OrganizationSuspended);
        }
        Ok(_) => {}
    }
    match snapshot.acceptance.judge(&CertificateDer::from(&*peer.leaf().der), now.wall) {
        Ok(_) => None,
        Err(turned) if turned.result == Handshake::Expired => cut(Code::CertificateExpired),
        Err(_) => cut(Code::CertificateRevoked),
    }
}

fn about_certificate(code: Code) -> bool {
    matches!(code, Code::CertificateRevoked | Code::CertificateExpired)
}

/// To an organization that was removed, the cut says what a suspension says.
fn removed(code: Code) -> Code {
    if code == Code::OrganizationUnknown { Code::OrganizationSuspended } else { code }
}

fn judge_stream(stream: &Stream, snapshot: &Snapshot, revoked: &Revocations, now: Now) -> Option<Cause> {
    let cut = |code| Some(Cause { code, ending: Ending::Severed, at: now.mono });
    let Some(org) = org(snapshot, &stream.facts.org) else { return cut(Code::OrganizationSuspended) };
    if !admit::may_pursue(org, revoked, &stream.facts.purpose)
        || !snapshot.policy.purposes.contains_key(&stream.facts.purpose)
    {
        return cut(Code::PurposeNotPermitted);
    }
    if !admit::may_use(&snapshot.policy, org, revoked, stream.facts.model.as_str()) {
        return cut(Code::ModelNotPermitted);
    }
    None
}

fn org<'a>(snapshot: &'a Snapshot, id: &OrgId) -> Option<&'a Arc<Org>> {
    snapshot.policy.org(id.as_str())
}
