//! Writes a volume's files so that a reader sees all of one version.
//!
//! ```text
//! volume/..2026_11_23_18_00_00.4711/key   one version
//! volume/..data -> ..2026_11_23_18_00_00.4711
//! volume/key -> ..data/key
//! ```
//! A new version is written aside, then `..data` is renamed over: one step. Names that are no
//! longer there go after it, and the old version last.

use std::{
    collections::BTreeSet,
    fmt::Display,
    fs,
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
};

use super::payload::{File, Payload};
use crate::runtime::files;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `folder` hold exactly the payload. Writes nothing if it does already.
pub fn write(folder: &Path, payload: &Payload, group: Option<u32>) -> Result<(), String> {
    let old = match fs::read_link(folder.join(DATA)) {
        Ok(name) => Some(name),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(at("read", &folder.join(DATA))(error)),
    };
    let current = old.as_ref().map(|name| folder.join(name));
    let same = current
        .as_ref()
        .is_some_and(|current| holds(current, payload, group));
    if !same {
        let name = version_name();
        let version = folder.join(&name);
        make_folder(&version, 0o755)?;
        own_folder(&version, group)?;
        write_files(&version, payload, group)?;
        let link = folder.join(DATA_NEW);
        remove_if_there(&link)?;
        symlink(&name, &link).map_err(at("link", &link))?;
        fs::rename(&link, folder.join(DATA)).map_err(at("rename", &link))?;
    }
    link_names(folder, payload)?;
    match same {
        true => Ok(()),
        false => remove_old(folder),
    }
}

/// Every version but the present one: also what a crash left half written.
fn remove_old(folder: &Path) -> Result<(), String> {
    let present = fs::read_link(folder.join(DATA)).map_err(at("read", folder))?;
    for entry in fs::read_dir(folder).map_err(at("list", folder))? {
        let name = entry.map_err(at("list", folder))?.file_name();
        let path = folder.join(&name);
        let version = name.to_string_lossy().starts_with("..") && !path.is_symlink();
        if version && present != Path::new(&name) {
            files::remove_tree(&path).map_err(at("remove", &path))?;
        }
    }
    Ok(())
}

/// A new folder with exactly this mode; false if it was there.
pub fn make_folder(path: &Path, mode: u32) -> Result<bool, String> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => set_mode(path, mode).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(error) => Err(at("create", path)(error)),
    }
}

pub fn set_mode(path: &Path, mode: u32) -> Result<(), String> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("change mode of", path))
}

/// `None` leaves it as it is.
pub fn own(path: &Path, user: Option<u32>, group: Option<u32>) -> Result<(), String> {
    match (user, group) {
        (None, None) => Ok(()),
        _ => lchown(path, user, group).map_err(at("change owner of", path)),
    }
}

/// The group may enter and read, and what is made inside is the group's too.
pub fn own_folder(path: &Path, group: Option<u32>) -> Result<(), String> {
    if group.is_some() {
        own(path, None, group)?;
        let mode = fs::metadata(path).map_err(at("read", path))?.mode() & 0o7777;
        set_mode(path, mode | 0o2550)?;
    }
    Ok(())
}

fn at<E: Display>(action: &str, path: &Path) -> impl FnOnce(E) -> String {
    move |error| format!("{action} {}: {error}", path.display())
}

/// Unique in this volume: the time, to the nanosecond.
fn version_name() -> String {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    format!("..{}", now.strftime("%Y_%m_%d_%H_%M_%S.%N"))
}

fn mode_of(file: &File, group: Option<u32>) -> u32 {
    file.mode | if group.is_some() { 0o440 } else { 0 }
}

fn write_files(version: &Path, payload: &Payload, group: Option<u32>) -> Result<(), String> {
    let mut folders = BTreeSet::new();
    for (name, file) in payload {
        let parents = Path::new(name)
            .ancestors()
            .skip(1)
            .filter(|parent| *parent != Path::new(""));
        let mut parents: Vec<_> = parents.map(|parent| version.join(parent)).collect();
        parents.reverse();
        for parent in parents {
            if folders.insert(parent.clone()) {
                make_folder(&parent, 0o755)?;
                own_folder(&parent, group)?;
            }
        }
        let path = version.join(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut to = options.open(&path).map_err(at("create", &path))?;
        to.write_all(&file.content).map_err(at("write", &path))?;
        own(&path, file.owner, group)?;
        set_mode(&path, mode_of(file, group))?;
    }
    Ok(())
}

/// Whether the version on disk is what is wanted, content, modes and owners.
fn holds(version: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let Ok(found) = list(version) else {
        return false;
    };
    if found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(name, file)| {
        let path = version.join(name);
        let as_wanted = |meta: fs::Metadata| {
            meta.mode() & 0o7777 == mode_of(file, group)
                && file.owner.is_none_or(|owner| owner == meta.uid())
                && group.is_none_or(|group| group == meta.gid())
        };
        found.contains(Path::new(name))
            && fs::symlink_metadata(&path).is_ok_and(as_wanted)
            && files::read_at_most(&path, file.content.len() as u64)
                .is_ok_and(|content| content == file.content)
    })
}

fn list(version: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        for entry in fs::read_dir(version.join(&below))? {
            let entry = entry?;
            let name = below.join(entry.file_name());
            match entry.file_type()?.is_dir() {
                true => folders.push(name),
                false => drop(found.insert(name)),
            }
        }
    }
    Ok(found)
}

/// One link for each name on the top level, and none for names that are gone.
fn link_names(folder: &Path, payload: &Payload) -> Result<(), String> {
    let top = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
    let wanted: BTreeSet<String> = payload.keys().map(|name| top(name)).collect();
    for name in &wanted {
        let link = folder.join(name);
        let target = Path::new(DATA).join(name);
        match fs::read_link(&link) {
            Ok(there) if there == target => continue,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => remove_if_there(&link)?,
        }
        symlink(&target, &link).map_err(at("link", &link))?;
    }
    for entry in fs::read_dir(folder).map_err(at("list", folder))? {
        let name = entry.map_err(at("list", folder))?.file_name();
        let shown = name.to_string_lossy();
        if !shown.starts_with("..") && !wanted.contains(shown.as_ref()) {
            remove_if_there(&folder.join(&name))?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |content: &str| File {
            content: content.into(),
            mode: 0o640,
            owner: None,
        };
        let files = files
            .iter()
            .map(|(name, content)| (name.to_string(), file(content)));
        files.collect()
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = names
            .map(|one| one.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !name.starts_with("..2"));
        names.sort();
        names
    }

    #[test]
    fn versions_follow_one_another() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, &payload(&[("a", "1"), ("d/e/f", "2")]), None).unwrap();
        assert_eq!(names(folder), ["..data", "a", "d"]);
        assert_eq!(fs::read_to_string(folder.join("d/e/f")).unwrap(), "2");
        assert_eq!(
            fs::metadata(folder.join("a")).unwrap().mode() & 0o777,
            0o640
        );

        let version = fs::read_link(folder.join(DATA)).unwrap();
        write(folder, &payload(&[("a", "1"), ("d/e/f", "2")]), None).unwrap();
        assert_eq!(
            fs::read_link(folder.join(DATA)).unwrap(),
            version,
            "nothing was written"
        );

        write(folder, &payload(&[("d/e/f", "3"), ("g", "4")]), None).unwrap();
        assert_eq!(names(folder), ["..data", "d", "g"]);
        assert_eq!(fs::read_to_string(folder.join("d/e/f")).unwrap(), "3");
        assert!(!folder.join(version).exists());

        write(folder, &Payload::new(), None).unwrap();
        assert_eq!(names(folder), ["..data"]);
    }

    #[test]
    fn a_reader_never_sees_a_mix() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let version = |number: u32| {
            let text = number.to_string().repeat(1000);
            payload(&[("a", &text), ("b", &text)])
        };
        write(folder, &version(0), None).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..200 {
                    write(folder, &version(number), None).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                // As a careful reader does: pin the version, then read from it.
                let pinned = folder.join(fs::read_link(folder.join(DATA)).unwrap());
                let read = |name: &str| fs::read(pinned.join(name));
                match (read("a"), read("b")) {
                    (Ok(a), Ok(b)) => assert_eq!(a, b),
                    // The version went meanwhile.
                    _ => continue,
                }
                let through = fs::read(folder.join("a")).unwrap_or_default();
                assert!(
                    through.is_empty() || through.len() >= 1000,
                    "a file is whole"
                );
            }
        });
    }
}
