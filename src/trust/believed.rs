//! How far each authority's revocation lists have come: the highest number believed of each key.
//!
//! Numbers only rise here, whatever becomes of a list, of an authority's name or of the process. This judges and
//! remembers; it neither reads nor writes files.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Crl;
use crate::clock::Wall;
use crate::peer::Sha256;

/// The highest CRL number believed, by the key (and the scope, where lists are partitioned) that it counts for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Believed(BTreeMap<Sha256, Mark>);

/// How far one series of lists has come.
#[derive(Debug, Clone)]
struct Mark {
    number: Vec<u8>,
    /// When the list of that number was issued, as long as this process has known it: of two lists with one number, which
    /// no authority should issue, the later one counts.
    issued: Wall,
}

impl PartialEq for Mark {
    fn eq(&self, other: &Mark) -> bool {
        self.number == other.number
    }
}

impl Eq for Mark {}

impl Believed {
    /// Reads what [`Believed::to_bytes`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Believed, String> {
        let said: BTreeMap<String, String> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let entry = |(series, number): (String, String)| {
            let series = Sha256::parse(&series).ok_or_else(|| format!("{series:?} is no SHA-256"))?;
            let number = hex(&number).ok_or_else(|| format!("{number:?} is no hexadecimal number"))?;
            Ok((series, Mark { number, issued: Wall::default() }))
        };
        said.into_iter().map(entry).collect::<Result<_, String>>().map(Believed)
    }

    /// For the file that keeps them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let said: BTreeMap<String, String> =
            self.0.iter().map(|(series, mark)| (series.to_string(), digits(&mark.number))).collect();
        serde_json::to_vec_pretty(&said).unwrap_or_default()
    }

    /// With the numbers of these lists, where they are higher.
    #[must_use]
    pub fn with<'a>(mut self, lists: impl IntoIterator<Item = &'a Arc<Crl>>) -> Believed {
        for list in lists {
            self.raise(list.series, &Mark { number: list.number.clone(), issued: list.this_update() });
        }
        self
    }

    /// With everything that was believed elsewhere.
    #[must_use]
    pub fn and(mut self, other: &Believed) -> Believed {
        other.0.iter().for_each(|(series, mark)| self.raise(*series, mark));
        self
    }

    fn raise(&mut self, series: Sha256, mark: &Mark) {
        let known = self.0.entry(series).or_insert_with(|| mark.clone());
        if is_less(&known.number, &mark.number) || (known == mark && known.issued < mark.issued) {
            *known = mark.clone();
        }
    }

    /// What is wrong with a list whose number is lower than one that was believed before, or as high and older.
    #[must_use]
    pub fn rolled_back(&self, list: &Crl) -> Option<String> {
        let known = self.0.get(&list.series)?;
        let issuer = &list.issuer;
        if known.number == list.number && list.this_update() < known.issued {
            let (issued, before) = (list.this_update(), known.issued);
            return Some(format!(
                "the CRL of {issuer} was rolled back: it is of {issued}, and one of the same number and of {before} was \
                 believed before"
            ));
        }
        if !is_less(&list.number, &known.number) {
            return None;
        }
        let (number, known) = (digits(&list.number), digits(&known.number));
        Some(format!(
            "the CRL of {issuer} was rolled back: its number 0x{number} is lower than 0x{known}, which was believed before \
             (if its authority counts anew, take that number out of crl-numbers.json in the state directory and restart)"
        ))
    }
}

/// Compares big-endian numbers without leading zeros.
fn is_less(left: &[u8], right: &[u8]) -> bool {
    (left.len(), left) < (right.len(), right)
}

/// Hexadecimal digits, two an octet.
pub(super) fn digits(number: &[u8]) -> String {
    number.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| (pair.len() == 2).then(|| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())?;
    pairs.map(byte).collect()
}
