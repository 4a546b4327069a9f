//! Credentials in Docker's forms (`config.json`, and the older `.dockercfg`), by where they are
//! for. Pure.
//!
//! Always true: of a file only what covers one of the wanted places is kept, so that one of
//! megabytes is little memory.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

use super::{Credentials, json::excerpt};

/// Credentials that are kept of one file, and tried at one host.
const MOST: usize = 16;

/// Credentials, each with the place that it is for (a host, and perhaps a path).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    entries: Vec<(String, Credentials)>,
    /// For the registry that an image's name gives, whatever it is.
    given: Option<Credentials>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `{"auths": {...}}`.
    Config,
    /// The `auths` alone.
    Cfg,
}

impl Keyring {
    /// What somebody typed for the one registry that is asked for.
    pub fn given(credentials: Credentials) -> Self {
        Self {
            entries: Vec::new(),
            given: Some(credentials),
        }
    }

    /// Adds what a file has for the `targets` (host and path each).
    pub fn add(&mut self, bytes: &[u8], form: Form, targets: &[String]) -> Result<(), String> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let found = match form {
            Form::Config => DockerConfig(targets).deserialize(&mut json),
            Form::Cfg => Auths(targets).deserialize(&mut json),
        };
        // What a parser says of a file with passwords holds none of it.
        let found = found.map_err(|error| {
            let place = format!("line {} column {}", error.line(), error.column());
            match error.classify() {
                serde_json::error::Category::Data => {
                    format!("{place}: not the form of a Docker config.json")
                }
                _ => format!("{place}: not JSON"),
            }
        })?;
        self.entries.extend(
            found
                .into_iter()
                .filter_map(|(place, auth)| Some((place, auth.credentials()?))),
        );
        Ok(())
    }

    pub fn join(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.given = self.given.take().or(other.given);
    }

    /// Credentials for a place, the closest first; `is_registry`: it is the registry that the
    /// image's name gives.
    pub fn matching(&self, target: &str, is_registry: bool) -> Vec<Credentials> {
        let mut found: Vec<_> = self
            .entries
            .iter()
            .filter(|(place, _)| covers(place, target))
            .collect();
        // Within one place the order of the files.
        found.sort_by(|(one, _), (other, _)| other.cmp(one));
        let given = self.given.iter().filter(|_| is_registry).cloned();
        let mut all: Vec<Credentials> = Vec::new();
        for credentials in given.chain(found.into_iter().map(|(_, found)| found.clone())) {
            if all.len() < MOST && !all.contains(&credentials) {
                all.push(credentials);
            }
        }
        all
    }
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// Base64 of `username:password`.
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl Auth {
    fn credentials(&self) -> Option<Credentials> {
        if !self.identitytoken.is_empty() {
            return Some(Credentials::Refresh(self.identitytoken.clone()));
        }
        if !self.registrytoken.is_empty() {
            return Some(Credentials::Bearer(self.registrytoken.clone()));
        }
        let (username, password) = match self.auth.as_str() {
            "" => (self.username.clone(), self.password.clone()),
            auth => {
                let text = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
                let (username, password) = text.split_once(':')?;
                (
                    username.to_owned(),
                    password.trim_end_matches('\0').to_owned(),
                )
            }
        };
        (!username.is_empty()).then_some(Credentials::Basic { username, password })
    }
}

/// Reads the `auths` of a `config.json` for some places, and keeps nothing of the others.
struct DockerConfig<'t>(&'t [String]);

struct Auths<'t>(&'t [String]);

type Found = Vec<(String, Auth)>;

impl<'de> DeserializeSeed<'de> for DockerConfig<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for DockerConfig<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a Docker configuration")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "auths" => found = map.next_value_seed(Auths(self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

impl<'de> DeserializeSeed<'de> for Auths<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Auths<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("credentials by registry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Vec::new();
        while let Some(place) = map.next_key::<String>()? {
            let place = normal(&place);
            let wanted = self.0.iter().any(|target| covers(&place, target));
            match wanted && found.len() < MOST {
                true => found.push((place, map.next_value()?)),
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

/// `https://index.docker.io/v1/` is `docker.io`.
fn normal(place: &str) -> String {
    let place = place
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let place = place
        .strip_suffix("/v1")
        .or_else(|| place.strip_suffix("/v2"))
        .unwrap_or(place);
    match place {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        place => excerpt(place, 1000),
    }
}

/// Whether the place (a host, with patterns for parts of its name, and perhaps a path) holds the
/// target. A pattern holds within its part, and ports are the same.
fn covers(place: &str, target: &str) -> bool {
    let split = |text: &str| -> (String, String) {
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        (host.to_ascii_lowercase(), path.to_owned())
    };
    let ((pattern, prefix), (host, path)) = (split(place), split(target));
    let ((pattern, pattern_port), (host, port)) = (without_port(&pattern), without_port(&host));
    let (patterns, labels) = (pattern.split('.'), host.split('.'));
    pattern_port == port
        && patterns.clone().count() == labels.clone().count()
        && patterns
            .zip(labels)
            .all(|(pattern, label)| fits(pattern.as_bytes(), label.as_bytes()))
        && (prefix.is_empty() || path == prefix || path.starts_with(&format!("{prefix}/")))
}

fn without_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    }
}

/// `*` stands for anything, `?` for one character.
fn fits(pattern: &[u8], label: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < label.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(one) if *one == b'?' || *one == label[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                // The last star takes one more.
                Some((after, took)) => {
                    star = Some((after, took + 1));
                    at = after + 1;
                    from = took + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|one| *one == b'*')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(found: Vec<Credentials>) -> Vec<String> {
        let name = |credentials| match credentials {
            Credentials::Basic { username, .. } => username,
            Credentials::Refresh(token) => format!("refresh {token}"),
            Credentials::Bearer(token) => format!("bearer {token}"),
            Credentials::Anonymous => "nobody".to_owned(),
        };
        found.into_iter().map(name).collect()
    }

    #[test]
    fn huge_files_give_few_credentials() {
        let many: String = (0..100_000)
            .map(|n| format!("\"r{n}.example\":{{}},"))
            .collect();
        let same: String = (0..1000)
            .map(|n| format!("\"r.example\":{{\"username\":\"u{n}\",\"password\":\"p\"}},"))
            .collect();
        let file = format!("{{\"x\":[1],\"auths\":{{{many}{same}\"last.example\":{{}}}}}}");
        let mut keyring = Keyring::default();
        let targets = ["r.example/a".to_owned()];
        keyring
            .add(file.as_bytes(), Form::Config, &targets)
            .unwrap();
        assert_eq!(keyring.entries.len(), MOST);
        assert_eq!(keyring.matching("r.example/a", true).len(), MOST);
    }

    #[test]
    fn which_credentials_fit() {
        let auths = json!({
            "https://index.docker.io/v1/": {"auth": "aHViOmh1Yg=="},
            "registry.example:5000": {"username": "host", "password": "x"},
            "registry.example:5000/team": {"username": "team", "password": "x"},
            "*.corp.example": {"username": "star", "password": "x"},
            "r*y.part.example": {"username": "part", "password": "x"},
            "*.port.example:5000": {"username": "port", "password": "x"},
            "token.example": {"identitytoken": "i", "username": "u"},
            "bearer.example": {"registrytoken": "b"},
            "bad.example": {"auth": "%%%"},
        });
        for (target, want) in [
            ("docker.io/library/nginx", vec!["hub"]),
            ("registry.example:5000/a", vec!["host"]),
            ("REGISTRY.example:5000/a", vec!["host"]),
            ("registry.example/a", vec![]),
            ("registry.example:5000/team/a", vec!["team", "host"]),
            ("registry.example:5000/teams/a", vec!["host"]),
            ("a.corp.example/b", vec!["star"]),
            ("a.corp.example:5000/b", vec![]),
            ("a.b.corp.example/b", vec![]),
            ("registry.part.example/b", vec!["part"]),
            ("registrar.part.example/b", vec![]),
            ("x.port.example:5000/b", vec!["port"]),
            ("x.port.example:5001/b", vec![]),
            ("token.example/b", vec!["refresh i"]),
            ("bearer.example/b", vec!["bearer b"]),
            ("bad.example/b", vec![]),
        ] {
            let targets = [target.to_owned()];
            let both = [
                (Form::Config, json!({ "auths": auths }).to_string()),
                (Form::Cfg, auths.to_string()),
            ];
            for (form, file) in both {
                let mut keyring = Keyring::default();
                keyring.add(file.as_bytes(), form, &targets).unwrap();
                assert_eq!(names(keyring.matching(target, true)), want, "{target}");
            }
        }
    }

    #[test]
    fn what_was_typed_is_for_the_registry_alone() {
        let typed = Credentials::Bearer("t".to_owned());
        let keyring = Keyring::given(typed.clone());
        assert!(keyring.matching("m.example/a", false).is_empty());
        assert_eq!(keyring.matching("r.example/a", true), [typed]);
    }

    #[test]
    fn errors_hold_nothing_of_the_file() {
        for (text, want) in [
            ("{\"auths\": s3cret", "not JSON"),
            ("\"s3cret\"", "not the form"),
            ("{\"auths\": {\"a\": \"s3cret\"}}", "not the form"),
            ("", "not JSON"),
        ] {
            let targets = ["a/b".to_owned()];
            let error = Keyring::default().add(text.as_bytes(), Form::Config, &targets);
            let error = error.unwrap_err();
            assert!(error.contains(want) && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, label, want) in [
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*e", "abcde", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("", "a", false),
            ("*a*a*a*a*a*b", &"a".repeat(200), false),
        ] {
            let got = fits(pattern.as_bytes(), label.as_bytes());
            assert_eq!(got, want, "{pattern} {label}");
        }
    }
}
