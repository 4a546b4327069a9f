//! Versions of the CNI specification, and what differs between them. Pure.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A version that this program speaks. Those before it have results of another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

/// A version that is not spoken here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CNI version {0:?} is none of {all}", all = Version::names(&Version::ALL))]
pub struct Unknown(pub String);

impl Version {
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    pub fn names(versions: &[Self]) -> String {
        let names: Vec<&str> = versions.iter().map(|version| version.name()).collect();
        names.join(", ")
    }

    /// Whether DEL is given what ADD has answered.
    pub fn del_has_result(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether plugins can be told which attachments there are.
    pub fn has_gc(self) -> bool {
        self >= Self::V1_1_0
    }

    /// Whether plugins can be asked if they are able to take pods.
    pub fn has_status(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl FromStr for Version {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let mut all = Self::ALL.into_iter();
        all.find(|version| version.name() == text)
            .ok_or_else(|| Unknown(text.to_owned()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.name().to_owned()
    }
}

impl TryFrom<String> for Version {
    type Error = Unknown;

    fn try_from(text: String) -> Result<Self, Unknown> {
        text.parse()
    }
}
