//! The entries of one open folder, a few at a time, from any place in the order.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use nix::unistd::{Whence, lseek};

use crate::runtime::sys;

/// The most at once: some hundred entries.
const BUFFER: usize = 32 << 10;
/// At first: most folders have few entries, and what a folder gives that was opened again may have to
/// be read once more.
const FIRST: usize = 2 << 10;
/// Before the name: inode, place, length of the entry, kind.
const HEAD: usize = 19;

/// Where a listing goes on: a value of the file system's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place(i64);

/// What the file system says of an entry without looking at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    Other,
    /// Not every file system says.
    Unknown,
}

#[derive(Debug)]
pub struct Found {
    pub name: OsString,
    pub kind: Kind,
}

#[derive(Debug)]
pub struct Listing {
    folder: OwnedFd,
    /// As long as what is read at once; grows to [`BUFFER`] while folders fill it.
    buffer: Vec<u8>,
    /// How much of it was read last, and how much of that was given out.
    filled: usize,
    at: usize,
    place: Place,
}

impl Listing {
    pub fn new(folder: OwnedFd) -> Self {
        Self {
            folder,
            buffer: Vec::new(),
            filled: 0,
            at: 0,
            place: Place::default(),
        }
    }

    /// Goes on where another listing of the same folder was.
    pub fn resumed(folder: OwnedFd, place: Place) -> io::Result<Self> {
        lseek(&folder, place.0, Whence::SeekSet)?;
        Ok(Self {
            place,
            ..Self::new(folder)
        })
    }

    /// After the last entry that was given out.
    pub fn place(&self) -> Place {
        self.place
    }

    /// From the beginning.
    pub fn rewind(&mut self) -> io::Result<()> {
        lseek(&self.folder, 0, Whence::SeekSet)?;
        (self.filled, self.at, self.place) = (0, 0, Place::default());
        Ok(())
    }

    /// The next entry but `.` and `..`; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Found>> {
        loop {
            if self.at >= self.filled && !self.fill()? {
                return Ok(None);
            }
            let rest = self.buffer.get(self.at..self.filled).unwrap_or_default();
            let Some((found, place, length)) = parse(rest) else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the file system lists a folder wrongly",
                ));
            };
            self.at += length;
            self.place = place;
            if let Some(found) = found {
                return Ok(Some(found));
            }
        }
    }

    fn fill(&mut self) -> io::Result<bool> {
        // An entry takes at most some 280 bytes, so that one that did not fit left less than half.
        if self.filled >= self.buffer.len() / 2 && self.buffer.len() < BUFFER {
            self.buffer.resize((self.buffer.len() * 2).max(FIRST), 0);
        }
        (self.filled, self.at) = (0, 0);
        match sys::getdents(self.folder.as_fd(), &mut self.buffer) {
            // A folder that was removed meanwhile has no entries.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => {
                self.filled = other?;
                Ok(self.filled > 0)
            }
        }
    }
}

impl AsFd for Listing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// One entry at the start of `bytes`: what it is, where the next begins, how long it is. Nothing
/// for the folder itself and its parent.
/// Source: getdents64(2).
fn parse(bytes: &[u8]) -> Option<(Option<Found>, Place, usize)> {
    let place = i64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
    let length = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let kind = match *bytes.get(18)? {
        libc::DT_DIR => Kind::Folder,
        libc::DT_UNKNOWN => Kind::Unknown,
        _ => Kind::Other,
    };
    let name = bytes.get(HEAD..length)?;
    let name = name.split(|byte| *byte == 0).next()?;
    // A name with a slash would be a path: only a broken or hostile file system has one.
    if name.is_empty() || name.contains(&b'/') {
        return None;
    }
    let found = (name != b"." && name != b"..").then(|| Found {
        name: OsStr::from_bytes(name).to_owned(),
        kind,
    });
    Some((found, Place(place), length))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    #[test]
    fn a_listing_goes_on_where_another_was() {
        let dir = tempfile::tempdir().unwrap();
        let all: BTreeSet<OsString> = (0..3000).map(|i| format!("file-{i}").into()).collect();
        for name in &all {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let open = || OwnedFd::from(fs::File::open(dir.path()).unwrap());
        let mut seen = BTreeSet::new();
        let mut place = Place::default();
        'folder: loop {
            let mut listing = Listing::resumed(open(), place).unwrap();
            for _ in 0..100 {
                match listing.next().unwrap() {
                    Some(found) => assert!(seen.insert(found.name), "given twice"),
                    None => break 'folder,
                }
            }
            place = listing.place();
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn broken_entries_are_refused() {
        let entry = |name: &[u8]| {
            let mut bytes = vec![0; 16];
            bytes.extend(((HEAD + name.len()) as u16).to_ne_bytes());
            bytes.push(libc::DT_REG);
            bytes.extend(name);
            bytes
        };
        assert!(matches!(parse(&entry(b"a\0\0")), Some((Some(_), _, 22))));
        assert!(matches!(parse(&entry(b"..\0")), Some((None, _, _))));
        for broken in [
            &entry(b"a/b\0")[..],
            &entry(b"\0"),
            &entry(b"a\0")[..18],
            b"",
        ] {
            assert!(parse(broken).is_none(), "{broken:?}");
        }
    }
}
