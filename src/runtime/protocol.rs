//! What daemon and supervisor tell each other: one JSON document per packet, descriptors beside it.
//!
//! A container's configuration is not sent but lies in its record, which the daemon writes before
//! it asks; so packets are small. The socket is a sequenced-packet one below the pod's folder.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Exit, Io, Phase, sys};

/// Raised when an older supervisor could not understand a newer daemon, or the other way round. What is
/// merely added raises nothing: fields that are not known are passed over, a call that is not known
/// is answered with [`Failure::Other`], a frame that is not known is passed over.
pub const VERSION: u32 = 1;
/// The oldest version that is still understood.
pub const OLDEST: u32 = 1;

/// Longest packet. Errors and command lines are cut or refused before they reach it.
pub const MAX_PACKET: usize = 128 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Repeated in the answer.
    pub number: u64,
    pub call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// Starts the container whose configuration lies in its record.
    Run {
        id: String,
        io: Io,
        /// Container whose pid namespace to join.
        join: Option<String>,
    },
    /// To the container's first process.
    Signal {
        id: String,
        signal: i32,
    },
    /// SIGKILL to every process of the container's cgroup.
    Kill {
        id: String,
    },
    /// Drops what is kept of an exited container.
    Forget {
        id: String,
    },
    ReopenLog {
        id: String,
    },
    /// Makes this connection the session of a new process; it dies with the connection.
    Exec {
        id: String,
        argv: Vec<String>,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Makes this connection a client of the container's streams.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Kills everything, answers, ends.
    Shutdown,
    /// One of a later version.
    #[serde(skip)]
    Unknown,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Frame {
    /// The first frame on every connection. `oldest`: the oldest version that the supervisor understands;
    /// those that do not say so understand their own alone.
    Hello {
        version: u32,
        #[serde(default)]
        oldest: Option<u32>,
        pid: i32,
    },
    /// Instead of `Hello`: the pod could not be made.
    Fatal { message: String },
    Answer {
        number: u64,
        result: Result<Streams, Failure>,
    },
    /// A container's phase, to every connection that is not a session.
    Changed { id: String, phase: Phase },
    /// The end of a session's process.
    Ended { exit: Exit },
    /// One of a later version.
    #[serde(skip)]
    Unknown,
}

/// A message of which there may be more kinds in later versions.
pub trait Growing: DeserializeOwned {
    /// What to make of one that is not known. Between processes of one version there is none.
    fn unknown(_: &serde_json::Value) -> Option<Self> {
        None
    }
}

impl Growing for Request {
    fn unknown(message: &serde_json::Value) -> Option<Self> {
        let number = message.get("number")?.as_u64()?;
        let call = Call::Unknown;
        Some(Self { number, call })
    }
}

impl Growing for Frame {
    fn unknown(message: &serde_json::Value) -> Option<Self> {
        let Some(answer) = message.get("Answer") else {
            return Some(Self::Unknown);
        };
        let number = answer.get("number")?.as_u64()?;
        let result = Err(Failure::Other(format!(
            "an answer that is not known: {answer}"
        )));
        Some(Self::Answer { number, result })
    }
}

/// Whether a daemon of this version and a supervisor that greets with these understand each other.
pub fn is_understood(version: u32, oldest: Option<u32>) -> bool {
    version >= OLDEST && oldest.unwrap_or(version) <= VERSION
}

fn decode<T: Growing>(data: &[u8]) -> io::Result<T> {
    serde_json::from_slice(data).or_else(|error| {
        let message = serde_json::from_slice(data)?;
        T::unknown(&message).ok_or(error.into())
    })
}

/// Which descriptors lie beside an answer, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// The terminal, to resize it; with exec also its input and output.
    pub terminal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    NoContainer,
    WrongPhase(String),
    /// `recorded`: an exited container tells the same.
    Start {
        stage: String,
        message: String,
        recorded: bool,
    },
    Other(String),
}

/// A pair of connected sockets for the first connection of a new supervisor.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::sys::socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

pub const SOCKET: &str = "control.sock";

/// A socket path holds 107 bytes; through an open folder any depth fits.
fn address(pod_dir: BorrowedFd<'_>) -> io::Result<UnixAddr> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}/{SOCKET}", pod_dir.as_raw_fd());
    Ok(UnixAddr::new(path.as_str())?)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    use nix::{
        fcntl::{OFlag, open},
        sys::stat::Mode,
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Listens in the pod's folder, which nobody but root may enter.
pub fn listen_in(pod_dir: &Path) -> io::Result<OwnedFd> {
    let dir = open_dir(pod_dir)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&listener),
        &address(dir.as_fd())?,
    )?;
    std::fs::set_permissions(
        pod_dir.join(SOCKET),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )?;
    listen(&listener, Backlog::new(64)?)?;
    Ok(listener)
}

/// Connects to the supervisor of the pod whose folder this is.
pub fn connect_to(pod_dir: &Path) -> io::Result<OwnedFd> {
    let dir = open_dir(pod_dir)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &address(dir.as_fd())?,
    )?;
    Ok(socket)
}

pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let data = serde_json::to_vec(message)?;
    if data.len() > MAX_PACKET {
        return Err(io::Error::other("the message is longer than allowed"));
    }
    sys::send_packet(socket, &data, fds)
}

/// The next message; `None` when the peer is gone. On a socket that does not block, nothing to
/// read is the error `WouldBlock`.
pub fn receive<T: Growing>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    match sys::receive_packet(socket, MAX_PACKET) {
        Ok(None) => Ok(None),
        Ok(Some((data, fds))) => Ok(Some((decode(&data)?, fds))),
        Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_understands_whom() {
        for (version, oldest, want) in [
            (1, None, true),  // from before ranges
            (2, None, false), // it cannot be told that it understands us
            (2, Some(1), true),
            (3, Some(2), false),
            (0, Some(0), false),
        ] {
            assert_eq!(is_understood(version, oldest), want, "{version} {oldest:?}");
        }
    }

    #[test]
    fn messages_of_other_versions_are_understood_as_far_as_they_go() {
        let frame = |text: &str| decode::<Frame>(text.as_bytes());
        let hello = frame(r#"{"Hello": {"version": 1, "pid": 7}}"#).unwrap(); // the first release
        assert!(matches!(
            hello,
            Frame::Hello {
                version: 1,
                oldest: None,
                pid: 7
            }
        ));
        let hello = frame(r#"{"Hello": {"version": 2, "oldest": 1, "pid": 7, "more": 1}}"#);
        assert!(matches!(
            hello.unwrap(),
            Frame::Hello {
                oldest: Some(1),
                ..
            }
        ));
        let later = frame(r#"{"Paused": {"id": "a"}}"#).unwrap();
        assert!(matches!(later, Frame::Unknown));
        let answer = frame(r#"{"Answer": {"number": 3, "result": {"Later": {}}}}"#).unwrap();
        assert!(matches!(
            answer,
            Frame::Answer {
                number: 3,
                result: Err(Failure::Other(_))
            }
        ));
        let call = decode::<Request>(br#"{"number": 4, "call": {"Freeze": {"id": "a"}}}"#);
        assert!(matches!(
            call.unwrap(),
            Request {
                number: 4,
                call: Call::Unknown
            }
        ));
        assert!(decode::<Request>(br#"{"call": "Shutdown"}"#).is_err());
        // What the first release reads of ours.
        let hello = Frame::Hello {
            version: VERSION,
            oldest: Some(OLDEST),
            pid: 7,
        };
        let text = serde_json::to_value(hello).unwrap();
        assert_eq!(text["Hello"]["version"], 1);
    }
}
