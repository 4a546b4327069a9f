//! nf_tables transactions over netlink: what `nft -f` does, without the program.
//!
//! Owns the byte code of rules and sets. A [`Batch`] is one transaction: all of it takes effect,
//! or nothing does. `nft list ruleset` shows the result in its own language.

mod batch;
mod rule;
mod socket;
mod types;

pub use batch::{Batch, Element, Value};
pub use rule::{Reg, Reject, Rule, Tracked};
pub use socket::Socket;
pub use types::{BaseChain, ChainKind, Family, Hook, Policy, Set, SetKind, Table, Type, Verdict};

/// The number of nf_tables among what netfilter sockets are for.
const SUBSYSTEM: u16 = 10;
