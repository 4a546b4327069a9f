//! `hosts.toml`, the form that containerd gave it: which hosts serve a registry's images. Pure.
//!
//! Stricter than containerd in one thing: a key that means nothing is an error, since it is nearly
//! always a misspelt one, and what it was meant to say would not hold.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri, uri::Authority};
use toml::{Table, Value};

const MOST_HOSTS: usize = 64;
const MOST_FILES: usize = 64;
const MOST_HEADERS: usize = 64;
const LONGEST_DIAL: Duration = Duration::from_secs(300);
const HOST_KEYS: &str =
    "capabilities, ca, client, skip_verify, override_path, header, dial_timeout";

/// What is wrong with the file: the key and what helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(String);

/// One file: its hosts in the order of the file, and its server, which comes last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub hosts: Vec<Host>,
    pub server: Host,
}

/// A host as the file gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// None: the registry itself, as the image's name gives it.
    pub url: Option<Url>,
    pub capabilities: Capabilities,
    pub tls: Tls,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub dial_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub scheme: Scheme,
    /// `host[:port]`.
    pub authority: String,
    /// What comes before the repository: `/v2`, or as `override_path` has it.
    pub path: String,
}

/// What a host is asked for. Nothing is ever pushed from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Content by digest.
    pub pull: bool,
    /// Which digest a tag stands for.
    pub resolve: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            pull: true,
            resolve: true,
        }
    }
}

/// Files, by absolute path; read when the host is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub ca: Vec<PathBuf>,
    pub client: Vec<ClientFiles>,
    pub skip_verify: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    pub certificate: PathBuf,
    /// None: the key is in the file of the certificate.
    pub key: Option<PathBuf>,
}

/// Reads a file that lies in `dir`, which its relative paths are below.
pub fn parse(text: &str, dir: &Path) -> Result<File, Wrong> {
    let mut table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| Wrong(said(&error, text)))?;
    let hosts = match table.remove("host") {
        None => Table::new(),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err(Wrong("host: must be tables, [host.\"https://...\"]".into())),
    };
    if hosts.len() > MOST_HOSTS {
        return Err(Wrong(format!("host: more than {MOST_HOSTS} hosts")));
    }
    let server = match table.remove("server") {
        None => String::new(),
        Some(Value::String(server)) => server,
        Some(other) => return Err(wrong("server", "a string", &other)),
    };
    let hosts = hosts.into_iter().map(|(name, value)| {
        let key = format!("host.{name:?}");
        match value {
            _ if name.is_empty() => Err(Wrong(format!("{key}: must be a URL"))),
            Value::Table(settings) => host(&key, Some(&name), settings, dir),
            other => Err(wrong(&key, "a table", &other)),
        }
    });
    let hosts = hosts.collect::<Result<_, _>>()?;
    let server = Some(server.as_str()).filter(|server| !server.is_empty());
    Ok(File {
        hosts,
        server: host("", server, table, dir)?,
    })
}

/// `key`: of the host's table, for messages; empty for the server, whose keys are the file's own.
fn host(key: &str, url: Option<&str>, settings: Table, dir: &Path) -> Result<Host, Wrong> {
    let mut host = Host::default();
    let mut override_path = false;
    for (name, value) in settings {
        let key = match key {
            "" => name.clone(),
            key => format!("{key}.{name}"),
        };
        match name.as_str() {
            "capabilities" => host.capabilities = capabilities(&key, &value)?,
            "ca" => host.tls.ca = files(&key, &value, dir)?,
            "client" => host.tls.client = clients(&key, &value, dir)?,
            "skip_verify" => host.tls.skip_verify = boolean(&key, &value)?,
            "override_path" => override_path = boolean(&key, &value)?,
            "header" => host.headers = headers(&key, value)?,
            "dial_timeout" => host.dial_timeout = Some(timeout(&key, &value)?),
            _ => {
                let more = if url.is_none() { ", server, host" } else { "" };
                return Err(Wrong(format!(
                    "{key}: unknown key; known are {HOST_KEYS}{more}"
                )));
            }
        }
    }
    let key = if key.is_empty() { "server" } else { key };
    host.url = url
        .map(|url| parse_url(key, url, override_path))
        .transpose()?;
    if let Some(url) = &host.url
        && url.scheme == Scheme::Http
    {
        // What people write beside plain HTTP often, and there is nothing to check.
        host.tls.skip_verify = false;
        if host.tls != Tls::default() {
            return Err(Wrong(format!("{key}: ca and client are for https:// only")));
        }
    }
    Ok(host)
}

fn parse_url(key: &str, text: &str, override_path: bool) -> Result<Url, Wrong> {
    let bad = |why: &str| Wrong(format!("{key}: {text:?} {why}"));
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("https://{text}"),
    };
    let uri: Uri = full
        .parse()
        .map_err(|_| bad("is not a URL such as https://host:port/path"))?;
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        _ => return Err(bad("must begin with https:// or http://")),
    };
    let authority = uri.authority().map(Authority::as_str).unwrap_or_default();
    if authority.contains('@') {
        return Err(bad(
            "must hold no user name; credentials belong into config.json",
        ));
    }
    if uri.query().is_some() || full.contains('#') {
        return Err(bad("must have neither a query nor a fragment"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(bad("has no host"));
    }
    let parts: Vec<&str> = uri
        .path()
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    if parts.iter().any(|part| matches!(*part, "." | "..")) {
        return Err(bad("must have no '.' or '..' in its path"));
    }
    let mut path: String = parts.iter().map(|part| format!("/{part}")).collect();
    if !override_path && parts.last() != Some(&"v2") {
        path.push_str("/v2");
    }
    Ok(Url {
        scheme,
        authority: authority.to_ascii_lowercase(),
        path,
    })
}

fn capabilities(key: &str, value: &Value) -> Result<Capabilities, Wrong> {
    let all = strings(key, value)?;
    if all.is_empty() {
        return Ok(Capabilities::default());
    }
    let mut found = Capabilities {
        pull: false,
        resolve: false,
    };
    for one in all {
        match one.to_ascii_lowercase().as_str() {
            "pull" => found.pull = true,
            "resolve" => found.resolve = true,
            "push" | "referrers" => {}
            _ => {
                return Err(Wrong(format!(
                    "{key}: {one:?} is none of pull, resolve, push"
                )));
            }
        }
    }
    Ok(found)
}

fn files(key: &str, value: &Value, dir: &Path) -> Result<Vec<PathBuf>, Wrong> {
    let all = match value {
        Value::String(one) => vec![one.as_str()],
        Value::Array(_) => strings(key, value)?,
        other => {
            return Err(wrong(key, "a file's path or an array of file paths", other));
        }
    };
    all.into_iter().map(|path| file(key, path, dir)).collect()
}

/// `"file"`, `["file", ...]` or `[["certificate", "key"], ...]`.
fn clients(key: &str, value: &Value, dir: &Path) -> Result<Vec<ClientFiles>, Wrong> {
    let combined = |path: &str| {
        Ok(ClientFiles {
            certificate: file(key, path, dir)?,
            key: None,
        })
    };
    let all = match value {
        Value::String(path) => return Ok(vec![combined(path)?]),
        Value::Array(all) if all.len() <= MOST_FILES => all,
        Value::Array(_) => return Err(Wrong(format!("{key}: more than {MOST_FILES} files"))),
        other => {
            return Err(wrong(
                key,
                "a file's path or an array of pairs [\"certificate\", \"key\"]",
                other,
            ));
        }
    };
    let client = |one: &Value| match one {
        Value::String(path) => combined(path),
        Value::Array(_) => match strings(key, one)?.as_slice() {
            [certificate, ""] | [certificate] => combined(certificate),
            [certificate, private] => Ok(ClientFiles {
                certificate: file(key, certificate, dir)?,
                key: Some(file(key, private, dir)?),
            }),
            _ => Err(Wrong(format!(
                "{key}: a pair must be [\"certificate\", \"key\"]"
            ))),
        },
        other => Err(wrong(key, "pairs [\"certificate\", \"key\"]", other)),
    };
    all.iter().map(client).collect()
}

fn file(key: &str, path: &str, dir: &Path) -> Result<PathBuf, Wrong> {
    match path {
        "" => Err(Wrong(format!("{key}: an empty path"))),
        path => Ok(dir.join(path)),
    }
}

fn headers(key: &str, value: Value) -> Result<Vec<(HeaderName, HeaderValue)>, Wrong> {
    let Value::Table(table) = value else {
        return Err(wrong(key, "a table", &value));
    };
    let mut found = Vec::new();
    for (name, value) in table {
        let key = format!("{key}.{name}");
        let values = match &value {
            Value::String(one) => vec![one.as_str()],
            Value::Array(_) => strings(&key, &value)?,
            other => return Err(wrong(&key, "a string or an array of strings", other)),
        };
        let name: HeaderName = name
            .parse()
            .map_err(|_| Wrong(format!("{key}: not the name of a header")))?;
        if matches!(
            name,
            http::header::HOST
                | http::header::CONTENT_LENGTH
                | http::header::TRANSFER_ENCODING
                | http::header::CONNECTION
        ) {
            return Err(Wrong(format!("{key}: this header cannot be set")));
        }
        for value in values {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| Wrong(format!("{key}: not the value of a header")))?;
            // It may be a password.
            value.set_sensitive(true);
            found.push((name.clone(), value));
        }
        if found.len() > MOST_HEADERS {
            return Err(Wrong(format!("{key}: more than {MOST_HEADERS} headers")));
        }
    }
    Ok(found)
}

/// As Go writes durations (`1m30s`); a plain number is one of seconds.
fn timeout(key: &str, value: &Value) -> Result<Duration, Wrong> {
    let found = match value {
        Value::String(text) => duration(text),
        Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
        other => return Err(wrong(key, "a duration such as \"10s\"", other)),
    };
    match found {
        Some(found) if !found.is_zero() && found <= LONGEST_DIAL => Ok(found),
        _ => Err(Wrong(format!(
            "{key}: must be a duration such as \"10s\", more than 0 and at most {LONGEST_DIAL:?}"
        ))),
    }
}

fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

fn boolean(key: &str, value: &Value) -> Result<bool, Wrong> {
    value
        .as_bool()
        .ok_or_else(|| wrong(key, "true or false", value))
}

fn strings<'v>(key: &str, value: &'v Value) -> Result<Vec<&'v str>, Wrong> {
    let Value::Array(all) = value else {
        return Err(wrong(key, "an array of strings", value));
    };
    if all.len() > MOST_FILES {
        return Err(Wrong(format!("{key}: more than {MOST_FILES} entries")));
    }
    let one = |one: &'v Value| {
        one.as_str()
            .ok_or_else(|| wrong(key, "an array of strings", one))
    };
    all.iter().map(one).collect()
}

fn wrong(key: &str, want: &str, got: &Value) -> Wrong {
    Wrong(format!("{key}: must be {want}, not {}", got.type_str()))
}

/// A syntax error with its line, without the text around it, which may hold passwords.
fn said(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().map(|span| {
        let before = text.as_bytes().iter().take(span.start);
        1 + before.filter(|byte| **byte == b'\n').count()
    });
    let message = super::super::excerpt(error.message(), 200);
    match line {
        Some(line) => format!("line {line}: {message}"),
        None => message,
    }
}

#[cfg(test)]
mod tests;
