//! The words of nf_tables: families, hooks, chains, sets, the types of their keys, verdicts.

use crate::{monitor::TableKey, wire::Attrs};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Inet,
    Ip,
    Ip6,
    Bridge,
}

impl Family {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => libc::AF_INET as u8,
            Self::Bridge => libc::AF_BRIDGE as u8,
            Self::Ip6 => libc::AF_INET6 as u8,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
        }
    }
}

/// A table by family and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    pub family: Family,
    pub name: String,
}

impl Table {
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self {
            family,
            name: name.into(),
        }
    }

    /// As [`crate::monitor`] names it.
    pub fn key(&self) -> TableKey {
        (self.family.number(), self.name.clone())
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.family.name(), self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
    Route,
}

impl ChainKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// Where in the packet's way a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Accept,
    Drop,
}

impl Policy {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
        }
    }
}

/// A chain that the kernel itself calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    pub kind: ChainKind,
    pub hook: Hook,
    /// Lower goes first; -100 is where destinations are rewritten, 100 where sources are.
    pub priority: i32,
    pub policy: Policy,
}

/// Type of one field of a key or value, with the number `nft` knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Ipv4,
    Ipv6,
    /// Two hardware addresses, the receiver's first, what a frame carries, and the first byte of that. `nft`
    /// has no name for it and shows an IPv6 address.
    FrameHead,
    /// The same without the first byte of what the frame carries.
    FrameEnds,
    Protocol,
    Port,
    /// A link's name: sixteen bytes.
    Link,
    /// A number of 32 bits in host byte order.
    Mark,
    /// The same, which `nft` shows as two of 16 bits: a packet's priority is of this kind.
    Class,
}

impl Type {
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 | Self::FrameHead | Self::FrameEnds => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Class => 23,
            Self::Link => 41,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Mark | Self::Class => 4,
            Self::Ipv6 | Self::Link => 16,
            Self::Protocol => 1,
            Self::FrameHead => 15,
            Self::FrameEnds => 14,
            Self::Port => 2,
        }
    }

    /// Number and length of several fields in a row: six bits each, every field padded to four
    /// bytes, unless it is alone.
    pub(super) fn concat(fields: &[Self]) -> (u32, u32) {
        match fields {
            [one] => (one.number(), one.length()),
            _ => fields.iter().fold((0, 0), |(number, length), field| {
                (
                    number << 6 | field.number(),
                    length + field.length().next_multiple_of(4),
                )
            }),
        }
    }
}

/// What a set holds beside its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind<'a> {
    Set,
    /// Keys to values of these fields.
    Map(&'a [Type]),
    /// Keys to verdicts.
    VerdictMap,
}

/// A named set to be made.
#[derive(Clone, Debug)]
pub struct Set<'a> {
    pub name: &'a str,
    pub key: &'a [Type],
    pub kind: SetKind<'a>,
    /// Rules may add elements, which go after a time; at most this many.
    pub dynamic: Option<u32>,
    /// It never holds more than this: the kernel then takes a table of fixed size, which is found through
    /// faster than one that grows.
    pub most: Option<u32>,
    /// It holds ranges: each is its first key, and the one after its last with [`super::Value::RangeEnd`].
    pub ranges: bool,
}

impl<'a> Set<'a> {
    pub fn new(name: &'a str, key: &'a [Type], kind: SetKind<'a>) -> Self {
        Self {
            name,
            key,
            kind,
            dynamic: None,
            most: None,
            ranges: false,
        }
    }

    /// Of ranges of keys, which must not overlap.
    pub fn of_ranges(mut self) -> Self {
        self.ranges = true;
        self
    }

    /// Elements beyond so many fail their batch.
    pub fn at_most(mut self, elements: u32) -> Self {
        self.most = Some(elements);
        self
    }

    /// Lets rules add elements that go after a time, `limit` of them at most.
    pub fn dynamic(mut self, limit: u32) -> Self {
        self.dynamic = Some(limit);
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    /// Writes the attribute `NFTA_DATA_VERDICT`.
    pub(super) fn encode(&self, data: &mut Attrs) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5i32, None),
        };
        data.nest(2, |verdict| {
            verdict.be32(1, code as u32);
            if let Some(chain) = chain {
                verdict.str(2, chain);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concatenations_have_the_numbers_nft_prints() {
        for (fields, want) in [
            (&[Type::Protocol][..], (12, 1)), // alone: no padding
            (&[Type::Protocol, Type::Port], (12 << 6 | 13, 8)),
            (
                &[Type::Ipv4, Type::Protocol, Type::Port],
                (7 << 12 | 12 << 6 | 13, 12),
            ),
            (&[Type::Ipv6, Type::Port], (8 << 6 | 13, 20)),
            (
                &[Type::Link, Type::FrameHead, Type::Ipv4],
                (41 << 12 | 8 << 6 | 7, 36),
            ),
        ] {
            assert_eq!(Type::concat(fields), want, "{fields:?}");
        }
    }
}
