//! Portcullis: a mutual-TLS gateway in front of a model API.
//!
//! It answers, for every request: **who** is this (client certificate), **for what** (declared purpose), **how much**
//! (the organization's quotas), and **can it be proved afterwards** (audit).
//!
//! # Words
//!
//! Eight words are used everywhere. A **[`Peer`](peer::Peer)** is what a handshake proved. A **Caller** is the one
//! organization it belongs to. An **[`Ask`](ask::Ask)** is the one parsed request. The **Policy** says what may be,
//! the **Ledger** what has been. An **Admission** is a request judged and reserved; its **Hold** is the reservation;
//! the **Record** is the story of one exchange.
//!
//! # Floors
//!
//! A module imports only from lower floors, or from a module listed earlier on its own floor. `tests/floors.rs` reads
//! this table and holds the code to it.
//!
//! | floor | modules |
//! |---|---|
//! | 6 commands | `remote`, `mock`, `demo`, `cli` |
//! | 5 assembly | `drain`, `snapshot`, `tenure`, `failure`, `selfservice`, `waiting`, `gateway`, `withdraw`, `turnstile`, `connection`, `worker`, `door`, `renaming`, `reload`, `admin`, `handover`, `server` |
//! | 4 exchange | `record`, `body`, `cut`, `upstream`, `reserve`, `meter`, `answer` |
//! | 3 wire | `deadline`, `descriptors`, `socket`, `tls`, `guard`, `dialect`, `usage` |
//! | 2 judgement | `gate`, `identify`, `admit` |
//! | 1 facts | `post`, `traces`, `trust`, `policy`, `ledger`, `registry`, `audit`, `metrics` |
//! | 0 words | `octets`, `placed`, `screen`, `names`, `clock`, `tokens`, `limits`, `outcome`, `peer`, `ask` |
//!
//! Beside the floors stands `keeper`, which owns files: audit segments and the ledger's durable marks. Everything
//! else talks to it by message; no worker makes a file call.
//!
//! # Invariants
//!
//! Each is held by a type, a lint or a test.
//!
//! * No request reaches `upstream` without an accepted audit line.
//! * Floors 0 and 2 do no I/O and know no runtime; only `clock` reads time.
//! * Only `policy::file` deserializes policy. A reload never writes what was used: it only lets use follow a name.
//! * No body is collected, except the bounded request body that admission must read.
//! * Every admitted exchange yields exactly one closing audit line.
//! * Metric labels come from closed enums or configured names, never from request bytes.
//! * No `unsafe`; no `unwrap`, `expect` or indexing outside tests; no lock guard crosses an `.await`.
//! * What a client reads never holds operator text (addresses, paths, other organizations).

pub mod ask;
pub mod clock;
pub mod limits;
pub mod names;
pub mod octets;
pub mod outcome;
pub mod peer;
pub mod placed;
pub mod screen;
pub mod tokens;

pub mod audit;
pub mod ledger;
pub mod metrics;
pub mod policy;
pub mod post;
pub mod registry;
pub mod traces;
pub mod trust;

pub mod keeper;

pub mod gate;

pub mod admit;
pub mod identify;

pub mod deadline;
pub mod descriptors;
pub mod dialect;
pub mod guard;
pub mod socket;
pub mod tls;
pub mod usage;

pub mod answer;
pub mod body;
pub mod cut;
pub mod meter;
pub mod record;
pub mod reserve;
pub mod upstream;

pub mod admin;
pub mod connection;
pub mod door;
pub mod drain;
pub mod failure;
pub mod gateway;
pub mod handover;
pub mod reload;
pub mod renaming;
pub mod selfservice;
pub mod server;
pub mod snapshot;
pub mod tenure;
pub mod turnstile;
pub mod waiting;
pub mod withdraw;
pub mod worker;

pub mod mock;

pub mod remote;

pub mod demo;

pub mod cli;
