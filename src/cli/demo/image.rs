//! An image made from this program's own file: one layer, one static binary.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{super::Error, server};
use crate::{hex::hex, runtime::image::Images};

/// Not a registry's: it is never pulled.
pub const NAME: &str = "vetch.invalid/demo:latest";

/// Makes the image anew, so that it is always of the program that runs.
pub async fn import(images: &Images) -> Result<(), Error> {
    let folder = tempfile::tempdir_in(images.dir())?;
    let archive = folder.path().join("demo.tar");
    let target = archive.clone();
    tokio::task::spawn_blocking(move || write_archive(&target)).await??;
    images.import(&archive, None).await?;
    Ok(())
}

/// A docker-archive at `target`.
fn write_archive(target: &Path) -> Result<(), Error> {
    let layer_path = target.with_extension("layer");
    let digest = write_layer(&layer_path)?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/vetch", server::SUBCOMMAND]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(File::create(target)?);
    append(&mut archive, "config.json", config.to_string().as_bytes())?;
    append(
        &mut archive,
        "manifest.json",
        manifest.to_string().as_bytes(),
    )?;
    archive.append_path_with_name(&layer_path, "layer.tar")?;
    archive.into_inner()?.flush()?;
    std::fs::remove_file(layer_path)?;
    Ok(())
}

/// The layer's tar; returns its SHA-256 in hex.
fn write_layer(path: &Path) -> Result<String, Error> {
    let mut program = File::open("/proc/self/exe")?;
    let mut header = tar::Header::new_gnu();
    header.set_size(program.metadata()?.len());
    header.set_mode(0o755);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    let mut layer = tar::Builder::new(File::create(path)?);
    layer.append_data(&mut header, "vetch", &mut program)?;
    layer.into_inner()?.flush()?;

    let (mut hash, mut file) = (Sha256::new(), File::open(path)?);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => hash.update(buffer.get(..length).unwrap_or_default()),
        }
    }
    Ok(hex(&hash.finalize()))
}

fn append(archive: &mut tar::Builder<File>, name: &str, content: &[u8]) -> Result<(), Error> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    Ok(archive.append_data(&mut header, name, content)?)
}

/// As images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_this_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("demo.tar");
        write_archive(&path).unwrap();
        let mut names = Vec::new();
        let mut archive = tar::Archive::new(File::open(&path).unwrap());
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
        }
        assert_eq!(names, ["config.json", "manifest.json", "layer.tar"]);
        assert!(!path.with_extension("layer").exists());
    }
}
