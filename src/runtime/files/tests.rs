use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::symlink,
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};

use super::*;

const DEPTH: usize = 30_000;
/// A stack on which a hundred frames of a recursion would not fit.
const STACK: usize = 128 << 10;

/// `depth` folders one in the other, far longer than a path may be, with a file in each hundredth.
fn nest(top: &Path, depth: usize) {
    let mut at: OwnedFd = File::open(top).unwrap().into();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    for level in 0..depth {
        let mode = Mode::from_bits_truncate(0o755);
        nix::sys::stat::mkdirat(&at, "folder", mode).unwrap();
        if level % 100 == 0 {
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
            nix::fcntl::openat(&at, "file", flags, mode).unwrap();
        }
        at = nix::fcntl::openat(&at, "folder", flags, Mode::empty()).unwrap();
    }
}

fn on_a_small_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn depth_costs_neither_stack_nor_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir(&top).unwrap();
    nest(&top, DEPTH);
    let usage = on_a_small_stack(|| measure_tree(&top));
    assert_eq!(usage.inodes, 1 + DEPTH as u64 + DEPTH as u64 / 100);

    struct Most(usize);
    impl walk::Visitor for Most {
        fn visit(&mut self, _: &walk::Entry<'_>) -> walk::Step {
            self.0 = self.0.max(descriptors());
            walk::Step::Enter
        }
        fn failed(&mut self, error: io::Error) {
            panic!("{error}");
        }
    }
    let before = descriptors();
    let mut most = Most(0);
    // Other tests of this process open files too; a descriptor a level would be 300.
    let some = top.join("folder/".repeat(400));
    fs::create_dir(some.join("more")).unwrap();
    walk::walk(File::open(&top).unwrap().into(), &mut Until(&mut most, 300)).unwrap();
    assert!(most.0 < before + 200, "{} after {before}", most.0);

    on_a_small_stack(|| remove_tree(&top)).unwrap();
    assert!(!top.exists());
}

/// Only the first levels, so that counting does not take long.
struct Until<'a>(&'a mut dyn walk::Visitor, usize);

impl walk::Visitor for Until<'_> {
    fn visit(&mut self, entry: &walk::Entry<'_>) -> walk::Step {
        self.1 = self.1.saturating_sub(1);
        match self.1 {
            0 => walk::Step::Over,
            _ => self.0.visit(entry),
        }
    }
    fn failed(&mut self, error: io::Error) {
        self.0.failed(error);
    }
}

#[test]
fn many_folders_beside_each_other_and_deep_ones_between() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    let mut inodes = 1;
    for number in 0..2000 {
        let folder = top.join(format!("a-rather-long-name-of-a-folder-{number}"));
        fs::create_dir_all(&folder).unwrap();
        inodes += 1;
        // Deeper than the walk keeps folders open: the long listing above is closed each time.
        if number % 50 == 0 {
            fs::create_dir_all(folder.join("x/".repeat(70))).unwrap();
            inodes += 70;
        }
    }
    assert_eq!(measure_tree(&top).inodes, inodes);
    remove_tree(&top).unwrap();
    assert!(!top.exists());
}

#[test]
fn links_are_removed_and_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), vec![1; 100_000]).unwrap();
    let top = dir.path().join("top");
    fs::create_dir(&top).unwrap();
    symlink(&kept, top.join("link")).unwrap();
    symlink("..", top.join("up")).unwrap();
    symlink(".", top.join("loop")).unwrap();
    mkfifo(&top.join("pipe"), Mode::S_IRWXU).unwrap();
    fs::write(top.join("a"), vec![1; 100_000]).unwrap();
    fs::hard_link(top.join("a"), top.join("b")).unwrap();
    let usage = measure_tree(&top);
    assert_eq!(usage.inodes, 1 + 3 + 1 + 1, "the two names are one file");
    assert!((100_000..150_000).contains(&usage.bytes), "{usage:?}");
    symlink(&top, dir.path().join("short")).unwrap();
    remove_tree(&dir.path().join("short")).unwrap();
    assert!(top.exists(), "only the link goes");
    remove_tree(&top).unwrap();
    assert!(!top.exists() && kept.join("file").exists());
    remove_tree(&top).unwrap();
    remove_tree(&top.join("below/nothing")).unwrap();
    for nothing in ["/", "..", "a/.."] {
        assert!(remove_tree(Path::new(nothing)).is_err(), "{nothing}");
    }
    assert_eq!(measure_tree(&top), Usage::default());
}

#[test]
fn folders_that_are_moved_never_lead_outside() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir_all(outside.join("keep")).unwrap();
    let top = dir.path().join("top");
    let deep = top.join("x/".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    fs::create_dir_all(top.join("y")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The middle of the chain goes out of the tree and in again elsewhere.
            let middle = top.join("x/".repeat(50));
            while !done.load(Ordering::Relaxed) {
                for (from, to) in [
                    (middle.clone(), outside.join("moved")),
                    (outside.join("moved"), top.join("y/moved")),
                    (top.join("y/moved"), middle.clone()),
                ] {
                    let _ = fs::rename(from, to);
                }
            }
        });
        for _ in 0..200 {
            let inodes = measure_tree(&top).inodes;
            assert!((1..=200).contains(&inodes), "{inodes}");
        }
        let removed = remove_tree(&top);
        done.store(true, Ordering::Relaxed);
        // What was outside at that moment may have come back in.
        assert!(removed.is_ok() || top.exists(), "{removed:?}");
    });
    assert!(outside.join("keep").exists());
    remove_tree(&top).unwrap();
}

#[test]
fn somebody_who_goes_on_writing_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("a/b")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..5000 {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let _ = fs::create_dir_all(top.join(format!("a/b/{number}")));
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        });
        let _ = remove_tree(&top); // done or refused, but it ends
        done.store(true, Ordering::Relaxed);
    });
    remove_tree(&top).unwrap();
    assert!(!top.exists());
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_removed_is_named_and_the_rest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("a/b/c/fixed")).unwrap();
    fs::write(top.join("a/b/c/fixed/file"), "").unwrap();
    fs::create_dir_all(top.join("gone")).unwrap();
    let immutable = |flag: &str| {
        let path = top.join("a/b/c/fixed");
        let done = std::process::Command::new("chattr")
            .arg(flag)
            .arg(path)
            .status();
        done.is_ok_and(|status| status.success())
    };
    if !immutable("+i") {
        return; // this file system has no such attribute
    }
    let error = remove_tree(&top).unwrap_err().to_string();
    assert!(immutable("-i"));
    assert!(error.contains("\".../b/c/fixed/file\""), "{error}");
    assert!(!top.join("gone").exists());
    remove_tree(&top).unwrap();
}

#[test]
#[ignore = "needs root"]
fn mounts_are_not_entered() {
    use nix::{
        mount::{MntFlags, MsFlags, mount, umount2},
        sched::{CloneFlags, unshare},
    };
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    fs::create_dir_all(&kept).unwrap();
    fs::write(kept.join("file"), vec![1; 1 << 20]).unwrap();
    let top = dir.path().join("top");
    let point = top.join("a/mounted");
    fs::create_dir_all(&point).unwrap();
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            // A bind of the same file system: its device number says nothing.
            mount(Some(&kept), &point, none, MsFlags::MS_BIND, none).unwrap();
            assert_eq!(measure_tree(&top).inodes, 3);
            assert!(measure_tree(&top).bytes < 1 << 20);
            let error = remove_tree(&top).unwrap_err().to_string();
            umount2(&point, MntFlags::empty()).unwrap();
            error
        });
        let error = done.join().unwrap();
        assert!(error.contains("something is mounted there"), "{error}");
    });
    assert!(kept.join("file").exists());
    remove_tree(&top).unwrap();
}

#[test]
fn reading_is_bounded_and_never_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("ten"), "0123456789").unwrap();
    let sparse = File::create(path("huge")).unwrap();
    sparse.set_len(5 << 30).unwrap();
    mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
    symlink("ten", path("link")).unwrap();
    assert_eq!(read_at_most(&path("ten"), 10).unwrap(), b"0123456789");
    assert_eq!(read_start(&path("ten"), 3).unwrap(), b"012");
    assert_eq!(read_start(&path("huge"), 3).unwrap(), [0; 3]);
    for (name, kind) in [
        ("huge", io::ErrorKind::FileTooLarge),
        ("pipe", io::ErrorKind::InvalidInput),
        (".", io::ErrorKind::InvalidInput),
        ("none", io::ErrorKind::NotFound),
    ] {
        let error = read_at_most(&path(name), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}");
    }
    assert_eq!(
        read_at_most(&path("ten"), 9).unwrap_err().kind(),
        io::ErrorKind::FileTooLarge
    );
    assert!(read_at_most(&path("link"), 100).is_err());
    // A file of the kernel says that it is empty.
    assert!(
        !read_at_most(Path::new("/proc/self/stat"), 4096)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn scratch_folders_go_whatever_is_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(dir.path(), "s.").unwrap();
    let path = scratch.path().to_owned();
    nest(&path, 3000);
    drop(scratch);
    assert!(!path.exists());
}

#[test]
fn names_of_any_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir(&top).unwrap();
    let at = File::open(&top).unwrap();
    for name in [&b"\xff\xfe"[..], b"a\nb", b"...", &[b'n'; 255], b" "] {
        let name = CString::new(name).unwrap();
        let mode = Mode::from_bits_truncate(0o700);
        nix::sys::stat::mkdirat(at.as_fd(), name.as_c_str(), mode).unwrap();
    }
    assert_eq!(measure_tree(&top).inodes, 6);
    remove_tree(&top).unwrap();
    assert!(!top.exists());
}

#[test]
fn a_walk_ends() {
    struct All;
    impl walk::Visitor for All {
        fn visit(&mut self, _: &walk::Entry<'_>) -> walk::Step {
            walk::Step::Enter
        }
        fn failed(&mut self, error: io::Error) {
            panic!("{error}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for folder in 0..10 {
        fs::create_dir(dir.path().join(folder.to_string())).unwrap();
    }
    // Ten folders, ten ways up from them, and the end of the top.
    for (most, good) in [(21, true), (20, false)] {
        let top = File::open(dir.path()).unwrap().into();
        let walked = walk::walk_at_most(most, top, &mut All);
        assert_eq!(walked.is_ok(), good, "{walked:?}");
    }
}
