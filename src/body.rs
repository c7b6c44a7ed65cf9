//! The one body that is collected: the request's, within its bounds, because admission must read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::guard::framing::content_length;
use crate::outcome::{Code, Refusal};

/// Memory that all waiting request bodies share.
#[derive(Debug, Clone, Default)]
pub struct Room(Arc<AtomicU64>);

/// A part of it, given back on drop.
#[derive(Debug)]
pub struct Taken {
    room: Room,
    bytes: u64,
}

impl Room {
    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn take(&self) -> Taken {
        Taken { room: self.clone(), bytes: 0 }
    }
}

impl Taken {
    fn grow(&mut self, bytes: u64, cap: u64) -> Result<(), Refusal> {
        self.bytes += bytes;
        if self.room.0.fetch_add(bytes, Ordering::AcqRel) + bytes > cap {
            return Err(no_room());
        }
        Ok(())
    }
}

fn no_room() -> Refusal {
    Refusal::new(Code::Overloaded, "The gateway has no room for this body now. Try again shortly.")
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A request body, whole, and the room that it takes.
#[derive(Debug)]
pub struct Whole {
    /// The bytes.
    pub bytes: Bytes,
    /// Their room.
    pub taken: Taken,
}

/// The length that a head states.
#[must_use]
pub fn stated(headers: &HeaderMap) -> Option<u64> {
    content_length(headers.get(CONTENT_LENGTH)?.as_bytes())
}

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one body.
    pub largest: u64,
    /// Bytes of all bodies together that wait for admission.
    pub memory: u64,
    /// How long one may stand still.
    pub patience: Duration,
}

/// Reads a body. It is taken from where it lies only to its end: what a refusal leaves unread stays there.
///
/// # Errors
/// `body_too_large`, `overloaded`, or `request_invalid` when its framing breaks or it stops.
pub async fn read(
    stated: Option<u64>,
    body: &mut Option<Incoming>,
    limits: Limits,
    room: &Room,
) -> Result<Whole, Refusal> {
    let Limits { largest, memory, patience } = limits;
    let too_large = || Refusal::new(Code::BodyTooLarge, format!("A body may have {largest} bytes here."));
    if stated.is_some_and(|stated| stated > largest) {
        return Err(too_large());
    }
    // Not taken ahead: clients that only say so would hold all of it.
    if stated.is_some_and(|stated| room.used().saturating_add(stated) > memory) {
        return Err(no_room());
    }
    let mut taken = room.take();
    let Some(body) = body else { return Ok(Whole { bytes: Bytes::new(), taken }) };
    let mut first: Option<Bytes> = None;
    let mut joined = BytesMut::new();
    loop {
        // A timer for each frame: a body that moves is never cut.
        let frame = timeout(patience, body.frame()).await;
        let stalled = |_| Refusal::new(Code::RequestInvalid, "The body stood still for too long.");
        let Some(frame) = frame.map_err(stalled)? else { break };
        let broken = |_| Refusal::new(Code::RequestInvalid, "The body broke off, or its framing is wrong.");
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        taken.grow(data.len() as u64, memory)?;
        if taken.bytes > largest {
            return Err(too_large());
        }
        match first.take() {
            None if joined.is_empty() => first = Some(data),
            None => joined.extend_from_slice(&data),
            Some(one) => {
                joined.reserve(usize::try_from(stated.unwrap_or(0)).unwrap_or(0).max(one.len() + data.len()));
                joined.extend_from_slice(&one);
                joined.extend_from_slice(&data);
            }
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(Whole { bytes: first.unwrap_or_else(|| joined.freeze()), taken })
}
