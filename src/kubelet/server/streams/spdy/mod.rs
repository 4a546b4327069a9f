//! SPDY/3.1 as far as `kubectl` and its kin speak it: what exec, attach and port-forward ran on
//! before WebSocket, and what port-forward still runs on inside WebSocket.
//!
//! `frame.rs` and `headers.rs` are the codec, pure; `connection.rs` carries it over a socket.

pub mod connection;
mod frame;
mod headers;

pub use connection::{Connection, Stream};
pub use frame::Frame;
#[cfg(test)]
pub use {
    frame::{FrameDecoder, FrameEncoder},
    headers::Headers,
};

/// Why a peer's bytes are no SPDY.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("SPDY version {0}")]
    Version(u16),
    #[error("{0} too long")]
    TooLong(&'static str),
    #[error("frame cut short")]
    CutShort,
    #[error("header compression: {0}")]
    Compression(String),
    #[error("transport")]
    Io(#[from] std::io::Error),
}
