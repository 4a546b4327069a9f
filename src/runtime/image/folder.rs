//! A folder of archives whose images are imported when the daemon starts.
//!
//! Always true: an archive that was imported is not read again while its images are here; one that
//! cannot be imported does not keep the others out.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Error, Images, blocking};

const MOST_ARCHIVES: usize = 1000;
/// Entries of the folder that are looked at.
const MOST_ENTRIES: usize = 10_000;
const ENDINGS: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst"];
const RECORD: &str = "imported.json";
const MAX_RECORD_BYTES: u64 = 4 << 20;

/// What came of one archive.
#[derive(Debug)]
pub enum Came {
    /// Names of its images, or ids of those that have none.
    Imported(Vec<String>),
    /// It was imported before, and its images are here.
    Known,
    Failed(Error),
}

/// Archives that were imported: by path.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    archives: BTreeMap<PathBuf, Seen>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    stamp: Stamp,
    images: Vec<String>,
}

/// Another one: the file is another, or has other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// The archives of a folder, by name; an error where there is no such folder. Blocking.
fn archives(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Io {
        action: "read the folder of images",
        path: folder.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for (number, entry) in fs::read_dir(folder).map_err(failed)?.enumerate() {
        let path = entry.map_err(failed)?.path();
        if is_archive(&path) {
            found.push(path);
        }
        if found.len() > MOST_ARCHIVES || number > MOST_ENTRIES {
            return Err(failed(io::Error::other(format!(
                "more than {MOST_ARCHIVES} archives or {MOST_ENTRIES} entries"
            ))));
        }
    }
    found.sort();
    Ok(found)
}

fn is_archive(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| {
        // What is being copied often has a hidden name.
        !name.starts_with('.') && ENDINGS.iter().any(|ending| name.ends_with(ending))
    })
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let found = fs::metadata(path)?;
    Ok(Stamp {
        inode: found.ino(),
        size: found.len(),
        changed: (found.mtime(), found.mtime_nsec()),
    })
}

impl Images {
    /// Imports what is new in a folder; tells of each archive what came of it.
    pub async fn import_folder(
        &self,
        folder: &Path,
        mut tell: impl FnMut(&Path, Came),
    ) -> Result<(), Error> {
        let (folder, at) = (folder.to_owned(), self.dir().join(RECORD));
        let (archives, mut record) = blocking(move || Ok((archives(&folder)?, read(&at)))).await?;
        record.archives.retain(|path, _| archives.contains(path));
        for path in archives {
            let came = self.import_new(&path, &mut record).await;
            tell(&path, came.unwrap_or_else(Came::Failed));
        }
        let at = self.dir().join(RECORD);
        blocking(move || write(&at, &record)).await
    }

    async fn import_new(&self, path: &Path, record: &mut Record) -> Result<Came, Error> {
        let here = path.to_owned();
        let stamp = blocking(move || {
            stamp(&here).map_err(|source| Error::Io {
                action: "look at",
                path: here.clone(),
                source,
            })
        })
        .await?;
        if let Some(seen) = record.archives.get(path)
            && seen.stamp == stamp
            && !seen.images.is_empty()
            && seen.images.iter().all(|name| self.has(name))
        {
            return Ok(Came::Known);
        }
        record.archives.remove(path);
        let found = self.import(path, None).await?;
        let images: Vec<String> = found
            .into_iter()
            .flat_map(|image| match image.names.is_empty() {
                true => vec![image.id],
                false => image.names,
            })
            .collect();
        let seen = Seen {
            stamp,
            images: images.clone(),
        };
        record.archives.insert(path.to_owned(), seen);
        Ok(Came::Imported(images))
    }

    fn has(&self, name: &str) -> bool {
        matches!(self.find(name), Ok(Some(_)))
    }
}

/// A record that cannot be read costs reading the archives again.
fn read(path: &Path) -> Record {
    let bytes = match fs::metadata(path) {
        Ok(found) if found.len() <= MAX_RECORD_BYTES => fs::read(path).unwrap_or_default(),
        _ => return Record::default(),
    };
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn write(path: &Path, record: &Record) -> Result<(), Error> {
    let failed = |source| Error::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    serde_json::to_writer(&mut file, record).map_err(|error| failed(error.into()))?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_files_are_archives() {
        for (name, want) in [
            ("a.tar", true),
            ("a.tar.gz", true),
            ("a.tgz", true),
            ("a.tar.zst", true),
            (".a.tar", false),
            ("a.tar.part", false),
            ("README", false),
            ("a.zip", false),
        ] {
            assert_eq!(is_archive(&Path::new("/x").join(name)), want, "{name}");
        }
    }

    #[test]
    fn a_folder_of_too_much_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..=MOST_ARCHIVES {
            fs::write(dir.path().join(format!("{number}.tar")), "").unwrap();
        }
        assert!(archives(dir.path()).is_err());
        fs::remove_file(dir.path().join("0.tar")).unwrap();
        assert_eq!(archives(dir.path()).unwrap().len(), MOST_ARCHIVES);
        assert!(archives(&dir.path().join("missing")).is_err());
    }
}
