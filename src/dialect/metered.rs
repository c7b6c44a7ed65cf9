//! The members of a request body that metering relies on, and what might be mistaken for one of them.
//!
//! Some servers match names without case: to them a body with `model` and `Model` names two models, to others one.
//! Such a body is read by nobody here.

/// Members that metering relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metered {
    Model,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    Stream,
    StreamOptions,
    N,
    BestOf,
    Background,
    Tools,
    Fallbacks,
    Models,
    ContextManagement,
    ServiceTier,
    Speed,
}

impl Metered {
    /// Each with its name.
    pub(super) const ALL: [(&'static str, Metered); 15] = [
        ("model", Metered::Model),
        ("max_tokens", Metered::MaxTokens),
        ("max_completion_tokens", Metered::MaxCompletionTokens),
        ("max_output_tokens", Metered::MaxOutputTokens),
        ("stream", Metered::Stream),
        ("stream_options", Metered::StreamOptions),
        ("n", Metered::N),
        ("best_of", Metered::BestOf),
        ("background", Metered::Background),
        ("tools", Metered::Tools),
        ("fallbacks", Metered::Fallbacks),
        ("models", Metered::Models),
        ("context_management", Metered::ContextManagement),
        ("service_tier", Metered::ServiceTier),
        ("speed", Metered::Speed),
    ];

    /// The member called `key`; the error is a key that some parser would take for one, and others not.
    pub(super) fn named(key: &str) -> Result<Option<(&'static str, Metered)>, &'static str> {
        if let Some(found) = Self::ALL.iter().find(|(name, _)| *name == key) {
            return Ok(Some(*found));
        }
        Self::ALL.iter().find(|(name, _)| looks_like(key, name)).map_or(Ok(None), |(name, _)| Err(name))
    }
}

/// Whether some parser would take `key` for `name`, and others not.
#[inline]
pub(super) fn looks_like(key: &str, name: &str) -> bool {
    // A character that is folded to ASCII and is none takes more bytes.
    let folded = || key.len() > name.len() && !key.is_ascii() && key.chars().map(fold).eq(name.chars());
    (key.eq_ignore_ascii_case(name) || folded()) && key != name
}

/// Simple case folding, as far as it reaches ASCII: parsers that match keys without case apply it.
fn fold(c: char) -> char {
    match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    }
}
