//! Datagrams by the batch: one call of the kernel takes or sends many.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use tokio::{io::Interest, net::UdpSocket};

/// As many are taken or sent by one call.
pub const AT_ONCE: usize = 32;

/// What was received by one call.
#[derive(Debug)]
pub struct Received {
    buffers: Box<[Box<[u8]>]>,
    /// The length of each, and from whom it is.
    datagrams: Vec<(usize, SocketAddr)>,
}

impl Received {
    /// With room for datagrams of that size.
    pub fn new(size: usize) -> Self {
        Self {
            buffers: (0..AT_ONCE).map(|_| vec![0; size].into()).collect(),
            datagrams: Vec::with_capacity(AT_ONCE),
        }
    }

    /// Takes what is there, in place of what was; never waits.
    pub fn take(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.datagrams.clear();
        socket.try_io(Interest::READABLE, || {
            let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(AT_ONCE, None);
            let mut buffers: [_; AT_ONCE] = {
                let mut buffers = self.buffers.iter_mut();
                std::array::from_fn(|_| {
                    let buffer: &mut [u8] = buffers.next().map_or(&mut [], |buffer| buffer);
                    [IoSliceMut::new(buffer)]
                })
            };
            let fd = socket.as_raw_fd();
            let flags = MsgFlags::MSG_DONTWAIT;
            let received = recvmmsg(fd, &mut headers, buffers.iter_mut(), flags, None)?;
            for one in received {
                let from = one.address.as_ref().map_or(NOBODY, address);
                self.datagrams.push((one.bytes, from));
            }
            Ok(())
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        let buffers = self.buffers.iter().zip(&self.datagrams);
        buffers.map(|(buffer, (length, from))| (&buffer[..*length], *from))
    }

    /// Whether there may be more.
    pub fn is_full(&self) -> bool {
        self.datagrams.len() == AT_ONCE
    }
}

/// The sender of what has none; it has no answer either.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

fn address(given: &SockaddrStorage) -> SocketAddr {
    if let Some(given) = given.as_sockaddr_in() {
        return SocketAddr::new(given.ip().into(), given.port());
    }
    given.as_sockaddr_in6().map_or(NOBODY, |given| {
        let ip: Ipv6Addr = given.ip();
        SocketAddr::V6(std::net::SocketAddrV6::new(
            ip,
            given.port(),
            given.flowinfo(),
            given.scope_id(),
        ))
    })
}

/// Replies that go together.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: Vec<u8>,
    /// Where each ends in `bytes`, and to whom it goes.
    ends: Vec<(usize, SocketAddr)>,
}

impl Replies {
    /// Where the next one is to be appended; it counts once [`Replies::add`] is called.
    pub fn next(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub fn add(&mut self, to: SocketAddr) {
        self.ends.push((self.bytes.len(), to));
    }

    /// Sends them. Never waits: a client whose reply is lost asks again.
    pub fn send(&mut self, socket: &UdpSocket) {
        let (mut sent, mut begin) = (0, 0);
        while sent < self.ends.len() {
            let ends = &self.ends[sent..self.ends.len().min(sent + AT_ONCE)];
            let done = socket.try_io(Interest::WRITABLE, || {
                let addresses = ends.iter().map(|(_, to)| Some(SockaddrStorage::from(*to)));
                let addresses: Vec<_> = addresses.collect();
                let mut from = begin;
                let slices = ends.iter().map(|(end, _)| {
                    let slice = &self.bytes[from..*end];
                    from = *end;
                    [IoSlice::new(slice)]
                });
                let slices: Vec<_> = slices.collect();
                let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(ends.len(), None);
                let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
                let done = sendmmsg(fd, &mut headers, &slices, &addresses, [], flags)?;
                Ok(done.count())
            });
            let done = match done {
                Ok(done) => done.max(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => 1, // this one cannot be sent
            };
            sent += done;
            begin = self.ends[sent - 1].0;
        }
        self.bytes.clear();
        self.ends.clear();
    }
}
