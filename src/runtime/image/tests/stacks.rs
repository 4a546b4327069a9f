//! Stacks of layers, made at random, against what `umoci` makes of them.
//!
//! What differs on purpose is not made:
//! - a link among an entry's parents: containerd, which unpacks a layer apart from those below it,
//!   replaces a link of theirs; umoci follows it;
//! - a hard link to a file of another layer;
//! - a set-group-ID folder: what has no entry in one takes its group from there, but not where the
//!   folder is a lower layer's;
//! - a folder that only a whiteout mentions: containerd makes it, umoci does not;
//! - a folder that is whited out after the layer has put something there: containerd refuses it, umoci
//!   leaves it the attributes that it had below.

use std::{
    collections::BTreeMap,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    process::Command,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;

const STACKS: u64 = 60;
/// Entries are older than this; what is newer got the time of its unpacking.
const LATEST: i64 = 1_500_000_000;

/// Names of folders, which may stand without an entry of their own, and of what they hold.
const FOLDERS: &[&str] = &["d0", "d1", "d2"];
const LEAVES: &[&str] = &["f0", "f1", "f2", "f3"];
/// Folders in some layers, and something else in others: they always have an entry.
const EITHER: &[&str] = &["x0", "x1"];

struct Layer {
    rng: StdRng,
    tar: tar::Builder<Vec<u8>>,
    /// Files of this layer, for hard links.
    files: Vec<String>,
    /// All that it has put somewhere.
    paths: Vec<String>,
}

impl Layer {
    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from.choose(&mut self.rng).expect("not empty")
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }

    /// A folder that may have no entry, or the root: empty, or with a slash at its end.
    fn folder(&mut self) -> String {
        let depth = self.rng.random_range(0..3);
        (0..depth)
            .map(|_| format!("{}/", self.pick(FOLDERS)))
            .collect()
    }

    fn header(&mut self, kind: tar::EntryType) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(
            *[0o644, 0o600, 0o755, 0o4755, 0o1777, 0o2711]
                .choose(&mut self.rng)
                .expect("one"),
        );
        header.set_uid(self.rng.random_range(0..3) * 1000);
        header.set_gid(self.rng.random_range(0..3) * 1000);
        header.set_mtime(self.rng.random_range(1..LATEST as u64));
        header.set_size(0);
        header
    }

    fn add(&mut self, mut header: tar::Header, path: &str, content: &[u8]) {
        self.paths.push(path.to_owned());
        let may_carry = matches!(
            header.entry_type(),
            tar::EntryType::Regular | tar::EntryType::Directory
        );
        if may_carry && self.chance(15) {
            let value: [u8; 4] = self.rng.random();
            let attribute = [("SCHILY.xattr.user.test", &value[..])];
            self.tar.append_pax_extensions(attribute).unwrap();
        }
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content).unwrap();
    }

    /// Once: umoci would take the attributes of the first entry away, containerd would not.
    fn add_folder(&mut self, path: &str) {
        let entry = format!("{path}/");
        if self.has(|one| one == entry) {
            return;
        }
        let mut header = self.header(tar::EntryType::Directory);
        header.set_mode(header.mode().unwrap() & !0o2000);
        self.add(header, &entry, b"");
    }

    /// Anything that is no folder.
    fn add_leaf(&mut self, path: &str) {
        self.paths.push(path.to_owned());
        match self.rng.random_range(0..10) {
            0 => {
                let mut header = self.header(tar::EntryType::Symlink);
                header.set_size(0);
                let target = self.pick(&["f0", "../f1", "/d0/f2", "missing"]);
                self.tar.append_link(&mut header, path, target).unwrap();
            }
            1 => {
                let header = self.header(tar::EntryType::Fifo);
                self.add(header, path, b"");
            }
            2 => {
                let mut header = self.header(tar::EntryType::Char);
                header.set_device_major(1).unwrap();
                header
                    .set_device_minor(self.rng.random_range(3..6))
                    .unwrap();
                self.add(header, path, b"");
            }
            3 if self.files.iter().any(|file| file != path) => {
                let others: Vec<String> = { self.files.iter() }
                    .filter(|file| *file != path)
                    .cloned()
                    .collect();
                let target = others.choose(&mut self.rng).expect("one").clone();
                let mut header = self.header(tar::EntryType::Link);
                self.tar.append_link(&mut header, path, &target).unwrap();
            }
            _ => {
                let content = vec![self.rng.random(); self.rng.random_range(0..200)];
                let header = self.header(tar::EntryType::Regular);
                self.add(header, path, &content);
                self.files.push(path.to_owned());
                return;
            }
        }
        self.files.retain(|file| file != path);
    }

    /// `name`: a leaf, or anything else that this layer has not.
    fn whiteout(&mut self, folder: &str, name: &str) {
        let path = format!("{folder}{name}");
        let inside = format!("{path}/");
        if !LEAVES.contains(&name) && self.has(|one| one == path || one.starts_with(&inside)) {
            return;
        }
        self.hide(folder, name);
    }

    /// Hides all that is in the folder below, if this layer has nothing in the folders of it.
    fn opaque(&mut self, folder: &str) {
        let deeper = |path: &str| {
            path.strip_prefix(folder)
                .is_some_and(|rest| rest.contains('/'))
        };
        if !self.has(deeper) {
            self.hide(folder, ".wh..opq");
        }
    }

    fn has(&self, what: impl Fn(&str) -> bool) -> bool {
        self.paths.iter().any(|path| what(path))
    }

    fn hide(&mut self, folder: &str, name: &str) {
        // So that the folder is there in any case.
        self.add_leaf(&format!("{folder}f9"));
        let header = self.header(tar::EntryType::Regular);
        self.tar
            .append_data(&mut { header }, format!("{folder}.wh.{name}"), &b""[..])
            .unwrap();
    }

    fn step(&mut self) {
        let folder = self.folder();
        match self.rng.random_range(0..20) {
            0..3 => {
                let path = format!("{folder}{}", self.pick(FOLDERS));
                self.add_folder(&path);
            }
            3..6 => {
                let name = self.pick(EITHER);
                let path = format!("{folder}{name}");
                let below = format!("{path}/");
                self.files
                    .retain(|file| *file != path && !file.starts_with(&below));
                if self.chance(50) {
                    self.add_folder(&path);
                    for _ in 0..self.rng.random_range(0..3) {
                        let name = self.pick(LEAVES);
                        self.add_leaf(&format!("{below}{name}"));
                    }
                } else {
                    self.add_leaf(&path);
                }
            }
            6..9 => {
                let name = self.pick(LEAVES);
                self.whiteout(&folder, name);
            }
            9 => {
                let name = self.pick(FOLDERS);
                self.whiteout(&folder, name);
            }
            10 => {
                let name = self.pick(EITHER);
                self.whiteout(&folder, name);
            }
            11 => self.opaque(&folder),
            _ => {
                let name = self.pick(LEAVES);
                self.add_leaf(&format!("{folder}{name}"));
            }
        }
    }
}

/// The layers of one stack, lowest first.
fn stack(seed: u64) -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let layers = rng.random_range(2..5);
    let mut made = Vec::new();
    for _ in 0..layers {
        let mut layer = Layer {
            rng: StdRng::seed_from_u64(rng.random()),
            tar: tar::Builder::new(Vec::new()),
            files: Vec::new(),
            paths: Vec::new(),
        };
        for _ in 0..layer.rng.random_range(1..20) {
            layer.step();
        }
        made.push(layer.tar.into_inner().unwrap());
    }
    made
}

/// All that can be told of one path.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    content: Vec<u8>,
    attribute: Option<Vec<u8>>,
    /// `None`: of its unpacking, or of a folder: umoci lets whiteouts change that.
    modified: Option<i64>,
    /// The first path of the same file.
    same: Option<String>,
}

fn tree(top: &Path) -> BTreeMap<String, Seen> {
    let mut found = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut waiting = vec![String::new()];
    while let Some(folder) = waiting.pop() {
        let entries = std::fs::read_dir(top.join(&folder)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = format!("{folder}{}", name.to_str().unwrap());
            let full = top.join(&path);
            let meta = full.symlink_metadata().unwrap();
            let kind = meta.file_type();
            let content = match () {
                () if kind.is_file() => std::fs::read(&full).unwrap(),
                () if kind.is_symlink() => std::fs::read_link(&full)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes(),
                () => Vec::new(),
            };
            let same = match kind.is_dir() {
                true => None,
                false => Some(
                    first
                        .entry(meta.ino())
                        .or_insert_with(|| path.clone())
                        .clone(),
                ),
            };
            let is_node = kind.is_char_device() || kind.is_fifo() || kind.is_symlink();
            found.insert(
                path.clone(),
                Seen {
                    mode: meta.mode(),
                    owner: (meta.uid(), meta.gid()),
                    device: meta.rdev(),
                    content,
                    // Neither has such attributes by rule.
                    attribute: match is_node {
                        true => None,
                        false => xattr::get(&full, "user.test").unwrap(),
                    },
                    modified: Some(meta.mtime()).filter(|time| *time < LATEST && !kind.is_dir()),
                    same,
                },
            );
            if kind.is_dir() {
                waiting.push(format!("{path}/"));
            }
        }
    }
    found
}

/// What umoci makes of the archive.
fn by_umoci(lab: &Lab, archive: &Path) -> BTreeMap<String, Seen> {
    let at = |name: &str| lab.folder.path().join(name);
    let layout = format!("oci:{}:a", at("layout").display());
    let source = format!("docker-archive:{}", archive.display());
    let image = format!("{}:a", at("layout").display());
    for (program, arguments) in [
        (
            "skopeo",
            vec!["copy", "-q", "--insecure-policy", &source, &layout],
        ),
        (
            "umoci",
            vec!["unpack", "--image", &image, at("bundle").to_str().unwrap()],
        ),
    ] {
        let done = Command::new(program).args(&arguments).output().unwrap();
        assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
    }
    let found = tree(&at("bundle/rootfs"));
    for name in ["layout", "bundle"] {
        std::fs::remove_dir_all(at(name)).unwrap();
    }
    found
}

/// What a container would see.
async fn by_us(lab: &Lab, layers: &[Vec<u8>]) -> BTreeMap<String, Seen> {
    let image = lab.import_of("a:1", layers).await;
    let dir = lab.folder.path().join("container");
    for name in ["upper", "work", "merged"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    let root = crate::runtime::rootfs::mount_overlay(&image.layers, &dir).unwrap();
    let merged = dir.join("merged");
    let found = tree(&merged);
    drop(root);
    nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    lab.images.remove("a:1").await.unwrap();
    found
}

#[tokio::test]
#[ignore = "needs root"]
async fn any_stack_is_what_umoci_makes_of_it() {
    let lab = Lab::new().await;
    for seed in 0..STACKS {
        let layers = stack(seed);
        let ours = by_us(&lab, &layers).await;
        let theirs = by_umoci(&lab, &lab.folder.path().join("archive.tar"));
        let paths: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let differ: Vec<String> = paths
            .into_iter()
            .filter(|path| ours.get(*path) != theirs.get(*path))
            .map(|path| {
                format!(
                    "{path}:\n  ours   {:?}\n  umoci's {:?}",
                    ours.get(path),
                    theirs.get(path)
                )
            })
            .collect();
        if !differ.is_empty() {
            for (number, layer) in layers.iter().enumerate() {
                let mut archive = tar::Archive::new(layer.as_slice());
                for entry in archive.entries().unwrap() {
                    let entry = entry.unwrap();
                    eprintln!(
                        "layer {number}: {:?} {}",
                        entry.header().entry_type(),
                        entry.path().unwrap().display()
                    );
                }
            }
            panic!("stack {seed}:\n{}", differ.join("\n"));
        }
    }
}
