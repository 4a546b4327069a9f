//! Image names: as a pod writes them, and in full. Pure.

use std::fmt;

use oci_client::Reference;

use super::Error;

/// A full name: registry, repository, and a tag or digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    reference: Reference,
}

impl Name {
    /// `nginx` is `docker.io/library/nginx:latest`. With a tag and a digest the digest decides.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |reason: String| Error::InvalidName {
            name: text.to_owned(),
            reason,
        };
        let reference: Reference = text
            .parse()
            .map_err(|error: oci_client::ParseError| invalid(error.to_string()))?;
        Ok(Self { reference })
    }

    /// The name with its tag, without a digest: `docker.io/library/nginx:latest`.
    pub fn tagged(&self) -> Option<String> {
        match (self.reference.tag(), self.reference.digest()) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.repository())),
            (None, None) => Some(format!("{}:latest", self.repository())),
            (_, Some(_)) => None,
        }
    }

    pub fn digest(&self) -> Option<&str> {
        self.reference.digest()
    }

    /// Registry and repository: `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!(
            "{}/{}",
            self.reference.registry(),
            self.reference.repository()
        )
    }

    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.repository())
    }

    /// Host (and port) of the registry.
    pub fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// Whether the registry is this machine itself, where plain HTTP is allowed.
    pub fn is_loopback(&self) -> bool {
        let registry = self.registry();
        let host = match registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => registry,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.digest(), self.tagged()) {
            (Some(digest), _) => f.write_str(&self.with_digest(digest)),
            (None, Some(tagged)) => f.write_str(&tagged),
            (None, None) => f.write_str(&self.repository()),
        }
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
        for text in ["", "UPPER", "a//b", "a:b:c", "nginx@sha256:12"] {
            assert!(
                matches!(Name::parse(text), Err(Error::InvalidName { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn loopback_registries() {
        for (text, want) in [
            ("localhost:5000/a", true),
            ("127.0.0.1:5000/a", true),
            ("nginx", false),
            ("10.0.0.1:5000/a", false),
        ] {
            assert_eq!(Name::parse(text).unwrap().is_loopback(), want, "{text}");
        }
    }
}
