//! Lines to standard error: the daemon's log, and what its helpers have to say.
//!
//! Standard error may be a file on a full disk, or a pipe that nobody reads any more.
//! Always true: nobody fails because what it says cannot be written; lines that are lost are counted, and
//! the log says so as soon as it can be written again.

use std::{
    fmt,
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// What is logged unless `RUST_LOG` says otherwise. Of the client's own warnings none tells more than what follows: a
/// machine that joins finds out by its token whom it talks to, whatever its certificate; and who watches says when a
/// watch has ended.
const USUAL: &str = "info,kube_client::client=error";

/// Sends what is traced to standard error, from `info` on unless `RUST_LOG` says otherwise.
pub fn start() {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| USUAL.into()))
        .with_target(false)
        .with_writer(Log)
        // It would write to standard error too, and panic where that fails.
        .log_internal_errors(false)
        .init();
}

/// One line of a program that is not the daemon.
pub fn note(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[derive(Debug)]
struct Log;

impl<'a> MakeWriter<'a> for Log {
    type Writer = Lines<io::StderrLock<'static>>;

    fn make_writer(&'a self) -> Self::Writer {
        static LOST: AtomicU64 = AtomicU64::new(0);
        Lines {
            out: io::stderr().lock(),
            lost: &LOST,
        }
    }
}

/// Takes whole lines. Whoever holds it is alone with `out`.
struct Lines<W> {
    out: W,
    lost: &'static AtomicU64,
}

impl<W: Write> Lines<W> {
    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            // The last line that was tried may have no end.
            let told = format!("\n{lost} lines of this log were lost: they could not be written\n");
            self.out.write_all(told.as_bytes())?;
            self.lost.store(0, Ordering::Relaxed);
        }
        self.out.write_all(line)
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.put(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then none.
    struct Disk {
        room: usize,
        held: Vec<u8>,
    }

    impl Write for &mut Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.held.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_harms_nobody_and_is_told_of() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        let mut disk = Disk {
            room: 8,
            held: Vec::new(),
        };
        let say = |disk: &mut Disk, line: &str| {
            let mut lines = Lines {
                out: disk,
                lost: &LOST,
            };
            lines.write_all(line.as_bytes()).unwrap();
        };
        say(&mut disk, "one\n");
        say(&mut disk, "second\n");
        say(&mut disk, "third\n");
        disk.room = 1000;
        say(&mut disk, "fourth\n");
        say(&mut disk, "fifth\n");
        let held = String::from_utf8(disk.held).unwrap();
        let told = "2 lines of this log were lost: they could not be written";
        assert_eq!(held, format!("one\nseco\n{told}\nfourth\nfifth\n"));
    }
}
