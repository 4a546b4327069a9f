//! Reads a log file from a place near its end, piece by piece. Blocks; called on blocking threads.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
};

use super::line::{Formatter, More, Wanted, ends_a_line};

const PIECE_BYTES: usize = 64 * 1024;

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
            if self.formatter.put(line, &mut text) == More::Enough {
                let place = Place::Limit;
                return Ok(Piece { text, place });
            }
        }
        self.rest.drain(..used);
        let place = match read < PIECE_BYTES {
            true => Place::End,
            false => Place::Inside,
        };
        Ok(Piece { text, place })
    }

    /// Goes on with a new file at the same path, if the old one was moved away. Call at the end of
    /// the old one.
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
                self.rest.clear();
                return Ok(true);
            }
            return Ok(false);
        }
        // What was written between our last read and the move.
        if self.file.stream_position()? < here.len() {
            return Ok(true);
        }
        self.file = File::open(&self.path)?;
        self.rest.clear();
        Ok(true)
    }
}

/// Where the last `lines` lines of the log begin; parts of one line count once.
fn tail_start(file: &File, size: u64, lines: u64) -> io::Result<u64> {
    if lines == 0 {
        return Ok(size);
    }
    let (mut end, mut count) = (size, 0);
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
