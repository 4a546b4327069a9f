//! A container's descriptor (pipe, terminal or socket) as an asynchronous stream.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{read, write},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

pub struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Makes the descriptor non-blocking.
    #[expect(
        deprecated,
        reason = "sound here: an OwnedFd stays the same descriptor while it lives"
    )]
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(AsyncFd::new(fd)?))
    }
}

impl AsyncRead for Descriptor {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match ready.try_io(|fd| Ok(read(fd, unfilled)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // A terminal whose other side is closed says so by this error.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Descriptor {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|fd| Ok(write(fd, bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn pipes_and_terminals_end() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut writer = Descriptor::new(writer).unwrap();
        writer.write_all(b"through the pipe").await.unwrap();
        drop(writer);
        let mut text = String::new();
        let mut reader = Descriptor::new(reader).unwrap();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "through the pipe");

        let terminal = nix::pty::openpty(None, None).unwrap();
        write(&terminal.slave, b"on screen\n").unwrap();
        drop(terminal.slave);
        let mut text = String::new();
        let mut master = Descriptor::new(terminal.master).unwrap();
        master.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "on screen\r\n");
    }
}
