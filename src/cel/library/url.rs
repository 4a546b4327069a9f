//! Kubernetes' URLs, parsed as Go's net/url does.

use std::collections::BTreeMap;

use crate::cel::{
    functions::{Call, Functions},
    program::Meter,
    types::{LibraryType, Type},
    value::{EvalError, Evaluated, Key, LibraryValue, List, Map, Text, Url, Value, escaped},
};

const URL: Type = Type::Library(LibraryType::Url);

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Bool, String};
    functions.global("url", "string_to_url", [String], URL, url);
    functions.global("isURL", "is_url_string", [String], Bool, is_url);
    let parts: [(&'static str, &'static str, Call); 5] = [
        ("getScheme", "url_get_scheme", |_, args| {
            part("getScheme", args, |url| url.scheme.clone())
        }),
        ("getHost", "url_get_host", |_, args| {
            part("getHost", args, |url| url.host.clone())
        }),
        ("getHostname", "url_get_hostname", |_, args| {
            part("getHostname", args, |url| {
                split_host(&url.host).0.to_owned()
            })
        }),
        ("getPort", "url_get_port", |_, args| {
            part("getPort", args, |url| split_host(&url.host).1.to_owned())
        }),
        ("getEscapedPath", "url_get_escaped_path", |_, args| {
            part("getEscapedPath", args, |url| url.escaped_path.clone())
        }),
    ];
    for (name, id, call) in parts {
        functions.member(name, id, [URL], String, call);
    }
    let query = Type::map(String, Type::list(String));
    functions.member("getQuery", "url_get_query", [URL], query, get_query);
}

/// What an absolute URL or path is, or why a text is none.
pub(super) fn parse(text: &str) -> Result<Url, String> {
    let broken = |why: String| format!("parse {}: {why}", escaped(text));
    // A fragment is cut off only after the text was seen to be a URL with it.
    parts(text).map_err(broken)?;
    let (bare, _) = text.split_once('#').unwrap_or((text, ""));
    let mut url = parts(bare).map_err(broken)?;
    text.clone_into(&mut url.text);
    Ok(url)
}

fn parts(text: &str) -> Result<Url, String> {
    if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err("net/url: invalid control character in URL".to_owned());
    }
    if text.is_empty() {
        return Err("empty url".to_owned());
    }
    let mut url = Url {
        text: text.to_owned(),
        scheme: String::new(),
        host: String::new(),
        escaped_path: String::new(),
        query: String::new(),
    };
    if text == "*" {
        url.escaped_path = "*".to_owned();
        return Ok(url);
    }
    let (scheme, rest) = scheme(text)?;
    url.scheme = scheme.to_ascii_lowercase();
    let (mut rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    url.query = query.to_owned();
    if !rest.starts_with('/') {
        // `mailto:a@b`: nothing to look into.
        if !scheme.is_empty() {
            return Ok(url);
        }
        return Err("invalid URI for request".to_owned());
    }
    if let Some(after) = rest.strip_prefix("//").filter(|_| !scheme.is_empty()) {
        let end = after.find('/').unwrap_or(after.len());
        url.host = authority(&after[..end])?;
        rest = &after[end..];
    }
    url.escaped_path = path(rest)?;
    Ok(url)
}

fn scheme(text: &str) -> Result<(&str, &str), String> {
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if index > 0 => {}
            b':' if index == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => return Ok((&text[..index], &text[index + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

/// The host with its port, percent signs decoded.
fn authority(text: &str) -> Result<String, String> {
    let host = match text.rsplit_once('@') {
        None => text,
        Some((user, host)) => {
            let known = |c: char| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c);
            if !user.chars().all(known) {
                return Err("net/url: invalid userinfo".to_owned());
            }
            unescape(user, |_| true)?;
            host
        }
    };
    let port = match host.strip_prefix('[') {
        Some(inner) => {
            let end = inner.rfind(']').ok_or("missing ']' in host")?;
            &inner[end + 1..]
        }
        None => host.rfind(':').map_or("", |colon| &host[colon..]),
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    let whole = digits.bytes().all(|byte| byte.is_ascii_digit());
    if !whole || !port.is_empty() && !port.starts_with(':') {
        return Err(format!("invalid port {} after host", escaped(port)));
    }
    let known = |c: char| {
        !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"".contains(c)
    };
    if let Some(bad) = host.chars().find(|c| !known(*c) && *c != '%') {
        return Err(format!(
            "invalid character {} in host name",
            escaped(&bad.to_string())
        ));
    }
    unescape(host, |byte| byte >= 0x80 || byte == b'%')
}

/// A path as it is shown: as it was written if that is valid, else with what must be escaped.
fn path(text: &str) -> Result<String, String> {
    let decoded = unescape_bytes(text, |_| true)?;
    let written = |c: char| c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:@[]%/".contains(c);
    if text.chars().all(written) {
        return Ok(text.to_owned());
    }
    let mut out = String::with_capacity(decoded.len() + 8);
    for byte in decoded {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(out)
}

fn unescape(text: &str, allowed: fn(u8) -> bool) -> Result<String, String> {
    let bytes = unescape_bytes(text, allowed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn unescape_bytes(text: &str, allowed: fn(u8) -> bool) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte != b'%' {
            out.push(*byte);
            at += 1;
            continue;
        }
        let digit = |at: usize| {
            let byte = bytes.get(at).copied().unwrap_or_default();
            char::from(byte).to_digit(16)
        };
        let decoded = match (digit(at + 1), digit(at + 2)) {
            (Some(high), Some(low)) => Some((high * 16 + low) as u8),
            _ => None,
        };
        match decoded.filter(|byte| allowed(*byte)) {
            Some(byte) => out.push(byte),
            None => {
                let end = (at + 3).min(bytes.len());
                let shown = String::from_utf8_lossy(&bytes[at..end]).into_owned();
                return Err(format!("invalid URL escape {}", escaped(&shown)));
            }
        }
        at += 3;
    }
    Ok(out)
}

/// Name and port of a host, brackets taken off.
fn split_host(host: &str) -> (&str, &str) {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port),
        _ => (host, ""),
    };
    let inner = name
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'));
    (inner.unwrap_or(name), port)
}

fn url<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("url", args));
    };
    let url = parse(text).map_err(|why| {
        EvalError::new(format!(
            "URL parse error during conversion from string: {why}"
        ))
    })?;
    Ok(Value::library(LibraryValue::Url(url)))
}

fn is_url<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parts(text).is_ok())),
        _ => Err(EvalError::no_overload_for("isURL", args)),
    }
}

fn the_url<'v>(name: &str, args: &'v [Value<'_>]) -> Result<&'v Url, EvalError> {
    if let [Value::Library(value)] = args
        && let LibraryValue::Url(url) = &**value
    {
        return Ok(url);
    }
    Err(EvalError::no_overload_for(name, args))
}

fn part<'a>(name: &str, args: &[Value<'a>], part: fn(&Url) -> String) -> Evaluated<'a> {
    the_url(name, args).map(part).map(Value::text)
}

/// Every name with all its values; what cannot be decoded is left out.
fn get_query<'a>(meter: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let url = the_url("getQuery", args)?;
    let mut values: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in url.query.split('&') {
        meter.work(4)?;
        if pair.is_empty() || pair.contains(';') {
            continue;
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| unescape(&text.replace('+', " "), |_| true).ok();
        if let (Some(name), Some(value)) = (decode(name), decode(value)) {
            values.entry(name).or_default().push(Value::text(value));
        }
    }
    let mut entries = BTreeMap::new();
    for (name, values) in values {
        let key = Key::String(Text::Shared(name.into()));
        entries.insert(key, Value::List(List::new(values)?));
    }
    Map::new(entries).map(Value::Map)
}
