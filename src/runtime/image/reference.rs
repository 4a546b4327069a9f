//! Image names: as a pod writes them, and in full. Pure.

use std::fmt;

use super::{Error, digest::Digest, json::excerpt};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// Of registry and repository together.
const LONGEST: usize = 255;
const LONGEST_TAG: usize = 128;
/// Of a name in an error: one of a megabyte is somebody's joke.
const LONGEST_TOLD: usize = 300;

/// A full name: registry, repository, and a tag or digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    registry: String,
    repository: String,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Version {
    Tag(String),
    Digest(Digest),
}

impl Name {
    /// `nginx` is `docker.io/library/nginx:latest`. With a tag and a digest the digest decides.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |reason| Error::InvalidName {
            name: excerpt(text, LONGEST_TOLD),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            Some((end, tag)) => (&rest[..last + end.len()], Some(tag)),
            None => (rest, None),
        };
        let (registry, path) = match name.split_once('/') {
            Some(("index.docker.io", path)) => (DEFAULT_REGISTRY, path),
            Some((first, path)) if is_registry(first) => (first, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        let repository = match registry == DEFAULT_REGISTRY && !path.contains('/') {
            true => format!("library/{path}"),
            false => path.to_owned(),
        };
        if registry.len() + 1 + repository.len() > LONGEST {
            return Err(invalid(format!("it is longer than {LONGEST} characters")));
        }
        check_registry(registry)
            .and_then(|()| check_path(path))
            .and_then(|()| tag.map_or(Ok(()), check_tag))
            .map_err(|reason| invalid(reason.to_owned()))?;
        let version = match digest {
            None => Version::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
            Some(digest) => Version::Digest(Digest::parse(digest).ok_or_else(|| {
                let reason =
                    "the digest must be sha256, sha384 or sha512, a colon and its hex digits";
                invalid(reason.to_owned())
            })?),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            version,
        })
    }

    /// The name with its tag, without a digest: `docker.io/library/nginx:latest`.
    pub fn tagged(&self) -> Option<String> {
        match &self.version {
            Version::Tag(tag) => Some(format!("{}:{tag}", self.repository())),
            Version::Digest(_) => None,
        }
    }

    /// What names the image in its repository: a tag or a digest.
    pub(super) fn version(&self) -> &str {
        match &self.version {
            Version::Tag(tag) => tag,
            Version::Digest(digest) => digest.as_str(),
        }
    }

    /// Registry and repository: `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The repository alone: `library/nginx`.
    pub(super) fn path(&self) -> &str {
        &self.repository
    }

    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.repository())
    }

    /// Host (and port) of the registry.
    pub fn registry(&self) -> &str {
        &self.registry
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}:{tag}", self.repository()),
            Version::Digest(digest) => f.write_str(&self.with_digest(digest.as_str())),
        }
    }
}

/// Whether the part before the first slash names a registry, rather than a folder of the default one.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.contains(char::is_uppercase)
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let good = match v6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok());
    match good && port_is_good {
        true => Ok(()),
        false => Err("the registry must be a host, with a port after a colon if it needs one"),
    }
}

/// Parts of small letters and digits; within a part `.`, `_`, `__` or dashes may join them.
fn check_path(path: &str) -> Result<(), &'static str> {
    if path.contains(char::is_uppercase) {
        return Err("the repository must be in lower case");
    }
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_good = |part: &str| {
        let ends = [part.bytes().next(), part.bytes().next_back()];
        ends.iter().all(|end| end.is_some_and(is_word))
            && part
                .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                .all(|joint| {
                    matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-')
                })
    };
    match path.split('/').all(is_good) {
        true => Ok(()),
        false => Err(
            "the repository must be parts of letters and digits, joined by '.', '_' or '-', with \
             '/' between parts",
        ),
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = tag.bytes().next().is_some_and(is_word)
        && tag
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
        && tag.len() <= LONGEST_TAG;
    match good {
        true => Ok(()),
        false => Err(
            "the tag must be at most 128 letters, digits, '_', '.' and '-', and not begin with \
             '.' or '-'",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed() {
        for (text, want) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("a/b", "docker.io/a/b:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"),
            ("registry.k8s.io/pause:3.2", "registry.k8s.io/pause:3.2"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("HOST/a", "HOST/a:latest"),
            ("a__b/c--d.e:_V.1-", "docker.io/a__b/c--d.e:_V.1-"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
        ] {
            assert_eq!(Name::parse(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn a_digest_decides_over_a_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let name = Name::parse(&format!("nginx:1@{digest}")).unwrap();
        assert_eq!(
            name.to_string(),
            format!("docker.io/library/nginx@{digest}")
        );
        assert_eq!(name.tagged(), None);
    }

    #[test]
    fn bad_names_say_so() {
        let long = format!("localhost/{}", "a".repeat(LONGEST));
        let long_tag = format!("a:{}", "b".repeat(LONGEST_TAG + 1));
        for text in [
            "",
            "UPPER",
            "a//b",
            "a:b:c",
            "a:",
            "a:-b",
            "a b",
            "/a",
            "a/",
            "-a",
            "a.-b",
            "a___b",
            "http://a.b/c",
            "a.b:port/c",
            "a..b/c",
            "nginx@sha256:12",
            "nginx@md5:00",
            "nginx@",
            &long,
            &long_tag,
        ] {
            assert!(
                matches!(Name::parse(text), Err(Error::InvalidName { .. })),
                "{text}"
            );
        }
    }
}
