//! What one organization did in a span of time: uses by purpose, tokens, cost, refusals.
//!
//! A request counts where its accepted line falls; its closing line may come later. The numbers are those of the
//! lines, nothing is estimated here, and how each was settled is told apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::audit::line::{Head, Kind};
use crate::audit::told::Dropped;
use crate::clock::Wall;
use crate::outcome::Ending;
use crate::tokens::Nano;

/// The members of a request's line that a report looks at.
#[derive(Deserialize)]
struct Told {
    organization: Option<String>,
    purpose: Option<String>,
    reason: Option<String>,
    ending: Option<String>,
    usage: Option<Tokens>,
    settlement: Option<String>,
    cost: Option<String>,
    accepted_seq: Option<u64>,
    result: Option<String>,
    presented: Option<Presented>,
}

/// The certificate of a handshake that was refused.
#[derive(Deserialize)]
struct Presented {
    organization: Option<String>,
}

/// Tokens, as `tokens::Usage` writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tokens {
    /// Plain input.
    pub input: u64,
    /// Input read from a prompt cache.
    pub cached_input: u64,
    /// Input written to a prompt cache.
    pub cache_write: u64,
    /// Output, reasoning included.
    pub output: u64,
    /// The part of the output that was reasoning.
    pub reasoning: u64,
}

impl Tokens {
    fn add(&mut self, other: Tokens) {
        let pairs = [
            (&mut self.input, other.input),
            (&mut self.cached_input, other.cached_input),
            (&mut self.cache_write, other.cache_write),
            (&mut self.output, other.output),
            (&mut self.reasoning, other.reasoning),
        ];
        for (to, from) in pairs {
            *to = to.saturating_add(from);
        }
    }
}

/// The sums for one purpose, or for all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Sums {
    /// Requests accepted.
    pub accepted: u64,
    /// Of these, without a closing line: still open, or the process was killed.
    pub open: u64,
    /// How the others ended.
    pub endings: BTreeMap<String, u64>,
    /// How the others were settled: what was reported, estimated, disputed.
    pub settlements: BTreeMap<String, u64>,
    /// Requests whose client left before anything was decided.
    pub left: u64,
    /// Requests refused.
    pub refused: u64,
    /// Why.
    pub refusals: BTreeMap<String, u64>,
    /// Tokens of closed requests.
    pub tokens: Tokens,
    /// Their cost, in the configured currency.
    pub cost: Nano,
}

/// A report under way.
#[derive(Debug, Clone)]
pub struct Report {
    organization: String,
    from: Option<Wall>,
    until: Option<Wall>,
    by_purpose: BTreeMap<String, Sums>,
    handshakes: BTreeMap<String, u64>,
    dropped: Dropped,
    open: HashMap<u64, String>,
    /// Every organization that the log names, at whatever time.
    seen: BTreeSet<String>,
    /// Number and time of the first record that is here.
    first: Option<(u64, Option<Wall>)>,
}

/// Stands for a purpose where none was declared.
const NO_PURPOSE: &str = "-";

impl Report {
    /// For one organization, from an instant up to another (not included), where these are given.
    #[must_use]
    pub fn new(organization: &str, from: Option<Wall>, until: Option<Wall>) -> Report {
        let (by_purpose, handshakes, dropped, open, seen, first) = Default::default();
        let organization = organization.to_owned();
        Report { organization, from, until, by_purpose, handshakes, dropped, open, seen, first }
    }

    /// Every organization that the records so far name, at whatever time.
    #[must_use]
    pub fn seen(&self) -> &BTreeSet<String> {
        &self.seen
    }

    /// Takes the next record of the log.
    pub fn record(&mut self, head: &Head<'_>, record: &[u8]) {
        self.first.get_or_insert_with(|| (head.seq, head.time.parse().ok().map(Wall::from_timestamp)));
        if head.kind == Kind::Dropped && self.spans(head) {
            self.dropped.add(record);
        }
        if !matches!(head.kind, Kind::Accepted | Kind::Closed | Kind::Refused | Kind::HandshakeRefused) {
            return;
        }
        let Ok(mut told) = serde_json::from_slice::<Told>(record) else { return };
        told.organization = told.organization.or_else(|| told.presented.take()?.organization);
        if let Some(org) = told.organization.as_ref().filter(|org| !self.seen.contains(*org)) {
            self.seen.insert(org.clone());
        }
        match head.kind {
            Kind::Closed => self.close(told),
            _ if !self.concerns(head, &told) => {}
            Kind::HandshakeRefused => count(&mut self.handshakes, told.result),
            Kind::Accepted => {
                let purpose = told.purpose.unwrap_or_else(|| NO_PURPOSE.to_owned());
                self.sums(&purpose).accepted += 1;
                self.open.insert(head.seq, purpose);
            }
            _ => {
                let sums = self.sums(&told.purpose.unwrap_or_else(|| NO_PURPOSE.to_owned()));
                if told.ending.as_deref() == Some(Ending::ClientGone.as_str()) {
                    sums.left += 1;
                    return;
                }
                sums.refused += 1;
                count(&mut sums.refusals, told.reason);
            }
        }
    }

    fn concerns(&self, head: &Head<'_>, told: &Told) -> bool {
        told.organization.as_deref() == Some(self.organization.as_str()) && self.spans(head)
    }

    fn spans(&self, head: &Head<'_>) -> bool {
        let at = head.time.parse().map(Wall::from_timestamp);
        let within = |at| self.from.is_none_or(|from| from <= at) && self.until.is_none_or(|until| at < until);
        at.is_ok_and(within)
    }

    fn close(&mut self, told: Told) {
        let Some(purpose) = told.accepted_seq.and_then(|seq| self.open.remove(&seq)) else { return };
        let sums = self.sums(&purpose);
        count(&mut sums.endings, told.ending);
        count(&mut sums.settlements, told.settlement);
        sums.tokens.add(told.usage.unwrap_or_default());
        let cost = told.cost.as_deref().and_then(Nano::parse).unwrap_or_default();
        sums.cost = Nano(sums.cost.0.saturating_add(cost.0));
    }

    fn sums(&mut self, purpose: &str) -> &mut Sums {
        self.by_purpose.entry(purpose.to_owned()).or_default()
    }

    /// The time of the first record that is here, where the ones before were retired and the span begins earlier.
    fn kept_from(&self) -> Option<Wall> {
        let (_, at) = self.first.filter(|(seq, _)| *seq > 0)?;
        at.filter(|at| self.from.is_none_or(|from| from < *at))
    }

    /// Ends the report.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        for purpose in std::mem::take(&mut self.open).into_values() {
            self.sums(&purpose).open += 1;
        }
        let kept_from = self.kept_from();
        let total = self.by_purpose.values().fold(Sums::default(), total);
        let Report { organization, from, until, by_purpose, handshakes, dropped, .. } = self;
        let text = |at: Option<Wall>| at.map(|at| at.to_string());
        let [from, until, kept_from] = [from, until, kept_from].map(text);
        Finished { organization, from, until, kept_from, by_purpose, total, handshakes, dropped }
    }
}

fn count(counts: &mut BTreeMap<String, u64>, word: Option<String>) {
    if let Some(word) = word {
        *counts.entry(word).or_default() += 1;
    }
}

fn total(mut total: Sums, one: &Sums) -> Sums {
    total.accepted += one.accepted;
    total.open += one.open;
    total.left += one.left;
    total.refused += one.refused;
    total.tokens.add(one.tokens);
    total.cost = Nano(total.cost.0.saturating_add(one.cost.0));
    let maps = [
        (&mut total.endings, &one.endings),
        (&mut total.settlements, &one.settlements),
        (&mut total.refusals, &one.refusals),
    ];
    for (to, from) in maps {
        for (word, number) in from {
            *to.entry(word.clone()).or_default() += number;
        }
    }
    total
}

/// A report, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finished {
    /// Whose.
    pub organization: String,
    /// From this instant (RFC 3339), or the beginning …
    pub from: Option<String>,
    /// … up to this one, not included, or the end.
    pub until: Option<String>,
    /// Where retention removed records that the span may have held: the time of the first that is left.
    pub kept_from: Option<String>,
    /// Sums by purpose; `-` where none was declared.
    pub by_purpose: BTreeMap<String, Sums>,
    /// All of them.
    pub total: Sums,
    /// Handshakes that were refused in which a certificate of theirs was shown, by result. Whether they showed it is not
    /// known.
    pub handshakes: BTreeMap<String, u64>,
    /// Lines that could not be kept in this span, of whichever organization: what they would have told is not counted.
    pub dropped: Dropped,
}

impl Finished {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let from = self.from.as_deref().unwrap_or("the beginning");
        let until = self.until.as_deref().unwrap_or("the end");
        let mut text = format!("{}, from {from} until {until}\n\n", self.organization);
        let width = self.by_purpose.keys().map(String::len).chain([7]).max().unwrap_or(7);
        let mut row = |cells: [&str; 8]| {
            let [purpose, rest @ ..] = cells;
            // Writing to a string cannot fail.
            let _ = write!(text, "{purpose:width$}");
            for cell in rest {
                let _ = write!(text, "  {cell:>12}");
            }
            text.push('\n');
        };
        row(["purpose", "accepted", "open", "left", "refused", "input", "output", "cost"]);
        let rows = self.by_purpose.iter().map(|(purpose, sums)| (purpose.as_str(), sums));
        for (purpose, sums) in rows.chain([("total", &self.total)]) {
            let input = sums.tokens.input + sums.tokens.cached_input + sums.tokens.cache_write;
            let numbers = [sums.accepted, sums.open, sums.left, sums.refused, input, sums.tokens.output];
            let numbers = numbers.map(|number| number.to_string());
            let [accepted, open, left, refused, input, output] = numbers.each_ref().map(String::as_str);
            row([purpose, accepted, open, left, refused, input, output, &sums.cost.to_string()]);
        }
        for (title, words) in [("endings", &self.total.endings), ("refusals", &self.total.refusals)] {
            let _ = write!(text, "\n{title}: {}", words_of(words, ", "));
        }
        let _ = write!(text, "\nhandshakes refused, with its certificate: {}", words_of(&self.handshakes, ", "));
        let _ = write!(text, "\nlines that could not be kept, of whichever organization: {}", self.dropped.words(", "));
        text.push('\n');
        text
    }

    /// One row a purpose, RFC 4180.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut csv = "organization,purpose,accepted,open,refused,input_tokens,cached_input_tokens,cache_write_tokens,\
                       output_tokens,reasoning_tokens,cost,endings,refusals,kept_from,left,dropped\r\n"
            .to_owned();
        let kept_from = self.kept_from.as_deref().unwrap_or_default();
        for (purpose, sums) in &self.by_purpose {
            let tokens = &sums.tokens;
            let _ = write!(csv, "{},{purpose},{},{},{},", self.organization, sums.accepted, sums.open, sums.refused);
            let _ = write!(csv, "{},{},{},", tokens.input, tokens.cached_input, tokens.cache_write);
            let _ = write!(csv, "{},{},{},", tokens.output, tokens.reasoning, sums.cost);
            let _ = write!(csv, "{},{},", words_of(&sums.endings, ";"), words_of(&sums.refusals, ";"));
            let _ = write!(csv, "{kept_from},{},{}\r\n", sums.left, self.dropped.words(";"));
        }
        csv
    }
}

/// Names and words of the trail hold neither commas nor quotes, so nothing needs escaping.
fn words_of(words: &BTreeMap<String, u64>, between: &str) -> String {
    let words: Vec<String> = words.iter().map(|(word, number)| format!("{word}={number}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(between) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::audit::{Chain, Draft, Fields, Leaf};

    #[test]
    fn uses_are_counted_where_they_began_and_only_for_their_organization() {
        let mut draft = Draft::new("b".into());
        draft.begin(&Chain::empty());
        let hour = |h: i64| Wall::from_seconds(h * 3600);
        let mut push = |kind, at, of, fields| draft.push(kind, hour(at), of, &Fields::of(&fields));
        let acme = json!({"organization": "acme", "purpose": "malware-analysis"});
        push(Kind::Accepted, 1, None, acme.clone());
        push(Kind::Accepted, 2, None, json!({"organization": "globex", "purpose": "malware-analysis"}));
        push(Kind::Accepted, 3, None, acme.clone());
        push(Kind::Accepted, 3, None, acme);
        push(Kind::Refused, 4, None, json!({"organization": "acme", "reason": "purpose_missing"}));
        let left = json!({"organization": "acme", "reason": "client_gone", "ending": "client_gone"});
        push(Kind::Refused, 4, None, left);
        // The last one is behind the span.
        for at in [4, 5, 60] {
            push(Kind::Dropped, at, None, json!({"accepted": 2, "closed": 1}));
        }
        for organization in ["acme", "globex"] {
            let shown = json!({"result": "revoked", "presented": {"sha256": "ab", "organization": organization}});
            push(Kind::HandshakeRefused, 4, None, shown);
        }
        let usage = json!({"input": 10, "cached_input": 1, "output": 5, "reasoning": 2});
        let closing = json!({"ending": "complete", "settlement": "reported", "usage": usage, "cost": "0.25"});
        push(Kind::Closed, 99, Some(0), closing.clone());
        push(Kind::Closed, 99, Some(1), closing.clone());
        push(Kind::Closed, 99, Some(2), closing);

        let mut report = Report::new("acme", Some(hour(2)), Some(hour(50)));
        for line in draft.bytes().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let leaf = Leaf::from(line);
            report.record(&Head::parse(leaf.record()).unwrap(), leaf.record());
        }
        let finished = report.finish();
        let sums = &finished.by_purpose["malware-analysis"];
        assert_eq!((sums.accepted, sums.open, sums.endings["complete"]), (2, 1, 1));
        assert_eq!((sums.tokens.input, sums.tokens.output, sums.cost), (10, 5, Nano(250_000_000)));
        assert_eq!((finished.total.refused, finished.total.refusals["purpose_missing"]), (1, 1));
        assert!(finished.text().contains("refusals: purpose_missing=1"));
        assert_eq!(finished.total.left, 1, "who leaves is not refused");
        assert!(finished.text().contains("handshakes refused, with its certificate: revoked=1\n"));
        assert!(finished.text().ends_with("of whichever organization: accepted=4, closed=2\n"));
        assert_eq!(
            finished.csv().lines().nth(2),
            Some("acme,malware-analysis,2,1,0,10,1,0,5,2,0.25,complete=1,none,,0,accepted=4;closed=2")
        );
    }

    #[test]
    fn a_span_that_reaches_into_what_was_retired_says_where_the_log_begins() {
        let told = |retired: u64, from: Option<i64>| {
            let (mut chain, mut draft) = (Chain::empty(), Draft::new("b".into()));
            (0..retired).for_each(|_| chain.append(Leaf::from(&b"gone"[..]).hash()));
            draft.begin(&chain);
            draft.push(Kind::Accepted, Wall::from_seconds(3600), None, &Fields::of(&json!({"organization": "acme"})));
            let leaf = Leaf::from(draft.bytes().trim_ascii_end());
            let mut report = Report::new("acme", from.map(Wall::from_seconds), None);
            report.record(&Head::parse(leaf.record()).unwrap(), leaf.record());
            let finished = report.finish();
            let row = finished.csv().lines().nth(1).unwrap().to_owned();
            let kept_from = finished.kept_from.as_deref().unwrap_or_default();
            assert!(row.ends_with(&format!(",{kept_from},0,none")), "{row}");
            finished.kept_from
        };
        let beginning = Some("1970-01-01T01:00:00.000Z".to_owned());
        assert_eq!([told(3, None), told(3, Some(3599))], [beginning.clone(), beginning]);
        assert_eq!([told(3, Some(3600)), told(0, None)], [None, None]);
    }
}
