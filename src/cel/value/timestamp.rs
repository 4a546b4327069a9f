//! Points in time between the years 1 and 9999, with the offset they were written with.

use std::fmt;

use proto::calendar;

/// Seconds of `0001-01-01T00:00:00Z` and of `9999-12-31T23:59:59Z`.
const FIRST: i64 = -62_135_596_800;
const LAST: i64 = 253_402_300_799;
const DAY: i64 = 86_400;

/// A point in time.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp {
    /// Since 1970, UTC.
    seconds: i64,
    nanos: u32,
    /// East of UTC, in seconds: how it is printed.
    offset: i32,
}

/// A date and time of day somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Civil {
    pub year: i64,
    /// From 1 on.
    pub month: u32,
    /// From 1 on.
    pub day: u32,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

impl Timestamp {
    /// `None` outside of the years 1 to 9999.
    pub fn new(seconds: i64, nanos: u32) -> Option<Self> {
        Self::at(seconds, nanos, 0)
    }

    fn at(seconds: i64, nanos: u32, offset: i32) -> Option<Self> {
        let known = (FIRST..=LAST).contains(&seconds) && nanos < 1_000_000_000;
        known.then_some(Self {
            seconds,
            nanos,
            offset,
        })
    }

    pub fn seconds(self) -> i64 {
        self.seconds
    }

    pub fn nanos(self) -> u32 {
        self.nanos
    }

    /// Nanoseconds since 1970.
    pub(crate) fn total_nanos(self) -> i128 {
        i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanos)
    }

    /// The time `nanos` later.
    pub(crate) fn plus(self, nanos: i128) -> Option<Self> {
        let total = self.total_nanos() + nanos;
        let seconds = i64::try_from(total.div_euclid(1_000_000_000)).ok()?;
        let nanos = u32::try_from(total.rem_euclid(1_000_000_000)).ok()?;
        Self::at(seconds, nanos, self.offset)
    }

    /// RFC 3339. `Err` for what is none; `Ok(None)` for times out of range.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, ()> {
        let bytes = text.as_bytes();
        let (date, rest) = (text.get(..10).ok_or(())?, text.get(10..).ok_or(())?);
        if !rest.starts_with('T') {
            return Err(());
        }
        let (year, month, day) = date_parts(date).ok_or(())?;
        text.get(11..19).ok_or(())?;
        if bytes[13] != b':' || bytes[16] != b':' {
            return Err(());
        }
        let number = |from: usize, to: usize| digits(&text[from..to]).ok_or(());
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if hour > 23 || minute > 59 || second > 59 {
            return Err(());
        }
        let (nanos, zone) = fraction(&text[19..]).ok_or(())?;
        let offset = zone_offset(zone).ok_or(())?;
        let days = calendar::days_of(year, month, day);
        let seconds = days * DAY + hour * 3600 + minute * 60 + second - i64::from(offset);
        Ok(Self::at(seconds, nanos, offset))
    }

    /// What a `date-time` of a schema may be: RFC 3339, the letters in lower case too.
    pub(crate) fn parse_lenient(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase().replacen(' ', "T", 1);
        Self::parse(&upper).ok().flatten()
    }

    /// `2006-01-02`
    pub(crate) fn parse_date(text: &str) -> Option<Self> {
        let (year, month, day) = date_parts(text)?;
        Self::at(calendar::days_of(year, month, day) * DAY, 0, 0)
    }

    /// Date and time of day, so many seconds east of UTC.
    pub(crate) fn civil(self, offset: i64) -> Civil {
        let local = self.seconds + offset;
        let (days, rest) = (local.div_euclid(DAY), local.rem_euclid(DAY));
        let (year, month, day) = calendar::date_of(days);
        Civil {
            year,
            month,
            day,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    /// Days since Sunday, so many seconds east of UTC.
    pub(crate) fn weekday(self, offset: i64) -> i64 {
        // The first of January 1970 was a Thursday.
        ((self.seconds + offset).div_euclid(DAY) + 4).rem_euclid(7)
    }

    /// Days since New Year, so many seconds east of UTC.
    pub(crate) fn day_of_year(self, offset: i64) -> i64 {
        let days = (self.seconds + offset).div_euclid(DAY);
        let year = self.civil(offset).year;
        days - calendar::days_of(year, 1, 1)
    }
}

fn digits(text: &str) -> Option<i64> {
    let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

fn date_parts(text: &str) -> Option<(i64, u32, u32)> {
    let bytes = text.as_bytes();
    if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
        return None;
    }
    let year = digits(text.get(..4)?)?;
    let month = u32::try_from(digits(text.get(5..7)?)?).ok()?;
    let day = u32::try_from(digits(text.get(8..10)?)?).ok()?;
    let known = (1..=12).contains(&month) && day >= 1 && day <= days_in(year, month);
    known.then_some((year, month, day))
}

fn days_in(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// `.5` and what follows it.
fn fraction(text: &str) -> Option<(u32, &str)> {
    let Some(rest) = text.strip_prefix(['.', ',']) else {
        return Some((0, text));
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (some, zone) = rest.split_at(end);
    if some.is_empty() {
        return None;
    }
    let nanos: String = some.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some((nanos.parse().ok()?, zone))
}

fn zone_offset(zone: &str) -> Option<i32> {
    if zone == "Z" {
        return Some(0);
    }
    let bytes = zone.as_bytes();
    if bytes.len() != 6 || bytes[3] != b':' || !zone.is_ascii() {
        return None;
    }
    let hours = i32::try_from(digits(&zone[1..3])?).ok()?;
    let minutes = i32::try_from(digits(&zone[4..6])?).ok()?;
    if hours > 24 || minutes > 60 {
        return None;
    }
    let seconds = hours * 3600 + minutes * 60;
    match bytes[0] {
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

/// RFC 3339 with as many digits of the second as are needed.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Civil {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = self.civil(i64::from(self.offset));
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        if self.nanos > 0 {
            let nanos = format!("{:09}", self.nanos);
            write!(f, ".{}", nanos.trim_end_matches('0'))?;
        }
        if self.offset == 0 {
            return f.write_str("Z");
        }
        let sign = if self.offset < 0 { '-' } else { '+' };
        let minutes = self.offset.unsigned_abs() / 60;
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_printed() {
        for (text, seconds, printed) in [
            ("1970-01-01T00:00:00Z", 0, "1970-01-01T00:00:00Z"),
            (
                "2009-02-13T23:31:30Z",
                1_234_567_890,
                "2009-02-13T23:31:30Z",
            ),
            (
                "2009-02-14T01:31:30+02:00",
                1_234_567_890,
                "2009-02-14T01:31:30+02:00",
            ),
            ("0001-01-01T00:00:00Z", FIRST, "0001-01-01T00:00:00Z"),
            (
                "9999-12-31T23:59:59.999999999Z",
                LAST,
                "9999-12-31T23:59:59.999999999Z",
            ),
            (
                "2000-02-29T00:00:00.1200Z",
                951_782_400,
                "2000-02-29T00:00:00.12Z",
            ),
        ] {
            let time = Timestamp::parse(text).unwrap().unwrap();
            assert_eq!(
                (time.seconds(), time.to_string().as_str()),
                (seconds, printed)
            );
        }
        for text in [
            "",
            "2009-02-13",
            "2009-02-30T00:00:00Z",
            "2009-02-13t00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2009-02-13T24:00:00Z",
            "2009-02-13T23:31:30",
            "2009-02-13T23:31:30.Z",
            "20é9-02-13T23:31:30Z",
        ] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            Timestamp::parse("0000-01-01T00:00:00Z").map(|one| one.is_none()),
            Ok(true)
        );
    }

    #[test]
    fn parts() {
        let time = Timestamp::parse("2011-10-30T23:15:10.5Z").unwrap().unwrap();
        assert_eq!(time.weekday(0), 0);
        assert_eq!(time.day_of_year(0), 302);
        assert_eq!(time.civil(3600).day, 31);
        assert_eq!(time.weekday(3600), 1);
    }
}
