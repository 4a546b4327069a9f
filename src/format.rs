//! Records on disk that outlive the program which wrote them: versions, and what reading one comes to.
//!
//! A record names the version of its format. The version is raised only when a reader of before would
//! misunderstand the record; what is merely added raises nothing: readers pass over fields that they
//! do not know, and take defaults for those that are missing. So an older program reads what a newer
//! one has written, and the other way round, until a version says otherwise.
//! Always true:
//! - A record that cannot be read is never taken for one that is not there, and never deleted: it is
//!   [set aside](set_aside), and whoever needs it says so.
//! - A shortage (of descriptors, of memory) says nothing of a record: it is waited for.

use std::{
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::backoff::Backoff;

/// The version of records from before they named one.
pub const FIRST: u32 = 1;
/// What is added to the name of a record that was set aside.
pub const ASIDE: &str = "unreadable";

/// How long a shortage is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Why there is no record to work with.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("there is no such record")]
    Absent,
    /// A shortage: it may be read later.
    #[error("read the record")]
    Busy(#[source] io::Error),
    #[error(
        "the record has the format {version}, and this program understands {} to {}",
        understood.start(),
        understood.end()
    )]
    Version {
        version: u32,
        understood: RangeInclusive<u32>,
    },
    #[error("the record is damaged: {0}")]
    Damaged(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::Absent,
            Some(
                libc::EMFILE
                | libc::ENFILE
                | libc::ENOMEM
                | libc::ENOBUFS
                | libc::EAGAIN
                | libc::EINTR
                | libc::EIO,
            ) => Self::Busy(error),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// Whether it is a shortage of the moment.
pub fn is_shortage(error: &io::Error) -> bool {
    let again = io::Error::from_raw_os_error;
    let code = error.raw_os_error();
    code.is_some_and(|code| matches!(Unreadable::from(again(code)), Unreadable::Busy(_)))
}

#[derive(Deserialize)]
struct Header {
    #[serde(default = "first")]
    version: u32,
}

fn first() -> u32 {
    FIRST
}

/// Reads a record in JSON, if its version is one of those `understood`.
pub fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    understood: RangeInclusive<u32>,
) -> Result<T, Unreadable> {
    let damaged = |error: serde_json::Error| Unreadable::Damaged(error.to_string());
    let Header { version } = serde_json::from_slice(bytes).map_err(damaged)?;
    match understood.contains(&version) {
        true => serde_json::from_slice(bytes).map_err(damaged),
        false => Err(Unreadable::Version {
            version,
            understood,
        }),
    }
}

/// Reads until there is no shortage any more, or for a while. Blocking.
pub fn patiently<T>(mut read: impl FnMut() -> Result<T, Unreadable>) -> Result<T, Unreadable> {
    let end = Instant::now() + PATIENCE;
    let mut wait = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        match read() {
            Err(Unreadable::Busy(error)) if Instant::now() < end => {
                tracing::warn!(%error, "a record cannot be read now, will retry");
                std::thread::sleep(wait.next_wait());
            }
            read => return read,
        }
    }
}

/// Where a record lies that was set aside.
pub fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ASIDE);
    name.into()
}

/// Renames a record that cannot be read, so that nothing takes it for one that can.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let to = aside(path);
    std::fs::rename(path, &to)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Record {
        name: String,
        #[serde(default)]
        added: u8,
    }

    #[test]
    fn what_is_read_of_records_of_other_versions() {
        let read = |text: &str| match parse::<Record>(text.as_bytes(), 1..=2) {
            Ok(record) => format!("{} {}", record.name, record.added),
            Err(Unreadable::Version { version, .. }) => format!("version {version}"),
            Err(Unreadable::Damaged(_)) => "damaged".into(),
            Err(other) => panic!("{other}"),
        };
        for (text, want) in [
            (r#"{"name": "a"}"#, "a 0"), // from before versions
            (r#"{"version": 1, "name": "a"}"#, "a 0"),
            (r#"{"version": 2, "name": "a", "added": 3}"#, "a 3"),
            (r#"{"version": 2, "name": "a", "later": [1]}"#, "a 0"), // something newer was added
            (r#"{"version": 3, "name": "a"}"#, "version 3"),
            (r#"{"version": 3}"#, "version 3"), // its other fields are not looked at
            (r#"{"version": 1}"#, "damaged"),
            (r#"{"version": 1, "na"#, "damaged"),
        ] {
            assert_eq!(read(text), want, "{text}");
        }
    }

    #[test]
    fn a_shortage_is_no_absence() {
        let kind = |code| match Unreadable::from(io::Error::from_raw_os_error(code)) {
            Unreadable::Absent => "absent",
            Unreadable::Busy(_) => "busy",
            _ => "damaged",
        };
        for (code, want) in [
            (libc::ENOENT, "absent"),
            (libc::EMFILE, "busy"),
            (libc::ENFILE, "busy"),
            (libc::ENOMEM, "busy"),
            (libc::EISDIR, "damaged"),
            (libc::EACCES, "damaged"),
        ] {
            assert_eq!(kind(code), want, "{code}");
        }
        let mut short = 3;
        let read = patiently(|| match short {
            0 => Ok("record"),
            _ => {
                short -= 1;
                Err(io::Error::from_raw_os_error(libc::EMFILE).into())
            }
        });
        assert_eq!(read.ok(), Some("record"));
    }
}
