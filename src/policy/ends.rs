//! What ends: certificates, grants, revocation lists. Each is noted while there is still time to replace it.
//!
//! Notes are warnings, also of an authority that has ended, which closes its own door alone; what has ended and must not
//! have is a mistake, and is found where it is loaded.

use std::time::Duration;

use super::mistake::Place;
use super::sink::Sink;
use crate::clock::Wall;
use crate::trust::Authority;

/// Seconds.
const DAY: u64 = 86_400;

/// What is noted ahead of its end.
const AHEAD: Duration = Duration::from_secs(30 * DAY);

/// Notes what has ended or ends soon: a certificate, a grant.
pub(super) fn warn_soon(sink: &Sink, place: &Place, what: &str, ends: Wall, now: Wall) {
    let left = now.until(ends);
    if ends <= now {
        sink.odd(Some(place), format!("{what} expired on {ends}"));
    } else if left < AHEAD {
        sink.odd(Some(place), format!("{what} expires in {} ({ends})", span(left)));
    }
}

/// Notes the certificates of an authority that have ended, and the first of the others that soon will.
pub(super) fn warn_of_authority(sink: &Sink, place: &Place, authority: &Authority, now: Wall) {
    ended(authority, now).for_each(|what| sink.odd(Some(place), what));
    if let Some(first) = authority.ends().map(|(_, ends)| ends).filter(|ends| *ends > now).min() {
        warn_soon(sink, place, &format!("a certificate of the authority {}", authority.name()), first, now);
    }
}

/// What is told of an authority's certificates that have ended.
pub(super) fn ended(authority: &Authority, now: Wall) -> impl Iterator<Item = String> {
    let of = authority.name();
    authority.ends().filter(move |(_, ends)| *ends <= now).map(move |(name, ends)| {
        format!("{name} of the authority {of} expired on {ends}: nobody is let in by it; replace it, or take it out")
    })
}

/// Notes revocation lists whose next one should be here soon. A list that lives for days is fresh with less before it
/// than one that lives for months.
pub(super) fn warn_of_lists(sink: &Sink, place: &Place, authority: &Authority, now: Wall) {
    shut(authority, now).for_each(|what| sink.odd(Some(place), what));
    for list in authority.crls().iter().filter(|list| list.next_update() > now) {
        let (left, life) = (now.until(list.next_update()), list.this_update().until(list.next_update()));
        if left < life / 10 || (left < Duration::from_secs(3 * DAY) && left < life / 2) {
            let what = format!("the next CRL of {} is due in {} ({})", list.issuer(), span(left), list.next_update());
            sink.odd(Some(place), what);
        }
    }
}

/// What is told of an authority's revocation lists that are overdue, or whose time has not come.
pub(super) fn shut(authority: &Authority, now: Wall) -> impl Iterator<Item = String> {
    let overdue = authority.crls().iter().filter(move |list| list.next_update() <= now);
    overdue.map(|list| list.overdue()).chain(authority.early().map(|(list, closes)| list.early(closes)))
}

/// Whole days; hours where there are fewer than two.
fn span(left: Duration) -> String {
    let seconds = left.as_secs();
    let (number, unit) = if seconds >= 2 * DAY { (seconds / DAY, "day") } else { (seconds / 3600, "hour") };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}
