//! Reading TOML: typed values with their places, every mistake noted and none fatal.
//!
//! A deserializer stops at the first error; an operator wants all of them. So the spanned tree that the TOML parser
//! makes is walked by hand: each value is asked for by name and kind, and what nobody asked for is an unknown key.

use std::borrow::Cow;
use std::cell::{Cell, LazyCell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::num::{NonZeroU64, ParseIntError};
use std::ops::Range;
use std::time::Duration;

use smallvec::SmallVec;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::mask;
use super::mistake::{Place, closest};
use super::quantity::{AMOUNT, duration, money, size};
use super::sink::Sink;
use super::syntax::{self, Flaw};
use crate::clock::day;
use crate::tokens::Nano;

/// A value and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub place: Place,
}

impl<T> At<T> {
    /// Another value at the same place.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> At<U> {
        At { value: change(self.value), place: self.place }
    }
}

/// A list, as far as it was understood.
#[derive(Debug)]
pub struct List<T> {
    /// Its entries.
    pub entries: Vec<At<T>>,
    /// Where it stands; none where it is not there, or not all of it was understood: what it lacks may stand there.
    pub whole: Option<Place>,
}

const STRING: &str = "a string";
const DURATION: &str = "a duration in quotes such as \"30s\"";

/// A table that is being read.
pub struct Table<'a> {
    map: &'a DeTable<'a>,
    place: Place,
    sink: &'a Sink,
    /// The keys that were asked for, some more than once.
    asked: RefCell<SmallVec<[&'static str; 12]>>,
    /// Whether all others were asked for, whatever they are called.
    named: Cell<bool>,
}

/// Parses a file, noting everything that is wrong with its form, and hands its root to `read`. Of a file that does not
/// parse, nothing else is noted: it would be wrong only because of that.
pub fn parse<T>(file: usize, text: &str, sink: &Sink, read: impl FnOnce(&Table<'_>) -> T) -> T {
    syntax::read(text, |root, flaws| {
        let mut literal = Vec::new();
        mask::secrets(root, &mut literal);
        sink.hide(file, literal);
        if flaws.is_empty() {
            sink.hide_urls(file);
        } else {
            flaws.into_iter().for_each(|Flaw { span, message, hint }| {
                sink.wrong(Some(&Place { file, span }), message, hint);
            });
            sink.breaks(file);
        }
        read(&Table::new(root, Place { file, span: 0..0 }, sink))
    })
}

impl<'a> Table<'a> {
    fn new(map: &'a DeTable<'a>, place: Place, sink: &'a Sink) -> Table<'a> {
        Table { map, place, sink, asked: RefCell::default(), named: Cell::default() }
    }

    /// Where the table is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where mistakes go.
    pub fn sink(&self) -> &'a Sink {
        self.sink
    }

    fn get(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.borrow_mut().push(key);
        self.map.get(key)
    }

    /// Notes that what stands under `key` is wrong.
    pub fn wrong_at(&self, key: &'static str, message: impl Into<String>, hint: Option<String>) {
        let place = self.get(key).map(|value| self.at(value.span()));
        self.sink.wrong(Some(place.as_ref().unwrap_or(&self.place)), message, hint);
    }

    /// Whether something stands under `key`, whatever it is.
    pub fn holds(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    fn at(&self, span: Range<usize>) -> Place {
        Place { file: self.place.file, span }
    }

    fn mismatch(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let found = value.get_ref().type_str();
        self.sink.wrong(Some(&self.at(value.span())), format!("`{key}`: expected {wanted}, found {found}"), None);
    }

    fn take<T>(
        &self,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&'a DeValue<'a>) -> Option<T>,
    ) -> Option<At<T>> {
        let value = self.get(key)?;
        match read(value.get_ref()) {
            Some(read) => Some(At { value: read, place: self.at(value.span()) }),
            None => {
                self.mismatch(key, value, wanted);
                None
            }
        }
    }

    /// A string that is shown to people; odd where it is empty, for it is shown all the same.
    pub fn shown(&self, key: &'static str) -> Option<String> {
        let at = self.text(key)?;
        if at.value.trim().is_empty() {
            self.sink.odd(Some(&at.place), format!("`{key}` is empty, and shown as it is: leave it out"));
        }
        Some(at.value)
    }

    /// A string.
    pub fn text(&self, key: &'static str) -> Option<At<String>> {
        self.take(key, STRING, |value| value.as_str().map(str::to_owned))
    }

    /// A string that must be there.
    pub fn required(&self, key: &'static str) -> Option<At<String>> {
        if !self.map.contains_key(key) {
            self.sink.wrong(Some(&self.place), format!("`{key}` is missing"), None);
        }
        self.text(key)
    }

    /// A boolean.
    pub fn boolean(&self, key: &'static str) -> Option<At<bool>> {
        self.take(key, "true or false", DeValue::as_bool)
    }

    /// A whole number that is not negative.
    pub fn number(&self, key: &'static str) -> Option<At<u64>> {
        let value = self.get(key)?;
        self.number_of(key, value)
    }

    fn number_of(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<At<u64>> {
        let place = self.at(value.span());
        let Some(integer) = value.get_ref().as_integer() else {
            self.mismatch(key, value, "a whole number");
            return None;
        };
        match whole(integer) {
            Ok(value) => Some(At { value, place }),
            Err(_) => {
                let what = if integer.as_str().starts_with('-') { "cannot be negative" } else { "is too large" };
                self.sink.wrong(Some(&place), format!("the number {what}"), None);
                None
            }
        }
    }

    /// Text that `parse` understands.
    pub fn parsed<T, E: Display>(&self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<At<T>> {
        self.formed(key, STRING, parse)
    }

    /// As [`Table::parsed`]; `wanted` is what is told to whoever writes no text.
    fn formed<T, E: Display>(
        &self,
        key: &'static str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<At<T>> {
        let At { value, place } = self.take(key, wanted, |value| value.as_str().map(str::to_owned))?;
        match parse(&value) {
            Ok(value) => Some(At { value, place }),
            Err(error) => {
                self.sink.wrong(Some(&place), format!("`{key}` {error}"), None);
                None
            }
        }
    }

    /// A duration such as `"30s"`.
    pub fn duration(&self, key: &'static str) -> Option<Duration> {
        self.formed(key, DURATION, duration).map(|at| at.value)
    }

    /// A duration that is not zero: none of these means "never" by it, and as a time limit it would lock everybody out.
    pub fn lasting(&self, key: &'static str) -> Option<Duration> {
        let lasting = |text: &str| duration(text).and_then(positive);
        self.formed(key, DURATION, lasting).map(|at| at.value)
    }

    /// A whole number that is not zero.
    pub fn some(&self, key: &'static str) -> Option<At<NonZeroU64>> {
        let At { value, place } = self.number(key)?;
        let value = NonZeroU64::new(value);
        if value.is_none() {
            self.sink.wrong(Some(&place), format!("`{key}` {ZERO}"), None);
        }
        value.map(|value| At { value, place })
    }

    /// A size such as `"64KiB"`, in bytes, that is not zero.
    pub fn size(&self, key: &'static str) -> Option<At<u64>> {
        self.formed(key, "a size in quotes such as \"16MiB\"", |text| size(text).and_then(positive))
    }

    /// An amount of money such as `"2500.00"`.
    pub fn money(&self, key: &'static str) -> Option<Nano> {
        self.formed(key, AMOUNT, money).map(|at| at.value)
    }

    /// A table; absent where there is none.
    pub fn table(&self, key: &'static str) -> Option<Table<'a>> {
        let value = self.get(key)?;
        self.table_of(key, value)
    }

    fn table_of(&self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Option<Table<'a>> {
        let Some(map) = value.get_ref().as_table() else {
            self.mismatch(key, value, "a table");
            return None;
        };
        Some(Table::new(map, self.at(value.span()), self.sink))
    }

    /// A table that must be there.
    pub fn required_table(&self, key: &'static str) -> Option<Table<'a>> {
        if !self.map.contains_key(key) {
            self.sink.wrong(Some(&self.place), format!("the table [{key}] is missing"), None);
        }
        self.table(key)
    }

    /// A list of tables.
    pub fn tables(&self, key: &'static str) -> Vec<Table<'a>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let Some(list) = value.get_ref().as_array() else {
            self.mismatch(key, value, "a list of tables");
            return Vec::new();
        };
        list.iter().filter_map(|entry| self.table_of(key, entry)).collect()
    }

    /// Whether nothing stands under `key`, or a list of nothing.
    pub fn is_without(&self, key: &str) -> bool {
        self.map.get(key).is_none_or(|value| value.get_ref().as_array().is_some_and(|list| list.is_empty()))
    }

    /// A list of strings that `parse` understands.
    pub fn list<T, E: Display>(&self, key: &'static str, parse: impl Fn(&str) -> Result<T, E>) -> List<T> {
        let nothing = List { entries: Vec::new(), whole: None };
        let Some(value) = self.get(key) else { return nothing };
        let Some(list) = value.get_ref().as_array() else {
            self.mismatch(key, value, "a list of strings");
            return nothing;
        };
        let entry = |entry: &Spanned<DeValue<'_>>| {
            let Some(text) = entry.get_ref().as_str() else {
                self.mismatch(key, entry, STRING);
                return None;
            };
            let place = self.at(entry.span());
            match parse(text) {
                Ok(value) => Some(At { value, place }),
                Err(error) => {
                    self.sink.wrong(Some(&place), format!("{text:?} {error}"), None);
                    None
                }
            }
        };
        let entries: Vec<_> = list.iter().filter_map(entry).collect();
        let whole = (entries.len() == list.len()).then(|| self.at(value.span()));
        List { entries, whole }
    }

    /// A list that must be there; `what` says of what.
    pub fn required_list<T, E: Display>(
        &self,
        key: &'static str,
        what: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> List<T> {
        if !self.holds(key) {
            self.sink.wrong(Some(&self.place), format!("`{key}` is missing: {what}"), None);
        }
        self.list(key, parse)
    }

    /// A day, quoted or not.
    pub fn day(&self, key: &'static str) -> Option<At<jiff::civil::Date>> {
        const DAY: &str = "a day without a time, such as \"2026-11-01\"";
        let written = |value: &DeValue<'_>| match value {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Datetime(date) => Some(date.to_string()),
            _ => None,
        };
        let At { value, place } = self.take(key, DAY, written)?;
        let Some(value) = day(&value) else {
            self.sink.wrong(Some(&place), format!("`{key}` must be {DAY}"), None);
            return None;
        };
        Some(At { value, place })
    }

    /// Every key that nobody has asked for yet, with its place and value: for tables whose keys are names.
    pub fn entries(&self) -> Vec<(At<&'a str>, Entry<'_, 'a>)> {
        let entry = |(key, value): (&'a Spanned<Cow<'a, str>>, &'a Spanned<DeValue<'a>>)| {
            let name = key.get_ref().as_ref();
            (At { value: name, place: self.at(key.span()) }, Entry { table: self, key: name, value })
        };
        let entries = self.map.iter().filter(|(key, _)| !self.is_asked(key.get_ref())).map(entry).collect();
        self.named.set(true);
        entries
    }

    fn is_asked(&self, key: &str) -> bool {
        self.named.get() || self.asked.borrow().contains(&key)
    }

    /// What stands under a key that nobody knows may be a secret under a misspelt one.
    fn hide(&self, key: &str, value: &Spanned<DeValue<'_>>) {
        if !mask::may_be_secret(key, value.get_ref()) {
            return;
        }
        let mut literal = Vec::new();
        mask::literals(value, &mut literal);
        self.sink.hide(self.place.file, literal);
    }

    /// Notes every key that was not asked for.
    pub fn finish(&self) {
        self.finish_or(|_| None);
    }

    /// As [`Table::finish`]; `elsewhere` knows where some keys belong instead.
    pub fn finish_or(&self, elsewhere: impl Fn(&str) -> Option<String>) {
        // In order, each once; a file that is no configuration has a million unknown keys.
        let known = LazyCell::new(|| self.asked.borrow().iter().copied().collect::<BTreeSet<&str>>());
        for (key, value) in self.map {
            let name = key.get_ref().as_ref();
            if !self.is_asked(name) {
                self.hide(name, value);
                let meant = closest(name, known.iter().copied());
                let hint = elsewhere(name).or_else(|| meant.map(|meant| format!("did you mean `{meant}`?")));
                let known = || format!("known here: {}", known.iter().copied().collect::<Vec<_>>().join(", "));
                let hint = hint.unwrap_or_else(known);
                self.sink.wrong(Some(&self.at(key.span())), format!("unknown key `{name}`"), Some(hint));
            }
        }
    }
}

/// A whole number, in whichever of TOML's forms.
fn whole(integer: &DeInteger<'_>) -> Result<u64, ParseIntError> {
    u64::from_str_radix(integer.as_str(), integer.radix())
}

const ZERO: &str = "cannot be zero; leave it out for the default";

/// What is not zero.
fn positive<T: PartialEq + Default>(value: T) -> Result<T, &'static str> {
    if value == T::default() { Err(ZERO) } else { Ok(value) }
}

/// A value under a key that is a name.
pub struct Entry<'t, 'a> {
    table: &'t Table<'a>,
    key: &'a str,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Entry<'_, 'a> {
    /// The value as text, if it is text.
    pub fn as_text(&self) -> Option<String> {
        self.value.get_ref().as_str().map(str::to_owned)
    }

    /// The value in decimal digits, if it is a number: TOML has other forms of one.
    pub fn as_decimal(&self) -> Option<String> {
        match self.value.get_ref() {
            DeValue::Integer(integer) => whole(integer).ok().map(|number| number.to_string()),
            DeValue::Float(float) => float.as_str().parse().ok().map(|number: f64| number.to_string()),
            _ => None,
        }
    }

    /// The value as a table, if it is one.
    pub fn as_table(&self) -> Option<Table<'a>> {
        self.value.get_ref().is_table().then(|| self.table.table_of(self.key, self.value)).flatten()
    }

    /// The value as a whole number; noted as a mistake when it is none.
    pub fn number(&self) -> Option<u64> {
        self.table.number_of(self.key, self.value).map(|at| at.value)
    }

    /// Sees to it that the value is never shown: its key is unknown.
    pub fn hide(&self) {
        self.table.hide(self.key, self.value);
    }

    /// Notes that the value is wrong.
    pub fn wrong(&self, message: String) {
        self.table.sink.wrong(Some(&self.table.at(self.value.span())), message, None);
    }

    /// Notes that something else was expected.
    pub fn mismatch(&self, wanted: &str) {
        self.table.mismatch(self.key, self.value, wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_noted_at_once() {
        let sink = Sink::default();
        let text = "a = 1\nb = -5\nc = \"x\"\nnmae = \"y\"\n";
        let file = sink.add(std::path::Path::new("test.toml"), text);
        parse(file, text, &sink, |table| {
            let _ = (table.text("a"), table.number("b"), table.duration("c"), table.text("name"));
            table.finish();
        });
        let mistakes = sink.noted();
        assert_eq!(mistakes.found.len(), 4);
        assert_eq!(mistakes.found[3].hint.as_deref(), Some("did you mean `name`?"));
    }
}
