//! Giving a tree to a group.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat},
    libc::dev_t,
    sys::stat::{FileStat, Mode, SFlag, fstat},
    unistd::{Gid, fchownat},
};

use super::{
    listing::Kind,
    walk::{Entry, Step, Visitor, walk},
};

const FILE: u32 = 0o660;
/// What is made in a folder is the group's too.
const FOLDER: u32 = 0o2770;

/// What came of a walk.
#[derive(Debug)]
pub enum Given {
    /// Everything is the group's but what failed; the first of that.
    Done(Option<io::Error>),
    Stopped,
}

/// Whether the folder itself is not the group's yet.
pub fn lacks_group(top: &Path, group: u32) -> io::Result<bool> {
    let stat = fstat(open_top(top)?)?;
    Ok(stat.st_gid != group || stat.st_mode & FOLDER != FOLDER)
}

/// Gives the folder and all below it to the group, which may read and write them then. The folder is
/// the last, so that it tells whether the rest is done.
///
/// A link is given itself, not what it leads to; what is mounted below is not touched. `stop` is asked
/// at each entry.
pub fn give_to_group(top: &Path, group: u32, stop: &dyn Fn() -> bool) -> io::Result<Given> {
    let top = open_top(top)?;
    let stat = fstat(&top)?;
    let mut giver = Giver {
        group,
        device: stat.st_dev,
        stop,
        stopped: false,
        first: None,
    };
    walk(top.try_clone()?, &mut giver)?;
    if giver.stopped {
        return Ok(Given::Stopped);
    }
    give(&top, &stat, group)?;
    Ok(Given::Done(giver.first))
}

fn open_top(top: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(top, flags, Mode::empty())?)
}

/// By its descriptor: a name may stand for something else a moment later.
fn give(file: &OwnedFd, stat: &FileStat, group: u32) -> io::Result<()> {
    if stat.st_gid != group {
        let group = Some(Gid::from_raw(group));
        fchownat(file, "", None, group, AtFlags::AT_EMPTY_PATH)?;
    }
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let wanted = match kind {
        SFlag::S_IFLNK => return Ok(()),
        SFlag::S_IFDIR => FOLDER,
        _ => FILE,
    };
    let before = stat.st_mode & 0o7777;
    // A change of the group takes setuid and setgid away.
    if before & wanted != wanted || (stat.st_gid != group && before & 0o6000 != 0) {
        let through = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::set_permissions(through, Permissions::from_mode(before | wanted))?;
    }
    Ok(())
}

struct Giver<'a> {
    group: u32,
    device: dev_t,
    stop: &'a dyn Fn() -> bool,
    stopped: bool,
    first: Option<io::Error>,
}

impl Giver<'_> {
    fn give(&self, entry: &Entry<'_>) -> io::Result<Step> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(entry.parent, entry.name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(Step::Over),
            opened => opened.map_err(|errno| entry.failed("open", errno))?,
        };
        let stat = fstat(&file).map_err(|errno| entry.failed("read", errno))?;
        if stat.st_dev != self.device {
            return Ok(Step::Over);
        }
        give(&file, &stat, self.group)
            .map_err(|error| entry.failed("change the group of", error))?;
        Ok(match entry.kind {
            Kind::Other => Step::Over,
            Kind::Folder | Kind::Unknown => Step::Enter,
        })
    }
}

impl Visitor for Giver<'_> {
    fn visit(&mut self, entry: &Entry<'_>) -> Step {
        self.stopped = self.stopped || (self.stop)();
        if self.stopped {
            return Step::Over;
        }
        self.give(entry).unwrap_or_else(|error| {
            self.failed(error);
            Step::Enter
        })
    }

    fn failed(&mut self, error: io::Error) {
        self.first.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    const GROUP: u32 = 4242;

    fn seen(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.gid(), found.mode() & 0o7777)
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn a_tree_is_the_groups_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
        fs::create_dir_all(top.join("a/b")).unwrap();
        for (path, mode) in [
            (top.join("a/b/file"), 0o600),
            (top.join("program"), 0o4711),
            (outside.clone(), 0o600),
        ] {
            fs::write(&path, "").unwrap();
            set(&path, mode);
        }
        set(&top.join("a"), 0o700);
        symlink(&outside, top.join("a/link")).unwrap();
        symlink(dir.path(), top.join("a/up")).unwrap();
        fs::hard_link(top.join("program"), top.join("again")).unwrap();
        let before = seen(&outside);
        assert!(lacks_group(&top, GROUP).unwrap());
        let stopped = give_to_group(&top, GROUP, &|| true).unwrap();
        assert!(matches!(stopped, Given::Stopped));
        assert!(lacks_group(&top, GROUP).unwrap());

        let given = give_to_group(&top, GROUP, &|| false).unwrap();
        assert!(matches!(given, Given::Done(None)), "{given:?}");
        assert!(!lacks_group(&top, GROUP).unwrap());
        assert_eq!(seen(&top.join("a")), (GROUP, 0o2770));
        assert_eq!(seen(&top.join("a/b/file")), (GROUP, 0o660));
        assert_eq!(seen(&top.join("program")), (GROUP, 0o4771));
        assert_eq!(seen(&top.join("a/link")).0, GROUP);
        assert_eq!(seen(&outside), before);
        assert_ne!(seen(dir.path()).0, GROUP);
        // The root decides, for who asks only there.
        set(&top, 0o700);
        assert!(lacks_group(&top, GROUP).unwrap());
    }

    #[test]
    #[ignore = "needs root"]
    fn nothing_outside_while_others_swap_links() {
        let dir = tempfile::tempdir().unwrap();
        let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
        fs::create_dir_all(&top).unwrap();
        fs::create_dir_all(outside.join("deep")).unwrap();
        fs::write(outside.join("secret"), "").unwrap();
        set(&outside.join("secret"), 0o600);
        let before = [
            seen(&outside),
            seen(&outside.join("deep")),
            seen(&outside.join("secret")),
        ];
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (top.join("swapped"), top.join("link"));
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = fs::create_dir_all(one.join("deep"));
                    let _ = fs::write(one.join("secret"), "");
                    let _ = symlink(&outside, &other);
                    let _ = super::super::remove_tree(&one);
                    let _ = fs::rename(&other, &one);
                    let _ = fs::remove_file(&one);
                }
            });
            let tried = (0..300)
                .try_for_each(|round| give_to_group(&top, GROUP + round % 2, &|| false).map(drop));
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            tried.unwrap();
        });
        let after = [
            seen(&outside),
            seen(&outside.join("deep")),
            seen(&outside.join("secret")),
        ];
        assert_eq!(after, before);
    }
}
