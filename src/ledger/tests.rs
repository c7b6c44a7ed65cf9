//! What the ledger promises, held against models that are too simple to be wrong.

mod calendar;
mod crash;
mod handover;
mod interleavings;
mod machine;
mod model;
mod oracle;
mod plans;
mod promises;
mod renames;
