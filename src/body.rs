//! The one body that is collected: the request's, within its bounds, because admission must read it.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dashmap::DashMap;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::guard::framing::content_length;
use crate::names::{Hashing, OrgId};
use crate::outcome::{Code, Refusal};

/// Memory that all waiting request bodies share. One organization has half of it at most, so that bodies which come byte
/// by byte keep nobody else out.
#[derive(Debug, Clone, Default)]
pub struct Room(Arc<Shares>);

#[derive(Debug, Default)]
struct Shares {
    all: AtomicU64,
    each: DashMap<OrgId, Arc<AtomicU64>, Hashing>,
}

/// A part of it, given back on drop.
#[derive(Debug)]
pub struct Taken {
    room: Room,
    share: Arc<AtomicU64>,
    bytes: u64,
}

impl Room {
    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.all.load(Ordering::Relaxed)
    }

    fn take(&self, whose: &OrgId) -> Taken {
        let known = self.0.each.get(whose).map(|share| share.clone());
        let share = known.unwrap_or_else(|| self.0.each.entry(whose.clone()).or_default().clone());
        Taken { room: self.clone(), share, bytes: 0 }
    }
}

impl Taken {
    /// Takes so many bytes more.
    fn grow(&mut self, bytes: u64, limits: &Limits) -> Result<(), Refusal> {
        self.bytes += bytes;
        let own = self.share.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let all = self.room.0.all.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if all > limits.memory || own > limits.share() { Err(no_room()) } else { Ok(()) }
    }

    /// Whether so many bytes more could be taken now.
    fn could_grow(&self, bytes: u64, limits: &Limits) -> bool {
        let fits = |used: &AtomicU64, most: u64| used.load(Ordering::Relaxed).saturating_add(bytes) <= most;
        fits(&self.room.0.all, limits.memory) && fits(&self.share, limits.share())
    }
}

fn no_room() -> Refusal {
    Refusal::new(Code::Overloaded, "The gateway has no room for this body now. Try again shortly.")
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.0.all.fetch_sub(self.bytes, Ordering::AcqRel);
        self.share.fetch_sub(self.bytes, Ordering::AcqRel);
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

impl Limits {
    /// Bytes of all bodies of one organization that wait for admission: half of all, or one body where that is more.
    fn share(&self) -> u64 {
        (self.memory / 2).max(self.largest).min(self.memory)
    }
}

/// Why a body is not here.
#[derive(Debug)]
pub enum Missing {
    /// It may not be read.
    Refused(Refusal),
    /// Its client left inside it.
    Left,
}

impl From<Refusal> for Missing {
    fn from(refusal: Refusal) -> Missing {
        Missing::Refused(refusal)
    }
}

const STILL: &str = "The body stood still for too long.";

/// Whether a refusal says that the body stood still: nothing more is to be expected of it then.
#[must_use]
pub fn stood_still(refusal: &Refusal) -> bool {
    refusal.message == STILL
}

/// What is told of a body that ends before its end.
#[must_use]
pub fn broken_off() -> Refusal {
    Refusal::new(
        Code::RequestInvalid,
        "The body broke off, its framing is wrong, or it has more chunk extensions or trailers than are taken here.",
    )
}

impl From<hyper::Error> for Missing {
    /// A client leaves when it closes or loses the connection, or takes the request back. What is wrong in what it sent is
    /// neither: the guards and the HTTP library find that, and say so by the kind of their error.
    fn from(error: hyper::Error) -> Missing {
        let lost =
            |error: &io::Error| !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput);
        let cause = error.source();
        let left = match cause.and_then(|cause| cause.downcast_ref::<h2::Error>()) {
            Some(stream) => stream.is_remote() || stream.get_io().is_some_and(lost),
            None => cause.and_then(|cause| cause.downcast_ref::<io::Error>()).is_some_and(lost),
        };
        if left { Missing::Left } else { Missing::Refused(broken_off()) }
    }
}

/// Reads a body of an organization's. It is taken from where it lies only to its end: what a refusal leaves unread stays there.
///
/// # Errors
/// `body_too_large`, `overloaded`, or `request_invalid` when its framing breaks or it stops; or its client left.
pub async fn read(
    stated: Option<u64>,
    body: &mut Option<Incoming>,
    limits: Limits,
    (room, whose): (&Room, &OrgId),
) -> Result<Whole, Missing> {
    let Limits { largest, patience, .. } = limits;
    let too_large = || Refusal::new(Code::BodyTooLarge, format!("A body may have {largest} bytes here."));
    if stated.is_some_and(|stated| stated > largest) {
        return Err(too_large().into());
    }
    let mut taken = room.take(whose);
    // Not taken ahead: clients that only say so would hold all of it.
    if stated.is_some_and(|stated| !taken.could_grow(stated, &limits)) {
        return Err(no_room().into());
    }
    let Some(body) = body else { return Ok(Whole { bytes: Bytes::new(), taken }) };
    let mut first: Option<Bytes> = None;
    let mut joined = BytesMut::new();
    loop {
        // A timer for each frame: a body that moves is never cut.
        let frame = timeout(patience, body.frame()).await;
        let stalled = |_| Refusal::new(Code::RequestInvalid, STILL);
        let Some(frame) = frame.map_err(stalled)? else { break };
        let data = match frame?.into_data() {
            Ok(data) => data,
            // The HTTP library drops pseudo-header fields from trailers, where they are malformed (RFC 9113 §8.1).
            Err(trailers) if trailers.trailers_ref().is_some_and(HeaderMap::is_empty) => {
                let refusal = Refusal::new(Code::RequestInvalid, "The trailers hold what may not stand in trailers.");
                return Err(refusal.into());
            }
            Err(_) => continue,
        };
        taken.grow(data.len() as u64, &limits)?;
        if taken.bytes > largest {
            return Err(too_large().into());
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
