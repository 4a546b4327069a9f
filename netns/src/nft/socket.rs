//! Transactions: messages between a begin and an end, sent as one datagram.

use nix::sys::socket::SockProtocol;

use super::{SUBSYSTEM, batch::Batch, types::Table};
use crate::{
    Error,
    listeners::Listeners,
    socket::Netlink,
    wire::{self, Message},
};

const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// Attribute of a begin: the generation that the transaction must find.
const GENERATION_FOUND: u16 = 1;
const GET_TABLE: u16 = 1;
const TABLE_HANDLE: u16 = 4;
const GET_GENERATION: u16 = 16;
const GENERATION: u16 = 1;
/// With so many elements a transaction is not listened to.
const LARGE: usize = 1000;
/// How often the generation is asked for until it is one that stays.
const TRIES: usize = 3;

/// A netfilter socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    netlink: Netlink,
    /// Those in its namespace; without them everything is listened to.
    listeners: Option<std::sync::Arc<Listeners>>,
}

/// The kernel lets go of a netfilter socket only when nobody can see any more what it replaced, which takes
/// some ten milliseconds.
impl Drop for Socket {
    fn drop(&mut self) {
        self.netlink.close_elsewhere();
    }
}

impl Socket {
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            netlink: Netlink::open(SockProtocol::NetlinkNetFilter)?,
            listeners: Listeners::here(),
        })
    }

    /// The netlink port of this socket: the kernel names it in what it tells others of a change, see
    /// [`crate::monitor`].
    pub fn port(&self) -> Result<u32, Error> {
        self.netlink.port()
    }

    /// A number that no other table has or will have; `None` if there is no such table.
    pub fn table_handle(&mut self, table: &Table) -> Result<Option<u64>, Error> {
        let what = format!("look up the table {table}");
        let fixed = [table.family.number(), 0, 0, 0];
        let mut message = Message::new(SUBSYSTEM << 8 | GET_TABLE, 0, &fixed, what.clone());
        message.body.str(1, &table.name);
        let mut handle = None;
        let found = self.netlink.query(&message, |body| {
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
    pub fn commit(&mut self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        match self.listeners.clone() {
            None => self.send(&batch, None),
            Some(listeners) if batch.elements() < LARGE => {
                let _writing = listeners.write();
                self.send(&batch, None)
            }
            Some(listeners) => {
                let _writing = listeners.write_alone();
                self.commit_unheard(&batch, &listeners)
            }
        }
    }

    /// Before anybody leaves, all of others' transactions have been told of; ours fails if another one
    /// comes before it, and one that comes after it has the number after the next.
    fn commit_unheard(&mut self, batch: &Batch, listeners: &Listeners) -> Result<(), Error> {
        let before = match listeners.take_disturbed() {
            true => None,
            false => self.settled_generation(),
        };
        let Some(before) = before else {
            return self.send(batch, None);
        };
        let absence = listeners.leave();
        let sent = self.send(batch, Some(before));
        let expected = match sent {
            Ok(()) => before.checked_add(1).unwrap_or(1), // there is no generation 0
            Err(_) => before,
        };
        absence.end(|| self.generation().is_ok_and(|now| now == expected));
        match sent {
            Err(error) if error.errno() == Some(libc::ERESTART) => self.send(batch, None),
            sent => sent,
        }
    }

    /// The generation, once what others are told of it is on its way; `None` if it changes all the time.
    fn settled_generation(&mut self) -> Option<u32> {
        (0..TRIES).find_map(|_| {
            let generation = self.generation().ok()?;
            // It waits for a transaction that is being carried out, whose generation can be seen before.
            let settled = self.send(&Batch::new(), Some(generation));
            settled.is_ok().then_some(generation)
        })
    }

    /// How many transactions the namespace has seen, of whomever.
    fn generation(&mut self) -> Result<u32, Error> {
        let what = "look up the generation";
        let message = Message::new(SUBSYSTEM << 8 | GET_GENERATION, 0, &[0; 4], what);
        let mut found = None;
        self.netlink.query(&message, |body| {
            let attrs = body.get(4..).unwrap_or_default();
            found = wire::attribute(attrs, GENERATION)
                .and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
        })?;
        found.ok_or_else(|| Error::Malformed { what: what.into() })
    }

    /// `generation`: the one that the transaction must find, or else it fails with `ERESTART`.
    fn send(&mut self, batch: &Batch, generation: Option<u32>) -> Result<(), Error> {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        let edge = |kind| Message::new(kind, 0, &[0, 0, high, low], "commit the transaction");
        let (mut begin, end) = (edge(BEGIN), edge(END));
        if let Some(generation) = generation {
            begin.body.be32(GENERATION_FOUND, generation);
        }
        let first = self.netlink.next_sequence(batch.messages.len() + 2);
        let mut bytes = Vec::new();
        let mut what = vec![begin.what.as_str()];
        begin.append_to(&mut bytes, first);
        let mut last = None;
        for (message, sequence) in batch.messages.iter().zip(first.wrapping_add(1)..) {
            last = Some(bytes.len());
            message.append_to(&mut bytes, sequence);
            what.push(&message.what);
        }
        // The last message before the end is the one that answers.
        if let Some(at) = last {
            wire::ask_for_answer(&mut bytes, at);
        }
        let end_sequence = first.wrapping_add(batch.messages.len() as u32 + 1);
        end.append_to(&mut bytes, end_sequence);
        match last {
            Some(_) => self.netlink.send_numbered(&bytes, first, &what),
            None => self.netlink.send_unanswered(&bytes, first, &what),
        }
    }
}
