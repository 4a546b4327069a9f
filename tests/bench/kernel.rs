//! nf_tables as the kernel has it, asked for without the code under test; for the network namespace that the
//! calling thread is in.

use std::{
    collections::{HashSet, VecDeque},
    fs,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        setsockopt, socket, sockopt::RcvBufForce,
    },
};

use super::lab::Host;

const ELEMENTS: u16 = 10 << 8 | 12;
const GET_ELEMENTS: u16 = 10 << 8 | 13;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// A request for all.
const REQUEST_DUMP: u16 = 0x301;
/// The attributes of a list of elements.
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const NAMES: [(&str, u8); 3] = [("inet", 1), ("ip", 2), ("ip6", 10)];
/// The multicast group of nf_tables, as a mask.
const CHANGES: u32 = 1 << 6;
const BUFFER: usize = 64 << 20;

/// A table, by its family's number.
#[derive(Clone, Debug)]
pub struct Table {
    family: u8,
    pub family_name: String,
    pub name: String,
}

/// The table on the host whose name begins so.
pub fn table(host: &Host, begins: &str) -> Option<Table> {
    let listed = host.sh("nft list tables");
    listed.lines().find_map(|line| {
        let (family_name, name) = line.strip_prefix("table ")?.split_once(' ')?;
        let (_, family) = NAMES.iter().find(|(name, _)| *name == family_name)?;
        name.starts_with(begins).then(|| Table {
            family: *family,
            family_name: family_name.into(),
            name: name.into(),
        })
    })
}

/// How many elements a set or map has; 0 while it is not there.
pub fn count(table: &Table, set: &str) -> usize {
    let socket = open(0);
    send(socket.as_raw_fd(), &request(table, set), MsgFlags::empty()).unwrap();
    let mut buffer = vec![0; 1 << 17];
    let mut found = 0;
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                DONE | ERROR => return found,
                ELEMENTS => found += elements(body),
                _ => {}
            }
        }
    }
}

/// Sockets elsewhere on this machine that listen to nf_tables: the kernel asks whether there are any, wherever.
pub fn listeners(host: &Host) -> usize {
    const NETFILTER: &str = "12";
    let own = fs::read_link(format!("/proc/{}/ns/net", host.pid())).unwrap();
    let mut seen = HashSet::from([own]);
    let mut found = 0;
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(space) = fs::read_link(process.path().join("ns/net")) else {
            continue;
        };
        if !seen.insert(space) {
            continue;
        }
        let sockets = fs::read_to_string(process.path().join("net/netlink")).unwrap_or_default();
        let listening = sockets.lines().filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let is_netfilter = fields.next() == Some(NETFILTER);
            let groups = fields
                .nth(1)
                .and_then(|text| u32::from_str_radix(text, 16).ok());
            is_netfilter && groups.is_some_and(|groups| groups & CHANGES != 0)
        });
        found += listening.count();
    }
    found
}

/// What is changed from now on.
pub struct Watch {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// Messages that were received and not asked for yet.
    waiting: VecDeque<Vec<u8>>,
}

impl Watch {
    pub fn open() -> Self {
        Self {
            socket: open(CHANGES),
            buffer: vec![0; 1 << 17],
            waiting: VecDeque::new(),
        }
    }

    /// Waits for an element in which these bytes are. The kernel tells of it once it holds.
    pub fn element_with(&mut self, bytes: &[u8]) {
        loop {
            while let Some(body) = self.waiting.pop_front() {
                if body.windows(bytes.len()).any(|window| window == bytes) {
                    return;
                }
            }
            let fd = self.socket.as_raw_fd();
            match recv(fd, &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => {
                    let all = messages(&self.buffer[..length]);
                    let all = all.filter(|(kind, _)| *kind == ELEMENTS);
                    self.waiting.extend(all.map(|(_, body)| body.to_vec()));
                }
                Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn open(groups: u32) -> OwnedFd {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    );
    let socket = socket.unwrap();
    setsockopt(&socket, RcvBufForce, &BUFFER).unwrap();
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups)).unwrap();
    socket
}

fn request(table: &Table, set: &str) -> Vec<u8> {
    let mut body = vec![table.family, 0, 0, 0];
    for (kind, text) in [(LIST_TABLE, &*table.name), (LIST_SET, set)] {
        let length = u16::try_from(4 + text.len() + 1).unwrap();
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(text.bytes());
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(16 + body.len()).unwrap();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(GET_ELEMENTS.to_ne_bytes());
    message.extend(REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port
    message.extend(body);
    message
}

/// Kinds and bodies of the messages in what was received.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let (kind, body) = (u16_at(rest, 4)?, rest.get(16..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The elements in a message.
fn elements(body: &[u8]) -> usize {
    let lists = attributes(body.get(4..).unwrap_or_default());
    lists
        .filter(|(kind, _)| *kind == LIST_ELEMENTS)
        .map(|(_, list)| attributes(list).count())
        .sum()
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let (kind, value) = (u16_at(rest, 2)? & 0x3fff, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
