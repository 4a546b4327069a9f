//! What of the node's network outlives the daemon: addresses by pod, settings as they were found.
//!
//! Owns the state folder. A record of an address is a file named so that holds the owner, and nothing
//! else, since every version reads it; `format.json` beside them has the version of all. IPv6 addresses have
//! a folder of their own: programs of before know none, and would set them aside. A record is written before
//! the address is used and is whole or absent (written aside, then renamed). It is not forced to disk: whoever loses it to a power cut has
//! lost the pods too.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::{
    addresses::family::{Family, OfFamily},
    format::{self, Unreadable},
    runtime::files,
};

const SETTINGS: &str = "settings";
const FORMAT: &str = "format.json";
/// Raised with every change that an older reader would misunderstand; see [`crate::format`]. Folders
/// from before there was one are of the first.
const VERSION: u32 = 1;
const OLDEST: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Format {
    version: u32,
}

#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    pub fn open(folder: &Path, families: impl Iterator<Item = Family>) -> Result<Self, Error> {
        for family in families {
            let addresses = folder.join(addresses(family));
            fs::create_dir_all(&addresses).map_err(failed("create", &addresses))?;
        }
        check_format(&folder.join(FORMAT))?;
        Ok(Self {
            folder: folder.into(),
        })
    }

    /// Forgets all addresses: for `reset`, whatever wrote them.
    pub fn forget(folder: &Path) -> Result<(), Error> {
        remove(&folder.join(FORMAT))?;
        for family in Family::ALL {
            let addresses = folder.join(addresses(family));
            files::remove_tree(&addresses).map_err(failed("remove", &addresses))?;
        }
        Ok(())
    }

    /// Owner and address of every record of the family. What is no record is set aside; one that cannot be read is an
    /// error: its address would be given out a second time.
    pub fn addresses(&self, family: Family) -> Result<Vec<(String, IpAddr)>, Error> {
        let folder = self.folder.join(addresses(family));
        let mut records = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed("read", &folder))? {
            let path = entry.map_err(failed("read", &folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let address = name.and_then(|name| name.parse::<IpAddr>().ok());
            let address = address.filter(|address| address.family() == family);
            let extension = path.extension().and_then(|extension| extension.to_str());
            match address {
                Some(address) => {
                    let read = format::patiently(|| Ok(fs::read_to_string(&path)?));
                    match read.map_err(|error| failed("read", &path)(io::Error::other(error)))? {
                        owner if owner.is_empty() => set_aside(&path)?,
                        owner => records.push((owner, address)),
                    }
                }
                // Cut short while it was written.
                None if extension == Some("new") => remove(&path)?,
                None if extension == Some(format::ASIDE) => {}
                None => set_aside(&path)?,
            }
        }
        Ok(records)
    }

    /// The one that was given out last.
    pub fn last_address(&self, family: Family) -> Option<IpAddr> {
        let text = fs::read_to_string(self.folder.join(last(family))).ok()?;
        text.parse().ok()
    }

    pub fn put(&self, owner: &str, address: IpAddr) -> Result<(), Error> {
        write(&self.record(address), owner)?;
        let last = self.folder.join(last(address.family()));
        write(&last, &address.to_string())
    }

    pub fn delete(&self, address: IpAddr) -> Result<(), Error> {
        remove(&self.record(address))
    }

    fn record(&self, address: IpAddr) -> PathBuf {
        let folder = self.folder.join(addresses(address.family()));
        folder.join(address.to_string())
    }

    /// Kernel settings as they were before us, by name. The first value recorded stays.
    pub fn settings(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.folder.join(SETTINGS)).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    pub fn record_setting(&self, name: &str, value: &str) -> Result<(), Error> {
        let mut settings = self.settings();
        if settings.iter().any(|(recorded, _)| recorded == name) {
            return Ok(());
        }
        settings.push((name.to_owned(), value.to_owned()));
        let lines: Vec<String> = settings
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        write(&self.folder.join(SETTINGS), &lines.concat())
    }

    pub fn forget_settings(&self) -> Result<(), Error> {
        remove(&self.folder.join(SETTINGS))
    }
}

fn addresses(family: Family) -> &'static str {
    match family {
        Family::V4 => "addresses",
        Family::V6 => "addresses-ipv6",
    }
}

fn last(family: Family) -> &'static str {
    match family {
        Family::V4 => "last-address",
        Family::V6 => "last-address-ipv6",
    }
}

/// Refuses records that this program would misunderstand: their addresses would be given out again.
fn check_format(path: &Path) -> Result<(), Error> {
    let read = || format::parse::<Format>(&fs::read(path)?, OLDEST..=VERSION);
    match format::patiently(read) {
        Ok(Format { version: VERSION }) => return Ok(()),
        Ok(_) | Err(Unreadable::Absent) => {}
        Err(Unreadable::Damaged(_)) => set_aside(path)?,
        Err(source) => {
            return Err(Error::Records {
                path: path.to_owned(),
                source,
            });
        }
    }
    let format = serde_json::json!(Format { version: VERSION });
    write(path, &format.to_string())?;
    // Once: a file that a power cut leaves empty would say nothing.
    let file = fs::File::open(path).and_then(|file| file.sync_all());
    file.map_err(failed("write", path))
}

fn set_aside(path: &Path) -> Result<(), Error> {
    tracing::warn!(path = %path.display(), "no record of ours, set aside");
    format::set_aside(path)
        .map(drop)
        .map_err(failed("set aside", path))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    fs::write(&aside, text).map_err(failed("write", &aside))?;
    fs::rename(&aside, path).map_err(failed("replace", path))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}
