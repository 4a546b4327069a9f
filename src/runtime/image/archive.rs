//! The files of an image archive, by their names in it: a folder, or a tar that is spread first.
//!
//! Called by `import.rs`. Always true:
//! - No name of a tar ever becomes a path: its files lie numbered in a scratch folder.
//! - Nothing outside the archive is read, also not by a link in it, and no file that is not one.
//! - What is told of a file that is no archive holds no byte of it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path, PathBuf},
};

use nix::fcntl::OFlag;
use tar::Header;

use super::{Error, json::excerpt, layers::decompress};
use crate::runtime::files;

const BLOCK: usize = 512;
const MAX_ENTRIES: usize = 10_000;
/// Of all files of a tar.
const MAX_SPREAD_BYTES: u64 = 256 << 30;
const MAX_NAME_BYTES: u64 = 4096;
/// Of the attributes beside one entry.
const MAX_ATTRIBUTE_BYTES: u64 = 64 << 10;
const MAX_LINKS: usize = 8;

/// An archive whose files can be asked for by name.
pub struct Archive {
    what: String,
    files: Files,
}

enum Files {
    Folder(PathBuf),
    /// Names of a tar, and the folder of its numbered files.
    Spread {
        names: HashMap<String, Found>,
        folder: tempfile::TempDir,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    File(usize),
    /// To a name, from the archive's top.
    Link(String),
}

impl Archive {
    /// Opens a folder or a tar, which is spread into `scratch`. Blocking.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, Error> {
        let what = path.display().to_string();
        if path.is_dir() {
            let files = Files::Folder(path.to_owned());
            return Ok(Self { what, files });
        }
        let failed = |action, source| Error::Io {
            action,
            path: path.to_owned(),
            source,
        };
        // A pipe would be waited for, before anybody could see that it is one.
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(|source| failed("open", source))?;
        let malformed = |reason: String| Error::Malformed {
            what: what.clone(),
            reason,
        };
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return Err(malformed("neither a file nor a folder".to_owned()));
        }
        let folder = tempfile::Builder::new()
            .prefix("import.")
            .tempdir_in(scratch)
            .map_err(|source| failed("create a folder for", source))?;
        let names = decompress(file)
            .map_err(|_| Trouble::NoArchive)
            .and_then(|stream| spread(stream, folder.path()))
            .map_err(|trouble| malformed(trouble.to_string()))?;
        let files = Files::Spread { names, folder };
        Ok(Self { what, files })
    }

    pub fn what(&self) -> &str {
        &self.what
    }

    pub fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::Malformed {
            what: self.what.clone(),
            reason: reason.into(),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// Where the content of a file of the archive lies.
    pub fn find(&self, name: &str) -> Result<PathBuf, Error> {
        let told = || excerpt(name, 200);
        let missing = || self.malformed(format!("{:?} is missing", told()));
        let outside = || self.malformed(format!("{:?} lies outside the archive", told()));
        let plain = plain(name).ok_or_else(outside)?;
        match &self.files {
            Files::Folder(top) => {
                let real = top.join(&plain).canonicalize().map_err(|_| missing())?;
                let top = top.canonicalize().map_err(|_| missing())?;
                match real.starts_with(&top) {
                    true => Ok(real),
                    false => Err(outside()),
                }
            }
            Files::Spread { names, folder } => {
                let mut at = plain;
                for _ in 0..=MAX_LINKS {
                    match names.get(&at) {
                        Some(Found::File(number)) => {
                            return Ok(folder.path().join(number.to_string()));
                        }
                        Some(Found::Link(to)) => at.clone_from(to),
                        None => return Err(missing()),
                    }
                }
                Err(self.malformed(format!("{:?} is a link to a link to a link", told())))
            }
        }
    }

    /// A small file, whole.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let path = self.find(name)?;
        files::read_at_most(&path, limit)
            .map_err(|error| self.malformed(format!("{:?}: {error}", excerpt(name, 200))))
    }

    /// A file of any size, and the size.
    pub fn content(&self, name: &str) -> Result<(File, u64), Error> {
        let path = self.find(name)?;
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let opened = File::options().read(true).custom_flags(flags).open(&path);
        let opened = opened.and_then(|file| {
            let found = file.metadata()?;
            match found.is_file() {
                true => Ok((file, found.len())),
                false => Err(io::Error::other("not a regular file")),
            }
        });
        opened.map_err(|error| self.malformed(format!("{:?}: {error}", excerpt(name, 200))))
    }
}

/// The name without `.` parts; `None` if it leads out.
fn plain(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// Where a symbolic link of the entry `name` leads, from the top; `None` if out.
fn resolve(name: &str, to: &str) -> Option<String> {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in Path::new(to).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// Why a stream is no archive. Tells nothing of its content.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("not an image archive")]
    NoArchive,
    #[error("the archive is damaged")]
    Damaged,
    #[error("the archive ends early")]
    Short,
    #[error("the archive has more than {MAX_ENTRIES} entries")]
    Entries,
    #[error("the archive has more than {MAX_SPREAD_BYTES} bytes")]
    Bytes,
    #[error("the archive has a name or attributes that are too long")]
    Name,
    #[error("unpack the archive: {0}")]
    Write(io::Error),
}

/// Writes the files of a tar into `folder`, numbered; which name is which.
fn spread(mut stream: impl Read, folder: &Path) -> Result<HashMap<String, Found>, Trouble> {
    let mut names = HashMap::new();
    let (mut number, mut left) = (0, MAX_SPREAD_BYTES);
    // What the entries before one say about it.
    let mut aside = Aside::default();
    loop {
        let Some(header) = header(&mut stream, number == 0)? else {
            return Ok(names);
        };
        number += 1;
        if number > MAX_ENTRIES {
            return Err(Trouble::Entries);
        }
        let kind = header.entry_type();
        let size = header.entry_size().map_err(|_| Trouble::Damaged)?;
        if kind.is_gnu_longname() || kind.is_gnu_longlink() {
            let text = small(&mut stream, size, MAX_NAME_BYTES)?;
            let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            let text = String::from_utf8(text.to_vec()).map_err(|_| Trouble::Damaged)?;
            match kind.is_gnu_longname() {
                true => aside.name = Some(text),
                false => aside.link = Some(text),
            }
            continue;
        }
        if kind.is_pax_local_extensions() {
            aside.read(&small(&mut stream, size, MAX_ATTRIBUTE_BYTES)?)?;
            continue;
        }
        let said = std::mem::take(&mut aside);
        let size = said.size.unwrap_or(size);
        let own = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let name = said.name.or_else(|| own(&header.path_bytes()));
        let name = name.as_deref().and_then(plain);
        let link = || {
            let own = || own(&header.link_name_bytes()?);
            said.link.or_else(own)
        };
        let found = match name {
            Some(name) if kind.is_file() || kind.is_contiguous() => {
                left = left.checked_sub(size).ok_or(Trouble::Bytes)?;
                let path = folder.join(number.to_string());
                let mut file = File::create_new(path).map_err(Trouble::Write)?;
                copy(&mut stream, size, &mut file)?;
                skip(&mut stream, padding(size))?;
                Some((name, Found::File(number)))
            }
            Some(name) if kind.is_symlink() || kind.is_hard_link() => {
                skip(&mut stream, size + padding(size))?;
                let to = link().and_then(|to| match kind.is_symlink() {
                    true => resolve(&name, &to),
                    false => plain(&to),
                });
                to.map(|to| (name, Found::Link(to)))
            }
            // Folders, and what has no place in such an archive.
            _ => {
                left = left.checked_sub(size).ok_or(Trouble::Bytes)?;
                skip(&mut stream, size + padding(size))?;
                None
            }
        };
        names.extend(found);
    }
}

/// What an entry's attributes say in place of its header.
#[derive(Default)]
struct Aside {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Aside {
    /// Records of `<length> <key>=<value>\n`.
    fn read(&mut self, records: &[u8]) -> Result<(), Trouble> {
        for record in tar::PaxExtensions::new(records) {
            let record = record.map_err(|_| Trouble::Damaged)?;
            let (Ok(key), Ok(value)) = (record.key(), record.value()) else {
                continue;
            };
            match key {
                "path" => self.name = Some(value.to_owned()),
                "linkpath" => self.link = Some(value.to_owned()),
                "size" => self.size = Some(value.parse().map_err(|_| Trouble::Damaged)?),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The next entry's; `None` at the archive's end.
fn header(stream: &mut impl Read, first: bool) -> Result<Option<Header>, Trouble> {
    let mut header = Header::new_old();
    let mut filled = 0;
    while filled < BLOCK {
        match stream.read(&mut header.as_mut_bytes()[filled..]) {
            Ok(0) if first => return Err(Trouble::NoArchive),
            // Some writers leave the end mark out.
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(Trouble::Short),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if first => return Err(Trouble::NoArchive),
            Err(error) => return Err(of_reading(&error)),
        }
    }
    let bytes = header.as_bytes();
    if bytes.iter().all(|byte| *byte == 0) {
        return match first {
            true => Err(Trouble::NoArchive),
            false => Ok(None),
        };
    }
    // The field of the sum itself counts as blanks.
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u32::from(*byte)
            }
        })
        .sum();
    match header.cksum() {
        Ok(found) if found == sum => Ok(Some(header)),
        _ if first => Err(Trouble::NoArchive),
        _ => Err(Trouble::Damaged),
    }
}

fn small(stream: &mut impl Read, size: u64, most: u64) -> Result<Vec<u8>, Trouble> {
    if size > most {
        return Err(Trouble::Name);
    }
    let mut bytes = Vec::new();
    copy(stream, size, &mut bytes)?;
    skip(stream, padding(size))?;
    Ok(bytes)
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn skip(stream: &mut impl Read, count: u64) -> Result<(), Trouble> {
    copy(stream, count, &mut io::sink())
}

fn copy(stream: &mut impl Read, count: u64, to: &mut impl io::Write) -> Result<(), Trouble> {
    let mut left = count;
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let room = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        match stream.read(&mut buffer[..room]) {
            Ok(0) => return Err(Trouble::Short),
            Ok(read) => {
                to.write_all(&buffer[..read]).map_err(Trouble::Write)?;
                left -= read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(of_reading(&error)),
        }
    }
    Ok(())
}

fn of_reading(error: &io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Trouble::Short,
        _ => Trouble::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::CString, time::Duration};

    use tar::EntryType;

    use super::*;

    fn entry(kind: EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        let mut bytes = [header.as_bytes(), content].concat();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn opened(content: &[u8]) -> (tempfile::TempDir, Result<Archive, Error>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        std::fs::write(&path, content).unwrap();
        let archive = Archive::open(&path, dir.path());
        (dir, archive)
    }

    fn text(archive: &Archive, name: &str) -> String {
        match archive.read(name, 100) {
            Ok(bytes) => String::from_utf8(bytes).unwrap(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_lead_to_files_of_the_archive_alone() {
        let long = "d/".repeat(100) + "long";
        let pax_path = "e/".repeat(100) + "pax";
        let record = |key: &str, value: &str| {
            let rest = format!(" {key}={value}\n");
            format!("{}{rest}", rest.len() + 3)
        };
        let pax = record("path", &pax_path);
        let bytes = [
            entry(EntryType::Directory, "d", "", b""),
            entry(EntryType::Regular, "./a", "", b"content"),
            entry(EntryType::Symlink, "d/link", "../a", b""),
            entry(EntryType::Link, "d/hard", "a", b""),
            entry(EntryType::Symlink, "d/out", "../../a", b""),
            entry(EntryType::Symlink, "d/abs", "/etc/passwd", b""),
            entry(EntryType::Symlink, "loop", "loop", b""),
            entry(EntryType::Regular, "../out", "", b"outside"),
            entry(EntryType::Regular, "/abs", "", b"outside"),
            entry(EntryType::Char, "dev", "", b""),
            entry(EntryType::GNULongName, "x", "", long.as_bytes()),
            entry(EntryType::Regular, "short", "", b"long"),
            entry(EntryType::XHeader, "x", "", pax.as_bytes()),
            entry(EntryType::Regular, "short", "", b"pax"),
            vec![0; 2 * BLOCK],
        ]
        .concat();
        let (_dir, archive) = opened(&bytes);
        let archive = archive.unwrap();
        for (name, want) in [
            ("a", "content"),
            ("./d/../a", "lies outside"),
            ("d/./link", "content"),
            ("d/hard", "content"),
            ("d/out", "is missing"),
            ("d/abs", "is missing"),
            ("loop", "a link to a link"),
            ("../out", "lies outside"),
            ("out", "is missing"),
            ("/abs", "lies outside"),
            ("dev", "is missing"),
            ("d", "is missing"),
            ("short", "is missing"),
            (&long, "long"),
            (&pax_path, "pax"),
        ] {
            let got = text(&archive, name);
            assert!(got.contains(want), "{name}: {got}");
        }
    }

    #[test]
    fn what_is_no_archive_shows_nothing_of_itself() {
        let secret = "root:x:0:0:secret:/root:/bin/sh\n".repeat(40);
        let good = entry(EntryType::Regular, "a", "", &[7; 2000]);
        let endless = {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::GNULongName);
            header.set_size(10 << 30);
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        let huge = {
            let mut header = Header::new_gnu();
            header.set_size(MAX_SPREAD_BYTES + 1);
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        let many = entry(EntryType::Regular, "a", "", b"").repeat(MAX_ENTRIES + 1);
        for (content, want) in [
            (secret.as_bytes(), "not an image archive"),
            (b"", "not an image archive"),
            (b"\x1f\x8bsecret", "not an image archive"),
            (&[0; 4096], "not an image archive"),
            (&good[..1000], "ends early"),
            (&[&good[..], secret.as_bytes()].concat(), "is damaged"),
            (&endless, "too long"),
            (&huge, "more than 274877906944 bytes"),
            (&many, "more than 10000 entries"),
        ] {
            let (_dir, archive) = opened(content);
            let error = archive.err().unwrap().to_string();
            assert!(error.contains(want), "{want}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn pipes_and_devices_are_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let name = CString::new(pipe.to_str().unwrap()).unwrap();
        nix::unistd::mkfifo(name.as_c_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for path in [&pipe, Path::new("/dev/zero")] {
                let error = Archive::open(path, dir.path()).err().unwrap();
                sender.send(error.to_string()).unwrap();
            }
        });
        for _ in 0..2 {
            let error = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(error.contains("neither a file nor a folder"), "{error}");
        }
    }
}
