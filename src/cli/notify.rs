//! Tells whoever started the daemon how it goes, in systemd's notify protocol.
//!
//! `--detach` listens like systemd does: the child sends `STATUS=` lines and at last `READY=1`;
//! a unit of `Type=notify` works unchanged.

use std::{io, os::unix::net::UnixDatagram, path::Path};

/// The variable that names the socket.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// One thing the daemon says.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    Status(String),
    /// The command that makes another machine a node. Whoever else listens passes over it.
    Join(String),
    Ready,
}

/// By the protocol's rules a variable of our own.
const JOIN: &str = "X_VETCH_JOIN";

/// Sends to the socket that the environment names; does nothing without one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// A socket that cannot be reached is as good as none: nobody listens any more.
    pub fn from_env() -> Self {
        let socket = std::env::var_os(VARIABLE).and_then(|path| {
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect(path).ok()?;
            Some(socket)
        });
        Self { socket }
    }

    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={text}"));
    }

    /// Whether somebody listens who asked for the daemon.
    pub fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    pub fn join(&self, command: &str) {
        self.send(&format!("{JOIN}={command}"));
    }

    pub fn ready(&self) {
        self.send("READY=1");
    }

    fn send(&self, text: &str) {
        if let Some(socket) = &self.socket {
            // Whoever stopped listening does not want to know.
            let _ = socket.send(text.as_bytes());
        }
    }
}

/// The listening end.
#[derive(Debug)]
pub struct Listener {
    socket: UnixDatagram,
}

impl Listener {
    pub fn bind(path: &Path) -> io::Result<Self> {
        Ok(Self {
            socket: UnixDatagram::bind(path)?,
        })
    }

    /// The next message; waits.
    pub fn recv(&self) -> io::Result<Message> {
        let mut buffer = [0; 4096];
        loop {
            let length = self.socket.recv(&mut buffer)?;
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            if let Some(message) = parse(&text) {
                return Ok(message);
            }
        }
    }
}

fn parse(text: &str) -> Option<Message> {
    match text.split_once('=')? {
        ("READY", "1") => Some(Message::Ready),
        (JOIN, command) => Some(Message::Join(command.to_owned())),
        ("STATUS", status) => Some(Message::Status(status.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_protocol() {
        assert_eq!(parse("READY=1"), Some(Message::Ready));
        assert_eq!(parse("STATUS=a=b"), Some(Message::Status("a=b".to_owned())));
        let command = "vetch agent --server=a".to_owned();
        let sent = format!("X_VETCH_JOIN={command}");
        assert_eq!(parse(&sent), Some(Message::Join(command)));
        assert_eq!(parse("WATCHDOG=1"), None);
        assert_eq!(parse("nonsense"), None);
    }
}
