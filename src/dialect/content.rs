//! What a request's input consists of: how many items, which parts are not text, and what is not in the body at all.
//!
//! A text's tokens never outnumber its bytes; an image's, a file's or a stored conversation's may. So everything of
//! that kind is counted here, whatever the dialect and however deep it stands. In doubt a part counts: that reserves
//! too much for a while, never too little.

mod tools;

pub(super) use tools::MAX_MODELS;

use super::json::{Cursor, Fault, Kind};
use super::known;
use super::text::Measure;
use crate::names::ModelName;

/// Members whose strings a model reads.
const TOLD: [&str; 10] = [
    "content",
    "text",
    "input",
    "output",
    "arguments",
    "thinking",
    "input_text",
    "output_text",
    "instructions",
    "source",
];

/// Members that hold a part's data or its address, in themselves or in an object.
const HOLDERS: [&str; 6] = ["source", "image_url", "input_audio", "video_url", "audio_url", "result"];

/// What was read of the input so far.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Messages, input items and tools.
    pub(super) items: u32,
    /// What is not text.
    pub(super) found: Found,
    /// Models that may answer in the place of the request's own.
    pub(super) stand_ins: Vec<ModelName>,
    /// Which those are is left to the vendor.
    pub(super) vendors_choice: bool,
    /// One of them may be told something else, such as an output maximum.
    pub(super) overridden: bool,
    /// Bytes of the body that hold the data of images, sounds and films.
    pub(super) media_bytes: u64,
    /// Bytes of the body that hold the data of files: text in base64, or nothing of the kind.
    pub(super) file_bytes: u64,
    /// Bytes of the strings that a model reads, unescaped, their names and everything around them left out.
    pub(super) told_bytes: u64,
    /// Those of them that are like the one before them.
    pub(super) repeating_bytes: u64,
}

/// What was found beside text.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Images, sounds, films, files.
    pub(super) nontext_parts: u32,
    /// Something refers to input that is not in the body, or can be read in two ways.
    pub(super) unbounded: bool,
    /// The first member or kind of content of which nobody here knows what it may cost.
    pub(super) unknown: Option<Box<str>>,
    /// Models that tools ask.
    pub(super) models: Vec<ModelName>,
    /// Something stands for a model that is no name of one.
    pub(super) misnamed: bool,
    /// More models are named than [`MAX_MODELS`].
    pub(super) crowded: bool,
}

/// What an object tells the object around it.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// Bytes of the string that holds data, or the address of data.
    data_bytes: u64,
    /// Bytes of a file's data.
    file_data: u64,
    /// Its data is elsewhere.
    by_url: bool,
    /// Its data is text.
    textual: bool,
    /// It has an id, and what that stands for is not all in it: a reference.
    bare_id: bool,
}

/// What has been read of one object.
#[derive(Debug, Default)]
struct Object {
    part: Part,
    /// It is an item, or a part of one's content: its `type` says what it costs.
    direct: bool,
    /// How often `type` stands in it.
    types: u8,
    /// How often `source` stands in it.
    sources: u8,
    has_id: bool,
    has_role: bool,
    has_content: bool,
    /// Its role or content is null.
    void: bool,
    /// It holds something beside what names it.
    has_substance: bool,
    /// It holds what only the vendor can read of it.
    has_sealed: bool,
    has_url: bool,
    /// Bytes of `data` and of `url`, where they are strings.
    data: u64,
    url: u64,
    /// Bytes of its `file_data`, or of that in its `file`.
    file_data: u64,
    /// The data of each of [`HOLDERS`].
    held: [u64; HOLDERS.len()],
    /// Of what stands in it.
    inside: Seen,
    /// Of its `input`.
    input: Option<Box<Found>>,
}

/// What a `type` says a part is.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Part {
    #[default]
    Untyped,
    /// With the member that holds its data, where that is known.
    Media(Option<&'static str>),
    File,
    Reference,
    /// A tool call: its `input` is text, whatever it looks like.
    Call,
    /// Thoughts, of which the vendor keeps all or gives them along sealed.
    Thoughts,
    Inline,
    ByUrl,
    Textual,
    Other,
}

impl Content {
    /// Reads `messages`, `input`, `system` or a completion's `prompt`; tells how many there are: an array of numbers
    /// is one text that is already tokens. Among `stored` items, a bare id stands for one that the vendor has.
    pub(super) fn list(&mut self, cursor: &mut Cursor<'_>, stored: bool) -> Result<u32, Fault> {
        let mut count = 0u32;
        if cursor.kind()? == Kind::Array {
            cursor.array(|cursor| {
                if cursor.kind()? != Kind::Number {
                    count = count.saturating_add(1);
                }
                let seen = self.walk(cursor, true)?;
                self.found.unbounded |= stored && seen.bare_id;
                Ok(())
            })?;
        } else {
            let seen = self.walk(cursor, true)?;
            self.found.unbounded |= stored && seen.bare_id;
        }
        let count = count.max(1);
        self.items = self.items.saturating_add(count);
        Ok(count)
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
        self.found.unbounded |= something;
        Ok(())
    }

    fn walk(&mut self, cursor: &mut Cursor<'_>, direct: bool) -> Result<Seen, Fault> {
        let mut seen = Seen::default();
        match cursor.kind()? {
            Kind::Object => return self.object(cursor, direct),
            Kind::Array => cursor.array(|cursor| {
                let inside = self.walk(cursor, direct)?;
                seen.by_url |= inside.by_url;
                seen.bare_id |= inside.bare_id;
                Ok(())
            })?,
            Kind::String => self.told(cursor)?,
            _ => cursor.skip()?,
        }
        Ok(seen)
    }

    /// Reads what may be text in the form of parts; tells what was found, and keeps none of it.
    fn aside(&mut self, cursor: &mut Cursor<'_>) -> Result<Found, Fault> {
        let (before, items) = (std::mem::take(&mut self.found), self.items);
        let (media_bytes, file_bytes) = (self.media_bytes, self.file_bytes);
        self.walk(cursor, false)?;
        (self.items, self.media_bytes, self.file_bytes) = (items, media_bytes, file_bytes);
        Ok(std::mem::replace(&mut self.found, before))
    }

    /// Reads a string for the model.
    fn told(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let text = cursor.string()?;
        let mut measure = Measure::default();
        if text.spare() == 0 {
            measure.pass(text.raw().as_bytes());
        } else {
            measure.string(text.raw().as_bytes());
        }
        self.repeating_bytes = self.repeating_bytes.saturating_add(measure.repeating());
        self.told_bytes = self.told_bytes.saturating_add(measure.bytes());
        Ok(())
    }

    fn object(&mut self, cursor: &mut Cursor<'_>, direct: bool) -> Result<Seen, Fault> {
        let mut object = Object { direct, ..Object::default() };
        cursor.object(|cursor, key| self.member(cursor, &key.decoded(), &mut object))?;
        Ok(self.judge(&mut object))
    }

    /// Learns what an object is.
    fn kind(&mut self, object: &mut Object, name: &str) {
        object.part = Part::named(name);
        if object.direct && object.part == Part::Other && !known::is_kind(name) {
            self.found.is_unknown(name);
        }
    }

    fn member(&mut self, cursor: &mut Cursor<'_>, name: &str, object: &mut Object) -> Result<(), Fault> {
        let kind = cursor.kind()?;
        object.note(name, kind);
        match (name, kind) {
            ("type", Kind::String) => self.kind(object, &cursor.string()?.decoded()),
            // `audio`: an assistant's earlier answer in sound, which the vendor has kept.
            ("file_id" | "file_ids" | "file_url" | "vector_store_ids", _) | ("audio", Kind::Object) => {
                self.reference(cursor)?;
            }
            ("data", Kind::String) => object.data = length(cursor)?,
            ("url", Kind::String) => object.url = length(cursor)?,
            ("file_data", Kind::String) => object.file_data = length(cursor)?,
            ("input", Kind::Object | Kind::Array) => object.input.get_or_insert_default().add(self.aside(cursor)?),
            ("arguments" | "input_schema" | "parameters", Kind::Object | Kind::Array) => {
                self.aside(cursor)?;
            }
            (_, Kind::String) if TOLD.contains(&name) => self.told(cursor)?,
            (_, Kind::String) if HOLDERS.contains(&name) => object.hold(name, length(cursor)?),
            // Some vendors take tools within the conversation, too.
            (_, Kind::Object | Kind::Array) if known::is_tools(name) => self.tools(cursor)?,
            (_, Kind::Object | Kind::Array) => {
                let inside = self.walk(cursor, matches!(name, "content" | "output" | "tool_changes"))?;
                object.inside.by_url |= inside.by_url;
                object.inside.textual |= inside.textual && name == "source";
                if name == "file" {
                    object.file_data = inside.file_data;
                }
                object.hold(name, inside.data_bytes);
            }
            _ => cursor.skip()?,
        }
        Ok(())
    }

    /// Counts an object once all of it is known, and tells what the one around it needs to know.
    fn judge(&mut self, object: &mut Object) -> Seen {
        let clear = object.types < 2;
        self.found.unbounded |= !clear;
        let input = object.input.take().filter(|_| object.part != Part::Call || !clear);
        if let Some(input) = input {
            self.found.add(*input);
        }
        let nothing = Seen::default();
        match object.part {
            Part::Media(holder) => {
                self.found.add(Found { nontext_parts: 1, ..Found::default() });
                let bytes = if clear { object.held_in(holder) } else { 0 };
                self.media_bytes = self.media_bytes.saturating_add(bytes);
                return nothing;
            }
            Part::File if !(object.inside.textual && object.sources == 1) => {
                let unbounded = object.inside.by_url || object.has_url;
                let bytes = if clear { object.file_data.saturating_add(object.held_in(Some("source"))) } else { 0 };
                self.file_bytes = self.file_bytes.saturating_add(bytes);
                self.found.add(Found { nontext_parts: 1, unbounded, ..Found::default() });
                return nothing;
            }
            Part::Reference => self.found.unbounded = true,
            _ => {}
        }
        Seen {
            data_bytes: if clear { object.data_bytes() } else { 0 },
            file_data: object.file_data,
            by_url: object.has_url || object.part == Part::ByUrl,
            textual: object.part == Part::Textual && clear && !object.has_url,
            bare_id: object.bare_id(),
        }
    }
}

impl Found {
    fn add(&mut self, other: Found) {
        self.nontext_parts = self.nontext_parts.saturating_add(other.nontext_parts);
        self.unbounded |= other.unbounded;
        self.misnamed |= other.misnamed;
        self.crowded |= other.crowded;
        other.models.into_iter().for_each(|named| self.asks(named));
        self.unknown = self.unknown.take().or(other.unknown);
    }

    /// Notes that nobody here knows what something called `name` may cost. Of the name stays what can be told on.
    pub(super) fn is_unknown(&mut self, name: &str) {
        const LONGEST: usize = 64;
        let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        self.unknown.get_or_insert_with(|| name.chars().filter(plain).take(LONGEST).collect());
    }
}

impl Object {
    /// Notes that a member stands there.
    fn note(&mut self, name: &str, kind: Kind) {
        let something = kind != Kind::Null;
        match name {
            "type" => self.types = self.types.saturating_add(1),
            "source" => self.sources = self.sources.saturating_add(1),
            "id" => self.has_id |= something,
            "url" => self.has_url |= something,
            "role" => self.has_role = true,
            "content" => self.has_content = true,
            "encrypted_content" => self.has_sealed |= kind == Kind::String,
            _ => {}
        }
        let names_it = matches!(name, "type" | "id" | "role" | "status" | "object");
        self.has_substance |= !names_it && matches!(kind, Kind::String | Kind::Array | Kind::Object);
        self.void |= !something && matches!(name, "role" | "content");
    }

    fn hold(&mut self, name: &str, bytes: u64) {
        if let Some((held, _)) = self.held.iter_mut().zip(HOLDERS).find(|(_, holder)| *holder == name) {
            *held = bytes;
        }
    }

    fn held_in(&self, holder: Option<&str>) -> u64 {
        self.held.iter().zip(HOLDERS).find(|(_, name)| Some(*name) == holder).map_or(0, |(held, _)| *held)
    }

    /// Its data, as far as it is clear which of its strings holds them.
    fn data_bytes(&self) -> u64 {
        match self.part {
            Part::Inline => self.data,
            Part::ByUrl => self.url,
            Part::Untyped if self.data == 0 || self.url == 0 => self.data.max(self.url),
            _ => 0,
        }
    }

    fn bare_id(&self) -> bool {
        let whole = match self.part {
            Part::Untyped => self.has_role && self.has_content && !self.void,
            Part::Thoughts => self.has_sealed,
            _ => self.has_substance,
        };
        self.has_id && !whole
    }
}

impl Part {
    /// Goes by the words of the name, so that what vendors invent next is found too.
    fn named(name: &str) -> Part {
        match name {
            "item_reference" | "container_upload" | "compaction_trigger" => return Part::Reference,
            "tool_use" | "server_tool_use" | "mcp_tool_use" => return Part::Call,
            "reasoning" => return Part::Thoughts,
            "base64" => return Part::Inline,
            "url" => return Part::ByUrl,
            "text" | "content" => return Part::Textual,
            "image" => return Part::Media(Some("source")),
            "input_image" | "computer_screenshot" => return Part::Media(Some("image_url")),
            "image_generation_call" => return Part::Media(Some("result")),
            _ => {}
        }
        let words = || name.split(['_', '-', '.']);
        if words().any(|word| matches!(word, "image" | "audio" | "video" | "screenshot")) {
            Part::Media(HOLDERS.into_iter().find(|holder| *holder == name))
        } else if words().any(|word| matches!(word, "file" | "document" | "pdf")) {
            Part::File
        } else {
            Part::Other
        }
    }
}

/// Reads a string that is no text: how many bytes it takes in the body.
fn length(cursor: &mut Cursor<'_>) -> Result<u64, Fault> {
    Ok(u64::try_from(cursor.data()?).unwrap_or(u64::MAX))
}
