//! The one body that is collected: the request's, within its bounds, because admission must read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;

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
            return Err(Refusal::new(
                Code::Overloaded,
                "The gateway has no room for this body now. Try again shortly.",
            ));
        }
        Ok(())
    }
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
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body of at most `largest` bytes, while all bodies together take at most `memory`.
///
/// # Errors
/// `body_too_large`, `overloaded`, or `request_invalid` when its framing breaks or it stops.
pub async fn read(
    stated: Option<u64>,
    body: Incoming,
    largest: u64,
    memory: u64,
    room: &Room,
) -> Result<Whole, Refusal> {
    let too_large = || Refusal::new(Code::BodyTooLarge, format!("A body may have {largest} bytes here."));
    if stated.is_some_and(|stated| stated > largest) {
        return Err(too_large());
    }
    let mut taken = room.take();
    let mut body = body;
    let mut first: Option<Bytes> = None;
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
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
