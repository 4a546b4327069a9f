//! URL paths to what they name. Pure.
//!
//! A path is decoded once, and taken apart once: what comes out is both what is authorized and
//! what is served. What cannot be read in one way only names nothing.

use crate::apiserver::{
    aggregation::Remotes,
    registry::{Resource, Scope, custom::Rows},
    streaming::encode_path,
};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A resource: a collection, or one object, or a part of one.
    Resource(Names, ResourcePath),
    /// Another server's; without a resource its discovery.
    Remote(Names),
    /// Formed like a resource's path, but nothing that is served.
    Unserved(Names),
    /// `/api`, `/apis`, `/apis/G`, `/apis/G/V`: split after `/apis`. And the path as it was asked.
    Discovery(Vec<String>, String),
    /// Anything else that is no resource: `/version`, `/healthz`, `/openapi/v3/...`.
    Other(String),
    /// Nothing, whoever asks: the path as it was asked.
    Nothing(String),
}

/// A resource's path in its parts, whether or not there is such a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub group: String,
    pub version: String,
    /// Empty for cluster scope, and for all namespaces. A namespace is inside itself, so that a
    /// Role can speak of it.
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows `proxy/`, byte for byte; else the further parts, which nothing served has.
    pub rest: String,
    /// Through the old `/watch/` prefix.
    pub watch: bool,
}

impl Names {
    /// The path that says this and nothing else.
    pub fn path(&self) -> String {
        let mut parts = match self.group.as_str() {
            "" => vec!["api", &self.version],
            group => vec!["apis", group, &self.version],
        };
        if self.watch {
            parts.push("watch");
        }
        if !self.namespace.is_empty() && self.resource != "namespaces" {
            parts.extend(["namespaces", &self.namespace]);
        }
        let named = [&self.resource, &self.name, &self.subresource, &self.rest];
        parts.extend(
            named
                .into_iter()
                .map(String::as_str)
                .filter(|part| !part.is_empty()),
        );
        format!("/{}", encode_path(&parts.join("/")))
    }
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

/// Parts of a namespace itself; anything else below one is a resource in it.
const OF_NAMESPACES: [&str; 2] = ["status", "finalize"];

pub fn parse(raw: &str, rows: &Rows, remotes: &Remotes) -> Place {
    let Some(path) = percent_decode(raw) else {
        return Place::Nothing(raw.to_owned());
    };
    let mut parts: Vec<&str> = path.strip_prefix('/').unwrap_or(&path).split('/').collect();
    let below = match parts.first() {
        Some(&"api") => 2,
        Some(&"apis") => 3,
        _ => return Place::Other(path),
    };
    // One slash at the end changes nothing, but for who is proxied to.
    if parts.len() > 1 && parts.last() == Some(&"") && !is_proxied(&parts) {
        parts.pop();
    }
    let Some((head, rest)) = parts
        .split_at_checked(below)
        .filter(|(_, rest)| !rest.is_empty())
    else {
        return discovery(&parts, &path, rows, remotes);
    };
    let (group, version) = match head {
        [_, group, version] if !group.is_empty() => (*group, *version),
        [_, version] => ("", *version),
        _ => return Place::Nothing(path),
    };
    match names(group, version, rest) {
        Some(names) => place(names, rows, remotes),
        None => Place::Nothing(path),
    }
}

/// Whether the path goes on after a subresource `proxy`: what is there is not for us to read.
fn is_proxied(parts: &[&str]) -> bool {
    matches!(
        parts,
        ["api", _, "nodes", _, "proxy", ..] | ["api", _, "namespaces", _, _, _, "proxy", ..]
    )
}

fn discovery(parts: &[&str], path: &str, rows: &Rows, remotes: &Remotes) -> Place {
    if parts.contains(&"") {
        return Place::Nothing(path.to_owned());
    }
    match parts {
        ["apis", group, version]
            if remotes.find(group, version).is_some() && !rows.serves(group, version) =>
        {
            Place::Remote(Names {
                group: (*group).to_owned(),
                version: (*version).to_owned(),
                ..Names::default()
            })
        }
        ["api", version] => {
            let parts = ["apis", "", version].map(str::to_owned);
            Place::Discovery(parts.to_vec(), path.to_owned())
        }
        parts => {
            let parts = parts.iter().map(|part| (*part).to_owned());
            Place::Discovery(parts.collect(), path.to_owned())
        }
    }
}

/// The parts below group and version. `None`: they cannot be told apart with certainty.
fn names(group: &str, version: &str, parts: &[&str]) -> Option<Names> {
    let (watch, parts) = match parts {
        ["watch"] => return None,
        ["watch", parts @ ..] => (true, parts),
        parts => (false, parts),
    };
    let (namespace, parts) = match parts {
        ["namespaces", namespace, part, ..] if !OF_NAMESPACES.contains(part) => {
            (Some(*namespace), &parts[2..])
        }
        ["namespaces", namespace, ..] => (Some(*namespace), parts),
        parts => (None, parts),
    };
    let (known, rest) = parts.split_at(parts.len().min(3));
    let proxied = known.get(2) == Some(&"proxy");
    let unread = if proxied { &[][..] } else { rest };
    let read = std::iter::once(version).chain(namespace);
    let mut read = read.chain(known.iter().chain(unread).copied());
    if read.any(|part| matches!(part, "" | "." | "..")) || matches!(group, "." | "..") {
        return None;
    }
    let part = |index: usize| known.get(index).copied().unwrap_or_default().to_owned();
    Some(Names {
        group: group.to_owned(),
        version: version.to_owned(),
        namespace: namespace.unwrap_or_default().to_owned(),
        resource: part(0),
        name: part(1),
        subresource: part(2),
        rest: rest.join("/"),
        watch,
    })
}

fn place(names: Names, rows: &Rows, remotes: &Remotes) -> Place {
    let (group, version) = (names.group.as_str(), names.version.as_str());
    if !rows.serves(group, version) && remotes.find(group, version).is_some() {
        return Place::Remote(names);
    }
    match resource(&names, rows) {
        Some(found) => Place::Resource(names, found),
        None => Place::Unserved(names),
    }
}

fn resource(names: &Names, rows: &Rows) -> Option<ResourcePath> {
    let row = rows.find(&names.group, &names.version, &names.resource)?;
    let namespace = match row.scope {
        Scope::Cluster if names.resource == "namespaces" => "",
        Scope::Cluster if !names.namespace.is_empty() => return None,
        // A namespaced object is reached through its namespace only.
        Scope::Namespaced if names.namespace.is_empty() && !names.name.is_empty() => return None,
        _ => names.namespace.as_str(),
    };
    if !names.rest.is_empty() && names.subresource != "proxy" {
        return None;
    }
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Some(ResourcePath {
        row,
        namespace: namespace.to_owned(),
        name: some(&names.name),
        subresource: some(&names.subresource),
        rest: names.rest.clone(),
        watch: names.watch,
    })
}

/// The whole path decoded, so that an escaped slash is one; `None` if an escape is broken or the
/// result is no text.
fn percent_decode(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
        out.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `resource namespace name subresource rest`, with what kind of place it is.
    fn read(path: &str) -> String {
        let names = |names: Names| {
            let parts = [
                names.resource,
                names.namespace,
                names.name,
                names.subresource,
                names.rest,
            ];
            let shown = parts.map(|part| {
                if part.is_empty() {
                    "-".to_owned()
                } else {
                    part
                }
            });
            let text = shown.join(" ").trim_end_matches(" -").to_owned();
            text + if names.watch { " watched" } else { "" }
        };
        match parse(path, &Rows::default(), &Remotes::default()) {
            Place::Resource(found, _) => names(found),
            Place::Remote(found) => format!("remote {}", names(found)),
            Place::Unserved(found) => format!("unserved {}", names(found)),
            Place::Discovery(parts, _) => format!("discovery {}", parts.join("/")),
            Place::Other(path) => format!("other {path}"),
            Place::Nothing(_) => "nothing".to_owned(),
        }
    }

    #[test]
    fn what_a_path_names() {
        for (path, want) in [
            ("/", "other /"),
            ("/healthz/", "other /healthz/"),
            ("//metrics", "other //metrics"),
            (
                "/metrics/../api/v1/secrets",
                "other /metrics/../api/v1/secrets",
            ),
            ("/%6detrics", "other /metrics"),
            ("/api", "discovery api"),
            ("/apis/", "discovery apis"),
            ("/api/v1/", "discovery apis//v1"),
            ("/apis/apps/v1", "discovery apis/apps/v1"),
            ("/apis//v1", "nothing"),
            ("/apis//v1/pods", "nothing"),
            ("/api//pods", "nothing"),
            ("/api/v1/pods", "pods"),
            ("/api/v1/pods/", "pods"),
            ("/api/v1/pods//", "nothing"),
            ("/api/v1//pods", "nothing"),
            ("//api/v1/pods", "other //api/v1/pods"),
            ("/api/v1/namespaces/n/pods/p/log", "pods n p log"),
            ("/api/v1/namespaces/n/pods/p%2Flog", "pods n p log"), // an escaped slash is one
            ("/api/v1/namespaces/n/pods/p%252Flog", "pods n p%2Flog"),
            ("/api/v1/namespaces/n%2Fpods", "pods n"),
            ("/api/v1/namespaces/n/pods/p%zz", "nothing"),
            ("/api/v1/namespaces/n/pods/p%ff", "nothing"),
            ("/api/v1/namespaces//pods", "nothing"),
            ("/api/v1/namespaces/../pods", "nothing"),
            ("/api/v1/namespaces/n/pods/%2e%2e", "nothing"),
            ("/api/v1/namespaces/n/pods/p;x", "pods n p;x"),
            ("/api/v1/namespaces/n/Pods/p", "unserved Pods n p"),
            ("/api/v1/namespaces/n", "namespaces n n"),
            ("/api/v1/namespaces/n/status", "namespaces n n status"),
            ("/api/v1/namespaces/n/nodes/x", "unserved nodes n x"),
            ("/api/v1/pods/p", "unserved pods - p"),
            (
                "/api/v1/namespaces/n/pods/p/log/more",
                "unserved pods n p log more",
            ),
            ("/api/v1/namespaces/n/pods/p/proxy", "pods n p proxy"),
            ("/api/v1/namespaces/n/pods/p/proxy/", "pods n p proxy"),
            (
                "/api/v1/namespaces/n/pods/p/proxy//a/../b/",
                "pods n p proxy /a/../b/",
            ),
            ("/api/v1/namespaces/n/pods/proxy/", "pods n proxy"),
            (
                "/api/v1/nodes/n:10250/proxy/pods",
                "nodes - n:10250 proxy pods",
            ),
            ("/api/v1/watch/namespaces/n/pods/p", "pods n p watched"),
            ("/api/v1/watch", "nothing"),
            ("/apis/example.com/v1/foos", "unserved foos"),
        ] {
            assert_eq!(read(path), want, "{path}");
        }
    }

    #[test]
    fn what_was_understood_is_said_again() {
        for (path, again) in [
            ("/apis/g.example/v1/tabs", ""),
            ("/apis/g.example/v1/namespaces/n/tabs/t/status", ""),
            ("/apis/g.example/v1/watch/namespaces/n/tabs", ""),
            ("/apis/g.example/v1/namespaces/n", ""),
            ("/apis/g.example/v1/namespaces/n/status", ""),
            ("/apis/g.example/v1/tabs/a%20b", ""),
            (
                "/apis/g.example/v1/tabs/a%3fwatch=1",
                "/apis/g.example/v1/tabs/a%3Fwatch=1",
            ),
            (
                "/apis/g.example/v1/tabs/t%2Fstatus/",
                "/apis/g.example/v1/tabs/t/status",
            ),
        ] {
            let place = parse(path, &Rows::default(), &Remotes::default());
            let Place::Unserved(names) = place else {
                panic!("{path}: {place:?}")
            };
            let want = if again.is_empty() { path } else { again };
            assert_eq!(names.path(), want);
        }
    }
}
