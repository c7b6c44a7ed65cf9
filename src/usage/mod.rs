//! What an answer used: read from the bytes as they go by, estimated where nobody says.
//!
//! A [`Scanner`] watches an answer in bounded memory, whatever the size of its events and however they are cut into
//! pieces, and forwards it untouched except for the one usage chunk that only we asked for. [`Calibration`] turns
//! bytes into tokens for reservations and for answers that report nothing; a [`Gauge`] decides what is charged.
//! Nothing here holds a limit, or knows what a token costs.

mod estimate;
mod json;
mod lines;
mod nesting;
mod report;
mod runs;
mod scanner;
mod settle;
mod texts;
mod token;
mod words;

pub use estimate::{Calibration, Calibrations, upper_bound};
pub use scanner::{Form, MOST_HELD, Observed, Scanner};
pub use settle::{Basis, Gauge, Settlement};
