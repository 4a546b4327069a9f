use std::{collections::BTreeMap, time::Duration};

use sha2::{Digest, Sha256};

use super::*;
use crate::runtime::{
    ContainerConfig, Io, Rootfs,
    records::{self, ContainerRecord, PodDir},
};

mod stacks;

const PATIENCE: Duration = Duration::from_secs(10);

struct Lab {
    folder: tempfile::TempDir,
    images: Images,
}

impl Lab {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let images = Images::open(folder.path().join("state"), run, Settings::default()).await;
        Self {
            folder,
            images: images.unwrap(),
        }
    }

    /// A docker-archive of one image.
    fn archive(&self, name: &str, layers: &[Vec<u8>]) -> PathBuf {
        let digest =
            |layer: &Vec<u8>| format!("sha256:{}", crate::hex::hex(&Sha256::digest(layer)));
        let diff_ids: Vec<String> = layers.iter().map(digest).collect();
        let names: Vec<String> = (0..layers.len()).map(|n| format!("layer-{n}")).collect();
        let ours = platform::ours();
        let (os, architecture) = ours.split_once('/').unwrap();
        let config = serde_json::json!({"os": os, "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let manifest =
            serde_json::json!([{"Config": "config", "RepoTags": [name], "Layers": names}]);
        let (manifest, config) = (manifest.to_string(), config.to_string());
        let mut files = vec![
            ("manifest.json", manifest.as_bytes()),
            ("config", config.as_bytes()),
        ];
        let layers = names.iter().zip(layers);
        files.extend(layers.map(|(name, layer)| (name.as_str(), layer.as_slice())));
        let path = self.folder.path().join("archive.tar");
        std::fs::write(&path, tar(&files)).unwrap();
        path
    }

    async fn import(&self, name: &str) -> Image {
        self.import_of(name, &[tar(&[("file", b"content")])]).await
    }

    async fn import_of(&self, name: &str, layers: &[Vec<u8>]) -> Image {
        let archive = self.archive(name, layers);
        let imported = self.images.import(&archive, None).await;
        imported.unwrap().remove(0)
    }

    /// As the runtime records a container before it is made.
    fn record_container(&self, image: &Image) -> PathBuf {
        let pods = self.folder.path().join("run/pods");
        let dir = PodDir(pods.join("pod"));
        let path = dir.container_config("c");
        records::private_dir(&dir.container("c")).unwrap();
        let record = ContainerRecord {
            version: records::VERSION,
            id: "c".into(),
            created: std::time::SystemTime::now(),
            config: ContainerConfig {
                name: "c".into(),
                attempt: 0,
                annotations: BTreeMap::new(),
                rootfs: Rootfs::Layers(image.layers.clone()),
                oci: Default::default(),
                io: Io {
                    tty: false,
                    stdin: false,
                    stdin_once: false,
                    log_path: PathBuf::new(),
                },
                user: None,
                must_not_be_root: false,
            },
        };
        records::write(&path, &record).unwrap();
        path
    }
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_removal_takes_the_name_that_was_asked_for() {
    let lab = Lab::new().await;
    let mut image = lab.import("a:1").await;
    // The same image gets another name while the removal waits for its turn.
    let turn = lab.images.shared.changing.lock().await;
    let removal = tokio::spawn({
        let images = lab.images.clone();
        async move { images.remove("a:1").await }
    });
    tokio::task::yield_now().await;
    image.names.push("docker.io/library/b:1".into());
    lab.images.record(image.clone()).await.unwrap();
    drop(turn);
    removal.await.unwrap().unwrap();
    let left = lab.images.get("b:1").await.unwrap().expect("it stays");
    assert_eq!(left.names, ["docker.io/library/b:1"]);
    assert!(left.layers[0].join("file").exists());
    assert!(lab.images.get("a:1").await.unwrap().is_none());
    lab.images.remove("b:1").await.unwrap();
    assert!(!image.layers[0].exists());
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_removal_and_a_stalled_pull_wait_for_nobody() {
    let lab = Lab::new().await;
    let image = lab.import("a:1").await;
    // A pull that has begun and says nothing more.
    let stalled = lab
        .images
        .shared
        .layers
        .pin(image.config.rootfs().diff_ids());
    let removed = tokio::time::timeout(PATIENCE, lab.images.remove("a:1")).await;
    removed.expect("it waits for no pull").unwrap();
    assert!(image.layers[0].exists(), "the pull needs it");
    let imported = tokio::time::timeout(PATIENCE, lab.import("b:1")).await;
    imported.expect("imports go on");
    lab.images.remove("b:1").await.unwrap();
    drop(stalled);
    lab.images.remove_unused_layers().await.unwrap();
    assert!(!image.layers[0].exists());
}

#[tokio::test]
#[ignore = "needs root"]
async fn layers_stay_until_their_last_user_has_gone() {
    let lab = Lab::new().await;
    let image = lab.import("a:1").await;
    let layer = image.layers[0].join("file");
    // From looking it up to a record of the container, and from then on.
    let held = lab.images.hold("a:1").unwrap().unwrap();
    lab.images.remove("a:1").await.unwrap();
    assert!(lab.images.hold("a:1").unwrap().is_none());
    assert!(layer.exists(), "somebody is about to use it");
    let record = lab.record_container(&image);
    drop(held);
    lab.images.remove_unused_layers().await.unwrap();
    assert!(layer.exists(), "a container is made of it");
    std::fs::write(&record, "no record").unwrap();
    lab.images.remove_unused_layers().await.unwrap();
    assert!(layer.exists(), "nobody knows what the container is made of");
    records::remove_dir(record.parent().unwrap()).unwrap();
    lab.images.remove_unused_layers().await.unwrap();
    assert!(!layer.exists());
    assert_eq!(
        std::fs::read_dir(lab.folder.path().join("state/images/tmp"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
#[ignore = "needs root"]
async fn who_waits_for_an_image_hears_of_it() {
    let lab = Lab::new().await;
    let mut additions = lab.images.additions();
    lab.import("a:1").await;
    assert!(additions.has_changed().unwrap());
    additions.mark_unchanged();
    lab.images.remove("a:1").await.unwrap();
    assert!(!additions.has_changed().unwrap());
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_folder_without_an_entry_is_what_it_is_below() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new().await;
    let mut builder = tar::Builder::new(Vec::new());
    for (name, mode) in [("tmp", 0o1777), ("srv", 0o711), ("srv/own", 0o700)] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(mode);
        header.set_uid(4711);
        header.set_gid(0);
        builder.append_data(&mut header, name, &b""[..]).unwrap();
    }
    let below = builder.into_inner().unwrap();
    let above = tar(&[("tmp/x", b"x"), ("srv/own/y", b"y"), ("srv/.wh.own", b"")]);
    let image = lab.import_of("a:1", &[below, above]).await;
    let dir = lab.folder.path().join("container");
    for name in ["upper", "work", "merged"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    let root = crate::runtime::rootfs::mount_overlay(&image.layers, &dir).unwrap();
    let merged = dir.join("merged");
    let mode = |path: &str| {
        let found = std::fs::metadata(merged.join(path)).unwrap();
        found.permissions().mode() & 0o7777
    };
    // The last is new: what was below is hidden.
    let modes = ["tmp", "srv", "srv/own"].map(mode);
    let files = ["tmp/x", "srv/own/y"].map(|path| merged.join(path).is_file());
    drop(root);
    nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(modes, [0o1777, 0o711, 0o755]);
    assert_eq!(files, [true, true]);
    lab.images.remove("a:1").await.unwrap();
    for layer in &image.layers {
        assert!(!layer.exists(), "{}", layer.display());
    }
}

#[test]
fn an_image_has_only_so_many_names() {
    let names = |numbers: std::ops::Range<usize>| -> Vec<String> {
        numbers
            .map(|number| format!("registry/a:{number}"))
            .collect()
    };
    // The new ones come first.
    let mut known = names(0..2);
    merge(&mut known, &names(1..2 * MOST_NAMES));
    assert_eq!(known, names(0..MOST_NAMES));
}

#[tokio::test]
async fn the_record_of_a_damaged_image_is_kept_until_the_image_is_here_again() {
    let lab = Lab::new().await;
    let image = lab.import("a:1").await;
    let records = lab.folder.path().join("state/images/records");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&records).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    };
    let record = names().remove(0);
    for layer in &image.layers {
        std::fs::remove_dir_all(layer).unwrap();
    }
    let run = lab.folder.path().join("run");
    let images = Images::open(lab.folder.path().join("state"), run, Settings::default())
        .await
        .unwrap();
    assert!(images.get("a:1").await.unwrap().is_none());
    assert_eq!(names(), [format!("{record}.unreadable")]);
    let lab = Lab { images, ..lab };
    lab.import("a:1").await;
    assert_eq!(names(), [record]);
}

#[tokio::test]
#[ignore = "needs root"]
async fn archives_of_a_folder_are_read_once() {
    let lab = Lab::new().await;
    let folder = lab.folder.path().join("archives");
    std::fs::create_dir(&folder).unwrap();
    let put = |file: &str, name: &str, content: &[u8]| {
        let archive = lab.archive(name, &[tar(&[("file", content)])]);
        std::fs::rename(archive, folder.join(file)).unwrap();
    };
    put("a.tar", "a:1", b"a");
    put("b.tar", "b:1", b"b");
    std::fs::write(folder.join("c.tar"), "no archive").unwrap();
    let came = async || {
        let mut all = Vec::new();
        let tell = |_: &Path, came| {
            all.push(match came {
                Came::Imported(names) => names.join(","),
                Came::Known => "known".to_owned(),
                Came::Failed(_) => "failed".to_owned(),
            });
        };
        lab.images.import_folder(&folder, tell).await.unwrap();
        all
    };
    let (a, b) = ("docker.io/library/a:1", "docker.io/library/b:1");
    assert_eq!(came().await, [a, b, "failed"]);
    assert_eq!(came().await, ["known", "known", "failed"]);
    // An image that has gone, and an archive that has changed.
    lab.images.remove("a:1").await.unwrap();
    put("b.tar", "b:1", b"other");
    assert_eq!(came().await, [a, b, "failed"]);
    // A record that cannot be read costs reading the archives again.
    std::fs::write(lab.images.dir().join("imported.json"), "{").unwrap();
    std::fs::remove_file(folder.join("c.tar")).unwrap();
    assert_eq!(came().await, [a, b]);
    let missing = lab.images.import_folder(&folder.join("x"), |_, _| {}).await;
    assert!(missing.is_err());
}
