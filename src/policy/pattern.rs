//! A model's name, or a pattern of names: which names it matches, and how specifically.
//!
//! Pure text. Who may use a model, and who serves it, is decided elsewhere.

use std::sync::Arc;

use crate::names::ModelName;

/// A model name, or a pattern with `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern {
    text: Arc<str>,
    /// Where its first `*` stands.
    star: Option<usize>,
}

impl Pattern {
    /// Takes any text of printable ASCII.
    ///
    /// # Errors
    /// What it must be instead.
    pub fn parse(text: &str) -> Result<Pattern, &'static str> {
        let fine = (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fine {
            Ok(Pattern { text: text.into(), star: text.find('*') })
        } else {
            Err("must be a model name or a pattern such as \"gpt-5*\"")
        }
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name, where the pattern is one.
    #[must_use]
    pub fn concrete(&self) -> Option<ModelName> {
        self.text.parse().ok()
    }

    /// What stands before the first `*`.
    fn beginning(&self) -> &str {
        self.star.and_then(|star| self.text.get(..star)).unwrap_or(&self.text)
    }

    /// How specific a match of this pattern is: an exact name beats any prefix, a longer prefix a shorter one.
    pub(super) fn weight(&self) -> usize {
        self.star.unwrap_or(usize::MAX)
    }

    /// Whether one name could match both: of two with `*`, as far as their literal beginnings tell.
    pub(super) fn may_meet(&self, other: &Pattern) -> bool {
        let (mine, theirs) = (self.beginning(), other.beginning());
        match (self.star, other.star) {
            (None, _) => other.matches(mine),
            (_, None) => self.matches(theirs),
            _ => mine.starts_with(theirs) || theirs.starts_with(mine),
        }
    }

    /// What both match, as texts in which `*` stands for any run of characters: together they match neither more nor less.
    /// `other` as a whole, where the two interlock in more ways than anybody means.
    pub(super) fn meeting(&self, other: &Pattern) -> Vec<String> {
        if !self.may_meet(other) {
            return Vec::new();
        }
        let mut meeting = Meeting { way: String::new(), steps: MOST_STEPS, ends: Vec::new() };
        match meeting.walk(&self.text, &other.text) {
            Some(()) => meeting.ends,
            None => vec![other.as_str().to_owned()],
        }
    }

    /// Whether the same names could match both, none of the two more specifically than the other.
    pub(super) fn ties_with(&self, other: &Pattern) -> bool {
        self.weight() == other.weight() && self.beginning() == other.beginning()
    }

    /// Whether `name` matches, `*` standing for any run of characters.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let Some(star) = self.star else { return *self.text == *name };
        let Some(mut rest) = name.strip_prefix(self.beginning()) else { return false };
        let behind = self.text.get(star + 1..).unwrap_or_default();
        if behind.is_empty() {
            return true;
        }
        let mut parts = behind.split('*').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.find(part) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        true
    }
}

/// So many steps are walked for the meeting of two patterns.
const MOST_STEPS: usize = 10_000;

/// Of a pattern what follows its first character.
fn behind(text: &str) -> &str {
    text.get(1..).unwrap_or_default()
}

/// Two patterns, walked side by side from their beginnings.
struct Meeting {
    way: String,
    steps: usize,
    /// The ways on which both came to their end.
    ends: Vec<String>,
}

impl Meeting {
    /// Every way from here; `None` where they are too many.
    fn walk(&mut self, one: &str, other: &str) -> Option<()> {
        self.steps = self.steps.checked_sub(1)?;
        let next = |text: &str| text.chars().next();
        match (next(one), next(other)) {
            (None, None) => self.ends.push(self.way.clone()),
            // What both leave open is open; then one of the two goes on.
            (Some('*'), Some('*')) => {
                self.way.push('*');
                self.walk(behind(one), other)?;
                self.walk(one, behind(other))?;
                self.way.pop();
            }
            (_, Some('*')) => return self.walk(other, one),
            // What one leaves open ends here, or is what the other says.
            (Some('*'), said) => {
                self.walk(behind(one), other)?;
                if let Some(said) = said {
                    self.way.push(said);
                    self.walk(one, behind(other))?;
                    self.way.pop();
                }
            }
            (Some(mine), Some(theirs)) if mine == theirs => {
                self.way.push(mine);
                self.walk(behind(one), behind(other))?;
                self.way.pop();
            }
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_globs_do() {
        let matches = |pattern: &str, name: &str| Pattern::parse(pattern).unwrap().matches(name);
        assert!(matches("gpt-5*", "gpt-5") && matches("gpt-5*", "gpt-5.1-mini") && !matches("gpt-5*", "gpt-4"));
        assert!(matches("o*", "o3") && matches("*", "x") && matches("a*c*e", "abcde") && !matches("a*c*e", "abcd"));
        assert!(matches("gpt", "gpt") && !matches("gpt", "gpt-5"));
    }

    #[test]
    fn patterns_meet_where_one_name_could_match_both() {
        let meet = |one: &str, other: &str| {
            let (one, other) = (Pattern::parse(one).unwrap(), Pattern::parse(other).unwrap());
            assert_eq!(one.may_meet(&other), other.may_meet(&one));
            one.may_meet(&other)
        };
        assert!(meet("gpt-*", "gpt-5*") && meet("*", "o3") && meet("gpt-5", "gpt-*") && meet("*-mini", "gpt-*"));
        assert!(!meet("gpt-*", "o*") && !meet("gpt-5", "gpt") && !meet("gpt-5-*", "gpt-5"));
    }

    #[test]
    fn a_meeting_is_what_both_match_and_nothing_else() {
        let meeting = |one: &str, other: &str| {
            let (one, other) = (Pattern::parse(one).unwrap(), Pattern::parse(other).unwrap());
            let ends = other.meeting(&one).into_iter().filter(|end| !end.is_empty());
            let mut ends: Vec<Pattern> = ends.map(|end| Pattern::parse(&end).unwrap()).collect();
            ends.sort();
            ends.dedup();
            for end in &ends {
                assert!(one.matches(end.as_str()) && other.matches(end.as_str()), "{end:?} of {one:?} and {other:?}");
            }
            ends.iter().map(|end| end.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(meeting("gpt-5*", "gpt-5-free"), ["gpt-5-free"]);
        assert_eq!(meeting("gpt-*", "gpt-5*"), ["gpt-5*"]);
        assert_eq!(meeting("*-mini", "gpt-*"), ["gpt-*-mini", "gpt-mini"]);
        assert_eq!(meeting("ab*", "*bc"), ["ab*bc", "abc"]);
        assert_eq!(meeting("*-mini", "*-nano"), [""; 0]);
        assert_eq!(meeting("*a*", "*b*"), ["*a*b*", "*b*a*"]);
        let many = |letter: &str| Pattern::parse(&format!("*{}", format!("{letter}*").repeat(20))).unwrap();
        assert_eq!(many("a").meeting(&many("b")), [many("b").as_str()], "too many ways are one");
    }
}
