//! Amounts of bytes as Kubernetes writes them. A part of its syntax: no exponents and no milli-bytes, which nobody means
//! when asking for a disk.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// An amount of bytes such as 20Gi: a number with at most three decimals and one of the units k, M, G, T, P (powers of
/// 1000), Ki, Mi, Gi, Ti, Pi (powers of 1024), or none.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, JsonSchema)]
#[serde(transparent)]
pub struct Quantity(
    #[schemars(length(max = 20), regex(pattern = r"^[0-9]{1,12}(\.[0-9]{1,3})?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"))]
    pub  String,
);

/// A text that is no amount of bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not an amount of bytes: write a number and one of k, M, G, T, P, Ki, Mi, Gi, Ti, Pi, such as 20Gi")]
pub struct BadQuantity(pub String);

const UNITS: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

impl Quantity {
    /// An amount, shown in the largest binary unit in which it is whole.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Quantity {
        let whole = UNITS[..5].iter().rev().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
        Quantity(match whole {
            Some((unit, factor)) => format!("{}{unit}", bytes / factor),
            None => bytes.to_string(),
        })
    }

    /// For people: at most one decimal, in the largest binary unit of which there is at least one.
    #[must_use]
    pub fn rounded(bytes: u64) -> String {
        let Some((unit, factor)) = UNITS[..5].iter().rev().find(|(_, factor)| bytes >= *factor) else {
            return bytes.to_string();
        };
        let tenths = (u128::from(bytes) * 10 + u128::from(factor / 2)) / u128::from(*factor);
        if tenths.is_multiple_of(10) {
            format!("{}{unit}", tenths / 10)
        } else {
            format!("{}.{}{unit}", tenths / 10, tenths % 10)
        }
    }

    /// In bytes, rounded up to a whole one.
    ///
    /// # Errors
    /// When the text is no amount, or one of more than 64 bits.
    pub fn bytes(&self) -> Result<u64, BadQuantity> {
        self.exact().ok_or_else(|| BadQuantity(self.0.chars().take(40).collect()))
    }

    fn exact(&self) -> Option<u64> {
        let (number, factor) = match UNITS.iter().find(|(unit, _)| self.0.ends_with(unit)) {
            Some((unit, factor)) => (self.0.strip_suffix(unit)?, *factor),
            None => (self.0.as_str(), 1),
        };
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let sound =
            !whole.is_empty() && whole.len() <= 12 && decimals.len() <= 3 && is_digits(whole) && is_digits(decimals);
        if !sound || (number.contains('.') && decimals.is_empty()) {
            return None;
        }
        let thousandths: u128 = format!("{whole}{decimals:0<3}").parse().ok()?;
        u64::try_from((thousandths * u128::from(factor)).div_ceil(1000)).ok()
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Quantity {
        Quantity(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_those_of_kubernetes() {
        for (text, bytes) in [
            ("1", 1),
            ("4Ki", 4096),
            ("20Gi", 20 << 30),
            ("1.5Gi", 3 << 29),
            ("2k", 2000),
            ("0.001k", 1),
            ("0.0005", 0),
        ] {
            let found = Quantity::from(text).bytes();
            assert!(if text == "0.0005" { found.is_err() } else { found == Ok(bytes) }, "{text}: {found:?}");
        }
        for bad in ["", "Gi", "-1Gi", "1.Gi", ".5Gi", "1e3", "1GiB", "1 Gi", "100m", "9999999999999", "99999999P"] {
            assert!(Quantity::from(bad).bytes().is_err(), "{bad}");
        }
    }

    #[test]
    fn people_read_one_decimal() {
        for (bytes, text) in
            [(0, "0"), (1023, "1023"), (1 << 40, "1Ti"), (1_319_413_953_331, "1.2Ti"), (3 << 29, "1.5Gi")]
        {
            assert_eq!(Quantity::rounded(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn written_amounts_read_back(bytes in 0..999_999_999_999_u64) {
            prop_assert_eq!(Quantity::of_bytes(bytes).bytes(), Ok(bytes));
        }

        #[test]
        fn any_text_is_an_amount_or_refused(text in ".{0,30}") {
            let _ = Quantity(text).bytes();
        }
    }
}
