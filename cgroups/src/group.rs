//! One group: the same relative path in every tree.

use crate::{Current, Error, Hierarchy, Layout, Limits, controllers, plan, wait};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    path::{Component, Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long killing and removing wait for the kernel.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);
/// How long one round of killing waits before it looks for processes that came meanwhile.
const ROUND: Duration = Duration::from_millis(200);

/// Files that are missing on a kernel without swap accounting.
const SWAP_FILES: [&str; 2] = ["memory.swap.max", "memory.memsw.limit_in_bytes"];

#[derive(Clone, Debug)]
pub struct Group {
    pub(crate) hierarchy: Hierarchy,
    name: PathBuf,
}

impl Group {
    /// Names a group without touching it. `name` is relative to the mount points.
    pub fn open(hierarchy: &Hierarchy, name: &str) -> Result<Self, Error> {
        let path = Path::new(name);
        let plain = |part| matches!(part, Component::Normal(_));
        if name.is_empty() || !path.components().all(plain) {
            return Err(Error::Name(name.into()));
        }
        Ok(Self {
            hierarchy: hierarchy.clone(),
            name: path.into(),
        })
    }

    /// Makes the group in every tree, parents too. One that exists is fine. On error nothing that
    /// was made is taken back: call [`Group::remove`].
    pub fn create(hierarchy: &Hierarchy, name: &str) -> Result<Self, Error> {
        let group = Self::open(hierarchy, name)?;
        for root in group.roots() {
            let made = group.make(&root, &group.name);
            match (made, hierarchy.layout) {
                // A group above was made by someone who did not hand its controllers down.
                (Err(Error::NoController(_)), Layout::V2) => group.hand_down(&root)?,
                (made, _) => made?,
            }
        }
        Ok(group)
    }

    /// Makes one folder, and those above only if they are missing.
    fn make(&self, root: &Path, name: &Path) -> Result<(), Error> {
        let path = root.join(name);
        let parent = name.parent().unwrap_or(Path::new(""));
        let mut made = fs::create_dir(&path);
        if matches!(&made, Err(error) if error.kind() == io::ErrorKind::NotFound)
            && parent != Path::new("")
        {
            self.make(root, parent)?;
            made = fs::create_dir(&path);
        }
        let new = match made {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(source) => return Err(failed("create", &path, source)),
        };
        match self.hierarchy.layout {
            Layout::V2 if new => hand_to_children(root, &root.join(parent)),
            // Whoever made it may not have filled it yet.
            Layout::V1
                if self
                    .hierarchy
                    .v1
                    .get("cpuset")
                    .is_some_and(|own| own == root) =>
            {
                inherit_cpuset(root, name)
            }
            Layout::V1 | Layout::V2 => Ok(()),
        }
    }

    /// Enables all controllers from the root of a v2 tree down to this group.
    fn hand_down(&self, root: &Path) -> Result<(), Error> {
        let mut path = root.to_owned();
        for part in &self.name {
            hand_to_children(root, &path)?;
            path.push(part);
        }
        Ok(())
    }

    /// Moves a process, with all its threads, into the group.
    pub fn add_process(&self, pid: u32) -> Result<(), Error> {
        let value = pid.to_string();
        self.dirs()
            .iter()
            .try_for_each(|dir| write(&dir.join("cgroup.procs"), &value))
    }

    /// Moves the calling process, which must have one thread only, into the group. For v1 that takes
    /// no lock of the whole system, unlike [`Group::add_process`].
    pub fn enter(&self) -> Result<(), Error> {
        let file = match self.hierarchy.layout {
            Layout::V1 => "tasks",
            Layout::V2 => "cgroup.procs",
        };
        self.dirs()
            .iter()
            .try_for_each(|dir| write(&dir.join(file), "0"))
    }

    /// Folder of the group in the v2 tree, for clone3 to start a process in; `None` on v1.
    pub fn unified_dir(&self) -> Option<PathBuf> {
        match self.hierarchy.layout {
            Layout::V1 => None,
            Layout::V2 => self.unified().ok(),
        }
    }

    /// Processes of this group the OOM killer has ended.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let file = match self.hierarchy.layout {
            Layout::V1 => "memory.oom_control",
            Layout::V2 => "memory.events",
        };
        Ok(field(&self.text(file)?, "oom_kill"))
    }

    /// Sends SIGKILL to all processes of the group and below, once, without waiting.
    pub fn kill(&self) -> Result<(), Error> {
        if self.hierarchy.layout == Layout::V2 {
            match write(&self.unified()?.join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                // Before Linux 5.14.
                Err(Error::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        for pid in self.processes()? {
            signal_kill(pid, &self.name)?;
        }
        Ok(())
    }

    /// All processes of the group and of those below it.
    pub fn processes(&self) -> Result<BTreeSet<i32>, Error> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs() {
            for group in tree(&dir)? {
                collect_pids(&group, &mut pids)?;
            }
        }
        Ok(pids)
    }

    pub fn layout(&self) -> Layout {
        self.hierarchy.layout
    }

    /// Names of the groups below, at most `depth` levels of them, whose own name `suits`; those below
    /// such a group are not looked at.
    pub fn find(
        &self,
        depth: usize,
        suits: impl Fn(&str) -> bool,
    ) -> Result<BTreeSet<String>, Error> {
        let mut found = BTreeSet::new();
        for root in self.roots() {
            let mut level = vec![root.join(&self.name)];
            for _ in 0..depth {
                let mut next = Vec::new();
                for dir in level.iter().map(|dir| children(dir)) {
                    next.extend(dir?);
                }
                let name = |dir: &Path| Some(dir.file_name()?.to_str()?.to_owned());
                let (suiting, others) = { next.into_iter() }
                    .partition(|dir| name(dir).is_some_and(|name| suits(&name)));
                level = others;
                let suiting: Vec<PathBuf> = suiting;
                let names = suiting
                    .iter()
                    .filter_map(|dir| dir.strip_prefix(&root).ok());
                found.extend(names.filter_map(|name| name.to_str().map(str::to_owned)));
            }
        }
        Ok(found)
    }

    /// Sets limits in the order [`plan`] gives; stops at the first that is refused.
    pub fn apply(&self, limits: &Limits) -> Result<(), Error> {
        let layout = self.hierarchy.layout;
        let current = match layout {
            Layout::V1 if limits.memory_bytes.is_some() => Current {
                memory_bytes: self.number("memory.limit_in_bytes")?,
            },
            _ => Current::default(),
        };
        // Where the kernel does not count swap there is none to allow beyond memory.
        let no_swap = matches!(limits.memory_swap_bytes, Some(-1))
            || limits.memory_swap_bytes == limits.memory_bytes;
        for step in plan(layout, limits, current)? {
            match write(&self.file(step.file)?, &step.value) {
                Err(Error::Write { source, .. })
                    if source.kind() == io::ErrorKind::NotFound
                        && no_swap
                        && SWAP_FILES.contains(&step.file) =>
                {
                    tracing::debug!(file = step.file, "this kernel does not account swap");
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Writes a v2 file by its own name, such as `memory.swap.max`; v1 has no such file and is left
    /// alone.
    pub fn set_unified(&self, file: &str, value: &str) -> Result<(), Error> {
        if self.hierarchy.layout == Layout::V1 {
            return Ok(());
        }
        if file.contains('/') || !file.contains('.') {
            return Err(Error::Name(file.into()));
        }
        match self.write(file, value) {
            // Where the kernel does not count swap there is none to allow.
            Err(Error::Write { source, .. })
                if source.kind() == io::ErrorKind::NotFound
                    && value == "0"
                    && SWAP_FILES.contains(&file) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Limits huge pages of one size, in the kernel's spelling (`2MB`); bytes.
    pub fn set_huge_pages(&self, size: &str, bytes: i64) -> Result<(), Error> {
        let file = match self.hierarchy.layout {
            Layout::V1 => format!("hugetlb.{size}.limit_in_bytes"),
            Layout::V2 => format!("hugetlb.{size}.max"),
        };
        self.write(&file, &bytes.to_string())
    }

    /// Ends every process of the group and of those below it, frozen ones too; returns when none is
    /// left.
    pub fn kill_all(&self) -> Result<(), Error> {
        let began = Instant::now();
        for round in 0.. {
            let pids = self.processes()?;
            if pids.is_empty() {
                break;
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::Busy {
                    path: self.name.clone(),
                    pids: pids.len(),
                    waited: PATIENCE,
                });
            }
            let waited = match self.hierarchy.layout {
                Layout::V2 => {
                    self.kill()?;
                    let deadline = Instant::now() + ROUND;
                    wait::for_event(&self.unified()?, "populated 0", deadline).map(drop)
                }
                Layout::V1 => {
                    // Who forks faster than we read is stopped for the moment of killing.
                    if round > 0 && self.hierarchy.v1.contains_key("freezer") {
                        self.freeze()?;
                    }
                    self.kill()?;
                    if let Some(freezer) = self.hierarchy.v1.get("freezer") {
                        // Or SIGKILL would wait with the frozen.
                        for group in tree(&freezer.join(&self.name))? {
                            thaw(&group)?;
                        }
                    }
                    wait::for_ends(pids.into_iter(), ROUND)
                }
            };
            waited.map_err(|source| failed("wait for the end of", &self.name, source))?;
        }
        Ok(())
    }

    /// Removes the group and those below it. Processes must be gone; a group that is gone is fine.
    pub fn remove(&self) -> Result<(), Error> {
        for dir in self.dirs() {
            // Those below first.
            for group in tree(&dir)?.iter().rev() {
                remove_one(group)?;
            }
        }
        Ok(())
    }

    fn roots(&self) -> BTreeSet<PathBuf> {
        match self.hierarchy.layout {
            Layout::V1 => self.hierarchy.v1.values().cloned().collect(),
            Layout::V2 => self.hierarchy.v2.iter().cloned().collect(),
        }
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.roots()
            .iter()
            .map(|root| root.join(&self.name))
            .collect()
    }

    pub(crate) fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        write(&self.file(file)?, value)
    }

    /// Writes the values one after the other; stops at the first that is refused.
    pub(crate) fn write_each<'a>(
        &self,
        file: &str,
        values: impl Iterator<Item = &'a str>,
    ) -> Result<(), Error> {
        write_each(&self.file(file)?, values)
    }

    pub(crate) fn unified(&self) -> Result<PathBuf, Error> {
        let root = self.hierarchy.v2.as_ref();
        let root = root.ok_or_else(|| Error::NoController("cgroup2".into()))?;
        Ok(root.join(&self.name))
    }

    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    fn file(&self, file: &str) -> Result<PathBuf, Error> {
        if self.hierarchy.layout == Layout::V2 {
            return Ok(self.unified()?.join(file));
        }
        let controller = file.split('.').next().unwrap_or(file);
        let root = self.hierarchy.v1.get(controller);
        let root = root.ok_or_else(|| Error::NoController(controller.into()))?;
        Ok(root.join(&self.name).join(file))
    }

    pub(crate) fn text(&self, file: &str) -> Result<String, Error> {
        read(&self.file(file)?)
    }

    pub(crate) fn number(&self, file: &str) -> Result<u64, Error> {
        let text = self.text(file)?;
        let path = self.file(file)?;
        text.trim().parse().map_err(|_| Error::Parse { path, text })
    }
}

fn signal_kill(pid: i32, group: &Path) -> Result<(), Error> {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(failed("kill all of", group, errno.into())),
    }
}

/// Value of `name` in lines of `name value`; 0 where this kernel has no such line.
pub(crate) fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn hand_to_children(root: &Path, dir: &Path) -> Result<(), Error> {
    if dir == root {
        controllers::enable_at_root(dir)
    } else {
        controllers::enable(dir)
    }
}

/// A v1 cpuset starts empty and takes no process until both files are filled. Those above may be
/// empty still: two make the same groups at once, or one was stopped halfway.
fn inherit_cpuset(root: &Path, name: &Path) -> Result<(), Error> {
    const FOR_CHILDREN: &str = "cgroup.clone_children";
    // The kernel does it by itself below a group that says so, and makes such groups there.
    if name.components().count() == 1 {
        write(&root.join(name).join(FOR_CHILDREN), "1")?;
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        cpuset(root, name, file)?;
    }
    Ok(())
}

/// What the group may use; taken from the group above where it says nothing.
fn cpuset(root: &Path, name: &Path, file: &str) -> Result<String, Error> {
    let path = root.join(name).join(file);
    let own = read(&path)?.trim().to_owned();
    match name.parent() {
        Some(parent) if own.is_empty() => {
            let inherited = cpuset(root, parent, file)?;
            write(&path, &inherited)?;
            Ok(inherited)
        }
        _ => Ok(own),
    }
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| failed("list", dir, source))?,
    };
    // The listing itself says what is a folder: a group has dozens of files.
    let folders = entries.filter_map(Result::ok).filter(|entry| {
        let kind = entry.file_type();
        kind.is_ok_and(|kind| kind.is_dir())
    });
    Ok(folders.map(|entry| entry.path()).collect())
}

/// A group and all below it, each before those below it. A container that may write control groups
/// decides how deep they go, so this does not recurse.
fn tree(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut groups = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(group) = groups.get(next) {
        let below = children(group)?;
        groups.extend(below);
        next += 1;
    }
    Ok(groups)
}

fn collect_pids(dir: &Path, pids: &mut BTreeSet<i32>) -> Result<(), Error> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        // 0 stands for a process outside our pid namespace; as a target it would be ourselves.
        Ok(text) => pids.extend(
            text.lines()
                .filter_map(|pid| pid.parse::<i32>().ok())
                .filter(|&p| p > 0),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
        Err(source) => return Err(failed("read processes of", dir, source)),
    }
    Ok(())
}

/// Lets a v1 freezer group go on.
fn thaw(dir: &Path) -> Result<(), Error> {
    let state = dir.join("freezer.state");
    match write(&state, "THAWED") {
        Err(Error::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    Ok(())
}

fn remove_one(dir: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    for attempt in 0.. {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            // An ended process leaves the group a moment after its parent has seen it end.
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                wait::for_event(dir, "populated 0", deadline)
                    .map_err(|source| failed("wait for the end of", dir, source))?;
                // v1 gives no notice.
                if attempt > 0 {
                    thread::sleep(PAUSE);
                }
            }
            other => return other.map_err(|source| failed("remove", dir, source)),
        }
    }
    Ok(())
}

/// With room for all of it: files of the kernel say that they are empty, and would be read in small pieces.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    let mut text = String::with_capacity(4096);
    let read = fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    read.map_err(|source| failed("read", path, source))
        .map(|_| text)
}

pub(crate) fn write(path: &Path, value: &str) -> Result<(), Error> {
    write_each(path, std::iter::once(value))
}

fn write_each<'a>(path: &Path, values: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let mut file = None;
    for value in values {
        let written = match &mut file {
            Some(file) => io::Write::write_all(file, value.as_bytes()),
            // Not created when missing, as `fs::write` would try: a file the kernel lacks is an error.
            none => fs::OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|file| io::Write::write_all(none.insert(file), value.as_bytes())),
        };
        written.map_err(|source| Error::Write {
            path: path.into(),
            value: value.into(),
            source,
        })?;
    }
    Ok(())
}

pub(crate) fn failed(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        operation,
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Removes its group also when the test fails.
    struct Scratch(Group);
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = self.0.kill_all();
            let _ = self.0.remove();
        }
    }

    #[test]
    fn names_stay_below_the_root() {
        let hierarchy = Hierarchy {
            layout: Layout::V2,
            v1: Default::default(),
            v2: None,
        };
        for name in ["", "/a", "a/../b", ".."] {
            assert!(Group::open(&hierarchy, name).is_err(), "{name:?}");
        }
        assert!(Group::open(&hierarchy, "a/b").is_ok());
    }

    #[test]
    #[ignore = "needs root"]
    fn limits_stats_kill_and_removal() {
        let hierarchy = Hierarchy::detect().unwrap();
        let name = format!("vetch-test-{}", std::process::id());
        let scratch = Scratch(Group::create(&hierarchy, &name).unwrap());
        let group = &scratch.0;
        let mut limits = Limits {
            cpu_shares: Some(512),
            cpu_quota_us: Some(20_000),
            cpu_period_us: Some(50_000),
            memory_bytes: Some(64 << 20),
            memory_swap_bytes: Some(64 << 20),
            pids: Some(20),
            ..Limits::default()
        };
        group.apply(&limits).unwrap();
        for bytes in [128 << 20, 32 << 20] {
            limits.memory_bytes = Some(bytes);
            limits.memory_swap_bytes = Some(bytes);
            group.apply(&limits).unwrap();
        }
        if hierarchy.layout == Layout::V1 {
            assert_eq!(
                group.number("memory.memsw.limit_in_bytes").unwrap(),
                32 << 20
            );
            assert_eq!(group.number("cpu.cfs_quota_us").unwrap(), 20_000);
        }
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        group.add_process(child.id()).unwrap();
        assert_eq!(group.stats().unwrap().pids, 1);
        let waiter = thread::spawn(move || child.wait());
        group.kill_all().unwrap();
        assert!(!waiter.join().unwrap().unwrap().success());
        group.remove().unwrap();
        assert!(group.dirs().iter().all(|dir| !dir.exists()));
    }
}
