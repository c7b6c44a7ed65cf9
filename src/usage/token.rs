//! Strings and numbers that may lie across pieces: where they end, and their bytes while they are short.

/// Bytes of a token that lies across pieces, and means nothing if there are more than `MOST`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scratch<const MOST: usize> {
    bytes: [u8; MOST],
    /// Larger than the room once something did not fit.
    length: usize,
}

impl<const MOST: usize> Scratch<MOST> {
    /// Nothing was pushed.
    pub(super) const EMPTY: Scratch<MOST> = Scratch { bytes: [0; MOST], length: 0 };

    /// Adds to the token.
    pub(super) fn push(&mut self, more: &[u8]) {
        let end = self.length.saturating_add(more.len());
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(more);
        }
        self.length = end;
    }

    /// What was pushed, unless it did not fit.
    pub(super) fn whole(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Whether nothing was pushed.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Begins a token.
    pub(super) fn clear(&mut self) {
        self.length = 0;
    }
}

/// Where the string that `bytes` are inside of ends, or is interrupted by a backslash; the length if it goes on.
///
/// Most strings are a few bytes long, for which a call of memchr costs more than it saves.
pub(super) fn string_end(bytes: &[u8]) -> usize {
    const LANE: usize = 8;
    let mut at = 0;
    for lane in bytes.chunks_exact(LANE).take(4) {
        let word = u64::from_le_bytes(lane.try_into().unwrap_or_default());
        let stops = holds(word, b'"') | holds(word, b'\\');
        if stops != 0 {
            return at + stops.trailing_zeros() as usize / 8;
        }
        at += LANE;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    memchr::memchr2(b'"', b'\\', rest).map_or(bytes.len(), |found| at + found)
}

/// The high bit of each byte of `word` that is `byte`; bytes above the lowest such may be wrong.
fn holds(word: u64, byte: u8) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let zeroed = word ^ (ONES * u64::from(byte));
    zeroed.wrapping_sub(ONES) & !zeroed & (ONES << 7)
}
