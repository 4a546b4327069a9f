//! What limits do to real processes, in groups of the tests' own, on whichever layout the host has.

use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cgroups::{Group, Hierarchy, Layout, Limits, Stats};

type TestResult<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const MIB: i64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(30);

/// A group that is removed with all in it, also when the test fails.
struct Scratch(Group);

impl Scratch {
    fn new(name: &str) -> TestResult<Self> {
        let name = format!("vetch-test-{}-{name}", std::process::id());
        Ok(Self(Group::create(&Hierarchy::detect()?, &name)?))
    }

    fn limited(name: &str, limits: &Limits) -> TestResult<Self> {
        let scratch = Self::new(name)?;
        scratch.0.apply(limits)?;
        Ok(scratch)
    }

    /// Runs `sh -c SCRIPT` in the group from its first command on.
    fn shell(&self, script: &str) -> TestResult<Running> {
        let script = format!("read -r go; {script}");
        self.start(Command::new("sh").args(["-c", &script]))
    }

    /// A process that takes `mib` of memory, says `held` and keeps it until its input ends.
    fn hog(&self, mib: i64) -> TestResult<Running> {
        let test = std::env::current_exe()?;
        let arguments = ["--exact", "hold_memory", "--include-ignored", "--nocapture"];
        self.start(
            Command::new(test)
                .args(arguments)
                .env(HOLD, mib.to_string()),
        )
    }

    fn start(&self, command: &mut Command) -> TestResult<Running> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running(command.stderr(Stdio::null()).spawn()?);
        self.0.add_process(running.0.id())?;
        let input = running.0.stdin.as_mut().ok_or("no input")?;
        input.write_all(b"go\n")?;
        Ok(running)
    }

    fn wait(&self, what: &str, mut until: impl FnMut(&Stats) -> bool) -> TestResult<Stats> {
        let end = Instant::now() + DEADLINE;
        loop {
            let stats = self.0.stats()?;
            if until(&stats) {
                return Ok(stats);
            }
            if Instant::now() > end {
                return Err(format!("not {what}: {stats:?}").into());
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.0.kill_all();
        let _ = self.0.remove();
    }
}

struct Running(Child);

impl Running {
    /// The first line that contains `word`; an error when the process ended without.
    fn says(&mut self, word: &str) -> TestResult<String> {
        let output = self.0.stdout.take().ok_or("output was read")?;
        let mut lines = BufReader::new(output).lines();
        loop {
            let line = lines
                .next()
                .ok_or_else(|| format!("ended without {word:?}"))??;
            if line.contains(word) {
                return Ok(line);
            }
        }
    }

    fn signal(mut self) -> TestResult<Option<i32>> {
        Ok(self.0.wait()?.signal())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const HOLD: &str = "CGROUPS_TEST_HOLD_MIB";

/// Not a test but the process that [`Scratch::hog`] starts: this program once more.
#[test]
#[ignore = "started by the tests"]
fn hold_memory() -> TestResult {
    let Ok(mib) = std::env::var(HOLD) else {
        return Ok(());
    };
    let mut go = String::new();
    std::io::stdin().read_line(&mut go)?;
    let mut memory = vec![0_u8; mib.parse::<usize>()? << 20];
    for (page, byte) in memory.iter_mut().step_by(4096).enumerate() {
        *byte = page as u8; // not all the same, or zram would keep them for nothing
    }
    println!("held {}", std::hint::black_box(&memory).len());
    std::io::stdin().read_line(&mut go)?;
    Ok(())
}

fn memory(bytes: i64, swap: i64) -> Limits {
    Limits {
        memory_bytes: Some(bytes),
        memory_swap_bytes: Some(bytes + swap),
        ..Limits::default()
    }
}

#[test]
#[ignore = "needs root"]
fn memory_beyond_the_limit_ends_the_process() -> TestResult {
    let scratch = Scratch::limited("oom", &memory(32 * MIB, 0))?;
    let mut small = scratch.hog(16)?;
    small.says("held")?;
    let stats = scratch.0.stats()?;
    assert!(
        (16 << 20..=32 << 20).contains(&stats.memory_bytes),
        "{stats:?}"
    );
    assert!(stats.working_set_bytes <= stats.memory_bytes && stats.cpu_ns > 0);
    assert!(stats.pids >= 1 && (stats.oom_kills, stats.swap_bytes) == (0, 0));
    drop(small);
    assert_eq!(scratch.hog(64)?.signal()?, Some(libc::SIGKILL));
    assert_eq!(scratch.0.stats()?.oom_kills, 1);
    Ok(())
}

/// Needs a host with swap: it does not make any, as that would be the whole machine's.
#[test]
#[ignore = "needs root"]
fn swap_is_used_up_to_its_limit_and_no_more() -> TestResult {
    if std::fs::read_to_string("/proc/swaps")?.lines().count() < 2 {
        println!("this host has no swap");
        return Ok(());
    }
    let scratch = Scratch::limited("swap", &memory(32 * MIB, 32 * MIB))?;
    let mut fits = scratch.hog(48)?;
    fits.says("held")?;
    let stats = scratch.0.stats()?;
    assert!(
        (12 << 20..=32 << 20).contains(&stats.swap_bytes),
        "{stats:?}"
    );
    drop(fits);
    let too_much = scratch.hog(96)?;
    let killed = scratch.wait("killed", |stats| {
        assert!(stats.swap_bytes <= 32 << 20, "{stats:?}");
        stats.oom_kills == 1
    })?;
    assert_eq!(too_much.signal()?, Some(libc::SIGKILL), "{killed:?}");

    scratch.0.apply(&memory(32 * MIB, 0))?;
    assert_eq!(scratch.hog(48)?.signal()?, Some(libc::SIGKILL));
    // What was swapped out under the limit before may still be there.
    assert!(scratch.0.stats()?.swap_bytes < 1 << 20);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn one_process_out_of_memory_ends_the_group_if_asked() -> TestResult {
    let limits = Limits {
        oom_group: Some(true),
        ..memory(32 * MIB, 0)
    };
    let scratch = Scratch::limited("oom-group", &limits)?;
    let bystander = scratch.shell("exec sleep 60")?;
    assert_eq!(scratch.hog(64)?.signal()?, Some(libc::SIGKILL));
    if Hierarchy::detect()?.layout == Layout::V2 {
        assert_eq!(bystander.signal()?, Some(libc::SIGKILL));
    } else {
        assert_eq!(scratch.0.stats()?.pids, 1, "v1 ends one process only");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn forks_stop_at_the_limit() -> TestResult {
    let limits = Limits {
        pids: Some(6),
        ..Limits::default()
    };
    let scratch = Scratch::limited("pids", &limits)?;
    let shell = scratch.shell("for i in 1 2 3 4 5 6 7 8 9; do sleep 60 & done; wait")?;
    // The shell gives up at the first fork that is refused.
    scratch.wait("full", |stats| {
        assert!(stats.pids <= 6, "{stats:?}");
        stats.pids >= 5
    })?;
    drop(shell);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_quota_is_held() -> TestResult {
    let limits = Limits {
        cpu_quota_us: Some(20_000),
        cpu_period_us: Some(100_000),
        ..Limits::default()
    };
    let scratch = Scratch::limited("cpu", &limits)?;
    let _spinner = scratch.shell("while :; do :; done")?;
    scratch.wait("running", |stats| stats.cpu_ns > 40_000_000)?;
    let (began, before) = (Instant::now(), scratch.0.stats()?.cpu_ns);
    // The measured time itself: twenty periods.
    std::thread::sleep(Duration::from_secs(2));
    let used = (scratch.0.stats()?.cpu_ns - before) as f64;
    let share = used / began.elapsed().as_nanos() as f64;
    // At most one slice over; less only where the machine had no more to give.
    assert!((0.1..=0.22).contains(&share), "{share}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn killing_ends_all_below_and_those_they_make() -> TestResult {
    let scratch = Scratch::new("kill")?;
    let below = Scratch::new("kill/below")?;
    let outer = scratch.shell("while :; do (:); done");
    let outer = match Hierarchy::detect()?.layout {
        Layout::V1 => Some(outer?),
        Layout::V2 => {
            // Processes live in leaves only.
            assert!(outer.is_err());
            None
        }
    };
    let forks = below.shell("setsid sh -c 'while :; do sleep 60 & sleep 0.01; done' & wait")?;
    below.wait("forking", |stats| stats.pids > 4)?;
    scratch.0.kill_all()?;
    assert!(scratch.0.processes()?.is_empty());
    assert_eq!(forks.signal()?, Some(libc::SIGKILL));
    drop(outer);
    scratch.0.remove()?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn frozen_processes_stand_still_until_thawed_and_can_be_killed() -> TestResult {
    let scratch = Scratch::new("freeze")?;
    let spinner = scratch.shell("while :; do :; done")?;
    scratch.wait("running", |stats| stats.cpu_ns > 10_000_000)?;
    scratch.0.freeze()?;
    let stopped = scratch.0.stats()?.cpu_ns;
    // There is no event for nothing happening.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(scratch.0.stats()?.cpu_ns, stopped);
    scratch.0.thaw()?;
    scratch.wait("going on", |stats| stats.cpu_ns > stopped + 10_000_000)?;
    scratch.0.freeze()?;
    scratch.0.kill_all()?;
    assert_eq!(spinner.signal()?, Some(libc::SIGKILL));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn only_allowed_devices_open() -> TestResult {
    let scratch = Scratch::new("devices")?;
    let opens = |device: &str| -> TestResult<bool> {
        let script = format!("(: <{device}) 2>/dev/null && echo yes || echo no");
        Ok(scratch.shell(&script)?.says("")?.contains("yes"))
    };
    // (other filesystems may be mounted without devices)
    let folder = tempfile::tempdir_in("/dev")?;
    let node = folder.path().join("kmsg").display().to_string();
    let make = format!("mknod {node} c 1 11 && echo made");
    scratch.shell(&make)?.says("made")?;
    assert!(opens("/dev/zero")? && opens(&node)?);
    // Twice: the second time replaces the first.
    for _ in 0..2 {
        scratch.0.set_devices(&cgroups::devices::default_rules())?;
        assert!(opens("/dev/zero")?);
        assert!(!opens(&node)?, "kmsg is not among the default devices");
    }
    std::fs::remove_file(&node)?;
    scratch.shell(&make)?.says("made")?; // making a node does no harm
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn groups_below_a_half_made_one_take_processes() -> TestResult {
    let hierarchy = Hierarchy::detect()?;
    let name = format!("vetch-test-{}-half", std::process::id());
    let top = Scratch(Group::open(&hierarchy, &name)?);
    let trees: Vec<_> = match hierarchy.layout {
        Layout::V1 => hierarchy.v1.values().collect(),
        Layout::V2 => hierarchy.v2.iter().collect(),
    };
    for tree in trees {
        let made = std::fs::create_dir(tree.join(&name));
        made.or_else(|error| match error.kind() {
            // Two controllers in one tree.
            std::io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })?;
    }
    for inner in ["again", "below/that"] {
        let inner = Scratch(Group::create(&hierarchy, &format!("{name}/{inner}"))?);
        inner.start(Command::new("sleep").arg("100"))?;
    }
    drop(top);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn many_make_groups_below_the_same_at_once() -> TestResult {
    for round in 0..20 {
        let name = format!("vetch-test-{}-many-{round}", std::process::id());
        let _top = Scratch(Group::open(&Hierarchy::detect()?, &name)?);
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..4)
                .map(|maker| {
                    let inner = format!("{name}/a/b/{maker}");
                    scope.spawn(move || -> TestResult {
                        let inner = Scratch(Group::create(&Hierarchy::detect()?, &inner)?);
                        inner.start(Command::new("sleep").arg("100"))?;
                        Ok(())
                    })
                })
                .collect();
            makers
                .into_iter()
                .try_for_each(|maker| maker.join().map_err(|_| "a maker panicked")?)
        })?;
    }
    Ok(())
}
