use std::{
    os::unix::fs::{FileTypeExt, MetadataExt},
    time::{Duration, Instant},
};

use tar::EntryType;

use super::{super::parents, *};

fn unpack_all(tar: &[u8], dir: &Path) -> io::Result<Folders> {
    unpack(tar, dir, Limits::default())
}

fn entry(kind: EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header.set_mtime(7);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Appends under a name that `tar::Builder` would refuse.
fn append_raw(
    builder: &mut tar::Builder<Vec<u8>>,
    mut header: tar::Header,
    name: &str,
    data: &[u8],
) {
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(data.len() as u64);
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

#[test]
#[ignore = "needs root"]
fn whiteouts_links_and_modes() {
    let mut builder = tar::Builder::new(Vec::new());
    let file = |mode| entry(EntryType::Regular, mode);
    append_raw(&mut builder, file(0o4755), "deep/er/su", b"x");
    append_raw(&mut builder, file(0o644), "deep/.wh.gone", b"");
    append_raw(&mut builder, file(0o644), "deep/er/.wh..wh..opq", b"");
    let mut link = entry(EntryType::Link, 0o755);
    link.set_link_name("deep/er/su").unwrap();
    append_raw(&mut builder, link, "again", b"");
    let tar = builder.into_inner().unwrap();
    let dir = tempfile::tempdir().unwrap();
    unpack_all(&tar, dir.path()).unwrap();
    let meta = |path: &str| std::fs::symlink_metadata(dir.path().join(path)).unwrap();
    assert_eq!(meta("deep/er/su").mode() & 0o7777, 0o4755);
    assert_eq!(meta("again").ino(), meta("deep/er/su").ino());
    assert!(meta("deep/gone").file_type().is_char_device());
    assert_eq!(meta("deep/gone").rdev(), 0);
    let opaque = xattr::get(dir.path().join("deep/er"), "trusted.overlay.opaque").unwrap();
    assert_eq!(opaque.as_deref(), Some(b"y".as_slice()));
}

#[test]
#[ignore = "needs root"]
fn nothing_is_written_outside() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("layer");
    for (link, victim) in [
        ("/", "escape/victim"),
        ("..", "escape/victim"),
        ("../../..", "escape/victim"),
    ] {
        std::fs::create_dir_all(&dir).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut symlink = entry(EntryType::Symlink, 0o777);
        symlink.set_link_name_literal(link).unwrap();
        append_raw(&mut builder, symlink, "escape", b"");
        append_raw(&mut builder, entry(EntryType::Regular, 0o644), victim, b"x");
        let tar = builder.into_inner().unwrap();
        unpack_all(&tar, &dir).unwrap();
        assert!(!outer.path().join("victim").exists(), "{link}");
        assert!(!Path::new("/victim").exists(), "{link}");
        assert!(dir.join("victim").exists(), "{link}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
    std::fs::create_dir_all(&dir).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    append_raw(
        &mut builder,
        entry(EntryType::Regular, 0o644),
        "../victim",
        b"x",
    );
    assert!(unpack_all(&builder.into_inner().unwrap(), &dir).is_err());
}

/// A tar of entries: name, type, link target.
fn layer(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, link) in entries {
        let mut header = entry(*kind, 0o755);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        append_raw(&mut builder, header, name, b"");
    }
    builder.into_inner().unwrap()
}

const FILE: EntryType = EntryType::Regular;
const FOLDER: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;

/// Unpacks into a folder of its own, and says what went wrong.
fn try_layer(tar: &[u8]) -> (tempfile::TempDir, Result<(), String>) {
    let dir = tempfile::tempdir().unwrap();
    let done = unpack_all(tar, dir.path());
    (dir, done.map(drop).map_err(|error| error.to_string()))
}

#[test]
#[ignore = "needs root"]
fn whiteouts_hide_what_lies_below_and_nothing_else() {
    for (name, want) in [
        (".wh.", "invalid whiteout name: \".wh.\""),
        (".wh..", "invalid whiteout name: \".wh..\""),
        (".wh...", "invalid whiteout name: \".wh...\""),
        ("a/.wh..", "invalid whiteout name: \".wh..\""),
        (".wh.a/b", "invalid whiteout name: \".wh.a\""),
        (".wh.../b", "invalid whiteout name: \".wh...\""),
        ("a/.wh./b", "invalid whiteout name: \".wh.\""),
    ] {
        let (dir, done) = try_layer(&layer(&[("a/own", FILE, ""), (name, FILE, "")]));
        let error = done.unwrap_err();
        assert!(error.ends_with(want) && error.contains(name), "{error}");
        assert!(dir.path().join("a/own").exists(), "{name}");
    }
    // Of aufs, nothing to us.
    let names = [".wh..wh.plnk/x", ".wh..wh.aufs", "a/.wh..wh.orph"];
    let (dir, done) = try_layer(&layer(&names.map(|name| (name, FILE, ""))));
    done.unwrap();
    assert_eq!(measure(dir.path()), ["."]);

    // The layer's own entries stay, whichever comes first; a folder hides those below it.
    let own = [("f", FILE, ""), ("d", FOLDER, ""), ("d/x", FILE, "")];
    let marks = [
        (".wh.f", FILE, ""),
        (".wh.d", FILE, ""),
        (".wh.gone", FILE, ""),
    ];
    let implied = [(".wh.d", FILE, ""), ("d/x", FILE, ""), ("f", FILE, "")];
    for entries in [
        [&own[..], &marks].concat(),
        [&marks[..], &own].concat(),
        [&implied[..], &marks[..1], &marks[2..]].concat(),
    ] {
        let (dir, done) = try_layer(&layer(&entries));
        done.unwrap();
        let meta = |path: &str| std::fs::symlink_metadata(dir.path().join(path)).unwrap();
        assert!(meta("f").is_file() && meta("d/x").is_file(), "{entries:?}");
        assert_eq!(meta("gone").rdev(), 0);
        assert!(meta("gone").file_type().is_char_device());
        let opaque = xattr::get(dir.path().join("d"), "trusted.overlay.opaque").unwrap();
        assert_eq!(opaque.as_deref(), Some(b"y".as_slice()), "{entries:?}");
    }
}

/// Names in a folder, itself as ".".
fn measure(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.push(".".into());
    names
}

#[test]
#[ignore = "needs root"]
fn links_are_followed_within_and_counted() {
    let (dir, done) = try_layer(&layer(&[
        ("usr/lib/old", FILE, ""),
        ("lib", SYMLINK, "usr/lib"),
        ("lib/new", FILE, ""),
        ("abs", SYMLINK, "/usr/../lib/./deep"),
        ("abs/er/file", FILE, ""),
        ("up", SYMLINK, "../../../.."),
        ("up/file", FILE, ""),
        ("usr/lib", FILE, ""),
        ("usr/lib2/file", FILE, ""),
    ]));
    done.unwrap();
    let meta = |path: &str| std::fs::symlink_metadata(dir.path().join(path));
    assert!(
        meta("usr/lib").unwrap().is_file(),
        "replaced, with all in it"
    );
    assert!(meta("file").unwrap().is_file() && meta("usr/lib2/file").is_ok());

    for (entries, want) in [
        (
            vec![("a", SYMLINK, "b"), ("b", SYMLINK, "a"), ("a/x", FILE, "")],
            "\"a/x\": too many links on the path",
        ),
        (
            vec![("a", SYMLINK, "a/a"), ("a/x", FILE, "")],
            "\"a/x\": too many links on the path",
        ),
        (
            vec![("a", FILE, ""), ("a/x", FILE, "")],
            "\"a/x\": \"a\" is not a folder",
        ),
        (vec![("a/../x", FILE, "")], "\"a/../x\": a path with `..`"),
        (
            vec![("h", EntryType::Link, "none")],
            "\"h\": link to \"none\"",
        ),
        (vec![("h", EntryType::Link, "../../etc/passwd")], "`..`"),
    ] {
        let error = try_layer(&layer(&entries)).1.unwrap_err();
        assert!(error.contains(want), "{error}, not {want}");
    }
}

/// A small archive that was made to take long: each entry's way leads through many links, which
/// lead through many folders.
#[test]
#[ignore = "needs root"]
fn work_is_bounded() {
    let mut builder = tar::Builder::new(Vec::new());
    let deep = "d/".repeat(8);
    for number in 0..30 {
        let mut link = entry(SYMLINK, 0o777);
        let before = match number {
            0 => String::new(),
            _ => format!("l{}/", number - 1),
        };
        let back = "../".repeat(8);
        // There and back again before each next link.
        let target = format!("{before}{deep}{back}");
        link.set_link_name_literal(&target).unwrap();
        append_raw(&mut builder, link, &format!("l{number}"), b"");
    }
    for number in 0..5000 {
        let name = format!("l29/{}/f{number}", number % 2);
        append_raw(&mut builder, entry(FILE, 0o644), &name, b"");
    }
    let tar = builder.into_inner().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("layer");
    std::fs::create_dir(&top).unwrap();
    let begun = Instant::now();
    let limits = Limits {
        steps: 100_000,
        ..Limits::default()
    };
    let error = unpack(tar.as_slice(), &top, limits)
        .unwrap_err()
        .to_string();
    assert!(error.contains("too many folders and links"), "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    files::remove_tree(&top).unwrap();
}

#[test]
#[ignore = "needs root"]
fn depth_number_and_size_are_bounded() {
    let long = |parts: usize, part: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = entry(FILE, 0o644);
        let name = [part].repeat(parts).join("/");
        // As a pax path: nothing in the format stops it.
        builder
            .append_pax_extensions([("path", name.as_bytes())])
            .unwrap();
        header.set_size(0);
        header.set_cksum();
        append_raw(&mut builder, header, "short", b"");
        builder.into_inner().unwrap()
    };
    for (tar, want) in [
        (long(256, "d"), "more than 255 folders deep"),
        (long(1, &"n".repeat(256)), "a name of more than 255 bytes"),
        (long(50, &"n".repeat(100)), "a path of more than 4096 bytes"),
    ] {
        let error = try_layer(&tar).1.unwrap_err();
        assert!(error.ends_with(want), "{error}");
        assert!(error.len() < 400, "{error}");
    }
    let (dir, done) = try_layer(&long(255, "d"));
    done.unwrap();
    files::remove_tree(&dir.path().join("d")).unwrap();
    // A link that makes the way deeper at each use ends too.
    let mut entries = vec![("a/b/c/d/e/f/g/h".to_owned(), FOLDER, String::new())];
    let mut at = "a/b/c/d/e/f/g/h".to_owned();
    for number in 0..60 {
        entries.push((format!("l{number}"), SYMLINK, at.clone()));
        at = format!("l{number}/a/b/c/d/e");
        entries.push((at.clone(), FOLDER, String::new()));
    }
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, kind, link)| (name.as_str(), *kind, link.as_str()))
        .collect();
    let error = try_layer(&layer(&entries)).1.unwrap_err();
    assert!(
        error.contains("too many links") || error.contains("255"),
        "{error}"
    );

    let tar = layer(&[("a/b/c", FILE, ""), ("d", FILE, "")]);
    let with = |limits: Limits| {
        let dir = tempfile::tempdir().unwrap();
        let done = unpack(tar.as_slice(), dir.path(), limits).map(drop);
        done.map_err(|error| error.to_string())
    };
    let limits = Limits {
        files: 4,
        bytes: 0,
        steps: 2,
    };
    assert_eq!(with(limits), Ok(()));
    let error = with(Limits { files: 3, ..limits }).unwrap_err();
    assert!(
        error.contains("\"d\": the layer has too many files"),
        "{error}"
    );

    let mut builder = tar::Builder::new(Vec::new());
    append_raw(&mut builder, entry(FILE, 0o644), "f", b"12345");
    let tar = builder.into_inner().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(tar.as_slice(), dir.path(), Limits { bytes: 4, ..limits });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("more than 4 bytes"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn times_of_folders_stay() {
    let (dir, done) = try_layer(&layer(&[
        ("a", FOLDER, ""),
        ("a/b", FOLDER, ""),
        ("a/b/x", FILE, ""),
        ("c", FILE, ""),
        ("a/b/y", FILE, ""),
        ("a/z", FILE, ""),
    ]));
    done.unwrap();
    for path in ["a", "a/b", "a/b/x", "c"] {
        let meta = std::fs::symlink_metadata(dir.path().join(path)).unwrap();
        assert_eq!(meta.mtime(), 7, "{path}");
    }
}

#[test]
#[ignore = "needs root"]
fn holes_stay_holes() {
    let mut header = entry(EntryType::GNUSparse, 0o644);
    header.set_size(5);
    {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].offset = *b"00010000000\0";
        gnu.sparse[0].numbytes = *b"00000000005\0";
        gnu.realsize = *b"10000000000\0"; // 1 GiB
    }
    let mut builder = tar::Builder::new(Vec::new());
    append_raw(&mut builder, header, "s", b"hello");
    let (dir, done) = try_layer(&builder.into_inner().unwrap());
    done.unwrap();
    let meta = std::fs::metadata(dir.path().join("s")).unwrap();
    assert_eq!(meta.len(), 1 << 30);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
}

#[test]
#[ignore = "needs root"]
fn folders_without_an_entry_are_listed() {
    let layer = layer(&[
        ("tmp/x", FILE, ""),
        ("late/x", FILE, ""),
        ("late", FOLDER, ""),
        ("a/b/c", FILE, ""),
        ("replaced/x", FILE, ""),
        ("replaced", FILE, ""),
        // Whatever is below is hidden: these are new.
        (".wh.new", FILE, ""),
        ("new/x", FILE, ""),
        ("hidden/x", FILE, ""),
        (".wh.hidden", FILE, ""),
        // This one keeps what it is, with other things in it.
        ("emptied/.wh..wh..opq", FILE, ""),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let plain = unpack_all(&layer, dir.path()).unwrap();
    let plain: Vec<_> = { plain.iter() }
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(plain, ["a", "a/b", "emptied", "tmp"]);
}

#[test]
fn the_node_keeps_room_for_itself() {
    let share = |all, free| Share { all, free };
    let (roomy, none) = (share(100, 100), share(0, 0));
    for (bytes, inodes, want) in [
        (share(1000, 50), roomy, None),
        (share(1000, 49), roomy, Some("bytes")),
        (share(1 << 40, MOST_RESERVED), roomy, None),
        (share(1 << 40, MOST_RESERVED - 1), roomy, Some("bytes")),
        (roomy, share(1000, 50), None),
        (roomy, share(1000, 49), Some("inodes")),
        (roomy, none, None),
    ] {
        assert_eq!(lacking(bytes, inodes), want, "{bytes:?} {inodes:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn folders_without_an_entry_are_few() {
    let names: Vec<String> = (0..parents::MOST + 10)
        .map(|one| format!("d{one}/x"))
        .collect();
    let entries: Vec<_> = names.iter().map(|name| (name.as_str(), FILE, "")).collect();
    let dir = tempfile::tempdir().unwrap();
    let plain = unpack_all(&layer(&entries), dir.path()).unwrap();
    assert_eq!(plain.len(), parents::MOST);
}
