//! The operators' side: its own listener, for looking and for acting. Partners never reach it.
//!
//! Looking is GET; everything that changes something is POST, is refused to other sites' pages, and is recorded with
//! who asked for it.

mod act;
mod exposure;
pub mod glance;
mod keeping;
mod listener;
mod look;
pub mod page;
mod places;
mod refused;
mod socket;
pub mod status;
pub mod terminal;

pub use keeping::{answered, keep_trying, settle};
pub use listener::{Listener, Scope, serve};
pub use socket::UnixSocket;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http_body_util::Full;
use hyper::{Response, StatusCode};

use crate::clock::Wall;
use crate::gateway::Gateway;
use crate::keeper::kept::Kept;
use crate::reload::Reloader;

/// What operators look at and act upon.
pub struct Desk {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// How the policy is replaced.
    pub reloader: Arc<Reloader>,
    /// Where withdrawals are kept.
    pub withdrawn: Kept,
    /// When the process began.
    pub started: Wall,
    /// One withdrawal is written at a time, the latest last. True while what is withdrawn is owed to the disk.
    pub writing: tokio::sync::Mutex<bool>,
    /// Another process serves operators by now: nothing may change here any more.
    pub left: AtomicBool,
    /// Held, in a copy, by whoever carries out what an operator asked for, and by whoever answers it.
    pub under_way: Arc<()>,
    /// Asks for the stop after a drain.
    pub stop: tokio::sync::mpsc::UnboundedSender<()>,
}

impl Desk {
    /// The desk of a process that `started` then; a wish to `stop` is heard at the other end.
    #[must_use]
    pub fn new(
        gateway: Arc<Gateway>,
        reloader: Arc<Reloader>,
        withdrawn: Kept,
        started: Wall,
        stop: tokio::sync::mpsc::UnboundedSender<()>,
    ) -> Desk {
        let (writing, left, under_way) = (tokio::sync::Mutex::default(), AtomicBool::new(false), Arc::default());
        Desk { gateway, reloader, withdrawn, started, writing, left, under_way, stop }
    }
}

/// An answer of the admin side.
pub type Answer = Response<Full<Bytes>>;

/// An answer of one kind.
fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

/// A sentence as whoever acts is answered: it is told from an answer of somebody else's by its form.
fn told(status: StatusCode, sentence: &str) -> Answer {
    json(status, &serde_json::json!({ "text": sentence }))
}

fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    answer(status, "application/json", value.to_string())
}
