//! What a terminal is shown of texts that others wrote.
//!
//! A reason, a name or a path may hold what a terminal obeys: a newline that fakes a line of ours, a sequence that moves
//! the cursor, a mark that turns the order of what follows. Shown as what they are, they do nothing.

use std::borrow::Cow;

/// The text on one line, with everything that a terminal would obey as an escape.
#[must_use]
pub fn tame(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut tame, character| {
        if is_obeyed(character) {
            tame.extend(character.escape_default());
        } else {
            tame.push(character);
        }
        tame
    })
}

/// Lines of a file with a stand-in for what a terminal would obey beyond ASCII, of as many bytes, so that no place in them
/// moves. What ASCII has of that stays: whoever draws the lines shows it as a picture.
#[must_use]
pub fn stilled(lines: &str) -> Cow<'_, str> {
    let is_beyond = |character: char| !character.is_ascii() && is_obeyed(character);
    if !lines.contains(is_beyond) {
        return Cow::Borrowed(lines);
    }
    let stand_in = |character: char| match character.len_utf8() {
        _ if !is_beyond(character) => character,
        2 => '\u{b7}',
        _ => char::REPLACEMENT_CHARACTER,
    };
    Cow::Owned(lines.chars().map(stand_in).collect())
}

/// Controls, separators of lines, and marks of direction.
fn is_obeyed(character: char) -> bool {
    let turns =
        matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() || turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_the_rest_stays_as_it_is() {
        assert_eq!(tame("a\n\u{1b}[31mb\u{9b}m\u{202e}c\r"), r"a\n\u{1b}[31mb\u{9b}m\u{202e}c\r");
        for plain in ["", "it's \"so\" \\ é e\u{301} ≈ …", "日本語"] {
            assert_eq!(tame(plain), plain);
        }
    }

    #[test]
    fn lines_of_a_file_keep_every_place() {
        for (lines, still) in
            [("\u{9b}a\u{202e}\nb\u{61c}", "\u{b7}a\u{fffd}\nb\u{b7}"), ("é\t日本語\n", "é\t日本語\n")]
        {
            assert_eq!(stilled(lines), still);
            assert_eq!(stilled(lines).len(), lines.len());
        }
    }
}
