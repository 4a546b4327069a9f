//! Values of Kubernetes' libraries.

use std::net::IpAddr;

use super::Timestamp;
use crate::cel::{
    library::{
        authorizer::{Authorizer, Decision, Subject},
        format::Format,
        quantity::Quantity,
        semver::Version,
    },
    types::LibraryType,
};

/// Something that only functions of its library can look into.
#[derive(Debug)]
pub enum LibraryValue<'a> {
    Url(Url),
    Ip(Ip),
    Cidr(Cidr),
    Quantity(Quantity),
    Semver(Version),
    Format(&'static Format),
    Authorizer(&'a dyn Authorizer, Subject),
    PathCheck(&'a dyn Authorizer, Subject, String),
    GroupCheck(&'a dyn Authorizer, Subject, String),
    ResourceCheck(&'a dyn Authorizer, ResourceCheck),
    Decision(Decision),
}

/// A parsed URL: its parts as Go's net/url gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub(crate) text: String,
    pub(crate) scheme: String,
    pub(crate) host: String,
    pub(crate) escaped_path: String,
    pub(crate) query: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip(pub(crate) IpAddr);

/// An address and a prefix length; bits behind the prefix are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) bits: u8,
}

/// What an authorization check of a resource asks for.
#[derive(Clone, Debug, Default)]
pub struct ResourceCheck {
    pub subject: Subject,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

impl LibraryValue<'_> {
    pub fn library_type(&self) -> LibraryType {
        match self {
            Self::Url(_) => LibraryType::Url,
            Self::Ip(_) => LibraryType::Ip,
            Self::Cidr(_) => LibraryType::Cidr,
            Self::Quantity(_) => LibraryType::Quantity,
            Self::Semver(_) => LibraryType::Semver,
            Self::Format(_) => LibraryType::Format,
            Self::Authorizer(..) => LibraryType::Authorizer,
            Self::PathCheck(..) => LibraryType::PathCheck,
            Self::GroupCheck(..) => LibraryType::GroupCheck,
            Self::ResourceCheck(..) => LibraryType::ResourceCheck,
            Self::Decision(_) => LibraryType::Decision,
        }
    }

    /// `None` if the two cannot be compared.
    pub(crate) fn equal(&self, other: &Self) -> Option<bool> {
        Some(match (self, other) {
            (Self::Url(one), Self::Url(two)) => one.text == two.text,
            (Self::Ip(one), Self::Ip(two)) => one == two,
            (Self::Cidr(one), Self::Cidr(two)) => one == two,
            (Self::Quantity(one), Self::Quantity(two)) => one == two,
            (Self::Semver(one), Self::Semver(two)) => one.compare(two).is_eq(),
            (Self::Format(one), Self::Format(two)) => one.name == two.name,
            _ => return None,
        })
    }

    /// As in [`super::Value::size`].
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Ip(ip) => match ip.0 {
                IpAddr::V4(_) => 4,
                IpAddr::V6(_) => 16,
            },
            Self::Cidr(cidr) => u64::from(cidr.bits).div_ceil(8),
            _ => 1,
        }
    }
}

// A timestamp is as small as the other values: evaluation moves them about.
const _: () = assert!(size_of::<Timestamp>() <= 16 && size_of::<super::Value<'_>>() <= 32);
