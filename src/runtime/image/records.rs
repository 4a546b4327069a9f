//! What images there are: one small JSON file each, written when all else is in place.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::{
    format::{self, Unreadable},
    runtime::files,
};

/// A configuration is at most 8 MiB, and is text in text here.
const LONGEST: u64 = 64 << 20;

/// Raised with every change that an older reader would misunderstand; see [`crate::format`].
const VERSION: u32 = 1;
const OLDEST: u32 = 1;

/// One image as recorded on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub names: Vec<String>,
    pub digests: Vec<String>,
    pub size_bytes: u64,
    /// The configuration, as much as is kept of it.
    pub config: String,
    pub diff_ids: Vec<String>,
}

#[derive(Serialize)]
struct Versioned<'a> {
    version: u32,
    #[serde(flatten)]
    record: &'a Record,
}

/// The folder of records.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    pub fn open(images_dir: &Path) -> Result<Self, Error> {
        let dir = images_dir.join("records");
        std::fs::create_dir_all(&dir).map_err(|source| Error::Io {
            action: "create",
            path: dir.clone(),
            source,
        })?;
        Ok(Self { dir })
    }

    /// Every record. One that is not understood is reported and set aside: its image is pulled again.
    pub fn load(&self) -> Result<Vec<Record>, Error> {
        let io = |source| Error::Io {
            action: "read",
            path: self.dir.clone(),
            source,
        };
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = || {
                let bytes = files::read_at_most(&path, LONGEST)?;
                format::parse::<Record>(&bytes, OLDEST..=VERSION)
            };
            match format::patiently(read) {
                Ok(record) => records.push(record),
                Err(Unreadable::Absent) => {}
                Err(Unreadable::Busy(error)) => return Err(io(error)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "an image's record is set aside");
                    format::set_aside(&path).map_err(io)?;
                }
            }
        }
        Ok(records)
    }

    pub fn save(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.id);
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            let versioned = Versioned {
                version: VERSION,
                record,
            };
            serde_json::to_writer(&mut file, &versioned)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            match std::fs::remove_file(format::aside(&path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::fs::File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| Error::Io {
            action: "write",
            path: path.clone(),
            source,
        })
    }

    /// Keeps the record of an image that is damaged for whoever looks into it, until the image is here
    /// again.
    pub fn set_aside(&self, id: &str) -> Result<(), Error> {
        let path = self.path(id);
        let renamed = format::set_aside(&path).map(drop);
        renamed.map_err(|source| Error::Io {
            action: "set aside",
            path,
            source,
        })
    }

    pub fn delete(&self, id: &str) -> Result<(), Error> {
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Io {
                action: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir
            .join(format!("{}.json", id.trim_start_matches("sha256:")))
    }
}
