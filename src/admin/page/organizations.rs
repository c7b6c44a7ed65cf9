//! Who there is and how full their limits are: every limit while they are few, the fullest of each when they are many.

use std::fmt::Write as _;

use super::{CLOSE_TABLE, breakable, cell, open_table, safe};
use crate::admin::glance::{Gauge, Row};

/// More organizations than this show only their fullest limit, the others folded.
pub(super) const MANY: usize = 20;

/// The section; `many` makes it short.
pub(super) fn section(into: &mut String, rows: &[Row<'_>], many: bool) {
    let class = if many { " class=\"many\"" } else { "" };
    let _ = write!(
        into,
        "<section id=\"organizations\"{class}><h2>Organizations{}</h2>\
         <label class=\"filter\">Filter <input id=\"filter\" type=\"search\"></label>",
        if many { format!(" ({})", rows.len()) } else { String::new() }
    );
    open_table(into, &["Organization", "Status", "Streams", if many { "Fullest limit" } else { "Limits" }]);
    for row in rows {
        head(into, row);
        if many {
            fullest(into, row);
        } else {
            row.gauges.iter().for_each(|gauge| bar(into, gauge));
        }
        into.push_str("</td></tr>");
    }
    into.push_str(CLOSE_TABLE);
    into.push_str("</section>");
}

fn head(into: &mut String, row: &Row<'_>) {
    let (org, id, standing) = (row.org, safe(&row.org.id), safe(row.standing));
    let above = safe(&row.above.join(" "));
    let _ = write!(
        into,
        "<tr id=\"org-{id}\" data-org=\"{id}\" data-above=\"{above}\"><th scope=\"row\" class=\"depth{}\">{id} \
         <small>{}</small></th><td data-label=\"Status\" class=\"{standing}\">{}</td>",
        row.above.len().min(4),
        safe(&org.name),
        safe(&row.word()),
    );
    cell(into, "Streams", org.streams);
    into.push_str("<td data-label=\"Limits\">");
}

/// The fullest limit, and the rest unfolded on demand; all of them when nothing of any is used.
fn fullest(into: &mut String, row: &Row<'_>) {
    let Some(index) = row.fullest() else { return };
    let (id, all) = (safe(&row.org.id), row.gauges.len());
    let idle = row.gauges.iter().all(|gauge| gauge.filled <= 0.0);
    let (class, summary) = if idle {
        (" class=\"idle\"", format!("nothing used of {all} limit{}", if all == 1 { "" } else { "s" }))
    } else {
        ("", format!("{} more", all - 1))
    };
    into.push_str("<div class=\"fullest\">");
    row.gauges.get(index).filter(|_| !idle).into_iter().for_each(|gauge| bar(into, gauge));
    if idle || all > 1 {
        let _ = write!(into, "<details data-key=\"org {id}\"{class}><summary>{summary}</summary>");
        let rest = row.gauges.iter().enumerate().filter(|(at, _)| idle || *at != index);
        rest.for_each(|(_, gauge)| bar(into, gauge));
        into.push_str("</details>");
    }
    into.push_str("</div>");
}

fn bar(into: &mut String, gauge: &Gauge) {
    let name = &gauge.name;
    let until = gauge.resets_at.as_ref().map(|at| format!(", whole again {at}")).unwrap_or_default();
    let shadow = if gauge.shadow { " <em>shadow</em>" } else { "" };
    let most = if gauge.most > 0.0 { gauge.most } else { 1.0 };
    let _ = write!(
        into,
        "<div class=\"limit\"><span>{}{shadow}</span><meter min=\"0\" max=\"{most}\" low=\"{}\" high=\"{}\" \
         optimum=\"0\" value=\"{}\" aria-label=\"{}\">{}</meter><small>{}{}</small></div>",
        breakable(name),
        most * 0.8,
        most * 0.95,
        gauge.filled.min(most),
        safe(name),
        gauge.percent(),
        safe(&gauge.figures()),
        safe(&until),
    );
}
