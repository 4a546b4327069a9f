//! Images of any content, made by hand.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::lab::{self, Cluster, text};

/// A layer as a tar, entry by entry, with names and links that a decent writer would refuse.
#[derive(Default)]
pub struct Layer(Vec<u8>);

impl Layer {
    fn add(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        let mut builder = Builder::new(std::mem::take(&mut self.0));
        builder.append(&header, content).unwrap();
        // Without the end mark: more may follow.
        self.0 = builder.get_ref().clone();
        self
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        self.add(EntryType::Regular, name, "", content.as_bytes())
    }

    pub fn folder(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", b"")
    }

    pub fn symlink(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Symlink, name, to, b"")
    }

    /// A file whose name is too long for the header.
    pub fn long_file(self, name: &str) -> Self {
        let name = format!("{name}\0");
        self.add(EntryType::GNULongName, "long", "", name.as_bytes())
            .file("short", "")
    }

    /// A header that says that so many bytes of attributes follow, and nothing that follows.
    pub fn announce_attributes(mut self, bytes: u64) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(bytes);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A docker-archive of layers, lowest first; `config` is what the image says of its process.
fn archive(path: &Path, name: &str, layers: &[Vec<u8>], config: Value) {
    let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let diff_ids: Vec<String> = ids.iter().map(|id| format!("sha256:{id}")).collect();
    let image = json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let names: Vec<String> = ids.iter().map(|id| format!("{id}.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
    let mut builder = Builder::new(std::fs::File::create(path).unwrap());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("config.json", image.to_string().as_bytes());
    add("manifest.json", manifest.to_string().as_bytes());
    for (name, layer) in names.iter().zip(layers) {
        add(name, layer);
    }
    builder.finish().unwrap();
}

/// The layer of the test image with busybox in it.
fn busybox() -> Vec<u8> {
    let file = std::fs::File::open(lab::images().join("busybox.tar")).unwrap();
    let mut found = None;
    for entry in tar::Archive::new(file).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if !content.starts_with(b"{") && !content.starts_with(b"[") && !content.is_empty() {
            assert!(found.replace(content).is_none(), "busybox has one layer");
        }
    }
    let layer = found.unwrap();
    let mut plain = Vec::new();
    match layer.starts_with(&[0x1f, 0x8b]) {
        true => {
            flate2::read::GzDecoder::new(&layer[..])
                .read_to_end(&mut plain)
                .unwrap();
            plain
        }
        false => layer,
    }
}

fn place(cluster: &Cluster, name: &str) -> PathBuf {
    let file = name.replace([':', '/'], "-");
    cluster.root.path().join(format!("{file}.tar"))
}

/// The node gets an image: busybox below the layer.
pub fn import(cluster: &Cluster, name: &str, layer: Layer, config: Value) {
    let path = place(cluster, name);
    archive(&path, name, &[busybox(), layer.0], config);
    let output = cluster.vetch(&["image", "import", path.to_str().unwrap()]);
    assert!(output.status.success(), "{name}: {}", text(&output));
}

/// A registry on the host gets an image of that one layer.
pub fn push(cluster: &Cluster, registry: &str, name: &str, layer: Layer) {
    let path = place(cluster, name);
    archive(&path, name, &[layer.0], json!({}));
    cluster.host.sh(&format!(
        "skopeo copy -q --dest-tls-verify=false docker-archive:{} docker://{registry}/{name}",
        path.display()
    ));
}
