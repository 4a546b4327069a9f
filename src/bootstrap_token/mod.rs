//! Bootstrap tokens `id.secret`: what a machine joins with before it has a certificate, and the Secrets of
//! `kube-system` that keep them. Pure.
//!
//! Known to the API server, which lets their holders in, to the controllers that sign with them and remove
//! them, to the command line, and to machines that join.

pub mod signature;

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use rand::Rng;

/// The type of the Secrets that keep tokens.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// The same as a field selector.
pub const OF_TYPE: &str = "type=bootstrap.kubernetes.io/token";
/// The namespace of the Secrets that keep tokens.
pub const NAMESPACE: &str = "kube-system";

const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const EXTRA_GROUPS: &str = "system:bootstrappers:";

/// A token as it is typed.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    id: String,
    secret: String,
}

/// Not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a token is six characters, a dot and sixteen characters, each of 0-9 and a-z: abcdef.0123456789abcdef"
)]
pub struct Malformed;

impl BootstrapToken {
    /// A new one that nobody can guess.
    pub fn random() -> Self {
        Self {
            id: random_word(ID_LENGTH),
            secret: random_word(SECRET_LENGTH),
        }
    }

    /// Public: names the token's Secret, its user and its signature.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The name of the Secret that keeps it.
    pub fn secret_name(&self) -> String {
        secret_name(&self.id)
    }
}

/// The name of the Secret that keeps the token `id`.
pub fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// Whether `text` can be the public half of a token.
pub fn is_id(text: &str) -> bool {
    is_word(text, ID_LENGTH)
}

fn is_word(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

fn random_word(length: usize) -> String {
    let mut random = rand::rng();
    let mut character = || char::from(ALPHABET[random.random_range(0..ALPHABET.len())]);
    (0..length).map(|_| character()).collect()
}

impl FromStr for BootstrapToken {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (id, secret) = text.split_once('.').ok_or(Malformed)?;
        match is_id(id) && is_word(secret, SECRET_LENGTH) {
            true => Ok(Self {
                id: id.to_owned(),
                secret: secret.to_owned(),
            }),
            false => Err(Malformed),
        }
    }
}

/// The whole token, for whoever asked for it.
impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

/// Without what is secret, for logs.
impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootstrapToken({})", self.id)
    }
}

/// What a Secret says of its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptToken {
    pub token: BootstrapToken,
    pub expiration: Expiration,
    /// Whether it signs the ConfigMap `cluster-info`.
    pub signing: bool,
    /// Whether its holder is let in.
    pub authentication: bool,
    /// Besides `system:bootstrappers`.
    pub groups: Vec<String>,
    pub description: String,
}

/// Until when a token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiration {
    Never,
    At(Timestamp),
    /// It says a time that cannot be read: it counts as over.
    Unreadable,
}

impl Expiration {
    fn read(text: Option<String>) -> Self {
        match text.filter(|text| !text.is_empty()) {
            None => Self::Never,
            Some(text) => text.parse().map_or(Self::Unreadable, Self::At),
        }
    }

    pub fn is_over(self, now: Timestamp) -> bool {
        match self {
            Self::Never => false,
            Self::At(end) => end <= now,
            Self::Unreadable => true,
        }
    }
}

impl KeptToken {
    /// `None`: the Secret keeps no token that counts.
    pub fn of(secret: &Secret) -> Option<Self> {
        if secret.metadata.namespace.as_deref() != Some(NAMESPACE) {
            return None;
        }
        let datum = |key: &str| {
            let bytes = secret.data.as_ref()?.get(key)?;
            String::from_utf8(bytes.0.clone()).ok()
        };
        let name = secret.metadata.name.as_deref()?;
        Self::read(name, secret.type_.as_deref()?, datum)
    }

    /// `None`: the Secret keeps no token. `datum` gives a value of its data.
    pub fn read(name: &str, kind: &str, datum: impl Fn(&str) -> Option<String>) -> Option<Self> {
        if kind != SECRET_TYPE {
            return None;
        }
        let token = format!("{}.{}", datum("token-id")?, datum("token-secret")?);
        let token = BootstrapToken::from_str(&token).ok()?;
        if name != token.secret_name() {
            return None;
        }
        let says = |key| datum(key).is_some_and(|value| value == "true");
        let groups = datum("auth-extra-groups").unwrap_or_default();
        let groups = groups.split(',').map(str::trim);
        Some(Self {
            expiration: Expiration::read(datum("expiration")),
            signing: says("usage-bootstrap-signing"),
            authentication: says("usage-bootstrap-authentication"),
            groups: groups
                .filter(|group| group.starts_with(EXTRA_GROUPS))
                .map(str::to_owned)
                .collect(),
            description: datum("description").unwrap_or_default(),
            token,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_a_token_looks_like() {
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().expect("a token");
        assert_eq!(token.id(), "abcdef");
        assert_eq!(token.secret(), "0123456789abcdef");
        assert_eq!(token.secret_name(), "bootstrap-token-abcdef");
        assert_eq!(token.to_string(), "abcdef.0123456789abcdef");
        assert_eq!(format!("{token:?}"), "BootstrapToken(abcdef)", "not told");
        for bad in [
            "",
            ".",
            "abcdef",
            "abcdef.",
            "abcde.0123456789abcdef",
            "abcdef.0123456789abcde",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdeF",
            "abcdef.0123456789abcdef.x",
            "abcdef.0123456789abcdé",
        ] {
            assert_eq!(bad.parse::<BootstrapToken>(), Err(Malformed), "{bad:?}");
        }
        let (one, other) = (BootstrapToken::random(), BootstrapToken::random());
        assert_ne!(one, other);
        assert_eq!(one.to_string().parse(), Ok(one));
    }

    #[test]
    fn what_a_secret_says() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a time");
        let good = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("expiration", "2030-01-02T00:00:00Z"),
            ("auth-extra-groups", "system:bootstrappers:lab, other"),
        ];
        let read = |changed: &[(&str, &str)]| {
            let data: BTreeMap<&str, &str> = good.iter().chain(changed).copied().collect();
            let datum = |key: &str| data.get(key).map(|text| (*text).to_owned());
            KeptToken::read("bootstrap-token-abcdef", SECRET_TYPE, datum)
        };
        let kept = read(&[]).expect("a token");
        assert!(kept.authentication && !kept.signing);
        assert!(!kept.expiration.is_over(now));
        assert_eq!(kept.groups, ["system:bootstrappers:lab"]);

        for (changed, over) in [
            ("2029-12-31T23:59:59Z", true),
            ("2030-01-01T00:00:00Z", true),
            ("2030-01-01T01:00:00+02:00", true),
            ("2030-01-01T01:00:00Z", false),
            ("soon", true),
            ("", false),
        ] {
            let kept = read(&[("expiration", changed)]).expect("a token");
            assert_eq!(kept.expiration.is_over(now), over, "{changed:?}");
        }
        assert_eq!(read(&[("token-id", "ghijkl")]), None, "another's name");
        assert_eq!(read(&[("token-secret", "short")]), None);
        let other = KeptToken::read("bootstrap-token-abcdef", "Opaque", |_| None);
        assert_eq!(other, None, "another type");
    }
}
