//! What changes in a network namespace, told by the kernel: links, addresses, routes, neighbours,
//! forwarding, and nf_tables.
//!
//! A [`Monitor`] is awaited: it blocks no thread, and nobody is woken as long as nothing happens.
//! [`Monitor::changes`] folds a burst: of a link that changed ten times only what it is now. The kernel
//! says nothing of what is lost with something else (the routes of a link that goes), so a change is a
//! reason to look, not the whole truth.
//!
//! Changes of nf_tables made through the socket that is named to [`Monitor::open`] are left out, and large ones by
//! any socket of this process (`listeners.rs`).
#![allow(unsafe_code)] // a socket option that nix does not know, and sockets for tokio

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
        setsockopt, socket, sockopt,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    Error,
    listeners::{Hearing, Listener, Listeners},
    route::{self, Link, Prefix},
    wire,
};

/// What a burst of changes may take; of more than this only [`Changes::overrun`] remains.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How long after the first change of a burst the rest of it is waited for.
const BURST: Duration = Duration::from_millis(20);
/// The same where only links and what they carry have changed: each pod that comes or goes does that.
const LINKS_BURST: Duration = Duration::from_millis(250);
const RECEIVE_CHUNK: usize = 1 << 16;

const LINK: u32 = 1;
const IPV4_ADDRESS: u32 = 5;
const NEIGHBOUR: u32 = 3;
const IPV4_ROUTE: u32 = 7;
const IPV4_SETTINGS: u32 = 24;
const IPV6_ADDRESS: u32 = 9;
const IPV6_ROUTE: u32 = 11;
const IPV6_SETTINGS: u32 = 25;
const NF_TABLES: u32 = 7;

const NEW_SETTINGS: u16 = 80;
const SETTINGS_LINK: u16 = 1;
const SETTINGS_FORWARDING: u16 = 2;
/// The link of settings that are for all links.
const ALL_LINKS: u32 = u32::MAX;

const NF_TABLES_SUBSYSTEM: u16 = 10;
/// The messages that name a table: those before the new generation's.
const NEW_GENERATION: u16 = 15;
const TABLE_NAME: u16 = 1;

/// A table as nf_tables names it: the family's number (`NFPROTO_*`) and the name.
pub type TableKey = (u8, String);

/// What has changed since the last look. Of each thing the newest state counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// By name; `None` for a link that is gone. One that was renamed is here by both names.
    pub links: BTreeMap<String, Option<Link>>,
    /// How bridges treat ports whose settings have changed, by the links' names.
    pub ports: BTreeMap<String, route::Port>,
    /// Addresses that are gone, with the links they were on.
    pub lost_addresses: Vec<(u32, Prefix)>,
    /// Links that a route is gone from.
    pub lost_routes: BTreeSet<u32>,
    /// Addresses whose hardware address is no longer known, with the links they were on.
    pub lost_neighbours: BTreeSet<(u32, IpAddr)>,
    /// Whether a link forwards, by family; [`Changes::forwarding_of_all`] for all of them.
    forwarding: BTreeMap<(bool, u32), bool>,
    /// Tables that somebody else has made, changed or deleted, in whole or in part.
    pub tables: HashSet<TableKey>,
    /// There was more than could be kept: anything may have changed.
    pub overrun: bool,
}

impl Changes {
    /// Of who has not listened for a while.
    pub fn unknown() -> Self {
        Self {
            overrun: true,
            ..Self::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What `net/ipv4/ip_forward` says now, if it changed.
    pub fn forwarding_of_all(&self) -> Option<bool> {
        self.forwarding.get(&(false, ALL_LINKS)).copied()
    }

    /// The same for one link.
    pub fn forwarding_of(&self, link: u32) -> Option<bool> {
        self.forwarding.get(&(false, link)).copied()
    }

    /// What `net/ipv6/conf/all/forwarding` says now, if it changed.
    pub fn ipv6_forwarding_of_all(&self) -> Option<bool> {
        self.forwarding.get(&(true, ALL_LINKS)).copied()
    }

    /// The same for one link.
    pub fn ipv6_forwarding_of(&self, link: u32) -> Option<bool> {
        self.forwarding.get(&(true, link)).copied()
    }
}

/// What is told beside links, nf_tables, and what IPv4 there is on links: each costs notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub ipv6: bool,
    /// Hardware addresses that are no longer known.
    pub neighbours: bool,
}

/// Subscriptions in the namespace of the thread that opened them.
#[derive(Debug)]
pub struct Monitor {
    /// For links and what they carry, and for nf_tables.
    sockets: [AsyncFd<OwnedFd>; 2],
    /// The second of them.
    listener: Arc<Listener>,
    own_port: u32,
    /// Links by index, to notice a new name.
    names: BTreeMap<u32, String>,
}

impl Monitor {
    /// `own`: the port of the nf_tables socket whose changes are the caller's own, see
    /// [`crate::nft::Socket::port`]. Within a tokio runtime.
    pub fn open(own: u32, subject: Subject) -> Result<Self, Error> {
        let groups = |groups: &[u32]| groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        let mut route = groups(&[LINK, IPV4_ADDRESS, IPV4_ROUTE, IPV4_SETTINGS]);
        if subject.ipv6 {
            route |= groups(&[IPV6_ADDRESS, IPV6_ROUTE, IPV6_SETTINGS]);
        }
        if subject.neighbours {
            route |= groups(&[NEIGHBOUR]);
        }
        let sockets = [
            subscribe(SockProtocol::NetlinkRoute, route)?,
            subscribe(SockProtocol::NetlinkNetFilter, groups(&[NF_TABLES]))?,
        ];
        // Only spares the waking up: what comes in all the same is passed over.
        let _ = leave_out(&sockets[1], own);
        if subject.neighbours {
            let _ = leave_out_known_neighbours(&sockets[0]);
        }
        let listener = Listeners::here()
            .and_then(|listeners| listeners.add(sockets[1].get_ref().as_fd()).ok())
            .unwrap_or_else(Listener::alone);
        let mut names = BTreeMap::new();
        for link in route::Socket::open()?.links()? {
            names.insert(link.index, link.name);
        }
        Ok(Self {
            sockets,
            listener,
            own_port: own,
            names,
        })
    }

    /// What has changed, once something has. Nothing is lost when it is not waited for to the end.
    pub async fn changes(&mut self) -> Result<Changes, Error> {
        loop {
            match self.listener.take() {
                Hearing::All => {}
                Hearing::Missed => return Ok(Changes::unknown()),
                Hearing::Ended => return Err(lost(io::ErrorKind::NotConnected.into())),
            }
            let [links, tables] = &self.sockets;
            tokio::select! {
                () = self.listener.told() => continue,
                ready = tables.readable() => ready.map(drop),
                ready = links.readable() => match ready.map(drop) {
                    Err(error) => Err(error),
                    Ok(()) => tokio::select! {
                        ready = tables.readable() => ready.map(drop),
                        () = tokio::time::sleep(LINKS_BURST - BURST) => Ok(()),
                    },
                },
            }
            .map_err(lost)?;
            tokio::time::sleep(BURST).await;
            let changes = self.take()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    /// All that has come in.
    fn take(&mut self) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        let mut buffer = vec![0; RECEIVE_CHUNK];
        for at in 0..self.sockets.len() {
            loop {
                let received = self.sockets[at].try_io(Interest::READABLE, |socket| {
                    let flags = MsgFlags::MSG_DONTWAIT;
                    Ok(recv(socket.as_raw_fd(), &mut buffer, flags)?)
                });
                match received.map_err(|error| (error.raw_os_error(), error)) {
                    Ok(length) => {
                        for message in wire::messages(&buffer[..length]) {
                            match at {
                                0 => self.take_route(&mut changes, message),
                                _ => self.take_table(&mut changes, message),
                            }
                        }
                    }
                    Err((_, error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err((Some(libc::EINTR), _)) => {}
                    Err((Some(libc::ENOBUFS), _)) => changes.overrun = true,
                    Err((_, error)) => return Err(lost(error)),
                }
            }
        }
        Ok(changes)
    }

    fn take_route(&mut self, changes: &mut Changes, message: wire::Received<'_>) {
        match message.kind {
            // A bridge tells of its ports in messages of the same kind, which say something else.
            libc::RTM_NEWLINK | libc::RTM_DELLINK
                if message.body.first() == Some(&(libc::AF_BRIDGE as u8)) =>
            {
                changes.ports.extend(route::parse_port(message.body));
            }
            libc::RTM_NEWLINK => {
                let Some(link) = route::parse_link(message.body) else {
                    return;
                };
                let name = link.name.clone();
                if let Some(before) = self.names.insert(link.index, name.clone())
                    && before != name
                {
                    changes.links.insert(before, None);
                }
                changes.links.insert(name, Some(link));
            }
            libc::RTM_DELLINK => {
                let Some(link) = route::parse_link(message.body) else {
                    return;
                };
                self.names.remove(&link.index);
                changes.links.insert(link.name, None);
            }
            libc::RTM_NEWADDR => {
                if let Some(address) = route::parse_address(message.body) {
                    changes.lost_addresses.retain(|lost| *lost != address);
                }
            }
            libc::RTM_DELADDR => changes
                .lost_addresses
                .extend(route::parse_address(message.body)),
            libc::RTM_DELROUTE => changes
                .lost_routes
                .extend(route::parse_route(message.body).and_then(|route| route.link)),
            libc::RTM_DELNEIGH => changes
                .lost_neighbours
                .extend(route::parse_neighbour(message.body)),
            NEW_SETTINGS => {
                let is_ipv6 = message.body.first() == Some(&(libc::AF_INET6 as u8));
                let attrs = message.body.get(4..).unwrap_or_default();
                let number = |kind| wire::u32_at(wire::attribute(attrs, kind)?, 0);
                if let (Some(link), Some(on)) = (number(SETTINGS_LINK), number(SETTINGS_FORWARDING))
                {
                    changes.forwarding.insert((is_ipv6, link), on != 0);
                }
            }
            _ => {}
        }
    }

    fn take_table(&self, changes: &mut Changes, message: wire::Received<'_>) {
        let (subsystem, kind) = (message.kind >> 8, message.kind & 0xff);
        if subsystem != NF_TABLES_SUBSYSTEM
            || kind >= NEW_GENERATION && !(18..=24).contains(&kind)
            || message.port == self.own_port
        {
            return;
        }
        let family = message.body.first().copied();
        let attrs = message.body.get(4..).unwrap_or_default();
        let name = wire::attribute(attrs, TABLE_NAME).map(wire::text);
        changes.tables.extend(family.zip(name));
    }
}

fn lost(source: io::Error) -> Error {
    Error::Io {
        action: "read what has changed in the network namespace",
        source,
    }
}

fn subscribe(protocol: SockProtocol, groups: u32) -> Result<AsyncFd<OwnedFd>, Error> {
    let failed = |errno: Errno| Error::Io {
        action: "subscribe to changes of the network namespace",
        source: errno.into(),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).map_err(failed)?;
    let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(failed)?;
    // SAFETY: an `OwnedFd` is open and always the same descriptor for as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(|error| lost(error.into()))
}

/// Has the kernel drop datagrams that the socket with this port has brought about.
fn leave_out(fd: &AsyncFd<OwnedFd>, port: u32) -> io::Result<()> {
    // The sender's port lies in the header of the first message; a transaction has one sender.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    filter(
        fd,
        &mut [
            code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 12),
            code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, port),
            code(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            code(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ],
    )
}

/// Has the kernel drop what it tells of hardware addresses as long as they are known, which it does whenever
/// somebody is asked for one, and all about bridges' entries.
fn leave_out_known_neighbours(fd: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let kind = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    let half = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    let byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let (new, gone) = (kind(libc::RTM_NEWNEIGH), kind(libc::RTM_DELNEIGH));
    filter(
        fd,
        &mut [
            // A notice is one message, whose kind is in its header, and the family comes after that.
            code(half, 0, 0, 4),
            code(equal, 3, 0, new),
            code(equal, 0, 3, gone),
            code(byte, 0, 0, wire::HEADER as u32),
            code(equal, 0, 1, libc::AF_BRIDGE as u32),
            code(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            code(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ],
    )
}

fn code(code: u32, yes: u8, no: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: yes,
        jf: no,
        k,
    }
}

fn filter(fd: &AsyncFd<OwnedFd>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the descriptor is open; the kernel copies the program, which lives until then.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
