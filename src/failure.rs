//! What becomes of an admitted request that has no answer: settled, closed, and told without operator text.

use crate::answer::Manner;
use crate::meter::{Charged, Tab};
use crate::outcome::{Code, Ending, Refusal};
use crate::record::Record;
use crate::registry::Cause;
use crate::upstream;

/// Why an admitted request has no answer to pass on.
pub enum Failure {
    /// The upstream's fault.
    Upstream(upstream::Failed),
    /// Access was withdrawn.
    Cut(Cause),
    /// A snapshot that does not hold together, which cannot be.
    Lost,
}

/// Settles and closes an admitted request that has no answer, and says what the client is told.
pub fn fail(failure: Failure, tab: Box<Tab>, story: &mut Option<Record>, manner: &mut Manner) -> Refusal {
    let (refusal, ending, charged) = match failure {
        Failure::Upstream(failed) => {
            let ending = match failed.code {
                Code::UpstreamTimeout => Ending::UpstreamTimeout,
                // Nobody was asked.
                Code::Overloaded => Ending::Refused,
                _ => Ending::UpstreamFailed,
            };
            let charged = if failed.worked { Charged::Input } else { Charged::Nothing };
            let refusal = Refusal::new(failed.code, upstream_sentence(failed.code)).for_operator(failed.detail);
            (refusal, ending, charged)
        }
        Failure::Cut(cause) => {
            (cause.refusal("Access was withdrawn while this request waited."), cause.ending, tab.unanswered())
        }
        Failure::Lost => (lost(), Ending::Panicked, Charged::Nothing),
    };
    let settlement = tab.settle_unanswered(charged);
    if let Some(mut record) = story.take() {
        record.facts().settlement = Some(settlement);
        record.facts().detail.clone_from(&refusal.operator);
        record.facts().status = refusal.code.on_the_wire().0;
        manner.id = Some(record.request_id().clone());
        record.close(ending, Some(refusal.code));
    }
    refusal
}

fn upstream_sentence(code: Code) -> &'static str {
    match code {
        Code::UpstreamUnreachable => "The model cannot be reached at the moment. Try again shortly.",
        Code::UpstreamTimeout => "The model did not answer in time.",
        Code::Overloaded => "The gateway has no room for another call to the model now. Try again shortly.",
        _ => "The model's answer was not acceptable.",
    }
}

/// What a client is told where the gateway itself is at fault.
#[must_use]
pub fn lost() -> Refusal {
    Refusal::new(Code::InternalError, "The gateway failed on this request. It has been recorded.")
}
