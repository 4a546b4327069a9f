//! Reads a log file from a place near its end, piece by piece. Blocks; called on blocking threads.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
};

use super::line::{Formatter, More, Share, Wanted, share};
use crate::runtime::rotated_logs;

const PIECE_BYTES: usize = 64 * 1024;
/// The runtime cuts lines long before; what is longer is no log of ours and is passed over.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// What one step of reading brought.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    pub text: Vec<u8>,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// There is more to read.
    Inside,
    /// The file's end, for now.
    End,
    /// As many bytes were read as are wanted.
    Limit,
}

pub struct Reader {
    path: PathBuf,
    file: File,
    formatter: Formatter,
    /// The beginning of a line whose end was not read yet.
    rest: Vec<u8>,
    /// The line being read is passed over, to its end.
    too_long: bool,
    /// Without `follow`, nothing is read that comes later than the request.
    left: Option<u64>,
}

impl Reader {
    pub fn open(path: PathBuf, wanted: &Wanted, follow: bool) -> io::Result<Self> {
        let mut file = File::open(&path)?;
        let size = file.metadata()?.len();
        let start = match wanted.tail {
            Some(lines) => tail_start(&file, size, lines)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(start))?;
        Ok(Self {
            path,
            file,
            formatter: Formatter::new(wanted),
            rest: Vec::new(),
            too_long: false,
            left: (!follow).then_some(size.saturating_sub(start)),
        })
    }

    pub fn next(&mut self) -> io::Result<Piece> {
        let room = self
            .left
            .map_or(PIECE_BYTES as u64, |left| left.min(PIECE_BYTES as u64));
        let read = (&mut self.file).take(room).read_to_end(&mut self.rest)?;
        if let Some(left) = &mut self.left {
            *left -= read as u64;
        }
        let (mut text, mut used) = (Vec::new(), 0);
        while let Some(length) = self.rest[used..].iter().position(|byte| *byte == b'\n') {
            let line = &self.rest[used..used + length];
            used += length + 1;
            if std::mem::take(&mut self.too_long) {
                continue;
            }
            if self.formatter.put(line, &mut text) == More::Enough {
                let place = Place::Limit;
                return Ok(Piece { text, place });
            }
        }
        self.rest.drain(..used);
        if self.rest.len() > MAX_LINE_BYTES {
            self.rest.clear();
            self.too_long = true;
        }
        let place = match read < PIECE_BYTES {
            true => Place::End,
            false => Place::Inside,
        };
        Ok(Piece { text, place })
    }

    /// Goes on with the file that was begun after this one, if this one was moved away. Call at its
    /// end.
    pub fn rotate(&mut self) -> io::Result<bool> {
        let there = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            there => there?,
        };
        let here = self.file.metadata()?;
        if (here.dev(), here.ino()) == (there.dev(), there.ino()) {
            // Cut off in place.
            if here.len() < self.file.stream_position()? {
                self.file.rewind()?;
                self.forget_line();
                return Ok(true);
            }
            return Ok(false);
        }
        // What was written between our last read and the move.
        if self.file.stream_position()? < here.len() {
            return Ok(true);
        }
        self.file = match self.after(&here) {
            // Moved aside again, and the next one not begun.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        self.forget_line();
        Ok(true)
    }

    fn forget_line(&mut self) {
        self.rest.clear();
        self.too_long = false;
    }

    /// A log may have been moved aside more than once since we looked: the oldest file there is that
    /// came after ours.
    fn after(&self, here: &std::fs::Metadata) -> io::Result<File> {
        let aside: Vec<File> = rotated_logs(&self.path)?
            .iter()
            .filter(|path| {
                path.extension()
                    .is_none_or(|ending| ending != "gz" && ending != "tmp")
            })
            .filter_map(|path| File::open(path).ok())
            .collect();
        let is_ours = |file: &File| {
            file.metadata()
                .is_ok_and(|found| (found.dev(), found.ino()) == (here.dev(), here.ino()))
        };
        let is_later = |file: &File| {
            let time = |found: &std::fs::Metadata| (found.mtime(), found.mtime_nsec());
            file.metadata().is_ok_and(|found| time(&found) > time(here))
        };
        let later = match aside.iter().position(is_ours) {
            Some(ours) => aside.into_iter().nth(ours + 1),
            None => aside.into_iter().find(is_later),
        };
        match later {
            Some(file) => Ok(file),
            None => File::open(&self.path),
        }
    }
}

/// Where the last `lines` lines of the log begin; parts of one line count once, also where its end is
/// missing because its container has ended without it.
fn tail_start(file: &File, size: u64, lines: u64) -> io::Result<u64> {
    if lines == 0 {
        return Ok(size);
    }
    let (mut end, mut count) = (size, 0);
    let mut at_end = true;
    let mut ends_a_line = |line: &[u8]| match share(line) {
        Share::Nothing => false,
        Share::Part => std::mem::take(&mut at_end),
        Share::End => {
            at_end = false;
            true
        }
    };
    // The beginning of a line that starts before `end`.
    let mut carry: Vec<u8> = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(PIECE_BYTES as u64);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(PIECE_BYTES)];
        file.read_exact_at(&mut block, start)?;
        block.append(&mut carry);
        let mut line_end = block.len();
        while let Some(before) = block[..line_end - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
        {
            if ends_a_line(&block[before + 1..line_end]) {
                if count == lines {
                    return Ok(start + line_end as u64);
                }
                count += 1;
            }
            line_end = before + 1;
        }
        block.truncate(line_end);
        if block.len() > MAX_LINE_BYTES {
            return Ok(start + block.len() as u64);
        }
        carry = block;
        end = start;
    }
    match ends_a_line(&carry) && count == lines {
        true => Ok(carry.len() as u64),
        false => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:01Z stdout {tag} {text}\n")
    }

    fn all(reader: &mut Reader) -> String {
        let mut text = Vec::new();
        loop {
            let piece = reader.next().unwrap();
            text.extend(piece.text);
            if piece.place != Place::Inside {
                return String::from_utf8(text).unwrap();
            }
        }
    }

    fn tail(lines: u64) -> Wanted {
        Wanted {
            tail: Some(lines),
            ..Wanted::default()
        }
    }

    #[test]
    fn last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let content = [
            line("F", "one"),
            line("P", "tw"),
            line("F", "o"),
            line("F", "three"),
        ];
        std::fs::write(
            &path,
            content.concat() + "2026-01-01T00:00:01Z stdout F unfini",
        )
        .unwrap();
        for (lines, want) in [
            (0, ""),
            (1, "three\n"),
            (2, "two\nthree\n"),
            (3, "one\ntwo\nthree\n"),
            (9, "one\ntwo\nthree\n"),
        ] {
            let mut reader = Reader::open(path.clone(), &tail(lines), false).unwrap();
            assert_eq!(all(&mut reader), want, "{lines}");
        }
    }

    #[test]
    fn a_last_line_without_its_end_is_one_of_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for (content, lines, want) in [
            ([line("F", "one"), line("P", "two")].concat(), 0, ""),
            ([line("F", "one"), line("P", "two")].concat(), 1, "two"),
            ([line("F", "one"), line("P", "two")].concat(), 2, "one\ntwo"),
            (line("P", "one"), 1, "one"),
            // Its parts count once.
            (
                [line("F", "one"), line("P", "tw"), line("P", "o")].concat(),
                1,
                "two",
            ),
            (
                [line("F", "one"), line("P", "tw"), line("P", "o")].concat(),
                2,
                "one\ntwo",
            ),
        ] {
            std::fs::write(&path, &content).unwrap();
            let mut reader = Reader::open(path.clone(), &tail(lines), false).unwrap();
            assert_eq!(all(&mut reader), want, "{lines} of {content}");
        }
    }

    #[test]
    fn last_lines_of_many_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let long = "x".repeat(15_000);
        let content: String = (0..50).map(|n| line("F", &format!("{n} {long}"))).collect();
        std::fs::write(&path, content).unwrap();
        let mut reader = Reader::open(path, &tail(20), false).unwrap();
        let text = all(&mut reader);
        let numbers: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        let want: Vec<String> = (30..50).map(|n| n.to_string()).collect();
        assert_eq!(numbers, want);
    }

    #[test]
    fn a_line_without_end_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut file = File::create(&path).unwrap();
        let long = vec![b'x'; 1 << 20];
        file.write_all(line("F", "one").as_bytes()).unwrap();
        for _ in 0..20 {
            file.write_all(&long).unwrap();
        }
        write!(file, "\n{}{}", line("F", "two"), line("F", "three")).unwrap();
        for (wanted, want) in [
            (Wanted::default(), "one\ntwo\nthree\n"),
            (tail(1), "three\n"),
        ] {
            let mut reader = Reader::open(path.clone(), &wanted, false).unwrap();
            let mut text = Vec::new();
            loop {
                let piece = reader.next().unwrap();
                text.extend(piece.text);
                assert!(reader.rest.len() <= MAX_LINE_BYTES + PIECE_BYTES);
                if piece.place != Place::Inside {
                    break;
                }
            }
            assert_eq!(String::from_utf8(text).unwrap(), want);
        }
        let mut reader = Reader::open(path, &tail(9), false).unwrap();
        assert_eq!(all(&mut reader), "two\nthree\n");
        assert!(reader.rest.len() <= MAX_LINE_BYTES);
    }

    #[test]
    fn a_reader_that_lags_behind_misses_nothing_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let aside = |number: u32| dir.path().join(format!("0.log.20260101-00000{number}"));
        let write = |text: &str| std::fs::write(&path, line("F", text)).unwrap();
        write("one");
        let mut reader = Reader::open(path.clone(), &Wanted::default(), true).unwrap();
        assert_eq!(all(&mut reader), "one\n");
        for (number, text) in [(1, "two"), (2, "three"), (3, "four")] {
            std::fs::rename(&path, aside(number)).unwrap();
            // Times of files are coarser than this test.
            std::thread::sleep(std::time::Duration::from_millis(20));
            write(text);
        }
        // Ours is the oldest, and goes first.
        std::fs::remove_file(aside(1)).unwrap();
        std::fs::write(dir.path().join("0.log.20260101-000000.gz"), "x").unwrap();
        for want in ["two\n", "three\n", "four\n"] {
            assert!(reader.rotate().unwrap());
            assert_eq!(all(&mut reader), want);
        }
        assert!(!reader.rotate().unwrap());
    }

    #[test]
    fn a_rotated_file_is_read_to_its_end_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, line("F", "one")).unwrap();
        let mut reader = Reader::open(path.clone(), &Wanted::default(), true).unwrap();
        assert_eq!(all(&mut reader), "one\n");
        assert!(!reader.rotate().unwrap());
        let mut old = File::options().append(true).open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        assert!(!reader.rotate().unwrap());
        old.write_all(line("F", "two").as_bytes()).unwrap();
        std::fs::write(&path, line("F", "three")).unwrap();
        assert!(reader.rotate().unwrap());
        assert_eq!(all(&mut reader), "two\n");
        assert!(reader.rotate().unwrap());
        assert_eq!(all(&mut reader), "three\n");
        assert!(!reader.rotate().unwrap());
    }
}
