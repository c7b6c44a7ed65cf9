//! What nobody writes behind a signed `stop`: whoever has not got the signing key could lay records there, and the next
//! start would sign them.
//!
//! A run writes nothing after its `stop`, but for closing lines of requests that gave up meanwhile, which the same note
//! covers. The next one writes `start`, with `repaired` before it, and has that signed before it writes more. A start that
//! dies before its note leaves these two unsigned, however often; anything else there is not the gateway's.

use crate::audit::Kind;

/// How a log stands, record by record.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// The last run wrote its stop.
    stopped: bool,
    /// It had when the newest note was signed.
    signed: bool,
}

impl Ended {
    /// Takes the next record; whether it stands unsigned behind a signed stop, where no run writes it.
    pub(super) fn strays(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Start => self.stopped = false,
            Kind::Stop => self.stopped = true,
            _ => {}
        }
        self.signed && !matches!(kind, Kind::Start | Kind::Repaired)
    }

    /// A note is over everything up to here.
    pub(super) fn signed(&mut self) {
        self.signed = self.stopped;
    }
}
