//! Times as conditions have them: RFC 3339, in UTC, to the second. Only their difference is ever asked for.

/// Seconds from one time to a later one; `None` when one is no such time, or they are the other way round.
#[must_use]
pub fn seconds_between(from: &str, to: &str) -> Option<u64> {
    seconds(to)?.checked_sub(seconds(from)?)
}

/// Seconds since the year 0 began.
fn seconds(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let numbers = |text: &str, separator: char| -> Option<[u64; 3]> {
        let parts: Vec<u64> = text.split(separator).map(|part| part.parse().ok()).collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let sound = year <= 9999 && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !sound || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Years that begin in March end with the leap day.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_cross_days_months_and_leap_days() {
        for (from, to, seconds) in [
            ("2026-01-01T00:00:00Z", "2026-01-01T00:00:41Z", Some(41)),
            ("2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z", Some(1)),
            ("2024-02-28T00:00:00Z", "2024-03-01T00:00:00Z", Some(2 * 86_400)),
            ("2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z", Some(86_400)),
            ("2026-01-01T00:00:01Z", "2026-01-01T00:00:00Z", None),
            ("", "2026-01-01T00:00:00Z", None),
            ("2026-01-01", "2026-13-01T00:00:00Z", None),
        ] {
            assert_eq!(seconds_between(from, to), seconds, "{from} {to}");
        }
    }
}
