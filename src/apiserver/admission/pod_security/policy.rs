//! Which policy a namespace's labels ask for. Pure.

use std::fmt;

use serde_json::Value;

use crate::apiserver::registry::{Causes, kinds::value::members};

const PREFIX: &str = "pod-security.kubernetes.io/";

/// From the loosest to the strictest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

/// Of the standard, which grows with each release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    Latest,
    /// `v1.N`.
    Minor(u32),
}

/// `baseline:v1.37`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

/// What is done about a pod that does not meet the standard: refused, or told about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
}

impl Version {
    /// `latest`, or `v1.N` without leading zeros.
    fn parse(text: &str) -> Option<Self> {
        if text == "latest" {
            return Some(Self::Latest);
        }
        let digits = text.strip_prefix("v1.")?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'));
        plain
            .then(|| digits.parse().ok().map(Self::Minor))
            .flatten()
    }
}

impl Policy {
    /// The policy of a namespace, always one: a level that is none counts as the strictest where
    /// pods are refused, and as the loosest where they are only told about. `causes` say what is
    /// wrong with the labels.
    pub fn of(namespace: &Value, causes: &mut Causes) -> Self {
        let mut policy = Self::default();
        let Some(labels) = members(namespace, "metadata.labels") else {
            return policy;
        };
        let label = |name: &str| labels.get(&format!("{PREFIX}{name}"))?.as_str();
        let mut invalid = |name: &str, value: &str, why: &str| {
            causes.invalid(format!("metadata.labels[{PREFIX}{name}]"), value, why);
        };
        for (name, standard, otherwise) in [
            ("enforce", &mut policy.enforce, Level::Restricted),
            ("audit", &mut policy.audit, Level::Privileged),
            ("warn", &mut policy.warn, Level::Privileged),
        ] {
            if let Some(text) = label(name) {
                standard.level = Level::parse(text).unwrap_or_else(|| {
                    invalid(
                        name,
                        text,
                        "must be one of privileged, baseline, restricted",
                    );
                    otherwise
                });
            }
            let name = format!("{name}-version");
            if let Some(text) = label(&name) {
                standard.version = Version::parse(text).unwrap_or_else(|| {
                    invalid(&name, text, "must be \"latest\" or \"v1.x\"");
                    Version::Latest
                });
            }
        }
        policy
    }
}

impl fmt::Display for Level {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => out.write_str("latest"),
            Self::Minor(minor) => write!(out, "v1.{minor}"),
        }
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.level, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions() {
        for (text, want) in [
            ("latest", Some(Version::Latest)),
            ("v1.0", Some(Version::Minor(0))),
            ("v1.37", Some(Version::Minor(37))),
            ("v1.900", Some(Version::Minor(900))),
            ("v1.07", None),
            ("v1.", None),
            ("v1.-1", None),
            ("v2.0", None),
            ("1.2", None),
            ("v1.99999999999", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text), want, "{text}");
        }
    }

    #[test]
    fn labels_become_a_policy() {
        for (labels, want, wrong) in [
            (
                json!({}),
                ("privileged:latest", "privileged:latest"),
                vec![],
            ),
            (
                json!({"enforce": "baseline", "enforce-version": "v1.20", "warn": "restricted"}),
                ("baseline:v1.20", "restricted:latest"),
                vec![],
            ),
            (
                json!({"enforce": "Baseline", "warn": "high", "warn-version": "1"}),
                ("restricted:latest", "privileged:latest"),
                vec![
                    "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"Baseline\": must be one of privileged, baseline, restricted",
                    "metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"high\": must be one of privileged, baseline, restricted",
                    "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"1\": must be \"latest\" or \"v1.x\"",
                ],
            ),
        ] {
            let labels: serde_json::Map<String, Value> = labels
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| (format!("{PREFIX}{name}"), value.clone()))
                .collect();
            let mut causes = Causes::default();
            let policy = Policy::of(&json!({"metadata": {"labels": labels}}), &mut causes);
            let found = (policy.enforce.to_string(), policy.warn.to_string());
            assert_eq!((&*found.0, &*found.1), want);
            let causes: Vec<String> = causes
                .0
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect();
            assert_eq!(causes, wrong);
        }
    }
}
