//! What the audit trail is: how a line is made, chained, sealed and checked.
//!
//! Everything here is a function of its arguments: no file, no thread, no clock. The keeper writes what this module
//! forms; `portcullis audit` reads it back with the same words. A record is a line without its newline; its hash is
//! the RFC 6962 leaf hash, which serves the chain (`prev`) and the tree (checkpoints, inclusion proofs) at once.

pub mod chain;
pub mod checkpoint;
pub mod identity;
pub mod line;
pub mod ocsf;
pub mod proof;
pub mod report;
pub mod told;
pub mod tree;
pub mod verify;

pub use chain::{Chain, Draft};
pub use checkpoint::{Checkpoint, Signer, VerifyingKey};
pub use line::{Event, Fields, Kind};
pub use tree::{Frontier, Leaf};
