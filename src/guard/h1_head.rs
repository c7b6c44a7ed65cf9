//! The bytes of an HTTP/1.1 request head (RFC 9112), checked without mercy.
//!
//! Pure functions: what is wrong is a sentence, what is right says how the body is framed.

use super::framing::content_length;
use crate::gate::is_method;

/// Bytes of a head, its end included.
pub(super) const MOST_BYTES: usize = 16 * 1024;
/// Lines of a head after the request line.
const MOST_LINES: usize = 64;

/// How the body that follows is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Why a head may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crooked {
    /// Too many lines or bytes.
    Large,
    /// Anything else.
    Form(&'static str),
}

/// Where the head ends (after its blank line), when it is complete.
///
/// # Errors
/// A bare CR or LF, or a blank line before the request line, as soon as it shows.
pub(super) fn end(bytes: &[u8], from: usize) -> Result<Option<usize>, Crooked> {
    if matches!(bytes.first(), Some(b'\r' | b'\n')) {
        return Err(Crooked::Form("A blank line stands before the request line."));
    }
    let mut at = from.saturating_sub(3);
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'\r', b'\n', rest)) {
        at += found;
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(b'\r'), None) => return Ok(None),
            (Some(b'\r'), Some(b'\n')) => {}
            (Some(b'\n'), _) if at > 0 && bytes.get(at - 1) == Some(&b'\r') => {
                at += 1;
                continue;
            }
            _ => return Err(Crooked::Form("A line ends with a bare CR or LF.")),
        }
        if bytes.get(at + 2..at + 4) == Some(b"\r\n") {
            return Ok(Some(at + 4));
        }
        at += 2;
    }
    Ok(None)
}

/// Checks a complete head.
pub(super) fn check(head: &[u8]) -> Result<Framing, Crooked> {
    let text = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    let mut lines = Lines(Some(text));
    request_line(lines.next().unwrap_or_default())?;
    let (mut length, mut chunked) = (None, false);
    for (count, line) in lines.enumerate() {
        if count >= MOST_LINES {
            return Err(Crooked::Large);
        }
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() {
                return Err(Crooked::Form("There is more than one Content-Length."));
            }
            let stated = content_length(value).ok_or(Crooked::Form("Content-Length is not a number."))?;
            length = Some(stated);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Crooked::Form("Transfer-Encoding may be exactly `chunked`, once."));
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(Crooked::Form("There are both Content-Length and Transfer-Encoding.")),
        (Some(length), false) => Ok(Framing::Length(length)),
        (None, true) => Ok(Framing::Chunked),
        (None, false) => Ok(Framing::Length(0)),
    }
}

/// Lines between CRLFs; no other CR or LF is left by [`end`].
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        match memchr::memchr(b'\r', rest) {
            None => self.0.take(),
            Some(at) => {
                self.0 = rest.get(at + 2..);
                rest.get(..at)
            }
        }
    }
}

fn request_line(line: &[u8]) -> Result<(), Crooked> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Crooked::Form("The request line is not METHOD SP TARGET SP VERSION."));
    };
    if !is_method(method) {
        return Err(Crooked::Form("The method is not a word of upper-case letters."));
    }
    if target.is_empty() || !all(target, |byte| byte.is_ascii_graphic()) {
        return Err(Crooked::Form("The target holds characters outside printable ASCII."));
    }
    if target.contains(&b'#') {
        return Err(Crooked::Form("The target holds a fragment."));
    }
    // What hyper could not parse it would answer itself, without a reason, an id or a record.
    if http::Uri::try_from(target).is_err() {
        return Err(Crooked::Form("The target is not a path that begins with a slash."));
    }
    if version == b"HTTP/1.1" { Ok(()) } else { Err(Crooked::Form("Only HTTP/1.1 and HTTP/2 are spoken here.")) }
}

/// A field line: `name: value`, without folding.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Crooked> {
    let colon = memchr::memchr(b':', line).ok_or(Crooked::Form("A header line has no colon."))?;
    let (name, value) = (line.get(..colon).unwrap_or_default(), line.get(colon + 1..).unwrap_or_default());
    if name.is_empty() || !all(name, is_token) {
        // White space before the colon, and a folded line's leading white space, are both no token.
        return Err(Crooked::Form("A header name is not a token directly before its colon."));
    }
    if !all(value, |byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f)) {
        return Err(Crooked::Form("A header value holds a control character."));
    }
    Ok((name, value.trim_ascii()))
}

/// Whether all bytes are `fine`: looked at in bulk, not one after the other until one is not.
fn all(bytes: &[u8], fine: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |so_far, byte| so_far & fine(*byte))
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    #[expect(clippy::indexing_slicing, reason = "made by the compiler, which would say so")]
    static TOKEN: [bool; 256] = {
        let (mut set, mut byte) = ([false; 256], 0_u8);
        while byte < 128 {
            let mark = matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
            set[byte as usize] = byte.is_ascii_alphanumeric() || mark;
            byte += 1;
        }
        set
    };
    TOKEN.get(usize::from(byte)).is_some_and(|token| *token)
}
