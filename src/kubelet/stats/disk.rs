//! How much of a disk folders take. A walk is remembered for a minute: it costs a look at every file.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::runtime::files;
/// What one folder and all below it take.
pub use crate::runtime::files::Usage as Taken;

const KEEP: Duration = Duration::from_secs(60);

/// A filesystem as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Space {
    /// Of the filesystem that `path` lies on.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = nix::sys::statvfs::statvfs(path)?;
        let unit = found.fragment_size();
        Ok(Self {
            capacity_bytes: found.blocks() * unit,
            available_bytes: found.blocks_available() * unit,
            used_bytes: found.blocks().saturating_sub(found.blocks_free()) * unit,
            inodes: found.files(),
            inodes_free: found.files_free(),
        })
    }
}

/// Walks folders, and remembers what it found.
#[derive(Debug, Default)]
pub struct Walks {
    known: Mutex<HashMap<PathBuf, (Instant, Taken)>>,
}

impl Walks {
    /// Blocks while it walks. A folder that is gone takes nothing.
    pub fn taken(&self, path: &Path) -> Taken {
        let mut known = self.lock();
        known.retain(|_, (at, _)| at.elapsed() < KEEP);
        if let Some((_, taken)) = known.get(path) {
            return *taken;
        }
        drop(known);
        let taken = files::measure_tree(path);
        self.lock().insert(path.into(), (Instant::now(), taken));
        taken
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Instant, Taken)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn links_count_once_and_walks_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, vec![1; 100_000]).unwrap();
        fs::hard_link(&file, dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("c")).unwrap();
        let walks = Walks::default();
        let taken = walks.taken(dir.path());
        assert_eq!(taken.inodes, 3); // the folder, the file, the link
        assert!((100_000..200_000).contains(&taken.bytes), "{taken:?}");
        fs::remove_file(&file).unwrap();
        assert_eq!(walks.taken(dir.path()), taken);
        assert_eq!(walks.taken(&dir.path().join("none")), Taken::default());
    }
}
