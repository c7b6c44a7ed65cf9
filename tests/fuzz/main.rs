//! Everything that reads bytes from outside, fed with bytes that nobody would write.
//!
//! Each target holds one reader against an oracle that shares no code with it, not only against panics. The inputs are
//! the files of `corpus/<target>/` and what becomes of them in the [`forge`]; an input whose outcome is new joins them
//! for the rest of the run. `cargo test` replays the corpus and tries a fixed number of fixed mutations, so that it never
//! fails by chance; `tests/fuzz/run` goes on with new ones for as long as it is told. Nothing here needs more than
//! stable Rust, and nothing is ever written outside `corpus/` and the build folder.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test whose own means fail, fails; the oracles say which bytes they mean; a run lasts as long as it is told, and tells how far it came"
)]

mod answers;
mod bodies;
mod certificates;
mod engine;
mod forge;
mod framing;
mod heads;
mod settings;

use engine::{Target, fuzz};

/// A target of the same name as its corpus.
macro_rules! target {
    ($name:ident, $check:path, $cases:literal, $words:expr) => {
        #[test]
        fn $name() {
            fuzz(&Target { name: stringify!($name), check: $check, cases: $cases, words: $words });
        }
    };
}

target!(gate, heads::gate, 2000, heads::WORDS);
target!(purpose, heads::purpose, 2000, heads::WORDS);
target!(nomination, heads::nomination, 2000, heads::WORDS);
target!(framing, framing::framing, 1500, framing::WORDS);
target!(body, bodies::body, 1000, bodies::WORDS);
target!(scanner, answers::scanner, 300, answers::WORDS);
target!(certificate, certificates::certificate, 500, certificates::WORDS);
target!(crl, certificates::crl, 500, certificates::WORDS);
target!(config, settings::config, 100, settings::WORDS);
