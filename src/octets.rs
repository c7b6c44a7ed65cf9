//! Whether one of many bytes is of some kind, with many of them looked at at once.
//!
//! A loop that stops at the first such byte costs several instructions for each. Pieces of a fixed length are what
//! compilers turn into vector instructions; where the bytes are no multiple of it, the last piece overlaps the one
//! before it.

/// Whether `is` holds for any of `bytes`. It pays where `is` does not branch: comparisons joined by `|`.
#[inline]
#[must_use]
pub fn any(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    if let Some(last) = bytes.last_chunk::<16>() {
        return bytes.as_chunks::<16>().0.iter().any(|piece| holds(piece, &is)) || holds(last, &is);
    }
    let short = || ends::<8>(bytes, &is).or_else(|| ends::<4>(bytes, &is));
    short().unwrap_or_else(|| bytes.iter().fold(false, |so_far, byte| so_far | is(*byte)))
}

/// The same of bytes that a piece at their beginning and one at their end cover, if they are as many as one.
#[inline]
fn ends<const N: usize>(bytes: &[u8], is: impl Fn(u8) -> bool) -> Option<bool> {
    Some(holds(bytes.first_chunk::<N>()?, &is) | holds(bytes.last_chunk::<N>()?, &is))
}

#[inline]
fn holds<const N: usize>(piece: &[u8; N], is: impl Fn(u8) -> bool) -> bool {
    piece.iter().fold(false, |so_far, byte| so_far | is(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_found_wherever_it_stands_and_however_many_there_are() {
        for length in 0..70 {
            let mut bytes = vec![b'a'; length];
            assert!(!any(&bytes, |byte| byte == b'b'), "{length}");
            for at in 0..length {
                bytes[at] = b'b';
                assert!(any(&bytes, |byte| byte == b'b'), "{at} of {length}");
                bytes[at] = b'a';
            }
        }
    }
}
