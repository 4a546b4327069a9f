//! Places of the node's own file system, checked to be what the pod expects.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPath {
    pub path: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing is checked; what is missing becomes a folder.
    Any,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

impl HostPath {
    pub fn new(wanted: &HostPathVolumeSource) -> Result<Self, String> {
        let path = PathBuf::from(&wanted.path);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(format!("invalid host path {:?}", wanted.path));
        }
        let kind = match wanted.type_.as_deref().unwrap_or_default() {
            "" => Kind::Any,
            "DirectoryOrCreate" => Kind::DirectoryOrCreate,
            "Directory" => Kind::Directory,
            "FileOrCreate" => Kind::FileOrCreate,
            "File" => Kind::File,
            "Socket" => Kind::Socket,
            "CharDevice" => Kind::CharDevice,
            "BlockDevice" => Kind::BlockDevice,
            other => return Err(format!("unknown hostPath type {other:?}")),
        };
        Ok(Self { path, kind })
    }

    /// Makes what may be made, then checks what is there.
    pub fn check(&self) -> Result<(), String> {
        let shown = self.path.display();
        let made = match self.kind {
            Kind::Any | Kind::DirectoryOrCreate if !self.path.exists() => fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&self.path),
            Kind::FileOrCreate if !self.path.exists() => create_file(&self.path),
            _ => Ok(()),
        };
        made.map_err(|error| format!("hostPath: create {shown}: {error}"))?;
        if self.kind == Kind::Any {
            return Ok(());
        }
        let found = match fs::metadata(&self.path) {
            Ok(meta) => Some(meta.file_type()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(format!("hostPath type check failed: {shown}: {error}")),
        };
        let (what, is) = match self.kind {
            Kind::Any => return Ok(()),
            Kind::DirectoryOrCreate | Kind::Directory => {
                ("a directory", found.map(|kind| kind.is_dir()))
            }
            Kind::FileOrCreate | Kind::File => ("a file", found.map(|kind| kind.is_file())),
            Kind::Socket => ("a socket file", found.map(|kind| kind.is_socket())),
            Kind::CharDevice => (
                "a character device",
                found.map(|kind| kind.is_char_device()),
            ),
            Kind::BlockDevice => ("a block device", found.map(|kind| kind.is_block_device())),
        };
        match is {
            Some(true) => Ok(()),
            _ => Err(format!("hostPath type check failed: {shown} is not {what}")),
        }
    }
}

fn create_file(path: &Path) -> std::io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (path, kind, want) in [
            (at("file"), "File", Ok(())),
            (at("file"), "Directory", Err("is not a directory")),
            (at("gone"), "File", Err("is not a file")),
            (at("gone"), "Directory", Err("is not a directory")),
            (at("socket"), "Socket", Ok(())),
            (at("file"), "Socket", Err("is not a socket file")),
            ("/dev/null".into(), "CharDevice", Ok(())),
            (
                "/dev/null".into(),
                "BlockDevice",
                Err("is not a block device"),
            ),
            (at("new/dir"), "DirectoryOrCreate", Ok(())),
            (at("new/file"), "FileOrCreate", Ok(())),
            (at("any"), "", Ok(())),
            ("relative".into(), "", Err("invalid host path")),
            ("/a/../b".into(), "", Err("invalid host path")),
            (at("file"), "Other", Err("unknown hostPath type")),
        ] {
            let wanted = HostPathVolumeSource {
                path: path.clone(),
                type_: Some(kind.into()),
            };
            let got = HostPath::new(&wanted).and_then(|one| one.check());
            match (got, want) {
                (Ok(()), Ok(())) => {}
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => panic!("{path} {kind}: {got:?}, not {want:?}"),
            }
        }
        assert!(folder.path().join("any").is_dir());
    }
}
