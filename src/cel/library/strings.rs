//! cel-go's string extensions, version 2. Positions count characters.

use super::list;
use crate::cel::{
    functions::Functions,
    program::Meter,
    types::Type,
    value::{EvalError, Evaluated, List, Value, escape_of},
};

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Int, String};
    let texts = || list(String);
    let f = functions;
    f.member(
        "charAt",
        "string_char_at_int",
        [String, Int],
        String,
        char_at,
    );
    f.member(
        "indexOf",
        "string_index_of_string",
        [String, String],
        Int,
        index_of,
    );
    f.member(
        "indexOf",
        "string_index_of_string_int",
        [String, String, Int],
        Int,
        index_of,
    );
    let last = "lastIndexOf";
    f.member(
        last,
        "string_last_index_of_string",
        [String, String],
        Int,
        last_index_of,
    );
    f.member(
        last,
        "string_last_index_of_string_int",
        [String, String, Int],
        Int,
        last_index_of,
    );
    f.member("lowerAscii", "string_lower_ascii", [String], String, lower);
    f.member("upperAscii", "string_upper_ascii", [String], String, upper);
    let three = [String, String, String];
    f.member(
        "replace",
        "string_replace_string_string",
        three,
        String,
        replace,
    );
    let four = [String, String, String, Int];
    f.member(
        "replace",
        "string_replace_string_string_int",
        four,
        String,
        replace,
    );
    f.member(
        "split",
        "string_split_string",
        [String, String],
        texts(),
        split,
    );
    f.member(
        "split",
        "string_split_string_int",
        [String, String, Int],
        texts(),
        split,
    );
    f.member(
        "substring",
        "string_substring_int",
        [String, Int],
        String,
        substring,
    );
    f.member(
        "substring",
        "string_substring_int_int",
        [String, Int, Int],
        String,
        substring,
    );
    f.member("trim", "string_trim", [String], String, trim);
    f.global("strings.quote", "strings_quote", [String], String, quote);
    f.member("join", "list_join", [texts()], String, join);
    f.member("join", "list_join_string", [texts(), String], String, join);
}

fn out_of_range(index: i64) -> EvalError {
    EvalError::new(format!("index out of range: {index}"))
}

/// Notes the work of reading a text some times.
fn read(meter: &mut Meter<'_>, text: &str) -> Result<(), EvalError> {
    meter.work(text.len() as u64 / 16)
}

/// The byte where the character at `index` begins; the end for the number of characters.
fn position(text: &str, index: i64) -> Option<usize> {
    let index = usize::try_from(index).ok()?;
    if text.is_ascii() {
        return (index <= text.len()).then_some(index);
    }
    let starts = text.char_indices().map(|(at, _)| at);
    starts.chain([text.len()]).nth(index)
}

fn characters(text: &str) -> i64 {
    i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
}

fn char_at<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text), Value::Int(index)] = args else {
        return Err(EvalError::no_overload_for("charAt", args));
    };
    read(meter, text)?;
    let at = position(text, *index).ok_or_else(|| out_of_range(*index))?;
    let one: String = text[at..].chars().take(1).collect();
    Ok(Value::text(one))
}

fn index_of<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (text, part, offset) = match args {
        [Value::String(text), Value::String(part)] => (text, part, 0),
        [Value::String(text), Value::String(part), Value::Int(offset)] => (text, part, *offset),
        _ => return Err(EvalError::no_overload_for("indexOf", args)),
    };
    read(meter, text)?;
    if offset < 0 {
        return Err(out_of_range(offset));
    }
    let start = position(text, offset);
    if part.is_empty() {
        return Ok(Value::Int(offset.min(characters(text))));
    }
    let found = start.and_then(|start| Some(start + text[start..].find(&**part)?));
    Ok(Value::Int(found.map_or(-1, |at| characters(&text[..at]))))
}

fn last_index_of<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (text, part, offset) = match args {
        [Value::String(text), Value::String(part)] => (text, part, None),
        [Value::String(text), Value::String(part), Value::Int(offset)] => {
            (text, part, Some(*offset))
        }
        _ => return Err(EvalError::no_overload_for("lastIndexOf", args)),
    };
    read(meter, text)?;
    let length = characters(text);
    let offset = match offset {
        None if part.is_empty() => return Ok(Value::Int(length)),
        None => (length - 1).max(0),
        Some(offset) if offset < 0 => return Err(out_of_range(offset)),
        Some(offset) if part.is_empty() => return Ok(Value::Int(offset.min(length))),
        Some(offset) if offset >= length => return Ok(Value::Int(-1)),
        Some(offset) => offset,
    };
    // The last match begins at the offset: what lies behind its end is not looked at.
    let start = position(text, offset).unwrap_or(text.len());
    let end = (start + part.len()).min(text.len());
    let end = (end..text.len()).find(|at| text.is_char_boundary(*at));
    let searched = &text[..end.unwrap_or(text.len())];
    let found = searched.rfind(&**part).filter(|at| *at <= start);
    Ok(Value::Int(found.map_or(-1, |at| characters(&text[..at]))))
}

fn lower<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("lowerAscii", args));
    };
    read(meter, text)?;
    Ok(Value::text(text.to_ascii_lowercase()))
}

fn upper<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("upperAscii", args));
    };
    read(meter, text)?;
    Ok(Value::text(text.to_ascii_uppercase()))
}

fn replace<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (text, old, new, most) = match args {
        [Value::String(text), Value::String(old), Value::String(new)] => (text, old, new, -1),
        [
            Value::String(text),
            Value::String(old),
            Value::String(new),
            Value::Int(most),
        ] => (text, old, new, *most),
        _ => return Err(EvalError::no_overload_for("replace", args)),
    };
    read(meter, text)?;
    // Less than nothing means all.
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    // What is replaced may be nothing at all: then every place between characters counts.
    let places = match old.len() {
        0 => text.len() + 1,
        length => text.len() / length,
    };
    meter.work((places.min(most) as u64).saturating_mul(1 + new.len() as u64 / 16))?;
    Ok(Value::text(text.replacen(&**old, new, most)))
}

fn split<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (text, separator, most) = match args {
        [Value::String(text), Value::String(separator)] => (text, separator, -1),
        [
            Value::String(text),
            Value::String(separator),
            Value::Int(most),
        ] => (text, separator, *most),
        _ => return Err(EvalError::no_overload_for("split", args)),
    };
    let most = match most {
        0 => return Ok(Value::List(List::new(Vec::new())?)),
        most => usize::try_from(most).unwrap_or(usize::MAX),
    };
    let parts: Vec<String> = if separator.is_empty() {
        explode(text, most)
    } else {
        text.splitn(most, &**separator).map(str::to_owned).collect()
    };
    meter.work(text.len() as u64 / 16 + 4 * parts.len() as u64)?;
    Value::strings(parts)
}

/// Every character by itself, the rest in the last part.
fn explode(text: &str, most: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if parts.len() + 1 == most {
            parts.push(rest.to_owned());
            break;
        }
        parts.push(first.to_string());
        rest = &rest[first.len_utf8()..];
    }
    parts
}

fn substring<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (text, start, end) = match args {
        [Value::String(text), Value::Int(start)] => (text, *start, None),
        [Value::String(text), Value::Int(start), Value::Int(end)] => (text, *start, Some(*end)),
        _ => return Err(EvalError::no_overload_for("substring", args)),
    };
    read(meter, text)?;
    if let Some(end) = end.filter(|end| start > *end) {
        let message = format!("invalid substring range. start: {start}, end: {end}");
        return Err(EvalError::new(message));
    }
    let from = position(text, start).ok_or_else(|| out_of_range(start))?;
    let to = match end {
        Some(end) => position(text, end).ok_or_else(|| out_of_range(end))?,
        None => text.len(),
    };
    Ok(Value::text(&text[from..to]))
}

fn trim<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("trim", args));
    };
    read(meter, text)?;
    Ok(Value::text(text.trim()))
}

fn quote<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("strings.quote", args));
    };
    read(meter, text)?;
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for one in text.chars() {
        match escape_of(one) {
            Some(escape) => out.push_str(escape),
            None => out.push(one),
        }
    }
    out.push('"');
    Ok(Value::text(out))
}

fn join<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let (list, separator) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(separator)] => (list, &**separator),
        _ => return Err(EvalError::no_overload_for("join", args)),
    };
    let mut out = String::new();
    for (index, item) in list.iter().enumerate() {
        let item = item?;
        let Value::String(text) = &item else {
            let shown = super::string_format::shown(&item);
            return Err(EvalError::new(format!("join: invalid input: {shown}")));
        };
        meter.work(1 + (text.len() + separator.len()) as u64 / 16)?;
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
    }
    Ok(Value::text(out))
}
