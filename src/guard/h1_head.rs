//! The bytes of an HTTP/1.1 request head and of chunked framing (RFC 9112), checked without mercy.
//!
//! Pure functions: what is wrong is a sentence, what is right says how the body is framed.

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
            length = Some(content_length(value)?);
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
    if method.is_empty() || method.len() > 16 || !method.iter().all(u8::is_ascii_uppercase) {
        return Err(Crooked::Form("The method is not a word of upper-case letters."));
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
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
    if name.is_empty() || !name.iter().copied().all(is_token) {
        // White space before the colon, and a folded line's leading white space, are both no token.
        return Err(Crooked::Form("A header name is not a token directly before its colon."));
    }
    let fine = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    if !value.iter().all(fine) {
        return Err(Crooked::Form("A header value holds a control character."));
    }
    Ok((name, value.trim_ascii()))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

fn content_length(value: &[u8]) -> Result<u64, Crooked> {
    let wrong = Crooked::Form("Content-Length is not a number.");
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(wrong);
    }
    Ok(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Where in chunked framing the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    /// In a size; so many digits so far.
    Size { size: u64, digits: u8 },
    /// In an extension, which is legal, bounded and dropped later.
    Extension { size: u64, length: u16 },
    /// At the LF of the size's line.
    SizeEnd(u64),
    /// In data.
    Data(u64),
    /// At the CR after data.
    DataCr,
    /// At the LF after data.
    DataLf,
    /// In the trailers; the line so far, and all lines.
    Trailer { line: u16, all: u16 },
    /// At the LF of a trailer line.
    TrailerEnd { line: u16, all: u16 },
    /// All read.
    Done,
}

/// Extension bytes of one chunk.
const MOST_EXTENSION: u16 = 1024;
/// Trailer bytes of one body.
const MOST_TRAILER: u16 = 8192;

impl Chunked {
    /// The first chunk's size.
    pub(super) const BEGIN: Chunked = Chunked::Size { size: 0, digits: 0 };

    /// Follows the framing through `bytes` and says how many of them belong to the body.
    ///
    /// # Errors
    /// What is wrong with the framing.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut at = 0;
        while *self != Chunked::Done
            && let Some(byte) = bytes.get(at)
        {
            if let Chunked::Data(left) = *self {
                let here = (bytes.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                at += here;
                let left = left - here as u64;
                *self = if left == 0 { Chunked::DataCr } else { Chunked::Data(left) };
                continue;
            }
            *self = self.step(*byte)?;
            at += 1;
        }
        Ok(at)
    }

    fn step(self, byte: u8) -> Result<Chunked, &'static str> {
        Ok(match (self, byte) {
            (Chunked::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = u64::from(char::from(byte).to_digit(16).unwrap_or(0));
                if digits >= 15 {
                    return Err("a chunk is too large");
                }
                Chunked::Size { size: size * 16 + digit, digits: digits + 1 }
            }
            (Chunked::Size { digits: 0, .. }, _) => return Err("a chunk has no size"),
            (Chunked::Size { size, .. } | Chunked::Extension { size, .. }, b'\r') => Chunked::SizeEnd(size),
            (Chunked::Size { size, .. }, b';') => Chunked::Extension { size, length: 0 },
            (Chunked::Size { .. }, _) => return Err("a chunk's size is not a hexadecimal number"),
            (Chunked::Extension { .. }, b'\n' | 0) => return Err("a chunk's line ends with a bare LF"),
            (Chunked::Extension { size, length }, _) => match length {
                MOST_EXTENSION.. => return Err("a chunk's extension is too long"),
                _ => Chunked::Extension { size, length: length + 1 },
            },
            (Chunked::SizeEnd(0), b'\n') => Chunked::Trailer { line: 0, all: 0 },
            (Chunked::SizeEnd(size), b'\n') => Chunked::Data(size),
            (Chunked::DataCr, b'\r') => Chunked::DataLf,
            (Chunked::DataLf, b'\n') => Chunked::BEGIN,
            (Chunked::Trailer { line, all }, b'\r') => Chunked::TrailerEnd { line, all },
            (Chunked::Trailer { .. }, b'\n' | 0) => return Err("a trailer's line ends with a bare LF"),
            (Chunked::Trailer { line, all }, _) => match all {
                MOST_TRAILER.. => return Err("the trailers are too long"),
                _ => Chunked::Trailer { line: line + 1, all: all + 1 },
            },
            (Chunked::TrailerEnd { line: 0, .. }, b'\n') => Chunked::Done,
            (Chunked::TrailerEnd { all, .. }, b'\n') => Chunked::Trailer { line: 0, all },
            _ => return Err("a chunk does not end where its size says"),
        })
    }
}
