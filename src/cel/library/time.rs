//! Parts of timestamps and durations.

use jiff::tz::TimeZone;

use crate::cel::{
    functions::{Call, Functions},
    program::Meter,
    types::Type,
    value::{EvalError, Evaluated, Timestamp, Value},
};

/// A part of a time so many seconds east of UTC.
type Part = fn(Timestamp, i64) -> i64;

pub(super) fn declare(functions: &mut Functions) {
    macro_rules! part {
        ($name:literal, $id:literal, $part:expr) => {
            let call: Call = |_, args| timestamp_part($name, args, $part);
            let zoned: Call = |_, args| timestamp_part($name, args, $part);
            functions.member($name, $id, [Type::Timestamp], Type::Int, call);
            functions.member(
                $name,
                concat!($id, "_with_tz"),
                [Type::Timestamp, Type::String],
                Type::Int,
                zoned,
            );
        };
    }
    part!("getFullYear", "timestamp_to_year", |time, east| time
        .civil(east)
        .year);
    part!("getMonth", "timestamp_to_month", |time, east| i64::from(
        time.civil(east).month
    ) - 1);
    part!("getDayOfYear", "timestamp_to_day_of_year", |time, east| {
        time.day_of_year(east)
    });
    part!(
        "getDayOfMonth",
        "timestamp_to_day_of_month",
        |time, east| i64::from(time.civil(east).day) - 1
    );
    part!(
        "getDate",
        "timestamp_to_day_of_month_1_based",
        |time, east| i64::from(time.civil(east).day)
    );
    part!("getDayOfWeek", "timestamp_to_day_of_week", |time, east| {
        time.weekday(east)
    });
    part!("getHours", "timestamp_to_hours", |time, east| time
        .civil(east)
        .hour);
    part!("getMinutes", "timestamp_to_minutes", |time, east| time
        .civil(east)
        .minute);
    part!("getSeconds", "timestamp_to_seconds", |time, east| time
        .civil(east)
        .second);
    part!("getMilliseconds", "timestamp_to_milliseconds", |time, _| {
        i64::from(time.nanos() / 1_000_000)
    });
    let spans: [(&'static str, &'static str, Call); 4] = [
        ("getHours", "duration_to_hours", |_, args| {
            span("getHours", args, 3_600_000_000_000)
        }),
        ("getMinutes", "duration_to_minutes", |_, args| {
            span("getMinutes", args, 60_000_000_000)
        }),
        ("getSeconds", "duration_to_seconds", |_, args| {
            span("getSeconds", args, 1_000_000_000)
        }),
        ("getMilliseconds", "duration_to_milliseconds", milliseconds),
    ];
    for (name, id, call) in spans {
        functions.member(name, id, [Type::Duration], Type::Int, call);
    }
}

fn timestamp_part<'a>(name: &str, args: &[Value<'a>], part: Part) -> Evaluated<'a> {
    match args {
        [Value::Timestamp(time)] => Ok(Value::Int(part(*time, 0))),
        [Value::Timestamp(time), Value::String(zone)] => {
            Ok(Value::Int(part(*time, offset(*time, zone)?)))
        }
        _ => Err(EvalError::no_overload_for(name, args)),
    }
}

fn span<'a>(name: &str, args: &[Value<'a>], unit: i64) -> Evaluated<'a> {
    match args {
        [Value::Duration(nanos)] => Ok(Value::Int(nanos / unit)),
        _ => Err(EvalError::no_overload_for(name, args)),
    }
}

/// The thousandths within the second of a time are a part; those of a duration are all of it.
fn milliseconds<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    span("getMilliseconds", args, 1_000_000)
}

/// Seconds east of UTC of a zone at a time: its name, or `+02:00`.
fn offset(time: Timestamp, zone: &str) -> Result<i64, EvalError> {
    let Some((hours, minutes)) = zone.split_once(':') else {
        return named(time, zone);
    };
    let number = |text: &str| {
        text.parse::<i32>()
            .map(i64::from)
            .map_err(|_| EvalError::new(format!("strconv.Atoi: parsing {text:?}: invalid syntax")))
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    if !(0..=59).contains(&minutes) {
        let message = format!("timezone offset minutes out of range [0, 59]: {zone}");
        return Err(EvalError::new(message));
    }
    let signed = if zone.starts_with('-') {
        -minutes
    } else {
        minutes
    };
    Ok((hours * 60 + signed) * 60)
}

fn named(time: Timestamp, zone: &str) -> Result<i64, EvalError> {
    if zone.is_empty() || zone == "UTC" {
        return Ok(0);
    }
    let unknown = || EvalError::new(format!("unknown time zone {zone}"));
    let found = TimeZone::get(zone).map_err(|_| unknown())?;
    let at = jiff::Timestamp::new(time.seconds(), 0).map_err(|_| unknown())?;
    Ok(i64::from(found.to_offset(at).seconds()))
}
