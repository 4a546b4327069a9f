//! Where labs lie on disk, and who may change them.
//!
//! `FOLDER/NAME/` holds the record (`lab.json`), the lock, the kubeconfig, `holders/` with a file for each host whose
//! lock says that the host lives, and for each machine a folder that is its `--root`.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    Error, Name, plan,
    record::{Record, Stage},
};
use crate::runtime::files;

/// Where labs lie unless one says otherwise.
const USUAL: &str = "/var/lib/vetch-labs";
/// Whoever changes a lab is waited for so long.
const LOCK_WITHIN: Duration = Duration::from_secs(10);
/// How often a folder is made that others remove at the same time.
const TRIES: usize = 5;

/// The folder of all labs.
#[derive(Clone, Debug)]
pub struct Labs {
    folder: PathBuf,
    /// How the user would spell it again, for messages.
    flag: String,
}

impl Labs {
    /// `root`: where instead of the usual place.
    pub fn new(root: Option<&Path>) -> Result<Self, Error> {
        let Some(root) = root else {
            return Ok(Self {
                folder: USUAL.into(),
                flag: String::new(),
            });
        };
        let folder = std::path::absolute(root).map_err(Error::io("find", root))?;
        let flag = format!(" --root {}", root.display());
        Ok(Self { folder, flag })
    }

    /// The flags that name a lab again, for messages.
    pub fn flags(&self, name: &Name) -> String {
        match name.to_string().as_str() {
            plan::USUAL_NAME => self.flag.clone(),
            name => format!(" --name {name}{}", self.flag),
        }
    }

    fn lab(&self, name: &Name) -> Lab {
        Lab {
            dir: self.folder.join(name.to_string()),
            labs: self.folder.clone(),
            flags: self.flags(name),
            name: name.clone(),
        }
    }

    /// All of them, by name. What lies there and is no lab's folder is passed over.
    pub fn all(&self) -> Result<Vec<Lab>, Error> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("list", &self.folder))?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut names: Vec<Name> = names.collect();
        names.sort();
        Ok(names.iter().map(|name| self.lab(name)).collect())
    }

    /// One to look at.
    pub fn find(&self, name: &Name) -> Result<Lab, Error> {
        let lab = self.lab(name);
        match lab.dir.is_dir() {
            true => Ok(lab),
            false => Err(lab.missing()),
        }
    }

    /// One to change.
    pub fn open(&self, name: &Name) -> Result<Locked, Error> {
        self.find(name)?.lock()
    }

    /// A new one, in a folder of its own.
    pub fn create(&self, name: &Name) -> Result<Locked, Error> {
        let lab = self.lab(name);
        let root = lab.dir.join("node000");
        if let Some(over) = plan::too_long(&root) {
            return Err(Error::LongPath { path: root, over });
        }
        let mut folder = DirBuilder::new();
        folder.mode(0o700);
        for tried in 1.. {
            // The last lab takes the folder of all with it.
            folder.recursive(true);
            let all = folder.create(&self.folder);
            all.map_err(Error::io("create", &self.folder))?;
            match folder.recursive(false).create(&lab.dir) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let (name, flags) = (lab.name, lab.flags);
                    return Err(Error::Exists { name, flags });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && tried < TRIES => {}
                Err(error) => return Err(Error::io("create", lab.dir)(error)),
            }
        }
        lab.lock()
    }

    /// Locked while a range of addresses is chosen: nobody else chooses meanwhile.
    pub fn choosing(&self) -> Result<Flock<File>, Error> {
        let folder = File::open(&self.folder).map_err(Error::io("open", &self.folder))?;
        let locked = Flock::lock(folder, FlockArg::LockExclusive);
        locked.map_err(|(_, errno)| Error::io("lock", &self.folder)(errno.into()))
    }
}

/// One lab's files.
#[derive(Clone, Debug)]
pub struct Lab {
    pub name: Name,
    pub dir: PathBuf,
    /// The folder of all.
    labs: PathBuf,
    /// That name it again, for messages.
    pub flags: String,
}

impl Lab {
    pub fn missing(&self) -> Error {
        Error::NoLab {
            name: self.name.clone(),
            flags: self.flags.clone(),
        }
    }

    pub fn record_path(&self) -> PathBuf {
        self.dir.join("lab.json")
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The `--root` of a host.
    pub fn root(&self, host: &str) -> PathBuf {
        self.dir.join(host)
    }

    pub fn holders(&self) -> PathBuf {
        self.dir.join("holders")
    }

    /// Whose lock says that the host lives.
    pub fn holder(&self, host: &str) -> PathBuf {
        self.holders().join(host)
    }

    /// Of a lab that is whole.
    pub fn made(&self) -> Result<Record, Error> {
        match Record::load(&self.record_path())? {
            Some(record) if record.stage == Stage::Made => Ok(record),
            Some(_) => Err(Error::HalfMade {
                name: self.name.clone(),
                flags: self.flags.clone(),
            }),
            None if self.dir.is_dir() => Err(Error::HalfMade {
                name: self.name.clone(),
                flags: self.flags.clone(),
            }),
            None => Err(self.missing()),
        }
    }

    /// Waits for whoever changes it now, but not for ever.
    fn lock(self) -> Result<Locked, Error> {
        let path = self.lock_path();
        let mut options = File::options();
        let options = options.create(true).truncate(false).write(true).mode(0o600);
        let file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.missing()),
            file => file.map_err(Error::io("open", &path))?,
        };
        let (said, answer) = mpsc::channel();
        // A lock has no deadline of its own. Past ours, the thread ends with this program.
        std::thread::spawn(move || {
            let _ = said.send(Flock::lock(file, FlockArg::LockExclusive));
        });
        let lock = match answer.recv_timeout(LOCK_WITHIN) {
            Ok(Ok(lock)) => lock,
            Ok(Err((_, errno))) => return Err(Error::io("lock", path)(errno.into())),
            Err(_) => return Err(Error::Busy(self.name)),
        };
        let own = lock.metadata().map_err(Error::io("look at", &path))?;
        match fs::metadata(&path) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => Ok(Locked {
                lab: self,
                _lock: lock,
            }),
            // It was removed while we waited.
            _ => Err(self.missing()),
        }
    }
}

/// A lab that nobody else changes meanwhile.
#[derive(Debug)]
pub struct Locked {
    pub lab: Lab,
    _lock: Flock<File>,
}

impl Locked {
    pub fn save(&self, record: &Record) -> Result<(), Error> {
        record.save(&self.lab.record_path())
    }

    /// Removes all files, the record after all that it tells of.
    pub fn remove_files(&self) -> Result<(), Error> {
        let dir = &self.lab.dir;
        let entries = fs::read_dir(dir).map_err(Error::io("list", dir))?;
        let last = [self.lab.record_path(), self.lab.lock_path()];
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let paths: Vec<PathBuf> = paths.filter(|path| !last.contains(path)).collect();
        for path in paths.iter().chain(&last).chain([dir]) {
            files::remove_tree(path).map_err(Error::io("remove", path))?;
        }
        // Others' labs keep it.
        let _ = fs::remove_dir(&self.lab.labs);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_made_once_and_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("labs");
        let labs = Labs::new(Some(&folder)).unwrap();
        let name: Name = "a".parse().unwrap();
        assert!(matches!(labs.open(&name), Err(Error::NoLab { .. })));
        let lab = labs.create(&name).unwrap();
        let again = labs.create(&name).unwrap_err().to_string();
        let flags = format!("--name a --root {}", folder.display());
        assert!(
            again.contains(&format!("vetch lab down {flags}")),
            "{again}"
        );
        assert!(matches!(lab.lab.made(), Err(Error::HalfMade { .. })));
        fs::create_dir(lab.lab.holders()).unwrap();
        fs::write(lab.lab.holder("switch"), "").unwrap();

        let waiting = std::thread::spawn({
            let (labs, name) = (labs.clone(), name.clone());
            move || labs.open(&name).map(drop)
        });
        lab.remove_files().unwrap();
        assert!(!folder.exists());
        drop(lab);
        // It came too late, or in between, and then it has the lock of a lab that is gone.
        assert!(matches!(waiting.join().unwrap(), Err(Error::NoLab { .. })));
        assert!(labs.all().unwrap().is_empty());
    }
}
