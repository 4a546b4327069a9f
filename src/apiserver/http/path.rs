//! URL paths to what they name. Pure.

use crate::apiserver::{
    aggregation::RemotePath,
    registry::{Resource, Scope, custom::Rows},
};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A resource: a collection, or one object, or a part of one.
    Resource(ResourcePath),
    /// Another server's.
    Remote(RemotePath),
    /// `/api`, `/apis`, `/apis/G`, `/apis/G/V`: split after `/apis`.
    Discovery(Vec<String>),
    /// Anything else that is no resource: `/version`, `/healthz`, `/openapi/v3/...`.
    Other,
    /// Under `/api` or `/apis`, but nothing that is served.
    Nothing,
}

#[derive(Clone, Debug)]
pub struct ResourcePath {
    pub row: &'static Resource,
    /// Empty for cluster scope, and for all namespaces.
    pub namespace: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// What follows `proxy/`.
    pub rest: String,
    /// Through the old `/watch/` prefix.
    pub watch: bool,
}

impl PartialEq for ResourcePath {
    fn eq(&self, other: &Self) -> bool {
        let parts = |path: &Self| {
            (
                path.namespace.clone(),
                path.name.clone(),
                path.subresource.clone(),
                path.rest.clone(),
                path.watch,
            )
        };
        self.row.plural == other.row.plural
            && self.row.group == other.row.group
            && parts(self) == parts(other)
    }
}

impl Eq for ResourcePath {}

pub fn parse(path: &str, rows: &Rows) -> Place {
    let decoded: Vec<String> = path
        .trim_matches('/')
        .split('/')
        .map(percent_decode)
        .collect();
    let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api"] => return Place::Discovery(vec!["api".to_owned()]),
        ["apis"] => return Place::Discovery(vec!["apis".to_owned()]),
        ["apis", group] => return Place::Discovery(vec!["apis".to_owned(), (*group).to_owned()]),
        ["api", version] => {
            return Place::Discovery(vec![
                "apis".to_owned(),
                String::new(),
                (*version).to_owned(),
            ]);
        }
        ["apis", group, version] => {
            return Place::Discovery(vec![
                "apis".to_owned(),
                (*group).to_owned(),
                (*version).to_owned(),
            ]);
        }
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Place::Other,
    };
    let (watch, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        rest => (false, rest),
    };
    match resource(rows, group, version, rest) {
        Some(found) => Place::Resource(ResourcePath { watch, ..found }),
        None => Place::Nothing,
    }
}

fn resource(rows: &Rows, group: &str, version: &str, parts: &[&str]) -> Option<ResourcePath> {
    let (namespace, parts) = match parts {
        // The namespace object itself and its parts, unless a namespaced kind follows.
        ["namespaces", namespace, plural, rest @ ..]
            if rows
                .find(group, version, plural)
                .is_some_and(|row| row.scope == Scope::Namespaced) =>
        {
            let _ = rest;
            (*namespace, &parts[2..])
        }
        parts => ("", parts),
    };
    let (plural, rest) = parts.split_first()?;
    let row = rows.find(group, version, plural)?;
    if row.scope == Scope::Cluster && !namespace.is_empty() {
        return None;
    }
    let text = |index: usize| {
        rest.get(index)
            .filter(|part| !part.is_empty())
            .map(|part| (*part).to_owned())
    };
    let (name, subresource) = (text(0), text(1));
    // A namespaced object is reached through its namespace only.
    if row.scope == Scope::Namespaced && namespace.is_empty() && name.is_some() {
        return None;
    }
    if rest.len() > 2 && subresource.as_deref() != Some("proxy") {
        return None;
    }
    let rest = rest.get(2..).unwrap_or_default().join("/");
    Some(ResourcePath {
        row,
        namespace: namespace.to_owned(),
        name,
        subresource,
        rest,
        watch: false,
    })
}

fn percent_decode(part: &str) -> String {
    let bytes = part.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let hex = (byte == b'%').then(|| part.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
