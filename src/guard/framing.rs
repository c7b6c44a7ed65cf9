//! How bodies are framed (RFC 9112 §6 and §7.1), of requests and of answers alike: a stated length, or chunks.
//!
//! Pure: it says where data stands and what is wrong, and holds no byte.

/// The number that a `Content-Length` states: digits and nothing else, fewer than would not fit.
#[must_use]
pub fn content_length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    digits.then(|| value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Where in chunked framing the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunked {
    /// In a size.
    Size {
        /// What its digits say so far.
        size: u64,
        /// How many those are.
        digits: u8,
    },
    /// In an extension, which is legal, bounded and dropped later.
    Extension {
        /// The chunk's size.
        size: u64,
        /// Bytes of the extension so far.
        length: u16,
    },
    /// At the LF of the size's line.
    SizeEnd(u64),
    /// In data.
    Data(u64),
    /// At the CR after data.
    DataCr,
    /// At the LF after data.
    DataLf,
    /// In the trailers.
    Trailer {
        /// Bytes of the line so far.
        line: u16,
        /// Bytes of all lines so far.
        all: u16,
    },
    /// At the LF of a trailer line.
    TrailerEnd {
        /// Bytes of the line.
        line: u16,
        /// Bytes of all lines so far.
        all: u16,
    },
    /// All read.
    Done,
}

/// Extension bytes of one chunk.
const MOST_EXTENSION: u16 = 1024;
/// Trailer bytes of one body.
const MOST_TRAILER: u16 = 8192;

impl Chunked {
    /// The first chunk's size.
    pub const BEGIN: Chunked = Chunked::Size { size: 0, digits: 0 };

    /// Follows the framing through `bytes` and says how many of them belong to the body.
    ///
    /// # Errors
    /// What is wrong with the framing.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
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

    /// Past one byte that is not data.
    ///
    /// # Errors
    /// What is wrong with the framing.
    pub fn step(self, byte: u8) -> Result<Chunked, &'static str> {
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
