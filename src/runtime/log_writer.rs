//! A container's output as lines of its log file, in the format every log reader of the field takes:
//! `<time> <stream> <F|P> <text>`.
//!
//! Owned by the supervisor. One write per batch of output, so that a reader never sees half of one.
//! A disk that is full loses lines but never stops the container.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A longer line is cut into parts tagged `P`; what ends with a line's end is tagged `F`.
const LONGEST: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

pub struct LogWriter {
    path: PathBuf,
    file: File,
    /// The begun line of each stream.
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl LogWriter {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: open(path)?,
            path: path.into(),
            stdout: Vec::new(),
            stderr: Vec::new(),
        })
    }

    /// Goes on in a new file at the same path, after the old one was renamed.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    pub fn append(&mut self, stream: Stream, data: &[u8], now: SystemTime) {
        let mut out = Vec::with_capacity(data.len() + 64);
        let begun = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        frame(&mut out, &stamp(now), stream, begun, data);
        let _ = self.file.write_all(&out);
    }

    /// Writes a line that was begun and will not be ended: as a part, for readers add a line's end
    /// to all others.
    pub fn finish(&mut self, stream: Stream, now: SystemTime) {
        let begun = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if begun.is_empty() {
            return;
        }
        let mut out = Vec::new();
        line(&mut out, &stamp(now), stream, b'P', &std::mem::take(begun));
        let _ = self.file.write_all(&out);
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

fn line(out: &mut Vec<u8>, stamp: &[u8], stream: Stream, tag: u8, text: &[u8]) {
    out.extend_from_slice(stamp);
    out.push(b' ');
    out.extend_from_slice(stream.name());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Adds to `out` what `data` completes; the rest waits in `begun`.
fn frame(out: &mut Vec<u8>, stamp: &[u8], stream: Stream, begun: &mut Vec<u8>, data: &[u8]) {
    let mut rest = data;
    while !rest.is_empty() {
        let room = LONGEST - begun.len();
        let end = rest.iter().take(room + 1).position(|&byte| byte == b'\n');
        match end {
            Some(end) if begun.is_empty() => {
                line(out, stamp, stream, b'F', &rest[..end]);
                rest = &rest[end + 1..];
            }
            Some(end) => {
                begun.extend_from_slice(&rest[..end]);
                line(out, stamp, stream, b'F', begun);
                begun.clear();
                rest = &rest[end + 1..];
            }
            // Only once more text follows: a line of just this length is a whole one.
            None if rest.len() > room => {
                begun.extend_from_slice(&rest[..room]);
                line(out, stamp, stream, b'P', begun);
                begun.clear();
                rest = &rest[room..];
            }
            None => {
                begun.extend_from_slice(rest);
                return;
            }
        }
    }
    if begun.is_empty() {
        *begun = Vec::new();
    }
}

/// RFC 3339 in UTC with nanoseconds.
fn stamp(now: SystemTime) -> [u8; 30] {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let mut text = [0; 30];
    let _ = write!(
        &mut text[..],
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_nanos()
    );
    text
}

/// Year, month and day of a day counted from 1970-01-01. Eras of 400 years, years from March on.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, nanos, want) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 5, "2000-02-29T00:00:00.000000005Z"),
            (1_735_689_599, 999_999_999, "2024-12-31T23:59:59.999999999Z"),
        ] {
            let stamped = stamp(UNIX_EPOCH + Duration::new(seconds, nanos));
            assert_eq!(std::str::from_utf8(&stamped).unwrap(), want);
        }
    }

    #[test]
    fn lines_from_chunks() {
        let long = "x".repeat(LONGEST);
        let (full, part) = (format!("F {long}"), format!("P {long}"));
        let (whole, over) = (format!("{long}\n"), format!("{long}y\nz\n"));
        for (chunks, want, left) in [
            (&["a\nb\n"][..], vec!["F a", "F b"], ""),
            (&["a", "b\n", "\n"][..], vec!["F ab", "F "], ""),
            (&["a\nb"][..], vec!["F a"], "b"),
            (&[whole.as_str()][..], vec![full.as_str()], ""),
            (&[&long, "\n"][..], vec![full.as_str()], ""),
            (&[over.as_str()][..], vec![part.as_str(), "F y", "F z"], ""),
            (&[&long, "y\n"][..], vec![part.as_str(), "F y"], ""),
        ] {
            let (mut out, mut begun) = (Vec::new(), Vec::new());
            for chunk in chunks {
                frame(&mut out, b"T", Stream::Stdout, &mut begun, chunk.as_bytes());
            }
            let out = String::from_utf8(out).unwrap();
            let lines: Vec<&str> = out
                .lines()
                .map(|line| line.strip_prefix("T stdout ").unwrap())
                .collect();
            assert_eq!(lines, want);
            assert_eq!(begun, left.as_bytes());
        }
    }
}
