//! The table that is printed: medians, the best of the others, and how portcullis stands to it.

use crate::peers::Peer;
use crate::work::Figure;

/// Figures as they come in.
#[derive(Default)]
pub struct Table {
    entries: Vec<Entry>,
}

struct Entry {
    row: &'static str,
    peer: Peer,
    round: usize,
    figure: Figure,
}

impl Table {
    pub fn add(&mut self, row: &'static str, peer: Peer, round: usize, figure: Figure) {
        self.entries.push(Entry { row, peer, round, figure });
    }

    /// The table in Markdown, and below it why figures are missing.
    pub fn text(&self, peers: &[Peer]) -> String {
        let mut rows = vec![heading(peers)];
        let mut reasons = Vec::new();
        for row in self.rows() {
            let mut cells = vec![row.to_owned()];
            for peer in peers {
                cells.push(match self.median(row, *peer) {
                    Some(figure) => number(figure),
                    None => match self.reason(row, *peer) {
                        Some(reason) => {
                            reasons.push(format!("{row}, {}: {reason}", peer.name()));
                            format!("[{}]", reasons.len())
                        }
                        None => "–".into(),
                    },
                });
            }
            cells.push(self.ratio(row, peers));
            rows.push(cells);
        }
        let notes = reasons.iter().zip(1..).map(|(reason, at)| format!("\n[{at}] {reason}")).collect::<String>();
        format!("{}{notes}", aligned(&rows))
    }

    fn rows(&self) -> Vec<&'static str> {
        let mut rows: Vec<&'static str> = Vec::new();
        for entry in &self.entries {
            if !rows.contains(&entry.row) {
                rows.push(entry.row);
            }
        }
        rows
    }

    fn median(&self, row: &str, peer: Peer) -> Option<f64> {
        let of = |entry: &&Entry| entry.row == row && entry.peer == peer;
        median(self.entries.iter().filter(of).filter_map(|entry| entry.figure.clone().ok()).collect())
    }

    fn reason(&self, row: &str, peer: Peer) -> Option<&str> {
        let of = |entry: &&Entry| entry.row == row && entry.peer == peer;
        let mut reasons = self.entries.iter().filter(of).filter_map(|entry| entry.figure.as_ref().err());
        reasons.find(|reason| !reason.is_empty()).map(String::as_str)
    }

    /// Portcullis to the best of the others: the median over the rounds of the ratio within one.
    fn ratio(&self, row: &str, peers: &[Peer]) -> String {
        let others = peers.iter().filter(|peer| peer.is_reference());
        let measured = others.filter_map(|peer| Some((*peer, self.median(row, *peer)?)));
        let Some((best, _)) = measured.min_by(|(_, a), (_, b)| a.total_cmp(b)) else { return "–".into() };
        let at = |peer: Peer, round: usize| {
            let entry = self.entries.iter().find(|one| one.row == row && one.peer == peer && one.round == round)?;
            entry.figure.clone().ok()
        };
        let rounds = self.entries.iter().map(|entry| entry.round + 1).max().unwrap_or(0);
        let ratios = (0..rounds).filter_map(|round| Some(at(Peer::Portcullis, round)? / at(best, round)?));
        median(ratios.collect()).map_or_else(|| "–".into(), |ratio| format!("{ratio:.2} × {}", best.name()))
    }
}

fn heading(peers: &[Peer]) -> Vec<String> {
    let names = peers.iter().map(|peer| peer.name().to_owned());
    std::iter::once("median".to_owned()).chain(names).chain(["portcullis to the best other".to_owned()]).collect()
}

/// The one in the middle.
pub fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.len() % 2 == 1 {
        figures.get(middle).copied()
    } else {
        Some(figures.get(middle.checked_sub(1)?)?.midpoint(*figures.get(middle)?))
    }
}

/// Three digits are as much as a run can tell.
pub fn number(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// Rows of cells as a Markdown table whose first row is its heading.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let length = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| length(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("| {cell:<width$} "),
            _ => format!("| {cell:>width$} "),
        });
        cells.collect::<String>() + "|"
    };
    let rule: String = widths
        .iter()
        .enumerate()
        .map(|(column, width)| match column {
            0 => format!("|{}", "-".repeat(width + 2)),
            _ => format!("|{}:", "-".repeat(width + 1)),
        })
        .collect();
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.insert(1.min(lines.len()), rule + "|");
    lines.join("\n")
}
