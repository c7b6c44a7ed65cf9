//! How far each authority's revocation lists have come: the highest number believed of each key.
//!
//! Numbers only rise here, whatever becomes of a list, of an authority's name or of the process. This judges and
//! remembers; it neither reads nor writes files.

use std::collections::BTreeMap;

use super::Crl;
use crate::peer::Sha256;

/// The highest CRL number believed, by the key (and the scope, where lists are partitioned) that it counts for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Believed(BTreeMap<Sha256, Vec<u8>>);

impl Believed {
    /// Reads what [`Believed::to_bytes`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Believed, String> {
        let said: BTreeMap<String, String> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let entry = |(series, number): (String, String)| {
            let series = Sha256::parse(&series).ok_or_else(|| format!("{series:?} is no SHA-256"))?;
            let bytes = hex(&number).ok_or_else(|| format!("{number:?} is no hexadecimal number"))?;
            Ok((series, bytes))
        };
        said.into_iter().map(entry).collect::<Result<_, String>>().map(Believed)
    }

    /// For the file that keeps them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let said: BTreeMap<String, String> =
            self.0.iter().map(|(series, number)| (series.to_string(), digits(number))).collect();
        serde_json::to_vec_pretty(&said).unwrap_or_default()
    }

    /// With the numbers of these lists, where they are higher.
    #[must_use]
    pub fn with<'a>(mut self, lists: impl IntoIterator<Item = &'a Crl>) -> Believed {
        lists.into_iter().for_each(|list| self.raise(list.series, &list.number));
        self
    }

    /// With everything that was believed elsewhere.
    #[must_use]
    pub fn and(mut self, other: &Believed) -> Believed {
        other.0.iter().for_each(|(series, number)| self.raise(*series, number));
        self
    }

    fn raise(&mut self, series: Sha256, number: &[u8]) {
        let known = self.0.entry(series).or_default();
        if is_less(known, number) {
            *known = number.to_vec();
        }
    }

    /// What is wrong with a list whose number is lower than one that was believed before.
    #[must_use]
    pub fn rolled_back(&self, list: &Crl) -> Option<String> {
        let known = self.0.get(&list.series).filter(|known| is_less(&list.number, known))?;
        let (issuer, number, known) = (&list.issuer, digits(&list.number), digits(known));
        Some(format!(
            "the CRL of {issuer} was rolled back: its number {number} is lower than {known}, which was believed before \
             (if its authority counts anew, take that number out of crl-numbers.json in the state directory and restart)"
        ))
    }
}

/// Compares big-endian numbers without leading zeros.
fn is_less(left: &[u8], right: &[u8]) -> bool {
    (left.len(), left) < (right.len(), right)
}

fn digits(number: &[u8]) -> String {
    number.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| (pair.len() == 2).then(|| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())?;
    pairs.map(byte).collect()
}
