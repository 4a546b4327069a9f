//! A container's output as lines of its log file, in the format every log reader of the field takes:
//! `<time> <stream> <F|P> <text>`.
//!
//! Owned by the supervisor, which bounds the log by itself, whether or not there is a daemon: a full
//! file is moved aside (`0.log.<time>`), and the oldest goes. The daemon only compresses what lies
//! aside. Always true:
//! - A log's files are at most [`MAX_FILES`] of [`MAX_BYTES`], and one being compressed.
//! - One write per batch of output, so that a reader never sees half of one.
//! - Whatever fails, a disk that is full or a folder that is gone, loses lines but never stops the
//!   container, and never lets the file grow.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A full file is moved aside.
pub const MAX_BYTES: u64 = 10 << 20;
/// Of one log, the one being written included.
pub const MAX_FILES: usize = 5;
/// Output framed at once: what is only line ends grows forty times by its heads.
const BATCH: usize = 16 << 10;
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
    /// Of the file.
    size: u64,
    /// When a file was last moved aside: their names must rise, also when the clock does not.
    rotated: SystemTime,
    /// The begun line of each stream.
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl LogWriter {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self {
            size: file.metadata()?.len(),
            file,
            path: path.into(),
            rotated: UNIX_EPOCH,
            stdout: Vec::new(),
            stderr: Vec::new(),
        })
    }

    /// Goes on in a new file at the same path, after the old one was moved away.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }

    pub fn append(&mut self, stream: Stream, data: &[u8], now: SystemTime) {
        for batch in data.chunks(BATCH) {
            let mut out = Vec::with_capacity(batch.len() + 64);
            let begun = match stream {
                Stream::Stdout => &mut self.stdout,
                Stream::Stderr => &mut self.stderr,
            };
            frame(&mut out, &stamp(now), stream, begun, batch);
            self.write(&out, now);
        }
    }

    fn write(&mut self, out: &[u8], now: SystemTime) {
        if self.size > 0 && self.size + out.len() as u64 > MAX_BYTES {
            self.rotate(now);
        }
        match self.file.write_all(out) {
            Ok(()) => self.size += out.len() as u64,
            // A part of it may have been written.
            Err(_) => self.size = self.file.metadata().map_or(MAX_BYTES, |found| found.len()),
        }
    }

    fn rotate(&mut self, now: SystemTime) {
        self.rotated = now.max(self.rotated + Duration::from_nanos(1));
        let moved = move_aside(&self.path, self.rotated).and_then(|()| self.reopen());
        // Rather its lines than the disk.
        if moved.is_err() && self.file.set_len(0).is_ok() {
            self.size = 0;
        }
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
        self.write(&out, now);
    }
}

/// Makes room among the older files, and moves the log there.
fn move_aside(log: &Path, now: SystemTime) -> io::Result<()> {
    let mut older = rotated(log)?;
    // The one that is moved and the one to be written next count too.
    let surplus = (older.len() + 2).saturating_sub(MAX_FILES);
    for file in older.drain(..surplus) {
        ignore_missing(fs::remove_file(file))?;
    }
    ignore_missing(fs::rename(log, aside(log, now)))
}

/// `<log>.<time>`: names of one log rise with time.
fn aside(log: &Path, now: SystemTime) -> PathBuf {
    let stamp = stamp(now);
    let digits = stamp.iter().filter(|byte| byte.is_ascii_digit());
    let digits: String = digits.map(|byte| char::from(*byte)).collect();
    let (date, rest) = digits.split_at(8);
    let (time, nanoseconds) = rest.split_at(6);
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{date}-{time}.{nanoseconds}"));
    name.into()
}

/// The files of a log that were moved aside, oldest first; compressed ones and what a compression
/// left behind are among them.
pub fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut files = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
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

    fn usage(folder: &Path) -> (usize, u64) {
        let files = fs::read_dir(folder).unwrap().map(Result::unwrap);
        let sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
        (sizes.len(), sizes.iter().sum())
    }

    #[test]
    fn a_log_without_end_takes_so_much_and_no_more() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        fs::write(folder.path().join("1.log"), "another").unwrap();
        let mut log = LogWriter::open(&path).unwrap();
        let most = MAX_BYTES * MAX_FILES as u64;
        // The second is nothing but heads, and the clock stands still.
        let (long, ends) = ("x".repeat(64 << 10), "\n".repeat(64 << 10));
        for number in 0..2000 {
            let data = if number % 50 == 0 { &ends } else { &long };
            log.append(Stream::Stdout, data.as_bytes(), UNIX_EPOCH);
        }
        let (files, bytes) = usage(folder.path());
        assert_eq!(files, MAX_FILES + 1);
        assert!(bytes <= most + 7, "{bytes}");
        for file in rotated(&path).unwrap().iter().chain([&path]) {
            let mode = fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(fs::read(folder.path().join("1.log")).unwrap(), b"another");
    }

    #[test]
    fn a_log_that_cannot_be_moved_aside_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone/0.log");
        fs::create_dir(path.parent().unwrap()).unwrap();
        let mut log = LogWriter::open(&path).unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let long = "x".repeat(64 << 10);
        for _ in 0..400 {
            log.append(Stream::Stdout, long.as_bytes(), UNIX_EPOCH);
        }
        let size = log.file.metadata().unwrap().len();
        assert!(size <= MAX_BYTES, "{size}");
    }

    #[test]
    fn names_of_files_aside() {
        let now = UNIX_EPOCH + Duration::new(951_782_400, 5);
        assert_eq!(
            aside(Path::new("/a/0.log"), now),
            Path::new("/a/0.log.20000229-000000.000000005")
        );
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
