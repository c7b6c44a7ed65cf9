//! Configured names, each checked once against its grammar and shared cheaply afterwards.
//!
//! A value of one of these types can be printed, compared and used as a metric label or an audit field without
//! another thought: it holds no white space, no control character and nothing longer than its grammar allows.
//! This file never reads configuration or requests; it only says what a name is.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// How what is looked up for every request is hashed: quickly, and not to be foretold from outside. Strangers can ask for
/// keys of such a table, and never add one.
pub type Hashing = foldhash::fast::RandomState;

/// Why a text is not a name: the sentence is fit for operators and for partners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAName {
    grammar: &'static str,
}

impl fmt::Display for NotAName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must match {}", self.grammar)
    }
}

impl std::error::Error for NotAName {}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $grammar:literal, $accepts:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The grammar, as documentation and error messages show it.
            pub const GRAMMAR: &'static str = $grammar;

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Parses bytes from the wire without an intermediate string.
            ///
            /// # Errors
            /// [`NotAName`] when the bytes do not match [`Self::GRAMMAR`].
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAName> {
                let accepts: fn(&[u8]) -> bool = $accepts;
                match std::str::from_utf8(bytes) {
                    Ok(text) if accepts(bytes) => Ok(Self(Arc::from(text))),
                    _ => Err(NotAName { grammar: $grammar }),
                }
            }
        }

        impl FromStr for $name {
            type Err = NotAName;
            fn from_str(text: &str) -> Result<Self, NotAName> {
                Self::from_bytes(text.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
    };
}

/// `[a-z0-9][a-z0-9._-]{0,63}`: purposes, organizations and everything else that operators name.
fn is_token(bytes: &[u8]) -> bool {
    let first = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let rest = |b: &u8| first(b) || matches!(b, b'.' | b'_' | b'-');
    matches!(bytes, [head, tail @ ..] if tail.len() < 64 && first(head) && tail.iter().all(rest))
}

/// `[A-Za-z0-9][A-Za-z0-9._/-]{0,63}`: a reference into somebody else's case system.
fn is_case(bytes: &[u8]) -> bool {
    let rest = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-');
    matches!(bytes, [head, tail @ ..] if tail.len() < 64 && head.is_ascii_alphanumeric() && tail.iter().all(rest))
}

/// Model names as vendors write them: printable ASCII without white space, quotes, backslash or `*`.
fn is_model(bytes: &[u8]) -> bool {
    let byte = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'*' | b'\'');
    (1..=128).contains(&bytes.len()) && bytes.iter().all(byte)
}

name!(
    /// An organization, as its configuration file names it.
    OrgId, "[a-z0-9][a-z0-9._-]{0,63}", is_token
);
name!(
    /// A purpose of the catalogue.
    PurposeId, "[a-z0-9][a-z0-9._-]{0,63}", is_token
);
name!(
    /// A group of models (`[model.<group>]`).
    GroupId, "[a-z0-9][a-z0-9._-]{0,63}", is_token
);
name!(
    /// A certificate authority of `client_auth.authorities`.
    AuthorityName, "[a-z0-9][a-z0-9._-]{0,63}", is_token
);
name!(
    /// An `[[upstream]]`.
    UpstreamName, "[a-z0-9][a-z0-9._-]{0,63}", is_token
);
name!(
    /// The reference that `portcullis-case` carries.
    CaseRef, "[A-Za-z0-9][A-Za-z0-9._/-]{0,63}", is_case
);
name!(
    /// A concrete model name, as a request body holds it.
    ModelName, "1 to 128 printable ASCII characters without quotes, backslash or *", is_model
);

/// What metrics call everybody who belongs to no organization: none may be called so.
pub const NOBODY: &str = "unknown";
/// What metrics call every model that nobody has listed.
pub const UNLISTED: &str = "other";

/// Whether a text can name the key that signs checkpoints (C2SP `signed-note`).
#[must_use]
pub fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_follow_their_grammar() {
        let longest = format!("a{}", "b".repeat(63));
        for good in ["a", "0", "incident-response", "a.b_c-d", &longest] {
            assert!(good.parse::<PurposeId>().is_ok(), "{good}");
        }
        let too_long = format!("{longest}b");
        for bad in ["", "-a", ".a", "A", "a b", "a,b", "é", "a\0", &too_long] {
            assert!(bad.parse::<PurposeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cases_and_models_follow_theirs() {
        assert!("INC-2026/11".parse::<CaseRef>().is_ok());
        assert!("/x".parse::<CaseRef>().is_err());
        assert!("meta-llama/Llama-3:70b@eu".parse::<ModelName>().is_ok());
        for bad in ["", "gpt-*", "a b", "a\"b", "modèle"] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
    }
}
