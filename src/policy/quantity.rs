//! Durations, sizes and amounts of money as people write them.
//!
//! What a quantity is for, and whether zero of it makes sense, is not asked here.

use std::time::Duration;

use crate::tokens::Nano;

/// Durations: a number and one of `ms`, `s`, `m`, `h`, `d`; several may follow each other (`1h30m`).
///
/// # Errors
/// What it must be instead.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    const WANTED: &str = "must be a duration such as \"30s\", \"250ms\" or \"24h\"";
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(WANTED);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(WANTED)?;
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| WANTED)?;
        let unit = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(WANTED),
        };
        let part = number.checked_mul(millis).ok_or(WANTED)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or(WANTED)?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// Sizes: a number and one of `B`, `KiB`, `MiB`, `GiB`.
pub(super) fn size(text: &str) -> Result<u64, &'static str> {
    const WANTED: &str = "must be a size such as \"64KiB\" or \"16MiB\"";
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(WANTED),
    };
    let number: u64 = number.parse().map_err(|_| WANTED)?;
    number.checked_mul(1 << shift).ok_or(WANTED)
}

/// What is told to whoever writes no text for an amount of money.
pub(super) const AMOUNT: &str = "an amount in quotes such as \"2500.00\"";

/// Amounts of money: decimals, as far as nano-units go.
pub(super) fn money(text: &str) -> Result<Nano, &'static str> {
    const WANTED: &str =
        "must be digits such as \"2500.00\", of at most nine decimals and no more than 18446744073.709551615";
    Nano::parse(text).ok_or(WANTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("400d"), Ok(Duration::from_secs(400 * 86_400)));
        for bad in ["", "30", "s", "-1s", "1 year", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(size("64KiB"), Ok(65_536));
        for bad in ["", "KiB", "1KB", "-1B", "99999999999999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
