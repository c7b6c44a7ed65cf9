//! The state as a terminal shows it: all of it into a pipe, and onto a screen what matters most and how much more there is.
//!
//! Plain text without colours or cursor movements; whoever owns the screen adds those.

use std::fmt::Write as _;

use super::glance::{self, Gauge, Row, part, short, when};
use super::status::{LiveStream, Status};
use crate::screen::tame;

/// A screen to fit.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Its columns.
    pub width: usize,
    /// Its lines.
    pub height: usize,
}

/// Reloads that a pipe gets.
const RELOADS: usize = 5;

/// The state: whole, or as much as a screen holds.
#[must_use]
pub fn render(status: &Status, screen: Option<Screen>) -> String {
    let rows = glance::tree(&status.organizations, &status.shared_names);
    let whole = whole(status, &rows);
    let Some(Screen { width, height }) = screen else {
        return lines(whole.iter().map(|line| tame(line)));
    };
    let shown = if whole.len() <= height { whole } else { fitted(status, &rows, height) };
    lines(shown.iter().take(height).map(|line| cut(&tame(line), width)))
}

fn lines(all: impl Iterator<Item = String>) -> String {
    all.fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{}", line.trim_end());
        text
    })
}

fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn whole(status: &Status, rows: &[Row<'_>]) -> Vec<String> {
    let mut text = vec![title(status), upstreams(status)];
    text.extend(waiting(status));
    text.push(String::new());
    let columns = Columns::of(rows);
    text.push(columns.heading("LIMITS"));
    for row in rows {
        let mut limits = row.gauges.iter().map(|gauge| limit(status, gauge));
        text.push(columns.line(row, row.above.len(), limits.next().as_deref().unwrap_or("unlimited")));
        text.extend(limits.map(|limit| format!("{}{limit}", " ".repeat(columns.before()))));
    }
    if !status.streams.is_empty() {
        text.extend([String::new(), stream_heading()]);
        text.extend(status.streams.iter().map(stream));
    }
    text.extend(counts(status).into_iter().flat_map(|line| [String::new(), line]));
    text.push(String::new());
    text.extend(revoked(status));
    for certificate in glance::ending(status) {
        let (kind, name, ends) = (&certificate.kind, &certificate.name, &certificate.ends);
        text.push(format!("{kind} {name} ends {ends}, {}{}", when(status, ends), mark(status, certificate)));
    }
    text.push(String::new());
    text.extend(status.reloads.iter().take(RELOADS).map(|entry| reload(status, entry)));
    if status.reloads.is_empty() {
        text.push(configuration(status));
    }
    text
}

/// What is urgent, then as many organizations and streams as there is room for, those that need a look first.
fn fitted(status: &Status, rows: &[Row<'_>], height: usize) -> Vec<String> {
    let mut text = vec![title(status), configuration(status), upstreams(status)];
    if let Some(next) = glance::ending(status).first() {
        let (kind, name, mark) = (&next.kind, &next.name, mark(status, next));
        text.push(format!("ends next: {kind} {name} {}{mark}", when(status, &next.ends)));
    }
    text.extend(waiting(status));
    text.extend(counts(status));
    let mut revoked = revoked(status);
    if let [_, more @ ..] = revoked.as_slice()
        && !more.is_empty()
    {
        let more = more.len();
        revoked.truncate(1);
        revoked.iter_mut().for_each(|line| *line = format!("{line} (and {more} more, see revoke --list)"));
    }
    text.extend(revoked);
    let headings = if status.streams.is_empty() { 2 } else { 4 };
    let room = height.saturating_sub(text.len() + headings);
    let streams = status.streams.len().min((room / 3).max(room.saturating_sub(rows.len())));
    let columns = Columns::of(rows);
    text.extend([String::new(), columns.heading("FULLEST LIMIT")]);
    let mut ordered: Vec<&Row<'_>> = rows.iter().collect();
    ordered.sort_by(|one, other| other.urgency().total_cmp(&one.urgency()));
    let line = |row: &&Row<'_>| {
        let fullest = row.fullest().and_then(|index| row.gauges.get(index));
        columns.line(row, 0, &fullest.map_or_else(|| "unlimited".into(), |gauge| limit(status, gauge)))
    };
    text.extend(some(&ordered, room - streams, "organizations", line));
    if streams > 0 {
        let mut oldest: Vec<&LiveStream> = status.streams.iter().collect();
        oldest.sort_by(|one, other| other.age_seconds.total_cmp(&one.age_seconds));
        text.extend([String::new(), stream_heading()]);
        text.extend(some(&oldest, streams, "streams", |one| stream(one)));
    }
    text
}

/// At most `room` lines, of which the last says how many there are besides.
fn some<T>(all: &[T], room: usize, what: &str, line: impl Fn(&T) -> String) -> Vec<String> {
    if all.len() <= room {
        return all.iter().map(line).collect();
    }
    let shown = room.saturating_sub(1);
    all.iter().take(shown).map(line).chain([format!("… and {} more {what}", all.len() - shown)]).collect()
}

fn title(status: &Status) -> String {
    let draining = if status.draining { "   DRAINING" } else { "" };
    format!(
        "portcullis {}   policy {} ({})   since {}{draining}",
        status.version,
        status.generation,
        short(&status.config_hash),
        status.started_at
    )
}

/// Whether what was edited last is live.
fn configuration(status: &Status) -> String {
    match (status.reloads.first(), glance::in_force(status)) {
        (Some(last), _) if part(last, "result") == "rejected" => {
            format!("LAST RELOAD REJECTED {}; {}", when(status, part(last, "at")), first_line(part(last, "text")))
        }
        (_, Some(brought)) => format!("policy {} applied {}", status.generation, when(status, part(brought, "at"))),
        _ => format!("policy {}, since the start", status.generation),
    }
}

/// What was edited and is not live yet, in one line.
fn waiting(status: &Status) -> Option<String> {
    let waiting = &status.waiting_for_restart;
    (!waiting.is_empty()).then(|| format!("WAITING FOR A RESTART: {}", waiting.join(", ")))
}

fn first_line(text: &str) -> &str {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default()
}

fn upstreams(status: &Status) -> String {
    let (silent, all) = glance::silent(status);
    let each = status.upstreams.iter().map(|upstream| part(upstream, "name"));
    let told = each.map(|name| {
        let word = if silent.contains(&name) { "DOES NOT ANSWER" } else { "answers" };
        format!("{name} {word}")
    });
    // Those that are down first.
    let (down, up): (Vec<String>, Vec<String>) = told.partition(|told| told.ends_with("DOES NOT ANSWER"));
    let list = [down, up].concat().join(", ");
    format!("upstreams ({} of {all} answer): {list}", all - silent.len())
}

fn counts(status: &Status) -> Vec<String> {
    let both = [("refusals", &status.refusals), ("refused handshakes", &status.handshakes_refused)];
    let told = both.into_iter().filter(|(_, counts)| !counts.is_empty()).map(|(what, counts)| {
        let list: Vec<String> = counts.iter().map(|(why, count)| format!("{why} {count}")).collect();
        format!("{what}: {}", list.join(", "))
    });
    told.collect()
}

fn revoked(status: &Status) -> Vec<String> {
    let told = status.revoked.iter().map(|entry| {
        let reason = Some(part(entry, "reason")).filter(|reason| !reason.is_empty()).unwrap_or("-");
        format!("revoked: {} {} since {}: {reason}", part(entry, "kind"), part(entry, "target"), part(entry, "since"))
    });
    told.collect()
}

fn reload(status: &Status, entry: &serde_json::Value) -> String {
    let current = glance::in_force(status).is_some_and(|brought| std::ptr::eq(brought, entry));
    let result = match part(entry, "result") {
        "rejected" => "REJECTED",
        _ if current => "in force",
        other => other,
    };
    let generation = entry.get("generation").map(ToString::to_string).unwrap_or_default();
    format!(
        "reload {} {result:<9} policy {generation} ({})  {} by {}",
        part(entry, "at"),
        short(part(entry, "hash")),
        part(entry, "trigger"),
        part(entry, "by")
    )
}

fn mark(status: &Status, certificate: &super::status::Certificate) -> &'static str {
    match glance::pressing(status, certificate) {
        "over" => "  !!",
        "soon" => "  !",
        _ => "",
    }
}

/// One limit: a bar, its name, its figures, and when it is whole again.
fn limit(status: &Status, gauge: &Gauge) -> String {
    const CELLS: usize = 10;
    // What is not empty shows, and only what is full is full.
    let filled = (1..=CELLS).filter(|cell| gauge.ratio() * 10.0 >= u8::try_from(*cell).map_or(10.0, f64::from));
    let filled = filled.count().max(usize::from(gauge.filled > 0.0));
    let bar = format!("{}{}", "#".repeat(filled), ".".repeat(CELLS - filled));
    let again = gauge.resets_at.as_ref().map(|at| match glance::left(status, at) {
        Some(left) if left > 0 => format!(", whole again in {}", glance::span(left)),
        Some(_) => ", whole again now".into(),
        None => format!(", whole again {at}"),
    });
    let shadow = if gauge.shadow { " (shadow)" } else { "" };
    let (percent, figures) = (gauge.percent(), gauge.figures());
    format!("[{bar}] {percent:>5} {:<24} {figures}{}{shadow}", gauge.name, again.unwrap_or_default())
}

/// How wide the columns before the limits are.
struct Columns {
    name: usize,
    status: usize,
}

impl Columns {
    fn of(rows: &[Row<'_>]) -> Columns {
        let name = rows.iter().map(|row| row.above.len() * 2 + row.org.id.len()).max().unwrap_or(0);
        let status = rows.iter().map(|row| row.word().len()).max().unwrap_or(0);
        Columns { name: name.clamp(12, 40), status: status.clamp(6, 40) }
    }

    fn before(&self) -> usize {
        self.name + self.status + 11
    }

    fn heading(&self, limits: &str) -> String {
        let Columns { name, status } = self;
        format!("{:<name$} {:<status$} {:>7}  {limits}", "ORGANIZATION", "STATUS", "STREAMS")
    }

    /// `depth` is 0 where the order is not that of the tree.
    fn line(&self, row: &Row<'_>, depth: usize, limit: &str) -> String {
        let Columns { name, status } = self;
        let indented = format!("{}{}", "  ".repeat(depth), row.org.id);
        format!("{indented:<name$} {:<status$} {:>7}  {limit}", row.word(), row.org.streams)
    }
}

fn stream_heading() -> String {
    format!("{:<32} {:<16} {:<24} {:<20} {:>7} {:>9}", "STREAM", "ORGANIZATION", "PURPOSE", "MODEL", "AGE", "TOKENS")
}

/// One stream; its tokens are metered until the model says how many they were.
fn stream(stream: &LiveStream) -> String {
    let LiveStream { request_id, organization, purpose, model, age_seconds, output_tokens } = stream;
    let tokens = format!("≈{output_tokens}");
    format!("{request_id:<32} {organization:<16} {purpose:<24} {model:<20} {age_seconds:>6.0}s {tokens:>9}")
}
