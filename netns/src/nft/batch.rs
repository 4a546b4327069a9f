//! Transactions: messages between a begin and an end, sent as one datagram.

use nix::sys::socket::SockProtocol;

use super::{
    rule::Rule,
    types::{BaseChain, Set, SetKind, Table, Type, Verdict},
};
use crate::{
    Error,
    socket::Netlink,
    wire::{self, Attrs, Message},
};

const SUBSYSTEM: u16 = 10;
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const CREATE: i32 = libc::NLM_F_CREATE;
/// An attribute holds at most 64 KiB; a list of elements is split before that.
const LIST_BYTES: usize = 48 << 10;
const SET_INTERVAL: u32 = 4;
const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const ELEMENT_INTERVAL_END: u32 = 1;
const TABLE_HANDLE: u16 = 4;
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// What a map's element points to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    None,
    Data(Vec<u8>),
    Verdict(Verdict),
    /// This key is the first one after a range.
    RangeEnd,
}

/// One element: every field of key and data padded to four bytes, unless it is alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    pub key: Vec<u8>,
    pub value: Value,
}

/// One transaction under construction.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    messages: Vec<Message>,
    sets: u32,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Idempotent.
    pub fn add_table(&mut self, table: &Table) -> &mut Self {
        let what = format!("add the table {table}");
        self.message(NEW_TABLE, CREATE, table, what, |body| {
            body.str(1, &table.name);
        })
    }

    /// Fails if there is no such table; see [`Batch::remove_table`].
    pub fn delete_table(&mut self, table: &Table) -> &mut Self {
        let what = format!("delete the table {table}");
        self.message(DELETE_TABLE, 0, table, what, |body| {
            body.str(1, &table.name);
        })
    }

    /// Deletes the table with all it holds, whether it is there or not.
    pub fn remove_table(&mut self, table: &Table) -> &mut Self {
        self.add_table(table).delete_table(table)
    }

    /// Idempotent.
    pub fn add_chain(&mut self, table: &Table, chain: &str) -> &mut Self {
        let what = format!("add the chain {chain} to {table}");
        self.message(NEW_CHAIN, CREATE, table, what, |body| {
            body.str(1, &table.name).str(3, chain);
        })
    }

    pub fn add_base_chain(&mut self, table: &Table, chain: &str, base: BaseChain) -> &mut Self {
        let what = format!("add the base chain {chain} to {table}");
        self.message(NEW_CHAIN, CREATE, table, what, |body| {
            body.str(1, &table.name)
                .str(3, chain)
                .nest(4, |hook| {
                    hook.be32(1, base.hook.number())
                        .be32(2, base.priority as u32);
                })
                .be32(5, base.policy.number())
                .str(7, base.kind.name());
        })
    }

    pub fn delete_chain(&mut self, table: &Table, chain: &str) -> &mut Self {
        let what = format!("delete the chain {chain} of {table}");
        self.message(DELETE_CHAIN, 0, table, what, |body| {
            body.str(1, &table.name).str(3, chain);
        })
    }

    /// Deletes every rule of the chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) -> &mut Self {
        let what = format!("flush the chain {chain} of {table}");
        self.message(DELETE_RULE, 0, table, what, |body| {
            body.str(1, &table.name).str(2, chain);
        })
    }

    /// Appends the rule to the chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: Rule) -> &mut Self {
        let what = format!("add a rule to the chain {chain} of {table}");
        let flags = CREATE | libc::NLM_F_APPEND;
        self.message(NEW_RULE, flags, table, what, |body| {
            body.str(1, &table.name)
                .str(2, chain)
                .bytes(4 | libc::NLA_F_NESTED as u16, &rule.0.0);
        })
    }

    /// Idempotent, if the set that is there is the same.
    pub fn add_set(&mut self, table: &Table, set: &Set<'_>) -> &mut Self {
        self.sets += 1;
        let id = self.sets;
        let what = format!("add the set {} to {table}", set.name);
        let (key_type, key_length) = Type::concat(set.key);
        let mut flags = match set.kind {
            SetKind::Set => 0,
            SetKind::Map(_) | SetKind::VerdictMap => SET_MAP,
        };
        if set.dynamic.is_some() {
            flags |= SET_TIMEOUT | SET_EVAL;
        }
        if set.ranges {
            flags |= SET_INTERVAL;
        }
        self.message(NEW_SET, CREATE, table, what, |body| {
            body.str(1, &table.name)
                .str(2, set.name)
                .be32(3, flags)
                .be32(4, key_type)
                .be32(5, key_length)
                .be32(10, id);
            match set.kind {
                SetKind::Set => {}
                SetKind::Map(fields) => {
                    let (data_type, data_length) = Type::concat(fields);
                    body.be32(6, data_type).be32(7, data_length);
                }
                SetKind::VerdictMap => {
                    body.be32(6, VERDICT_TYPE);
                }
            }
            if let Some(limit) = set.dynamic.or(set.most) {
                body.nest(9, |description| {
                    description.be32(1, limit);
                });
            }
        })
    }

    /// An element that is there already with another value fails the batch: delete it first.
    pub fn add_elements(
        &mut self,
        table: &Table,
        set: &str,
        elements: impl IntoIterator<Item = Element>,
    ) -> &mut Self {
        self.elements(NEW_ELEMENT, CREATE, "add", table, set, elements)
    }

    /// Only the keys count. An element that is not there fails the batch.
    pub fn delete_elements(
        &mut self,
        table: &Table,
        set: &str,
        elements: impl IntoIterator<Item = Element>,
    ) -> &mut Self {
        let elements = elements.into_iter().map(|element| Element {
            value: Value::None,
            ..element
        });
        self.elements(DELETE_ELEMENT, 0, "delete", table, set, elements)
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: i32,
        verb: &str,
        table: &Table,
        set: &str,
        elements: impl IntoIterator<Item = Element>,
    ) -> &mut Self {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let mut list = Attrs::default();
            let mut count = 0;
            while list.0.len() < LIST_BYTES
                && let Some(element) = elements.next()
            {
                count += 1;
                encode(&mut list, &element);
            }
            let what = format!("{verb} {count} elements of the set {set} of {table}");
            self.message(kind, flags, table, what, |body| {
                body.str(1, &table.name)
                    .str(2, set)
                    .bytes(3 | libc::NLA_F_NESTED as u16, &list.0);
            });
        }
        self
    }

    fn message(
        &mut self,
        kind: u16,
        flags: i32,
        table: &Table,
        what: String,
        fill: impl FnOnce(&mut Attrs),
    ) -> &mut Self {
        let fixed = [table.family.number(), 0, 0, 0];
        let mut message = Message::new(SUBSYSTEM << 8 | kind, flags, &fixed, what);
        fill(&mut message.body);
        self.messages.push(message);
        self
    }
}

fn encode(list: &mut Attrs, element: &Element) {
    list.nest(1, |attrs| {
        attrs.nest(1, |key| {
            key.bytes(1, &element.key);
        });
        match &element.value {
            Value::None => {}
            Value::Data(data) => {
                attrs.nest(2, |value| {
                    value.bytes(1, data);
                });
            }
            Value::Verdict(verdict) => {
                attrs.nest(2, |value| verdict.encode(value));
            }
            Value::RangeEnd => {
                attrs.be32(3, ELEMENT_INTERVAL_END);
            }
        }
    });
}

/// A netfilter socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket(Netlink);

/// The kernel lets go of a netfilter socket only when nobody can see any more what it replaced, which takes
/// some ten milliseconds.
impl Drop for Socket {
    fn drop(&mut self) {
        self.0.close_elsewhere();
    }
}

impl Socket {
    pub fn open() -> Result<Self, Error> {
        Netlink::open(SockProtocol::NetlinkNetFilter).map(Self)
    }

    /// The netlink port of this socket: the kernel names it in what it tells others of a change, see
    /// [`crate::monitor`].
    pub fn port(&self) -> Result<u32, Error> {
        self.0.port()
    }

    /// A number that no other table has or will have; `None` if there is no such table.
    pub fn table_handle(&mut self, table: &Table) -> Result<Option<u64>, Error> {
        let what = format!("look up the table {table}");
        let fixed = [table.family.number(), 0, 0, 0];
        let mut message = Message::new(SUBSYSTEM << 8 | GET_TABLE, 0, &fixed, what.clone());
        message.body.str(1, &table.name);
        let mut handle = None;
        let found = self.0.query(&message, |body| {
            let attrs = body.get(4..).unwrap_or_default();
            handle = wire::attribute(attrs, TABLE_HANDLE)
                .and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
        });
        match found {
            Ok(()) => handle.map(Some).ok_or(Error::Malformed { what }),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Carries the transaction out: all of it or nothing.
    pub fn commit(&mut self, mut batch: Batch) -> Result<(), Error> {
        let Some(last) = batch.messages.last_mut() else {
            return Ok(());
        };
        last.flags |= libc::NLM_F_ACK as u16;
        let [high, low] = SUBSYSTEM.to_be_bytes();
        let edge = |kind| Message::new(kind, 0, &[0, 0, high, low], "commit the transaction");
        let (begin, end) = (edge(BEGIN), edge(END));

        let first = self.0.next_sequence(batch.messages.len() + 2);
        let mut bytes = Vec::new();
        let mut what = vec![begin.what.as_str()];
        begin.append_to(&mut bytes, first);
        for (message, sequence) in batch.messages.iter().zip(first.wrapping_add(1)..) {
            message.append_to(&mut bytes, sequence);
            what.push(&message.what);
        }
        let end_sequence = first.wrapping_add(batch.messages.len() as u32 + 1);
        end.append_to(&mut bytes, end_sequence);
        // The last message before the end is the one that answers.
        self.0.send_numbered(&bytes, first, &what)
    }
}
