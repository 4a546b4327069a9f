//! Folders that a layer has files in, but no entry for: they are as the layers below have them.
//!
//! A layer is unpacked once, for whatever stack of layers it is part of, so such a folder is made
//! plain (root's, 0755), and would show so above a `/tmp` that is open to all. An image that has some
//! gets one more layer on top: nothing but these folders, with the attributes that they should have.
//! Called by `layers.rs`. Layers are not changed any more once they are there, and links in them are
//! not followed.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{UtimensatFlags, utimensat},
        time::TimeSpec,
    },
};

use crate::runtime::files;

/// Of one layer. Sane ones have a handful; what is more stays plain.
pub const MOST: usize = 4096;
/// Of a list on disk.
const LONGEST: u64 = 32 << 20;

const OVERLAY: &str = "trusted.overlay.";
const OPAQUE: &str = "trusted.overlay.opaque";

/// Paths of folders below a layer's root.
pub type Folders = BTreeSet<PathBuf>;

pub fn save(path: &Path, folders: &Folders) -> io::Result<()> {
    let mut text = Vec::new();
    for folder in folders {
        text.extend_from_slice(folder.as_os_str().as_bytes());
        text.push(0);
    }
    fs::write(path, text)
}

/// None of a layer that has no list.
pub fn load(path: &Path) -> io::Result<Folders> {
    let text = match files::read_at_most(path, LONGEST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Folders::new()),
        text => text?,
    };
    let names = text
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    Ok(names.map(|name| OsStr::from_bytes(name).into()).collect())
}

/// Whether a layer hides all that is below it. Of a layer's own folder overlayfs does not see that.
pub fn hides_all(layer: &Path) -> bool {
    xattr::get(layer, OPAQUE).is_ok_and(|mark| mark.is_some())
}

/// A layer and its folders without an entry.
#[derive(Debug)]
pub struct Layer {
    pub dir: PathBuf,
    pub plain: Folders,
}

/// What a layer says of a path. `apart`: it hides what the layers below have in a folder above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing {
        apart: bool,
    },
    Folder {
        apart: bool,
    },
    /// There is none: a whiteout, or something else in its place, or in that of a folder above.
    NoFolder,
}

fn look(layer: &Path, path: &Path) -> io::Result<Said> {
    let (mut at, mut apart) = (layer.to_owned(), false);
    let mut parts = path.iter().peekable();
    while let Some(part) = parts.next() {
        at.push(part);
        let found = match fs::symlink_metadata(&at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Said::Nothing { apart });
            }
            found => found?,
        };
        if !found.is_dir() {
            return Ok(Said::NoFolder);
        }
        let is_above = parts.peek().is_some();
        apart |= is_above && xattr::get(&at, OPAQUE)?.is_some();
    }
    Ok(Said::Folder { apart })
}

/// The uppermost layer that has the folder, and the one whose attributes it should have.
fn sources(layers: &[Layer], path: &Path) -> io::Result<Option<(usize, usize)>> {
    let mut uppermost = None;
    for (number, layer) in layers.iter().enumerate().rev() {
        let apart = match look(&layer.dir, path)? {
            Said::NoFolder => break,
            Said::Nothing { apart } => apart,
            Said::Folder { apart } => {
                let top = *uppermost.get_or_insert(number);
                if !layer.plain.contains(path) {
                    return Ok(Some((top, number)));
                }
                apart
            }
        };
        if apart {
            break;
        }
    }
    Ok(uppermost.map(|top| (top, top)))
}

/// Fills `to`, an empty folder, with the folders that the stack (lowest first) shows plain and should
/// not; false if there are none.
pub fn make(layers: &[Layer], to: &Path) -> io::Result<bool> {
    let mut wanted = Folders::new();
    for path in layers.iter().flat_map(|layer| &layer.plain) {
        if sources(layers, path)?.is_some_and(|(top, right)| top != right) {
            let all = path.ancestors().filter(|one| !one.as_os_str().is_empty());
            wanted.extend(all.map(Path::to_owned));
        }
    }
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    for path in &wanted {
        builder.create(to.join(path))?; // those above come first
    }
    for path in wanted.iter().rev() {
        // Those above it are made too, and must stay what they are.
        if let Some((_, right)) = sources(layers, path)? {
            let from = layers.get(right).map(|layer| layer.dir.join(path));
            copy_attributes(&from.unwrap_or_default(), &to.join(path))?;
        }
    }
    Ok(!wanted.is_empty())
}

fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let found: Metadata = fs::symlink_metadata(from)?;
    lchown(to, Some(found.uid()), Some(found.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(found.mode() & 0o7777))?;
    for name in xattr::list(from)? {
        if !name.to_string_lossy().starts_with(OVERLAY)
            && let Some(value) = xattr::get(from, &name)?
        {
            xattr::set(to, &name, &value)?;
        }
    }
    let time = TimeSpec::new(found.mtime(), found.mtime_nsec());
    let flags = UtimensatFlags::NoFollowSymlink;
    Ok(utimensat(AT_FDCWD, to, &time, &time, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stack {
        root: tempfile::TempDir,
        layers: Vec<Layer>,
    }

    impl Stack {
        /// Of each layer its folders with their modes: 0 for one without an entry, `None` for a
        /// whiteout.
        fn new(layers: &[&[(&str, Option<u32>)]]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let layers = layers.iter().enumerate().map(|(number, folders)| {
                let dir = root.path().join(number.to_string());
                fs::create_dir(&dir).unwrap();
                let mut plain = Folders::new();
                for (path, mode) in *folders {
                    let at = dir.join(path.trim_end_matches('!'));
                    let Some(mode) = mode else {
                        fs::write(at, "in place of a whiteout").unwrap();
                        continue;
                    };
                    fs::create_dir(&at).unwrap();
                    if path.ends_with('!') {
                        xattr::set(&at, OPAQUE, b"y").unwrap();
                    }
                    match mode {
                        0 => drop(plain.insert(path.trim_end_matches('!').into())),
                        mode => {
                            fs::set_permissions(&at, fs::Permissions::from_mode(*mode)).unwrap();
                        }
                    }
                }
                Layer { dir, plain }
            });
            let layers = layers.collect();
            Self { root, layers }
        }

        fn made(&self) -> Vec<(String, u32)> {
            let to = self.root.path().join("made");
            fs::create_dir(&to).unwrap();
            let any = make(&self.layers, &to).unwrap();
            let mut found = Vec::new();
            let mut folders = vec![to.clone()];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).unwrap() {
                    let path = entry.unwrap().path();
                    let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
                    let name = path.strip_prefix(&to).unwrap().display().to_string();
                    found.push((name, mode));
                    folders.push(path);
                }
            }
            found.sort();
            assert_eq!(any, !found.is_empty());
            found
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn folders_without_an_entry_are_as_below() {
        let (tmp, plain) = (("tmp", Some(0o1777)), ("tmp", Some(0)));
        for (what, layers, want) in [
            (
                "open to all",
                vec![&[tmp][..], &[plain]],
                vec![("tmp", 0o1777)],
            ),
            (
                "through a layer that has none",
                vec![&[tmp], &[], &[plain]],
                vec![("tmp", 0o1777)],
            ),
            (
                "twice without",
                vec![&[tmp], &[plain], &[plain]],
                vec![("tmp", 0o1777)],
            ),
            (
                "an entry above counts",
                vec![&[tmp], &[plain], &[("tmp", Some(0o700))]],
                vec![],
            ),
            ("nothing below", vec![&[], &[plain]], vec![]),
            (
                "hidden below",
                vec![&[tmp], &[("tmp", None)], &[plain]],
                vec![],
            ),
            (
                "gone above",
                vec![&[tmp], &[plain], &[("tmp", None)]],
                vec![],
            ),
            (
                "folders above stay what they are",
                vec![
                    &[("a", Some(0o711)), ("a/b", Some(0o1777))],
                    &[("a", Some(0o750)), ("a/b", Some(0))],
                ],
                vec![("a", 0o750), ("a/b", 0o1777)],
            ),
            (
                "a folder that begins anew hides what it had",
                vec![
                    &[("a", Some(0o711)), ("a/b", Some(0o1777))],
                    &[("a!", Some(0o750)), ("a/b", Some(0))],
                ],
                vec![],
            ),
            (
                "but keeps what it is",
                vec![&[("a", Some(0o711))], &[("a!", Some(0))]],
                vec![("a", 0o711)],
            ),
        ] {
            let made = Stack::new(&layers).made();
            let made: Vec<(&str, u32)> = { made.iter() }
                .map(|(name, mode)| (name.as_str(), *mode))
                .collect();
            assert_eq!(made, want, "{what}");
        }
    }

    #[test]
    fn lists_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        assert!(load(&path).unwrap().is_empty());
        let folders: Folders = ["a", "a/b c", "d\nnew line"].map(PathBuf::from).into();
        save(&path, &folders).unwrap();
        assert_eq!(load(&path).unwrap(), folders);
    }
}
