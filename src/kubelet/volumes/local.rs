//! The folders of volumes of the class `local` on this node: made once, removed when the volume's
//! object goes and its policy says so. Nothing else of the node removes or counts what is in them.
//!
//! Always true: a folder that was made and is missing is an error, never an empty volume.

use std::{fs, io::ErrorKind, os::unix::fs::DirBuilderExt, path::Path};

use k8s_openapi::api::core::v1::PersistentVolume;

use super::atomic;
use crate::{local_volumes, runtime::files};

/// Any user of the pod may write, as in an empty folder of the pod; nobody else on the node comes
/// here, for the folder above is root's.
const MODE: u32 = 0o777;

/// Makes the volume's folder if nobody has yet. `group`: whose files are to be.
pub fn make(volume: &PersistentVolume, root: &Path, group: Option<u32>) -> Result<(), String> {
    let place = local_volumes::place(volume, root)?;
    match fs::symlink_metadata(&place) {
        // Whatever pod comes next may have a group of its own.
        Ok(found) if found.is_dir() => return atomic::own_folder(&place, group),
        Ok(_) => return Err(format!("{} is not a folder", place.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(format!("look at {}: {error}", place.display())),
    }
    if local_volumes::is_made(volume) {
        return Err(format!(
            "the folder {} of this volume is gone, and with it the data; make an empty one there to go on without",
            place.display()
        ));
    }
    let failed = |error| format!("create {}: {error}", place.display());
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(root).map_err(failed)?;
    match fs::DirBuilder::new().mode(0o700).create(&place) {
        // The other of the two that make folders was quicker.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => made.map_err(failed)?,
    }
    atomic::set_mode(&place, MODE)?;
    atomic::own_folder(&place, group)?;
    let synced = fs::File::open(root).and_then(|folder| folder.sync_all());
    synced.map_err(|error| format!("sync {}: {error}", root.display()))
}

/// Removes the folder and all that is in it, following no link and entering no mount.
pub fn remove(volume: &PersistentVolume, root: &Path) -> Result<(), String> {
    let place = local_volumes::place(volume, root)?;
    files::remove_tree(&place).map_err(|error| format!("remove {}: {error}", place.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn made_once_and_removed_whole() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("volumes");
        let volume = |name: &str, made: bool| -> PersistentVolume {
            let mut annotations = json!({});
            if made {
                annotations[local_volumes::MADE] = json!("true");
            }
            let path = root.join(name).display().to_string();
            serde_json::from_value(json!({
                "metadata": {"name": "v", "annotations": annotations},
                "spec": {"local": {"path": path}},
            }))
            .unwrap()
        };
        let (fresh, known) = (volume("n-c-u", false), volume("n-c-u", true));
        let gone = make(&known, &root, None).unwrap_err();
        assert!(gone.contains("is gone"), "{gone}");
        make(&fresh, &root, None).unwrap();
        let outside = folder.path().join("outside");
        fs::write(&outside, "kept").unwrap();
        let place = root.join("n-c-u");
        fs::write(place.join("data"), "1").unwrap();
        std::os::unix::fs::symlink(&outside, place.join("link")).unwrap();
        make(&known, &root, None).unwrap();
        assert_eq!(fs::read_to_string(place.join("data")).unwrap(), "1");
        remove(&known, &root).unwrap();
        assert!(!place.exists());
        assert_eq!(fs::read_to_string(&outside).unwrap(), "kept");
        remove(&known, &root).unwrap();
        // A link in the folder's place is no folder.
        std::os::unix::fs::symlink(folder.path(), &place).unwrap();
        assert!(make(&fresh, &root, None).is_err());
        assert!(remove(&volume("..", false), &root).is_err());
    }
}
