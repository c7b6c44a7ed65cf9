//! Where the body of an answer ends, and which of the bytes that came are its data (RFC 9112 §6).
//!
//! Pure, and without a copy: data are slices of what was read.

use bytes::{Buf, Bytes, BytesMut};

use crate::guard::framing::Chunked;

/// How much of a body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// What the chunks say.
    Chunks(Chunked),
    /// Everything until the connection ends.
    ToTheEnd,
}

impl Framing {
    /// Chunks from the first one on.
    pub(super) fn chunked() -> Framing {
        Framing::Chunks(Chunked::BEGIN)
    }

    /// The length of what is to come, where it is known.
    pub(super) fn exact(&self) -> Option<u64> {
        if let Framing::Length(left) = self { Some(*left) } else { None }
    }

    /// Whether the body has come to its end.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Framing::Length(0) | Framing::Chunks(Chunked::Done))
    }

    /// Whether `held` ends within a chunk.
    ///
    /// # Errors
    /// What is wrong with the framing.
    pub(super) fn breaks_off(&mut self, held: &mut BytesMut) -> Result<bool, &'static str> {
        let Framing::Chunks(chunks) = self else { return Ok(false) };
        pass_framing(chunks, held)?;
        let within = |left: u64| !held.is_empty() && usize::try_from(left).is_ok_and(|left| held.len() < left);
        Ok(matches!(*chunks, Chunked::Data(left) if within(left)))
    }

    /// Takes the next data off `held`; `None` when there is none, because the body is over or more is to come.
    ///
    /// # Errors
    /// What is wrong with the framing.
    pub(super) fn take(&mut self, held: &mut BytesMut) -> Result<Option<Bytes>, &'static str> {
        let most = |left: u64, held: &BytesMut| held.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let data = match self {
            Framing::Length(left) => {
                let data = held.split_to(most(*left, held));
                *left -= data.len() as u64;
                data
            }
            Framing::Chunks(chunks) => {
                pass_framing(chunks, held)?;
                let Chunked::Data(left) = *chunks else { return Ok(None) };
                let data = held.split_to(most(left, held));
                let left = left - data.len() as u64;
                *chunks = if left == 0 { Chunked::DataCr } else { Chunked::Data(left) };
                // The end is known with the last data. What is wrong behind them is told to whoever asks for more.
                let _ = pass_framing(chunks, held);
                data
            }
            Framing::ToTheEnd => held.split(),
        };
        Ok(if data.is_empty() { None } else { Some(data.freeze()) })
    }
}

/// Follows what is not data; nothing has moved where it is wrong.
fn pass_framing(chunks: &mut Chunked, held: &mut BytesMut) -> Result<(), &'static str> {
    let (mut at, mut passed) = (*chunks, 0);
    while !matches!(at, Chunked::Data(_) | Chunked::Done)
        && let Some(byte) = held.get(passed)
    {
        at = at.step(*byte)?;
        passed += 1;
    }
    held.advance(passed);
    *chunks = at;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(framing: &mut Framing, held: &mut BytesMut) -> Result<Vec<u8>, &'static str> {
        let mut data = Vec::new();
        while let Some(piece) = framing.take(held)? {
            data.extend_from_slice(&piece);
        }
        Ok(data)
    }

    #[test]
    fn chunks_say_the_same_however_they_come() {
        let whole = b"3;x=y\r\nabc\r\n00A\r\n0123456789\r\n0\r\nlate: 1\r\n\r\nNEXT";
        for size in 1..=whole.len() {
            let (mut framing, mut held, mut data) = (Framing::chunked(), BytesMut::new(), Vec::new());
            for piece in whole.chunks(size) {
                held.extend_from_slice(piece);
                data.extend(all(&mut framing, &mut held).expect("fine chunks"));
            }
            assert_eq!((&data[..], framing.is_over(), &held[..]), (&b"abc0123456789"[..], true, &b"NEXT"[..]));
        }
    }

    #[test]
    fn the_end_is_known_with_the_last_data() {
        let (mut framing, mut held) = (Framing::chunked(), BytesMut::from("1\r\na\r\n0\r\n\r\n"));
        assert_eq!(framing.take(&mut held).expect("fine chunks").as_deref(), Some(&b"a"[..]));
        assert!(framing.is_over());
    }

    #[test]
    fn a_length_leaves_what_follows_alone() {
        let (mut framing, mut held) = (Framing::Length(3), BytesMut::from("abcdef"));
        assert_eq!(framing.take(&mut held).expect("no framing").as_deref(), Some(&b"abc"[..]));
        assert_eq!((framing.take(&mut held), &held[..]), (Ok(None), &b"def"[..]));
    }

    #[test]
    fn data_before_a_broken_chunk_are_data() {
        let (mut framing, mut held) = (Framing::chunked(), BytesMut::from("1\r\na\r\nzz"));
        assert_eq!(framing.take(&mut held).expect("a fine chunk").as_deref(), Some(&b"a"[..]));
        assert!(framing.take(&mut held).is_err());
    }

    #[test]
    fn broken_chunks_are_told() {
        for crooked in ["zz\r\n", "-1\r\n", "1\r\nab", "ffffffffffffffff0\r\n", "1\nx"] {
            assert!(all(&mut Framing::chunked(), &mut BytesMut::from(crooked)).is_err(), "{crooked}");
        }
    }
}
