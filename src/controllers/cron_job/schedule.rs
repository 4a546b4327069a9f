//! Cron schedules: five fields or a macro, and the times they mean. Pure.
//!
//! Source: robfig/cron, the library of upstream's controller: where both day fields are
//! restricted, a day that fits either of them counts.

use std::time::Duration;

use k8s_openapi::jiff::{
    Timestamp, ToSpan, civil,
    tz::{AmbiguousOffset, TimeZone},
};

/// A schedule that fits no day within this time never does (the 30th of February).
const HORIZON_YEARS: i16 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// `@every 90s`.
    Every(Duration),
    Fields(Fields),
}

/// Bits of the values that fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both were restricted: one of them suffices.
    either_day: bool,
}

impl Schedule {
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(every) = text.strip_prefix("@every ") {
            return parse_duration(every.trim())
                .map(|duration| Self::Every(duration.max(Duration::from_secs(1))))
                .ok_or_else(|| format!("no duration: {every}"));
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(format!(
                "expected exactly 5 fields, found {}: {text}",
                fields.len()
            ));
        };
        let starred = |field: &str| field.split(',').any(|part| part.starts_with(['*', '?']));
        Ok(Self::Fields(Fields {
            minutes: bits(minutes, 0, 59, &[])?,
            hours: bits(hours, 0, 23, &[])?,
            days: bits(days, 1, 31, &[])?,
            months: bits(months, 1, 12, &MONTHS)?,
            weekdays: bits(weekdays, 0, 6, &DAYS)?,
            either_day: !starred(days) && !starred(weekdays),
        }))
    }

    /// The first time after `after`; `None` if there is none in the next years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(interval) => {
                let seconds = i64::try_from(interval.as_secs()).ok()?;
                Timestamp::from_second(after.as_second().checked_add(seconds)?).ok()
            }
            Self::Fields(fields) => fields.next(after, zone),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = zone.to_datetime(after);
        let last_year = start.year().checked_add(HORIZON_YEARS)?;
        let mut date = start.date();
        // On the first day only the rest of it counts.
        let mut from = Some(start.time());
        while date.year() <= last_year {
            if self.fits_day(date) {
                for (hour, minute) in self.times() {
                    if from.is_some_and(|from| (hour, minute) < (from.hour(), from.minute())) {
                        continue;
                    }
                    let local = date.at(hour, minute, 0, 0);
                    // A time that the clock skips is passed over, one that comes twice is the
                    // first of the two.
                    let ambiguous = zone.to_ambiguous_timestamp(local);
                    if matches!(ambiguous.offset(), AmbiguousOffset::Gap { .. }) {
                        continue;
                    }
                    if let Ok(time) = ambiguous.earlier()
                        && time > after
                    {
                        return Some(time);
                    }
                }
            }
            from = None;
            date = if self.months & (1 << date.month()) == 0 {
                date.last_of_month()
            } else {
                date
            };
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    fn fits_day(&self, date: civil::Date) -> bool {
        let has = |set: u64, value: i8| set & (1 << value) != 0;
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month())
            && match self.either_day {
                true => day || weekday,
                false => day && weekday,
            }
    }

    fn times(&self) -> impl Iterator<Item = (i8, i8)> + '_ {
        let within = |set: u64, below: i8| (0..below).filter(move |value| set & (1 << value) != 0);
        within(self.hours, 24)
            .flat_map(move |hour| within(self.minutes, 60).map(move |minute| (hour, minute)))
    }
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

fn bits(field: &str, low: u32, high: u32, words: &[&str]) -> Result<u64, String> {
    let mut all = 0;
    for part in field.split(',') {
        let bad = || format!("not a part of a schedule: {part}");
        let (range, step) = part
            .split_once('/')
            .map_or((part, None), |(range, step)| (range, Some(step)));
        let number = |text: &str| {
            let word = words
                .iter()
                .position(|word| text.eq_ignore_ascii_case(word));
            match word {
                Some(at) => Some(low + u32::try_from(at).ok()?),
                None => text.parse::<u32>().ok(),
            }
        };
        let (first, last) = match range {
            "*" | "?" => (low, high),
            range => match range.split_once('-') {
                Some((first, last)) => (
                    number(first).ok_or_else(bad)?,
                    number(last).ok_or_else(bad)?,
                ),
                None => {
                    let only = number(range).ok_or_else(bad)?;
                    // `5/10` means from 5 on.
                    (only, if step.is_some() { high } else { only })
                }
            },
        };
        let step = match step {
            Some(step) => step
                .parse::<u32>()
                .ok()
                .filter(|step| *step > 0)
                .ok_or_else(bad)?,
            None => 1,
        };
        if first < low || last > high || first > last {
            return Err(bad());
        }
        let mut value = first;
        while value <= last {
            all |= 1u64 << value;
            value += step;
        }
    }
    Ok(all)
}

/// A Go duration without sign: `1h30m`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..end)?.parse().ok()?;
        rest = rest.get(end..)?;
        let (unit, seconds) = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))?;
        total += number * seconds;
        rest = rest.get(unit.len()..)?;
    }
    (total > 0.0).then(|| Duration::try_from_secs_f64(total).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_times() {
        for (schedule, zone, after, want) in [
            (
                "*/15 * * * *",
                "UTC",
                "2026-01-01T00:00:00Z",
                Some("2026-01-01T00:15:00Z"),
            ),
            (
                "0 0 1 1 *",
                "UTC",
                "2026-01-01T00:00:00Z",
                Some("2027-01-01T00:00:00Z"),
            ),
            (
                "@hourly",
                "UTC",
                "2026-01-01T00:59:59Z",
                Some("2026-01-01T01:00:00Z"),
            ),
            // Either the 13th or a Friday.
            (
                "0 12 13 * fri",
                "UTC",
                "2026-01-10T00:00:00Z",
                Some("2026-01-13T12:00:00Z"),
            ),
            (
                "30 5/6 * * *",
                "UTC",
                "2026-01-01T12:00:00Z",
                Some("2026-01-01T17:30:00Z"),
            ),
            ("0 0 30 2 *", "UTC", "2026-01-01T00:00:00Z", None),
            (
                "@every 90s",
                "UTC",
                "2026-01-01T00:00:00Z",
                Some("2026-01-01T00:01:30Z"),
            ),
        ] {
            let schedule = Schedule::parse(schedule).expect(schedule);
            let zone = TimeZone::get(zone).expect(zone);
            let after: Timestamp = after.parse().expect("a time");
            let next = schedule.next(after, &zone).map(|time| time.to_string());
            assert_eq!(next.as_deref(), want, "{schedule:?}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "@every x",
            "a * * * *",
            "*/0 * * * *",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }
}
