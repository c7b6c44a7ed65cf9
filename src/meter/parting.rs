//! Where a frame is parted for watching: behind events, so that what a budget lets through is a matter of tokens and not
//! of frames, and behind lines, where the end of one event is all that may still pass.

/// How much of one frame is watched at once.
pub(super) const PIECE: usize = 1024;

/// The length of the events that end within about `most` bytes: to the first end of an event at or behind `most`, or all.
/// Lines end in three ways (WHATWG HTML §9.2), so an event does in as many.
pub(super) fn events_within(bytes: &[u8], most: usize) -> usize {
    let mut at = most;
    while let Some(end) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'\r', b'\n', rest)) {
        at += end;
        match bytes.get(at..) {
            Some([b'\n' | b'\r', b'\r', b'\n', ..]) => return at + 3,
            Some([b'\n', b'\n' | b'\r', ..] | [b'\r', b'\r', ..]) => return at + 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The length of the first line, with what ends it.
pub(super) fn first_line(bytes: &[u8]) -> usize {
    let end = memchr::memchr2(b'\r', b'\n', bytes);
    end.map_or(bytes.len(), |end| {
        end + if bytes.get(end..).is_some_and(|end| end.starts_with(b"\r\n")) { 2 } else { 1 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_parted_where_events_end_however_lines_do() {
        for (end, bytes) in [("\n", 9), ("\r", 9), ("\r\n", 11)] {
            let event = format!("data: x{end}{end}");
            assert_eq!(event.len(), bytes);
            let frame = event.repeat(500);
            for (most, events) in [(0, 1), (1, 1), (bytes, 2), (PIECE, PIECE / bytes + 1), (PIECE * 9, 500)] {
                assert_eq!(events_within(frame.as_bytes(), most), events * bytes, "{end:?} {most}");
            }
        }
        for (bytes, length) in [("a\nb\n", 2), ("\r\nb", 2), ("\r\r", 1), ("\n\r\n", 1), ("ab\r", 3), ("a", 1), ("", 0)]
        {
            assert_eq!(first_line(bytes.as_bytes()), length, "{bytes:?}");
        }
        for (bytes, length) in [
            ("a\n\r\nb", 4),
            ("a\r\n\nb", 4),
            ("a\n\rb", 3),
            ("a\r\r\nb", 4),
            ("a\rb\nc\r\nd", 8),
            ("a\r\n", 3),
            ("", 0),
        ] {
            assert_eq!(events_within(bytes.as_bytes(), 0), length, "{bytes:?}");
        }
    }
}
