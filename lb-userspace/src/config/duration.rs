//! Durations as Kubernetes and Go write them.

use std::time::Duration;

/// Units, the longer name of a common beginning first.
const UNITS: [(&str, f64); 6] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("h", 3600.0), ("m", 60.0)];

/// Parses `500ms`, `1m30s`, `1.5h`: numbers, each with a unit out of ns, us, ms, s, m and h.
///
/// # Errors
///
/// What is wrong and what is right, for a person. A plain number other than 0, a sign, and days are refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write it like 500ms, 10s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        let unit = &rest[end..];
        let (name, factor) = UNITS
            .into_iter()
            .chain([("s", 1.0)])
            .find(|(name, _)| unit.starts_with(name))
            .ok_or_else(wrong)?;
        seconds += number * factor;
        rest = &unit[name.len()..];
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is too long a duration"))
}

/// The shortest text that [`parse_duration`] reads as this duration, to the millisecond.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (hours, minutes, rest) = (millis / 3_600_000, millis / 60_000 % 60, millis % 60_000);
    let mut text = String::new();
    if hours > 0 {
        text += &format!("{hours}h");
    }
    if minutes > 0 {
        text += &format!("{minutes}m");
    }
    if rest % 1000 != 0 {
        text += &if rest > 1000 { format!("{}s{}ms", rest / 1000, rest % 1000) } else { format!("{rest}ms") };
    } else if rest > 0 || text.is_empty() {
        text += &format!("{}s", rest / 1000);
    }
    text
}
