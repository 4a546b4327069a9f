//! Reading a tar stream of unknown origin: ustar, GNU and pax.
//!
//! Knows the format and nothing of what becomes of the entries. Always true:
//! - Memory is bounded: what describes one entry takes at most [`MOST_DESCRIPTION`] bytes.
//! - A size that a pax header gives overrides the header's, as everywhere else: two readers that
//!   disagree about where an entry ends see different files in one archive.
//!
//! Source: POSIX.1-2017, pax, "Extended Header"; GNU tar manual, "Basic Tar Format".

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Long names, attributes and places of a sparse file's parts, for one entry.
const MOST_DESCRIPTION: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Folder,
    Pipe,
}

/// One entry; its content is read from the archive.
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Target of a link.
    pub link: Vec<u8>,
    pub mode: u32,
    pub user: u64,
    pub group: u64,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// Major and minor number.
    pub device: (u64, u64),
    /// Extended attributes.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of content in the archive.
    pub stored: u64,
    /// For a file with holes: where its parts lie, and how long it is.
    pub sparse: Option<Sparse>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    /// Offset and length, ascending.
    pub parts: Vec<(u64, u64)>,
    pub length: u64,
}

pub struct Archive<R> {
    reader: R,
    /// Of the present entry.
    left: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            left: 0,
            padding: 0,
        }
    }

    /// The stream behind the last entry that was read.
    pub fn into_inner(self) -> R {
        self.reader
    }

    /// The next entry; what was not read of the last one is passed over.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut said = Said::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return match said.is_empty() {
                    true => Ok(None),
                    false => Err(bad("the archive ends before the entry that was announced")),
                };
            };
            match header.flag() {
                b'x' => said.add_pax(&self.description(&header, said.bytes)?)?,
                // Says something of all that follow; nothing of it concerns us.
                b'g' => drop(self.description(&header, 0)?),
                b'L' => said.path = Some(until_zero(self.description(&header, said.bytes)?)),
                b'K' => said.link = Some(until_zero(self.description(&header, said.bytes)?)),
                flag => return self.entry(&header, flag, said).map(Some),
            }
            said.bytes += header.size()?;
        }
    }

    fn entry(&mut self, header: &Header, flag: u8, said: Said) -> io::Result<Entry> {
        let path = match said.path {
            Some(path) => path,
            None => header.path(),
        };
        let kind = match flag {
            // Before there was a type for folders.
            b'0' | 0 if path.ends_with(b"/") => Kind::Folder,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Folder,
            b'6' => Kind::Pipe,
            other => {
                let other = char::from(other);
                return Err(bad(&format!("an entry of the unknown type {other:?}")));
            }
        };
        let stored = match kind {
            // Some writers give sizes to what has no content.
            Kind::File => said.size.map_or_else(|| header.size(), Ok)?,
            _ => 0,
        };
        let sparse = match flag {
            b'S' => Some(self.sparse(header, stored)?),
            _ => None,
        };
        let number = |said: Option<u64>, at| said.map_or_else(|| header.number(at), Ok);
        let entry = Entry {
            kind,
            link: said.link.unwrap_or_else(|| header.text(157..257)),
            mode: (header.number(100..108)? & 0o7777) as u32,
            user: number(said.user, 108..116)?,
            group: number(said.group, 116..124)?,
            modified: match said.modified {
                Some(time) => time,
                None => (header.signed(136..148)?, 0),
            },
            device: match kind {
                Kind::CharDevice | Kind::BlockDevice => {
                    (header.number(329..337)?, header.number(337..345)?)
                }
                _ => (0, 0),
            },
            attributes: said.attributes,
            path,
            stored,
            sparse,
        };
        self.expect(stored);
        Ok(entry)
    }

    fn expect(&mut self, size: u64) {
        let block = BLOCK as u64;
        (self.left, self.padding) = (size, (block - size % block) % block);
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(bad("the archive ends within a header")),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header(block);
        header.check()?;
        Ok(Some(header))
    }

    /// What a header that describes another entry holds.
    fn description(&mut self, header: &Header, before: u64) -> io::Result<Vec<u8>> {
        let size = header.size()?;
        if size.saturating_add(before) > MOST_DESCRIPTION {
            return Err(bad(&format!(
                "the names and attributes of an entry take more than {MOST_DESCRIPTION} bytes"
            )));
        }
        self.expect(size);
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        Ok(content)
    }

    fn sparse(&mut self, header: &Header, stored: u64) -> io::Result<Sparse> {
        let mut sparse = Sparse {
            parts: Vec::new(),
            length: header.number(483..495)?,
        };
        let mut more = header.0[482] != 0;
        add_parts(&mut sparse.parts, &header.0[386..482])?;
        while more {
            if sparse.parts.len() as u64 * 24 > MOST_DESCRIPTION {
                return Err(bad("a sparse file of too many parts"));
            }
            let mut block = [0; BLOCK];
            self.reader.read_exact(&mut block)?;
            add_parts(&mut sparse.parts, &block[..504])?;
            more = block[504] != 0;
        }
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for (offset, length) in &sparse.parts {
            if *offset < end {
                return Err(bad("a sparse file whose parts are not in order"));
            }
            end = offset.saturating_add(*length);
            sum = sum.saturating_add(*length);
        }
        if end > sparse.length || sum != stored {
            return Err(bad("a sparse file whose parts do not fit its size"));
        }
        Ok(sparse)
    }

    /// To the next header.
    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        if io::copy(&mut (&mut self.reader).take(rest), &mut io::sink())? < rest {
            return Err(bad("the archive ends within an entry"));
        }
        Ok(())
    }
}

/// The content of the present entry.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = buffer.len().min(most);
        if length == 0 {
            return Ok(0);
        }
        let read = self.reader.read(&mut buffer[..length])?;
        if read == 0 {
            return Err(bad("the archive ends within an entry"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// What headers before an entry say of it.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    user: Option<u64>,
    group: Option<u64>,
    modified: Option<(i64, i64)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: u64,
}

impl Said {
    fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Records of the form `LENGTH KEY=VALUE\n`.
    fn add_pax(&mut self, mut records: &[u8]) -> io::Result<()> {
        let wrong = || bad("a pax header that is none");
        while !records.is_empty() {
            let digits = records
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or_else(wrong)?;
            let length = number_of(&records[..digits]).ok_or_else(wrong)?;
            let length = usize::try_from(length).map_err(|_| wrong())?;
            let record = records.get(digits + 1..length).ok_or_else(wrong)?;
            let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(wrong)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let number = || {
            number_of(value).ok_or_else(|| {
                let key = String::from_utf8_lossy(key);
                bad(&format!("a pax header whose {key} is no number"))
            })
        };
        let text = || match value.contains(&0) {
            true => Err(bad("a pax header with a zero byte in a path")),
            false => Ok(Some(value.to_vec())),
        };
        match key {
            b"path" => self.path = text()?,
            b"linkpath" => self.link = text()?,
            b"size" => self.size = Some(number()?),
            b"uid" => self.user = Some(number()?),
            b"gid" => self.group = Some(number()?),
            b"mtime" => {
                let time = time_of(value).ok_or_else(|| bad("a pax header whose mtime is none"))?;
                self.modified = Some(time);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.push((name.to_vec(), value.to_vec()));
                } else if key.starts_with(b"GNU.sparse.") {
                    return Err(bad("a sparse file in pax form, which is not supported"));
                }
            }
        }
        Ok(())
    }
}

struct Header([u8; BLOCK]);

impl Header {
    fn flag(&self) -> u8 {
        self.0[156]
    }

    /// The sum of all bytes; some old writers took them as signed.
    fn check(&self) -> io::Result<()> {
        let byte = |(index, byte): (usize, &u8)| match index {
            148..156 => b' ',
            _ => *byte,
        };
        let bytes = || self.0.iter().enumerate().map(byte);
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        let said = self
            .signed(148..156)
            .map_err(|_| bad("not a tar archive"))?;
        match said == unsigned || said == signed {
            true => Ok(()),
            false => Err(bad("a header with a wrong checksum")),
        }
    }

    fn text(&self, at: std::ops::Range<usize>) -> Vec<u8> {
        until_zero(self.0[at].to_vec())
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = match &self.0[257..263] == b"ustar\0" {
            true => self.text(345..500),
            false => Vec::new(),
        };
        match prefix.is_empty() {
            true => name,
            false => [&prefix[..], b"/", &name].concat(),
        }
    }

    fn size(&self) -> io::Result<u64> {
        self.number(124..136)
    }

    fn number(&self, at: std::ops::Range<usize>) -> io::Result<u64> {
        u64::try_from(self.signed(at)?).map_err(|_| bad("a header with a negative number"))
    }

    fn signed(&self, at: std::ops::Range<usize>) -> io::Result<i64> {
        parse_number(&self.0[at]).ok_or_else(|| bad("a header with a number that is none"))
    }
}

/// Octal digits, or big-endian bytes behind a set first bit.
fn parse_number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // The second bit is the sign.
        let negative = first & 0x40 != 0;
        let start = match negative {
            true => i128::from(first & 0x3f) - 0x40,
            false => i128::from(first & 0x3f),
        };
        let value = rest.iter().try_fold(start, |value, byte| {
            value.checked_mul(256)?.checked_add(i128::from(*byte))
        })?;
        return i64::try_from(value).ok();
    }
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_padding(byte));
    let digits = &field[start.unwrap_or(field.len())..];
    let end = digits.iter().position(is_padding).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit.into())
    })
}

/// Decimal digits.
fn number_of(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction, before 1970 too.
fn time_of(text: &[u8]) -> Option<(i64, i64)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let point = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match point {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(number_of(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut digits = fraction.iter().copied().chain(std::iter::repeat(b'0'));
    let nanos = (0..9).fold(0, |nanos, _| {
        nanos * 10 + i64::from(digits.next().unwrap_or(b'0') - b'0')
    });
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn add_parts(parts: &mut Vec<(u64, u64)>, bytes: &[u8]) -> io::Result<()> {
    let number = |field: &[u8]| {
        let value = parse_number(field).and_then(|value| u64::try_from(value).ok());
        value.ok_or_else(|| bad("a sparse file whose parts are no numbers"))
    };
    for part in bytes.chunks_exact(24) {
        if part[0] == 0 {
            break;
        }
        let (offset, length) = part.split_at(12);
        parts.push((number(offset)?, number(length)?));
    }
    Ok(())
}

fn until_zero(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flag: u8, name: &str, size: u64) -> [u8; BLOCK] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(flag));
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_cksum();
        *header.as_bytes()
    }

    fn padded(content: &[u8]) -> Vec<u8> {
        let mut bytes = content.to_vec();
        bytes.resize(content.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn pax(records: &[(&str, &str)]) -> Vec<u8> {
        let mut content = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut length = rest.len() + 1;
            while length != length.to_string().len() + rest.len() {
                length = length.to_string().len() + rest.len();
            }
            content.push_str(&format!("{length}{rest}"));
        }
        let size = content.len() as u64;
        [&header(b'x', "pax", size)[..], &padded(content.as_bytes())].concat()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
        let mut archive = Archive::new(bytes);
        let mut entries = Vec::new();
        while let Some(entry) = archive.next()? {
            let mut content = Vec::new();
            archive.read_to_end(&mut content)?;
            entries.push((entry, content));
        }
        Ok(entries)
    }

    #[test]
    fn what_our_own_writer_writes() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("{}/file", "a/".repeat(120));
        for name in ["short", &long] {
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o4755);
            header.set_uid(5_000_000);
            header.set_gid(7);
            header.set_mtime(11);
            builder.append_data(&mut header, name, &b"abc"[..]).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        let target = "t/".repeat(100);
        builder.append_link(&mut header, "link", &target).unwrap();
        let entries = read(&builder.into_inner().unwrap()).unwrap();
        let names: Vec<_> = entries.iter().map(|(entry, _)| &entry.path[..]).collect();
        assert_eq!(names, [&b"short"[..], long.as_bytes(), b"link"]);
        assert_eq!(entries[1].1, b"abc");
        let first = &entries[0].0;
        assert_eq!(
            (first.mode, first.user, first.group),
            (0o4755, 5_000_000, 7)
        );
        assert_eq!(first.modified, (11, 0));
        assert_eq!(entries[2].0.link, target.as_bytes());
    }

    #[test]
    fn pax_headers_override() {
        let records = [
            ("path", "long/name"),
            ("size", "3"),
            ("uid", "70000000"),
            ("mtime", "-1.5"),
            ("SCHILY.xattr.user.a", "b=c\nd"),
            ("comment", "x"),
        ];
        // Who believes the header's own size reads the second name as content.
        let mut bytes = pax(&records);
        bytes.extend(header(b'0', "short", 512));
        bytes.extend(padded(b"abc"));
        bytes.extend(header(b'0', "second", 0));
        let entries = read(&bytes).unwrap();
        let (entry, content) = &entries[0];
        assert_eq!(
            (&entry.path[..], &content[..]),
            (&b"long/name"[..], &b"abc"[..])
        );
        assert_eq!((entry.user, entry.group), (70_000_000, 2));
        assert_eq!(entry.modified, (-2, 500_000_000));
        assert_eq!(entry.attributes, [(b"user.a".to_vec(), b"b=c\nd".to_vec())]);
        assert_eq!(entries[1].0.path, b"second");
        assert!(entries[1].0.attributes.is_empty());
    }

    #[test]
    fn what_describes_an_entry_is_bounded() {
        for flag in [b'x', b'g', b'L', b'K'] {
            // 5 GB are said to follow; nobody waits for them.
            let error = read(&header(flag, "n", 5 << 30)).unwrap_err();
            assert!(
                error.to_string().contains("more than 1048576 bytes"),
                "{error}"
            );
        }
        // Nor do many small ones add up.
        let one = pax(&[("SCHILY.xattr.user.a", &"x".repeat(600 << 10))]);
        let error = read(&[one.clone(), one].concat()).unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }

    #[test]
    fn broken_archives_are_errors() {
        let file = |size| header(b'0', "f", size).to_vec();
        let mut wrong = file(0);
        wrong[0] = b'g';
        let bad_pax = |content: &str| {
            [
                header(b'x', "p", content.len() as u64).to_vec(),
                padded(content.as_bytes()),
                file(0),
            ]
            .concat()
        };
        for (bytes, text) in [
            (file(0)[..100].to_vec(), "within a header"),
            (file(1), "within an entry"),
            (file(u64::MAX >> 8), "within an entry"),
            (wrong, "wrong checksum"),
            (vec![b'x'; BLOCK], "not a tar archive"),
            (header(b'V', "f", 0).to_vec(), "unknown type 'V'"),
            (pax(&[("path", "a")]), "before the entry"),
            (bad_pax("9 path=a"), "a pax header that is none"),
            (bad_pax("0 path=a\n"), "a pax header that is none"),
            (
                bad_pax("99999999999999999999 a=b\n"),
                "a pax header that is none",
            ),
            (bad_pax("9 size=x\n"), "size is no number"),
            (bad_pax("9 path=\0\n"), "zero byte"),
            (bad_pax("20 GNU.sparse.map=1\n"), "sparse"),
        ] {
            let error = read(&bytes).unwrap_err().to_string();
            assert!(error.contains(text), "{error}, not {text}");
        }
        assert!(read(b"").unwrap().is_empty());
        assert!(read(&[0; 1024]).unwrap().is_empty());
    }

    #[test]
    fn numbers() {
        let mut large = [0; 12];
        large[0] = 0x80;
        large[8..].copy_from_slice(&[1, 0, 0, 0]);
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"00006x4\0", None),
            (b"777777777777", Some(0o777_777_777_777)),
            (&large, Some(1 << 24)),
            (&[0xff; 12], Some(-1)),
            (&[0xbf; 12], None),
        ] {
            assert_eq!(parse_number(field), want, "{field:?}");
        }
        for (text, want) in [
            ("1", Some((1, 0))),
            ("1.25", Some((1, 250_000_000))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("-1", Some((-1, 0))),
            ("1.x", None),
            ("", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time_of(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn sparse_parts() {
        let mut block = header(b'S', "s", 5);
        let number = |value: u64| format!("{value:011o}\0");
        block[386..398].copy_from_slice(number(1 << 20).as_bytes());
        block[398..410].copy_from_slice(number(5).as_bytes());
        block[483..495].copy_from_slice(number(2 << 20).as_bytes());
        let sum = |block: &mut [u8; BLOCK]| {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        };
        sum(&mut block);
        let entries = read(&[&block[..], &padded(b"hello")].concat()).unwrap();
        let sparse = entries[0].0.sparse.clone().unwrap();
        assert_eq!((sparse.parts, sparse.length), (vec![(1 << 20, 5)], 2 << 20));
        assert_eq!(entries[0].1, b"hello");
        block[483..495].copy_from_slice(number(10).as_bytes());
        sum(&mut block);
        assert!(read(&[&block[..], &padded(b"hello")].concat()).is_err());
    }
}
