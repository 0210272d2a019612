//! Sizes as people write and read them. The one place where they are parsed.
//!
//! As in coreutils: `20GiB` and `20G` are powers of 1024, `20GB` of 1000, a bare number is bytes.

use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

/// A text that is no size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadSize {
    /// No number at its beginning.
    #[error("{0:?} is not a size: expected a number and a unit, such as 20GiB, 512k or 1.5T")]
    NoNumber(String),
    /// A unit that is none.
    #[error("{text:?} is not a size: {unit:?} is not a unit (B, k, M, G, T, P, KiB … PiB, KB … PB)")]
    Unit {
        /// The whole text.
        text: String,
        /// What stands after the number.
        unit: String,
    },
    /// Not a whole number of bytes.
    #[error("{0:?} is not a size: it is not a whole number of bytes")]
    Fraction(String),
    /// More than 64 bits of bytes.
    #[error("{0:?} is too large: sizes end at 16 EiB")]
    TooLarge(String),
}

const PREFIXES: [char; 5] = ['k', 'm', 'g', 't', 'p'];

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let trimmed = text.trim();
        let number_ends = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(number_ends);
        let factor = factor(unit.trim_start())
            .ok_or_else(|| BadSize::Unit { text: clipped(text), unit: clipped(unit.trim_start()) });
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
            return Err(BadSize::NoNumber(clipped(text)));
        }
        let factor = factor?;
        let too_large = || BadSize::TooLarge(clipped(text));
        // Exact: digits · factor / 10^places, in 128 bits.
        let fraction = fraction.trim_end_matches('0');
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| too_large())?;
        let divisor = u32::try_from(fraction.len()).ok().and_then(|places| 10u128.checked_pow(places));
        let (Some(product), Some(divisor)) = (digits.checked_mul(u128::from(factor)), divisor) else {
            return Err(too_large());
        };
        if product % divisor != 0 {
            return Err(BadSize::Fraction(clipped(text)));
        }
        u64::try_from(product / divisor).map(Self).map_err(|_| too_large())
    }
}

/// Bytes in one of `unit`; `None` when there is no such unit.
fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if unit.is_empty() || unit == "b" {
        return Some(1);
    }
    let first = unit.chars().next()?;
    let power = u32::try_from(PREFIXES.iter().position(|p| *p == first)?).ok()? + 1;
    match &unit[first.len_utf8()..] {
        "" | "i" | "ib" => Some(1024u64.pow(power)),
        "b" => Some(1000u64.pow(power)),
        _ => None,
    }
}

/// As much of a person's text as is worth repeating.
fn clipped(text: &str) -> String {
    text.chars().take(40).collect()
}

impl Size {
    /// For people: `20.0 GiB`, or with `si` `21.5 GB`.
    pub fn shown(self, si: bool) -> String {
        let (step, suffix) = if si { (1000.0, "B") } else { (1024.0, "iB") };
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let mut value = self.0 as f64;
        let mut unit = None;
        for prefix in ["k", "M", "G", "T", "P", "E"] {
            // 1023.95 would be printed as 1024.0 of the smaller unit.
            if value < step - 0.05 {
                break;
            }
            value /= step;
            unit = Some(prefix);
        }
        match unit {
            None => format!("{} B", self.0),
            Some("k") if !si => format!("{value:.1} KiB"),
            Some(prefix) => format!("{value:.1} {prefix}{suffix}"),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown(false))
    }
}

/// For programs: bytes.
impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_coreutils_reads_them() {
        let gib = 1u64 << 30;
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("512k", 512 << 10),
            ("512KiB", 512 << 10),
            ("512KB", 512_000),
            ("20GiB", 20 * gib),
            ("20Gi", 20 * gib),
            ("20G", 20 * gib),
            ("20 g", 20 * gib),
            (" 20gib ", 20 * gib),
            ("20GB", 20_000_000_000),
            ("1.5T", 3 << 39),
            ("0.25k", 256),
            ("1.50000000000000000000000000000G", 3 << 29),
            ("16383PiB", 16383 << 50),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_reason() {
        for (text, word) in [
            ("", "expected a number"),
            ("GiB", "expected a number"),
            (".", "expected a number"),
            ("1.", "expected a number"),
            (".5G", "expected a number"),
            ("1.2.3G", "expected a number"),
            ("-1", "expected a number"),
            ("1,5G", "is not a unit"),
            ("20Xi", "is not a unit"),
            ("20GiBs", "is not a unit"),
            ("1e9", "is not a unit"),
            ("10\u{212a}", "is not a unit"),
            ("0.3B", "whole number"),
            ("0.0001k", "whole number"),
            ("16384PiB", "too large"),
            ("99999999999999999999999999999999999999999999", "too large"),
            ("340282366920938463463374607431768211455P", "too large"),
        ] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn sizes_are_shown_with_one_decimal() {
        for (bytes, binary, si) in [
            (0, "0 B", "0 B"),
            (1023, "1023 B", "1.0 kB"),
            (1024, "1.0 KiB", "1.0 kB"),
            (20 << 30, "20.0 GiB", "21.5 GB"),
            ((1 << 30) - 1, "1.0 GiB", "1.1 GB"),
            (u64::MAX, "16.0 EiB", "18.4 EB"),
        ] {
            assert_eq!((Size(bytes).shown(false).as_str(), Size(bytes).shown(true).as_str()), (binary, si));
        }
    }
}
