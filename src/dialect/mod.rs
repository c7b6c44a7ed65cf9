//! The two vendors' wire forms: what a request body asks for, and how refusals, limits and errors are spelled.
//!
//! Everything here is a pure function from words to bytes or back; which words, and when, is decided elsewhere. A
//! client of either vendor's SDK must understand what is written here without knowing that a gateway stands between.

mod body;
mod catalogue;
mod content;
mod envelope;
mod event;
mod json;
mod known;
mod limit_headers;
mod metered;
mod splice;
mod text;

pub use body::read;
pub use catalogue::{Page, models_list};
pub use envelope::{Envelope, Form, envelope, name_request};
pub use event::error_event;
pub use limit_headers::{Fixed, LimitView, limit_headers, passing, policy_name};
pub use splice::{Edits, Spliced, splice};
pub use text::{Escape, Measure};

use crate::ask::Dialect;
use crate::outcome::Code;

/// `error.type` as the clients of `dialect` know it.
fn error_type(dialect: Dialect, code: Code) -> &'static str {
    match (dialect, code) {
        (Dialect::OpenAi, Code::InsufficientQuota) => "insufficient_quota",
        _ => code.on_the_wire().1.as_str(),
    }
}
