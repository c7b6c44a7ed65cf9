//! What a request's input consists of: how many items, which parts are not text, and what is not in the body at all.
//!
//! A text's tokens never outnumber its bytes; an image's, a file's or a stored conversation's may. So everything of
//! that kind is counted here, whatever the dialect and however deep it stands. In doubt a part counts: that reserves
//! too much for a while, never too little.

use super::json::{Cursor, Fault, Kind};

/// What vendors put before the model because tools are listed, or for a tool of their own design, counted in items:
/// Anthropic documents up to some 700 tokens.
const HIDDEN_PROMPT: u32 = 48;

/// Tools that the client runs, by the first word of their `type`; all others run at the vendor's.
const CLIENT_TOOLS: [&str; 7] = ["bash", "text_editor", "computer", "memory", "local_shell", "shell", "apply_patch"];

/// What was found in the input so far.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Messages, input items and tools.
    pub(super) items: u32,
    /// Images, sounds, films, files.
    pub(super) nontext_parts: u32,
    /// Something refers to input that is not in the body.
    pub(super) unbounded: bool,
    /// Bytes of the body that hold the data of images, sounds and films.
    pub(super) media_bytes: u64,
    /// Bytes of the strings that a model reads, their names and everything around them left out.
    pub(super) told_bytes: u64,
}

/// Members whose strings a model reads.
const TOLD: [&str; 9] =
    ["content", "text", "input", "output", "arguments", "thinking", "input_text", "output_text", "instructions"];

/// What an object tells the object around it.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// Bytes of strings that hold data, or the address of data.
    data_bytes: u64,
    /// Its data is elsewhere.
    by_url: bool,
    /// Its data is text.
    textual: bool,
}

/// What a `type` says a part is.
#[derive(PartialEq)]
enum Part {
    Media,
    File,
    Reference,
    ByUrl,
    Textual,
    Other,
}

impl Content {
    /// Reads `messages`, `input`, `system` or a completion's `prompt`; tells how many there are: an array of numbers
    /// is one text that is already tokens.
    pub(super) fn list(&mut self, cursor: &mut Cursor<'_>) -> Result<u32, Fault> {
        let mut count = 0u32;
        if cursor.kind()? == Kind::Array {
            cursor.array(|cursor| {
                if cursor.kind()? != Kind::Number {
                    count = count.saturating_add(1);
                }
                self.walk(cursor).map(drop)
            })?;
        } else {
            self.walk(cursor)?;
        }
        let count = count.max(1);
        self.items = self.items.saturating_add(count);
        Ok(count)
    }

    /// Reads `tools` or `functions`.
    pub(super) fn tools(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
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

    /// Reads a member that, unless it is null or empty, stands for input elsewhere.
    pub(super) fn reference(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let mut something = !matches!(cursor.kind()?, Kind::Null | Kind::False);
        if cursor.kind()? == Kind::Array {
            something = false;
            cursor.array(|cursor| {
                something = true;
                cursor.skip()
            })?;
        } else {
            cursor.skip()?;
        }
        self.unbounded |= something;
        Ok(())
    }

    fn tool(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        cursor.object(|cursor, key| {
            if key.decoded() != "type" || cursor.kind()? != Kind::String {
                return cursor.skip();
            }
            let kind = cursor.string()?.decoded();
            let ours =
                |name: &&str| kind.strip_prefix(*name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
            if CLIENT_TOOLS.iter().any(ours) {
                self.items = self.items.saturating_add(HIDDEN_PROMPT);
            } else if !matches!(&*kind, "function" | "custom") {
                self.unbounded = true;
            }
            Ok(())
        })
    }

    fn walk(&mut self, cursor: &mut Cursor<'_>) -> Result<Seen, Fault> {
        let mut seen = Seen::default();
        match cursor.kind()? {
            Kind::Object => seen = self.object(cursor)?,
            Kind::Array => cursor.array(|cursor| {
                let inside = self.walk(cursor)?;
                seen = seen.and(inside);
                Ok(())
            })?,
            Kind::String => self.told(cursor)?,
            _ => cursor.skip()?,
        }
        Ok(seen)
    }

    /// Reads a string for the model.
    fn told(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let bytes = u64::try_from(cursor.string()?.raw().len()).unwrap_or(u64::MAX);
        self.told_bytes = self.told_bytes.saturating_add(bytes);
        Ok(())
    }

    fn object(&mut self, cursor: &mut Cursor<'_>) -> Result<Seen, Fault> {
        let (mut seen, mut part) = (Seen::default(), Part::Other);
        cursor.object(|cursor, key| {
            let kind = cursor.kind()?;
            match (&*key.decoded(), kind) {
                ("type", Kind::String) => part = Part::named(&cursor.string()?.decoded()),
                // `audio`: an assistant's earlier answer in sound, which the vendor has kept.
                ("file_id" | "file_ids" | "file_url" | "vector_store_ids", _) | ("audio", Kind::Object) => {
                    self.reference(cursor)?;
                }
                ("data" | "url" | "image_url" | "b64_json" | "result", Kind::String) => {
                    seen.data_bytes += u64::try_from(cursor.string()?.raw().len()).unwrap_or(u64::MAX);
                }
                ("source", _) => seen = seen.and(self.walk(cursor)?),
                (name, Kind::String) if TOLD.contains(&name) => self.told(cursor)?,
                (_, Kind::Object | Kind::Array) => seen = seen.and(Seen { textual: false, ..self.walk(cursor)? }),
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        Ok(self.judge(&part, seen))
    }

    /// Counts an object once all of it is known, and tells what the one around it needs to know.
    fn judge(&mut self, part: &Part, seen: Seen) -> Seen {
        match part {
            Part::Media => {
                self.nontext_parts = self.nontext_parts.saturating_add(1);
                self.media_bytes = self.media_bytes.saturating_add(seen.data_bytes);
                return Seen::default();
            }
            Part::File if !seen.textual => {
                self.nontext_parts = self.nontext_parts.saturating_add(1);
                self.unbounded |= seen.by_url;
                return Seen::default();
            }
            Part::Reference => self.unbounded = true,
            Part::ByUrl => return Seen { by_url: true, ..seen },
            Part::Textual => return Seen { textual: true, ..seen },
            Part::File | Part::Other => {}
        }
        Seen { textual: false, by_url: false, ..seen }
    }
}

impl Seen {
    fn and(self, other: Seen) -> Seen {
        Seen {
            data_bytes: self.data_bytes.saturating_add(other.data_bytes),
            by_url: self.by_url | other.by_url,
            textual: self.textual | other.textual,
        }
    }
}

impl Part {
    /// Goes by the words of the name, so that `input_image`, `image_url` and what vendors invent next are found.
    fn named(name: &str) -> Part {
        match name {
            "item_reference" | "container_upload" => return Part::Reference,
            "url" => return Part::ByUrl,
            "text" | "content" => return Part::Textual,
            _ => {}
        }
        let words = || name.split(['_', '-', '.']);
        if words().any(|word| matches!(word, "image" | "audio" | "video" | "screenshot")) {
            Part::Media
        } else if words().any(|word| matches!(word, "file" | "document" | "pdf")) {
            Part::File
        } else {
            Part::Other
        }
    }
}
