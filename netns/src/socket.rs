//! A netlink socket: sends messages, collects the kernel's answers.
//!
//! Owns the descriptor and the sequence numbers. The kernel handles a request inside `sendmsg`, so
//! when that returns every acknowledgement waits in the receive queue.
#![allow(unsafe_code)] // two socket options that nix does not know

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, setsockopt, socket, sockopt,
};

use crate::{
    Error,
    wire::{self, Message},
};

const RECEIVE_CHUNK: usize = 1 << 16;
/// Acknowledgements of thousands of messages must fit.
const RECEIVE_BUFFER: usize = 8 << 20;
const DONE: u16 = libc::NLMSG_DONE as u16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
/// Attribute of an extended acknowledgement that holds the kernel's words.
const ACK_MESSAGE: u16 = 1;

#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    send_buffer: usize,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(protocol: SockProtocol) -> Result<Self, Error> {
        let io = |action| {
            move |errno: nix::Error| Error::Io {
                action,
                source: errno.into(),
            }
        };
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )
        .map_err(io("open a netlink socket"))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(io("bind a netlink socket"))?;
        // Both only make errors easier to read and cheaper to get; old kernels lack them.
        let _ = set_option(&fd, libc::NETLINK_EXT_ACK);
        let _ = set_option(&fd, libc::NETLINK_CAP_ACK);
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self {
            fd,
            sequence: 0,
            send_buffer: 0,
        })
    }

    /// Leaves the wait for the socket's end, once this is dropped, to a thread of its own.
    pub fn close_elsewhere(&self) {
        if let Ok(last) = self.fd.try_clone() {
            let closing = std::thread::Builder::new().name("netlink-close".to_owned());
            // Without a thread the caller waits.
            let _ = closing.spawn(move || drop(last));
        }
    }

    /// The address by which the kernel names this socket in what it tells others.
    pub fn port(&self) -> Result<u32, Error> {
        let name = getsockname::<NetlinkAddr>(self.fd.as_raw_fd());
        name.map(|name| name.pid()).map_err(|errno| Error::Io {
            action: "read the address of a netlink socket",
            source: errno.into(),
        })
    }

    /// Sends all messages in one datagram and waits for each to be acknowledged. All are tried;
    /// the first error is returned.
    pub fn request(&mut self, messages: &mut [Message]) -> Result<(), Error> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for message in messages.iter_mut() {
            message.flags |= libc::NLM_F_ACK as u16;
            self.sequence = self.sequence.wrapping_add(1);
            message.append_to(&mut bytes, self.sequence);
        }
        let what: Vec<&str> = messages.iter().map(|m| m.what.as_str()).collect();
        match what.as_slice() {
            [] => Ok(()),
            what => self.send_numbered(&bytes, first, what),
        }
    }

    /// Sends a request that answers with data and gives each answer's body to `each`.
    pub fn query(&mut self, message: &Message, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        message.append_to(&mut bytes, self.sequence);
        self.send(&bytes, &message.what)?;
        let dump = message.flags & libc::NLM_F_DUMP as u16 == libc::NLM_F_DUMP as u16;
        let mut buffer = vec![0; RECEIVE_CHUNK];
        loop {
            let length = self.receive(&mut buffer, MsgFlags::empty(), &message.what)?;
            for answer in wire::messages(&buffer[..length]) {
                if answer.sequence != self.sequence {
                    continue;
                }
                match answer.kind {
                    DONE => return Ok(()),
                    ERROR => return failure(answer, &message.what),
                    _ => {
                        each(answer.body);
                        if !dump {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Sends a datagram whose messages are numbered from `first` and named by `what`; the last of
    /// them asks for an acknowledgement. The first error is returned.
    pub fn send_numbered(&mut self, bytes: &[u8], first: u32, what: &[&str]) -> Result<(), Error> {
        self.send(bytes, what.first().copied().unwrap_or_default())?;
        self.acknowledgements(first, what)
    }

    /// The same where nothing asks for an acknowledgement: only what fails is answered.
    pub fn send_unanswered(
        &mut self,
        bytes: &[u8],
        first: u32,
        what: &[&str],
    ) -> Result<(), Error> {
        self.send(bytes, what.first().copied().unwrap_or_default())?;
        self.answers(first, what).map(drop)
    }

    pub fn next_sequence(&mut self, count: usize) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count as u32);
        first
    }

    /// Reads the answers to the messages numbered from `first`, of which the last must be among them.
    fn acknowledgements(&mut self, first: u32, what: &[&str]) -> Result<(), Error> {
        match self.answers(first, what)? {
            Answered::Last => Ok(()),
            Answered::Others => Err(Error::Malformed {
                what: what[what.len() - 1].into(),
            }),
        }
    }

    /// Reads all answers. They are all there already, so this never waits. The first error is returned.
    fn answers(&mut self, first: u32, what: &[&str]) -> Result<Answered, Error> {
        let mut buffer = vec![0; RECEIVE_CHUNK];
        let mut outcome = Ok(());
        let mut answered = Answered::Others;
        loop {
            let length = match self.receive(&mut buffer, MsgFlags::MSG_DONTWAIT, what[0]) {
                Ok(length) => length,
                Err(error) if error.errno() == Some(libc::EAGAIN) => {
                    return outcome.map(|()| answered);
                }
                Err(error) => return outcome.and(Err(error)),
            };
            for answer in wire::messages(&buffer[..length]) {
                let index = answer.sequence.wrapping_sub(first) as usize;
                let (Some(message), ERROR) = (what.get(index), answer.kind) else {
                    continue;
                };
                if index == what.len() - 1 {
                    answered = Answered::Last;
                }
                outcome = outcome.and(failure(answer, message));
            }
        }
    }

    fn send(&mut self, bytes: &[u8], what: &str) -> Result<(), Error> {
        // The kernel takes a batch as one datagram, so the buffer must hold all of it.
        let wanted = bytes.len() * 2 + 4096;
        if wanted > self.send_buffer.max(1 << 17) {
            let _ = setsockopt(&self.fd, sockopt::SndBufForce, &wanted);
            self.send_buffer = wanted;
        }
        loop {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(errno) => {
                    return Err(Error::Kernel {
                        what: format!("send {} bytes from `{what}` on", bytes.len()),
                        hint: None,
                        source: errno.into(),
                    });
                }
            }
        }
    }

    fn receive(&self, buffer: &mut [u8], flags: MsgFlags, what: &str) -> Result<usize, Error> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, flags) {
                Ok(length) => return Ok(length),
                Err(nix::Error::EINTR) => {}
                Err(errno) => {
                    return Err(Error::Kernel {
                        what: format!("answer to `{what}`"),
                        hint: None,
                        source: errno.into(),
                    });
                }
            }
        }
    }
}

/// Which messages of a datagram were answered.
enum Answered {
    Last,
    /// Any, or none, but not the last.
    Others,
}

/// What an acknowledgement says.
fn failure(answer: wire::Received<'_>, what: &str) -> Result<(), Error> {
    let code =
        wire::u32_at(answer.body, 0).ok_or_else(|| Error::Malformed { what: what.into() })?;
    if code == 0 {
        return Ok(());
    }
    // After the error number comes the request's header (only that, with CAP_ACK), then attributes.
    let capped = answer.flags & libc::NLM_F_CAPPED as u16 != 0;
    let request = match wire::u32_at(answer.body, 4) {
        Some(length) if !capped => length as usize,
        _ => wire::HEADER,
    };
    let hint = (answer.flags & libc::NLM_F_ACK_TLVS as u16 != 0)
        .then(|| answer.body.get(4 + request.next_multiple_of(4)..))
        .flatten()
        .and_then(|attributes| wire::attribute(attributes, ACK_MESSAGE))
        .map(wire::text);
    Err(Error::Kernel {
        what: what.into(),
        hint,
        source: io::Error::from_raw_os_error((code as i32).wrapping_neg()),
    })
}

fn set_option(fd: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open and the kernel reads exactly one c_int from `on`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
