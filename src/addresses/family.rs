//! IPv4 and IPv6 beside each other: what a cluster has once or twice, its primary family's first. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// As objects write it: in `ipFamilies` and in a slice's `addressType`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Bits of an address.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What is of one family.
pub trait OfFamily {
    fn family(&self) -> Family;
}

impl OfFamily for IpAddr {
    fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }
}

impl OfFamily for IpNet {
    fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }
}

impl OfFamily for Family {
    fn family(&self) -> Family {
        *self
    }
}

/// One or two of them, of different families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PerFamily<T> {
    primary: T,
    secondary: Option<T>,
}

/// Why there is no [`PerFamily`] of a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("must be one, or two of different families")]
    Count,
    #[error("both are {0}; the second must be of the other family")]
    Same(Family),
    #[error("{0:?} is not one")]
    Syntax(String),
}

impl<T: OfFamily> PerFamily<T> {
    pub fn one(primary: T) -> Self {
        Self {
            primary,
            secondary: None,
        }
    }

    pub fn of_list(list: impl IntoIterator<Item = T>) -> Result<Self, Invalid> {
        let mut list = list.into_iter();
        let primary = list.next().ok_or(Invalid::Count)?;
        let secondary = list.next();
        match (&secondary, list.next()) {
            (_, Some(_)) => Err(Invalid::Count),
            (Some(second), None) if second.family() == primary.family() => {
                Err(Invalid::Same(primary.family()))
            }
            _ => Ok(Self { primary, secondary }),
        }
    }

    pub fn primary(&self) -> &T {
        &self.primary
    }

    pub fn secondary(&self) -> Option<&T> {
        self.secondary.as_ref()
    }

    pub fn of(&self, family: Family) -> Option<&T> {
        self.iter().find(|one| one.family() == family)
    }

    /// The primary family's first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.primary].into_iter().chain(&self.secondary)
    }

    pub fn families(&self) -> impl Iterator<Item = Family> {
        self.iter().map(OfFamily::family)
    }

    /// `change` must keep the family.
    pub fn map<U>(&self, change: impl Fn(&T) -> U) -> PerFamily<U> {
        PerFamily {
            primary: change(&self.primary),
            secondary: self.secondary.as_ref().map(change),
        }
    }

    /// The same, where it may fail.
    pub fn try_map<U, E>(&self, change: impl Fn(&T) -> Result<U, E>) -> Result<PerFamily<U>, E> {
        Ok(PerFamily {
            primary: change(&self.primary)?,
            secondary: self.secondary.as_ref().map(change).transpose()?,
        })
    }
}

impl PerFamily<Family> {
    /// Both, IPv4 first.
    pub const DUAL: Self = Self {
        primary: Family::V4,
        secondary: Some(Family::V6),
    };
}

impl PerFamily<IpNet> {
    /// Whether the address is in one of the ranges.
    pub fn contains(&self, address: &IpAddr) -> bool {
        self.iter().any(|range| range.contains(address))
    }
}

impl<T: fmt::Display> Serialize for PerFamily<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de, T: OfFamily + FromStr> Deserialize<'de> for PerFamily<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Separated by a comma, as the original's `--cluster-cidr` is written.
impl<T: OfFamily + FromStr> FromStr for PerFamily<T> {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let one = |text: &str| text.parse().map_err(|_| Invalid::Syntax(text.to_owned()));
        let list: Result<Vec<T>, Invalid> = text.split(',').map(one).collect();
        Self::of_list(list?)
    }
}

impl<T: fmt::Display> fmt::Display for PerFamily<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.primary.fmt(out)?;
        match &self.secondary {
            Some(secondary) => write!(out, ",{secondary}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_two_of_different_families() {
        for (text, want) in [
            ("10.42.0.0/24", Ok("10.42.0.0/24")),
            ("fd42::/64,10.42.0.0/24", Ok("fd42::/64,10.42.0.0/24")),
            ("10.42.0.0/24,10.43.0.0/24", Err(Invalid::Same(Family::V4))),
            ("10.42.0.0/24,fd42::/64,fd43::/64", Err(Invalid::Count)),
            ("", Err(Invalid::Syntax(String::new()))),
            ("10.42.0.0/24,", Err(Invalid::Syntax(String::new()))),
            ("x", Err(Invalid::Syntax("x".into()))),
        ] {
            let found = text.parse::<PerFamily<IpNet>>();
            let found = found.map(|ranges| ranges.to_string());
            assert_eq!(found, want.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn which_is_of_a_family() {
        let both: PerFamily<IpNet> = "fd42::/64,10.42.0.0/24".parse().unwrap();
        assert_eq!(both.primary().to_string(), "fd42::/64");
        assert_eq!(both.of(Family::V4).unwrap().to_string(), "10.42.0.0/24");
        assert!(both.contains(&"10.42.0.9".parse().unwrap()));
        assert!(both.contains(&"fd42::9".parse().unwrap()));
        assert!(!both.contains(&"fd43::9".parse().unwrap()));
        let one = PerFamily::one("10.42.0.0/24".parse::<IpNet>().unwrap());
        assert_eq!(one.of(Family::V6), None);
        assert_eq!(one.secondary(), None);
    }
}
