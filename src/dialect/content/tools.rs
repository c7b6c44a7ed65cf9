//! What a body has others do beside the model's answer: tools, other models that may answer instead, edits of the
//! conversation. Whatever of it costs tokens that the body does not bound is noted; whether that may be is decided
//! elsewhere.

use super::{Content, Found};
use crate::dialect::json::{Cursor, Fault, Kind};
use crate::dialect::known;
use crate::dialect::metered::looks_like;
use crate::names::ModelName;

/// What vendors put before the model because tools are listed, or for a tool of their own design, counted in items:
/// Anthropic documents up to some 700 tokens.
const HIDDEN_PROMPT: u32 = 48;

/// Tools that the client runs, by the first word of their `type`; all others run at the vendor's. A `shell` may be
/// either's.
const CLIENT_TOOLS: [&str; 7] = ["bash", "text_editor", "computer", "memory", "local_shell", "shell", "apply_patch"];

/// The most models that one request may name beside its own: every open stream keeps them, and vendors take fewer.
pub(in crate::dialect) const MAX_MODELS: usize = 16;

/// What only holds other tools, or names one that is declared elsewhere.
const HOLDERS: [&str; 5] =
    ["namespace", "tool_definition", "tool_reference", "mcp_tool_reference", "mcp_toolset_reference"];

/// Members of a tool in which its author may write what he likes.
const FREE_FORM: [&str; 10] = [
    "parameters",
    "input_schema",
    "output_schema",
    "schema",
    "function",
    "custom",
    "input_examples",
    "annotations",
    "metadata",
    "headers",
];

impl Content {
    /// Reads `tools`, `functions`, or what else holds tools, wherever it stands.
    pub(in crate::dialect) fn tools(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        match cursor.kind()? {
            Kind::Array => {}
            Kind::Object => return self.tool(cursor),
            _ => return cursor.skip(),
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
            Kind::String => {
                self.stand_in(cursor)?;
                self.vendors_choice |= self.stand_ins.last().is_some_and(|name| name.as_str() == "default");
                Ok(())
            }
            _ => self.stand_in(cursor),
        }
    }

    fn stand_in(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        self.found.unbounded = true;
        if cursor.kind()? != Kind::Object {
            let named = self.model(cursor)?;
            self.stands_in(named);
            return Ok(());
        }
        let mut any = false;
        cursor.object(|cursor, key| {
            if names_model(&key.decoded()) {
                any = true;
                let named = self.model(cursor)?;
                self.stands_in(named);
                return Ok(());
            }
            self.overridden = true;
            cursor.skip()
        })?;
        self.found.misnamed |= !any;
        Ok(())
    }

    /// Reads the name of a model.
    fn model(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<ModelName>, Fault> {
        let named = if cursor.kind()? == Kind::String {
            cursor.string()?.decoded().parse().ok()
        } else {
            cursor.skip().map(|()| None)?
        };
        self.found.misnamed |= named.is_none();
        Ok(named)
    }

    /// Reads a member of which only the models concern us that are named in it, however deep.
    pub(in crate::dialect) fn models_within(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        match cursor.kind()? {
            Kind::Array => cursor.array(|cursor| self.models_within(cursor)),
            Kind::Object => cursor.object(|cursor, key| {
                let key = key.decoded();
                match cursor.kind()? {
                    Kind::String if names_model(&key) => self.asks(cursor),
                    _ if FREE_FORM.contains(&&*key) => cursor.skip(),
                    _ => self.models_within(cursor),
                }
            }),
            _ => cursor.skip(),
        }
    }

    /// Reads the name of a model that the vendor asks on behalf of this one.
    fn asks(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let named = self.model(cursor)?;
        named.into_iter().for_each(|named| self.found.asks(named));
        Ok(())
    }

    /// Whether the request names more models than it may.
    pub(in crate::dialect) fn is_crowded(&self) -> bool {
        self.found.crowded || self.stand_ins.len() + self.found.models.len() > MAX_MODELS
    }

    fn stands_in(&mut self, named: Option<ModelName>) {
        let named = named.into_iter();
        named.for_each(|named| self.found.crowded |= !keep(&mut self.stand_ins, named));
    }

    /// Reads a member that the gateway does not know.
    pub(in crate::dialect) fn unknown(&mut self, cursor: &mut Cursor<'_>, name: &str) -> Result<(), Fault> {
        if !matches!(cursor.kind()?, Kind::Null | Kind::False) {
            self.found.is_unknown(name);
        }
        let misnamed = self.found.misnamed;
        self.models_within(cursor)?;
        self.found.misnamed = misnamed;
        Ok(())
    }

    /// Reads `thread`: one that begins here is all in the body, one that goes on is not.
    pub(in crate::dialect) fn thread(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Object {
            return self.reference(cursor);
        }
        self.found.unbounded |= !is_typed(cursor, |name| name == "create")?;
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
            let key = key.decoded();
            match (&*key, cursor.kind()?) {
                ("type", Kind::String) => {
                    let kind = cursor.string()?.decoded();
                    let is = |name: &str| {
                        kind.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
                    };
                    shell |= is("shell");
                    if CLIENT_TOOLS.into_iter().any(is) {
                        self.items = self.items.saturating_add(HIDDEN_PROMPT);
                    } else if !matches!(&*kind, "function" | "custom") && !HOLDERS.contains(&&*kind) {
                        self.found.unbounded = true;
                    }
                }
                ("environment", _) => {
                    local = Some(is_typed(cursor, |name| name == "local")? && local.unwrap_or(true));
                }
                (_, kind) if names_model(&key) && kind != Kind::Null => self.asks(cursor)?,
                (_, Kind::Object | Kind::Array) if known::is_tools(&key) => self.tools(cursor)?,
                (name, _) if FREE_FORM.contains(&name) => cursor.skip()?,
                _ => self.models_within(cursor)?,
            }
            Ok(())
        })?;
        // A shell may just as well run at the vendor's.
        self.found.unbounded |= shell && local != Some(true);
        Ok(())
    }
}

/// Whether the member called `key` names a model, at least to some parser.
fn names_model(key: &str) -> bool {
    key == "model" || looks_like(key, "model")
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

impl Found {
    /// A tool asks a model.
    pub(super) fn asks(&mut self, named: ModelName) {
        self.crowded |= !keep(&mut self.models, named);
    }
}

/// Keeps a model once, however often it is named, and never too many: whether there was room.
fn keep(models: &mut Vec<ModelName>, named: ModelName) -> bool {
    let known = models.contains(&named);
    if !known && models.len() < MAX_MODELS {
        models.push(named);
        return true;
    }
    known
}
