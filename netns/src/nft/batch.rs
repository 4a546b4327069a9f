//! What a transaction changes, message by message.

use super::{
    SUBSYSTEM,
    rule::Rule,
    types::{BaseChain, Set, SetKind, Table, Type, Verdict},
};
use crate::wire::{Attrs, Message};

const NEW_TABLE: u16 = 0;
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
    pub(super) messages: Vec<Message>,
    sets: u32,
    elements: usize,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many elements are added or deleted by name.
    pub(super) fn elements(&self) -> usize {
        self.elements
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
        self.change_elements(NEW_ELEMENT, CREATE, "add", table, set, elements)
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
        self.change_elements(DELETE_ELEMENT, 0, "delete", table, set, elements)
    }

    fn change_elements(
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
            self.elements += count;
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
