//! What a body has others do beside the model's answer: tools, other models that may answer instead, edits of the
//! conversation. Whatever of it costs tokens that the body does not bound is noted; whether that may be is decided
//! elsewhere.

use super::Content;
use crate::dialect::json::{Cursor, Fault, Kind, Text};
use crate::dialect::metered::looks_like;

/// What vendors put before the model because tools are listed, or for a tool of their own design, counted in items:
/// Anthropic documents up to some 700 tokens.
const HIDDEN_PROMPT: u32 = 48;

/// Tools that the client runs, by the first word of their `type`; all others run at the vendor's. A `shell` may be
/// either's.
const CLIENT_TOOLS: [&str; 7] = ["bash", "text_editor", "computer", "memory", "local_shell", "shell", "apply_patch"];

/// The most models that one request may name beside its own: every open stream keeps them, and vendors take fewer.
pub(in crate::dialect) const MAX_MODELS: usize = 16;

impl Content {
    /// Reads `tools` or `functions`.
    pub(in crate::dialect) fn tools(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Array {
            return cursor.skip();
        }
        let mut any = false;
        cursor.array(|cursor| {
            any = true;
            self.items = self.items.saturating_add(1);
            if cursor.kind()? == Kind::Object { self.tool(cursor) } else { cursor.skip() }
        })?;
        if any {
            self.items = self.items.saturating_add(HIDDEN_PROMPT);
        }
        Ok(())
    }

    /// Reads the models that may answer instead of the request's own, by their names or in objects that tell more. Each
    /// reads the input anew, so the body's length does not bound it.
    pub(in crate::dialect) fn stand_ins(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        match cursor.kind()? {
            Kind::Null => cursor.skip(),
            Kind::Array => cursor.array(|cursor| self.stand_in(cursor)),
            _ => self.stand_in(cursor),
        }
    }

    fn stand_in(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        self.found.unbounded = true;
        if cursor.kind()? != Kind::Object {
            return self.model(cursor);
        }
        let mut named = false;
        cursor.object(|cursor, key| {
            if names_model(&key) {
                named = true;
                return self.model(cursor);
            }
            self.overridden = true;
            cursor.skip()
        })?;
        self.misnamed |= !named;
        Ok(())
    }

    /// Reads the name of a model. It is kept once, however often it stands there.
    fn model(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::String {
            self.misnamed = true;
            return cursor.skip();
        }
        let name = cursor.string()?.decoded();
        if self.models.iter().any(|known| known.as_str() == name) {
            return Ok(());
        }
        match name.parse() {
            Ok(_) if self.models.len() == MAX_MODELS => self.crowded = true,
            Ok(name) => self.models.push(name),
            Err(_) => self.misnamed = true,
        }
        Ok(())
    }

    /// Reads what the vendor is to do to the conversation: whatever does more than leave parts of it out is work for a
    /// model that the answer's usage may not tell.
    pub(in crate::dialect) fn context_management(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return self.context_edits(cursor);
        }
        cursor.object(
            |cursor, key| {
                if key.decoded() == "edits" { self.context_edits(cursor) } else { self.reference(cursor) }
            },
        )
    }

    fn context_edits(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Array {
            return self.reference(cursor);
        }
        cursor.array(|cursor| {
            self.found.unbounded |= !is_typed(cursor, |name| name.starts_with("clear_"))?;
            Ok(())
        })
    }

    fn tool(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let (mut shell, mut local) = (false, None);
        cursor.object(|cursor, key| {
            match (&*key.decoded(), cursor.kind()?) {
                ("type", Kind::String) => {
                    let kind = cursor.string()?.decoded();
                    let is = |name: &str| {
                        kind.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
                    };
                    shell |= is("shell");
                    if CLIENT_TOOLS.into_iter().any(is) {
                        self.items = self.items.saturating_add(HIDDEN_PROMPT);
                    } else if !matches!(&*kind, "function" | "custom") {
                        self.found.unbounded = true;
                    }
                }
                ("environment", _) => {
                    local = Some(is_typed(cursor, |name| name == "local")? && local.unwrap_or(true));
                }
                // Whom the vendor asks on behalf of this one.
                (_, kind) if names_model(&key) && kind != Kind::Null => self.model(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        // A shell may just as well run at the vendor's.
        self.found.unbounded |= shell && local != Some(true);
        Ok(())
    }
}

/// Whether the member called `key` names a model, at least to some parser.
fn names_model(key: &Text<'_>) -> bool {
    let key = key.decoded();
    key == "model" || looks_like(&key, "model")
}

/// Reads a value: whether it is an object of a `type` that is `right`, and of no other.
fn is_typed(cursor: &mut Cursor<'_>, right: impl Fn(&str) -> bool) -> Result<bool, Fault> {
    let mut typed = None;
    if cursor.kind()? != Kind::Object {
        return cursor.skip().map(|()| false);
    }
    cursor.object(|cursor, key| {
        if key.decoded() != "type" {
            return cursor.skip();
        }
        let named = cursor.kind()? == Kind::String;
        let is_right = if named { right(&cursor.string()?.decoded()) } else { cursor.skip().map(|()| false)? };
        typed = Some(is_right && typed.unwrap_or(true));
        Ok(())
    })?;
    Ok(typed == Some(true))
}
