//! Digests of content: `sha256:` and its hex digits. Pure.
//!
//! Always true: a [`Digest`] holds nothing but a known algorithm and lower-case hex digits of its
//! length, so that it is safe in a path, a URL and a message.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use sha2::Digest as _;

use super::json::excerpt;
use crate::hex::hex;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Digest {
    text: String,
    algorithm: Algorithm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

impl Digest {
    /// `None`: malformed, or of an algorithm that is not ours.
    pub fn parse(text: &str) -> Option<Self> {
        let (algorithm, length) = match text.split_once(':')?.0 {
            "sha256" => (Algorithm::Sha256, 64),
            "sha384" => (Algorithm::Sha384, 96),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return None,
        };
        let digits = &text["sha256:".len()..];
        let good = digits.len() == length
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self {
            text: text.to_owned(),
            algorithm,
        })
    }

    pub fn of(content: &[u8]) -> Self {
        Self {
            text: format!("sha256:{}", hex(&sha2::Sha256::digest(content))),
            algorithm: Algorithm::Sha256,
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Folder and file name in an OCI layout's `blobs`.
    pub fn parts(&self) -> (&str, &str) {
        self.text.split_once(':').unwrap_or_default()
    }

    pub fn matches(&self, content: &[u8]) -> bool {
        let mut check = self.check();
        check.add(content);
        check.holds()
    }

    /// For content that comes in pieces.
    pub fn check(&self) -> Check {
        Check {
            want: self.text.clone(),
            hash: match self.algorithm {
                Algorithm::Sha256 => Hash::Sha256(sha2::Sha256::new()),
                Algorithm::Sha384 => Hash::Sha384(Box::new(sha2::Sha384::new())),
                Algorithm::Sha512 => Hash::Sha512(Box::new(sha2::Sha512::new())),
            },
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            let text = excerpt(&text, 80);
            de::Error::custom(format!("{text:?} is not a sha256, sha384 or sha512 digest"))
        })
    }
}

/// A digest being computed of content, to be compared.
pub struct Check {
    want: String,
    hash: Hash,
}

enum Hash {
    Sha256(sha2::Sha256),
    Sha384(Box<sha2::Sha384>),
    Sha512(Box<sha2::Sha512>),
}

impl Check {
    pub fn add(&mut self, content: &[u8]) {
        match &mut self.hash {
            Hash::Sha256(hash) => hash.update(content),
            Hash::Sha384(hash) => hash.update(content),
            Hash::Sha512(hash) => hash.update(content),
        }
    }

    /// Whether what was added is all of the content.
    pub fn holds(self) -> bool {
        let found = match self.hash {
            Hash::Sha256(hash) => hex(&hash.finalize()),
            Hash::Sha384(hash) => hex(&hash.finalize()),
            Hash::Sha512(hash) => hex(&hash.finalize()),
        };
        self.want
            .split_once(':')
            .is_some_and(|(_, want)| want == found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_of_known_algorithms() {
        let a = |length: usize| "a".repeat(length);
        for (text, want) in [
            (format!("sha256:{}", a(64)), true),
            (format!("sha384:{}", a(96)), true),
            (format!("sha512:{}", a(128)), true),
            (format!("sha256:{}", a(63)), false),
            (format!("sha256:{}", "A".repeat(64)), false),
            (format!("sha256:{}", "é".repeat(32)), false),
            (format!("sha256:../../{}", a(58)), false),
            (format!("md5:{}", a(32)), false),
            ("sha256".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(Digest::parse(&text).is_some(), want, "{text}");
        }
    }

    #[test]
    fn content_matches_its_digest_alone() {
        for digest in [
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ] {
            let digest = Digest::parse(digest).unwrap();
            assert!(digest.matches(b"abc"));
            assert!(!digest.matches(b"abcd"));
        }
        assert!(Digest::of(b"abc").matches(b"abc"));
    }
}
