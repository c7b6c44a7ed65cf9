//! `100 Continue` over HTTP/2 (RFC 9110 §10.1.1), which the HTTP library does not say.
//!
//! No head is read here. What is known of a stream is that it has begun, that nothing of its body has come, and that no
//! answer to it has begun: when the gateway wants one such body, all of them are asked for. A client that does not wait
//! passes over it (RFC 9110 §15.2), and so may one whose request is refused a moment later.

use bytes::BytesMut;
use smallvec::SmallVec;

use super::h2::{CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, RST_STREAM};

/// `:status: 100`, with the name by its number in the static table and the value as it is (RFC 7541 §6.2.2).
const STATUS_100: [u8; 5] = [0x08, 3, b'1', b'0', b'0'];
/// Streams that are remembered: more may wait than this only where the library takes no more.
const MOST: usize = 256;

/// The streams whose bodies nobody has asked for.
#[derive(Debug, Default)]
pub(super) struct Unasked {
    streams: SmallVec<[u32; 4]>,
    /// A frame was written, the first of which is the protocol's own, and no head goes on in the next.
    between: bool,
}

impl Unasked {
    /// Notes a frame of the client's.
    pub(super) fn came(&mut self, frame: Frame) {
        let Frame { kind, flags, stream, .. } = frame;
        match kind {
            HEADERS if flags & END_STREAM == 0 && self.streams.len() < MOST => self.streams.push(stream),
            HEADERS | DATA | RST_STREAM => self.forget(stream),
            _ => {}
        }
    }

    /// Notes a frame that is being written.
    pub(super) fn goes(&mut self, frame: Frame) {
        match frame.kind {
            HEADERS | CONTINUATION => self.between = frame.flags & END_HEADERS != 0,
            _ => self.between = true,
        }
        if matches!(frame.kind, HEADERS | RST_STREAM) {
            self.forget(frame.stream);
        }
    }

    fn forget(&mut self, stream: u32) {
        self.streams.retain(|one| *one != stream);
    }

    /// Whether there is one.
    pub(super) fn is_any(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Whether something may be said where a frame ends.
    pub(super) fn may_ask(&self) -> bool {
        self.between
    }

    /// Asks for all of them: the frames that say so.
    pub(super) fn ask(&mut self, into: &mut BytesMut) {
        for stream in self.streams.drain(..) {
            into.extend_from_slice(&[0, 0, 5, HEADERS, END_HEADERS]);
            into.extend_from_slice(&stream.to_be_bytes());
            into.extend_from_slice(&STATUS_100);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32) -> Frame {
        Frame { kind, flags, length: 1, stream }
    }

    fn asked(unasked: &mut Unasked) -> Vec<u32> {
        let mut said = BytesMut::new();
        unasked.ask(&mut said);
        said.chunks(14).map(|one| u32::from_be_bytes([one[5], one[6], one[7], one[8]])).collect()
    }

    #[test]
    fn only_a_body_of_which_nothing_came_is_asked_for_once_and_before_its_answer() {
        let mut unasked = Unasked::default();
        for stream in [1, 3, 5, 7, 9] {
            unasked.came(frame(HEADERS, END_HEADERS, stream));
        }
        unasked.came(frame(HEADERS, END_HEADERS | END_STREAM, 11));
        unasked.came(frame(DATA, 0, 3));
        unasked.came(frame(RST_STREAM, 0, 5));
        unasked.goes(frame(HEADERS, END_HEADERS, 7));
        unasked.goes(frame(DATA, 0, 1));
        assert_eq!(asked(&mut unasked), [1, 9]);
        assert!(asked(&mut unasked).is_empty() && !unasked.is_any());
    }

    #[test]
    fn nothing_is_said_before_the_first_frame_or_inside_a_head() {
        let mut unasked = Unasked::default();
        assert!(!unasked.may_ask());
        unasked.goes(frame(4, 0, 0));
        assert!(unasked.may_ask());
        unasked.goes(frame(HEADERS, 0, 1));
        assert!(!unasked.may_ask());
        unasked.goes(frame(CONTINUATION, END_HEADERS, 1));
        assert!(unasked.may_ask());
    }
}
