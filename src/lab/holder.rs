//! The first process of a host, which is nothing but that: the host lives as long as it does.
//!
//! It locks a file from its beginning to its end, and the kernel tells who has that lock: so a host is found, or known
//! to be gone, also after whoever started it was killed, and after the machine was started anew.
//! Always true: a holder whose file was removed before it had the lock ends at once and makes nothing.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use netns::host::{self, Process};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{dup2_stdout, sethostname, setsid},
};

use super::Error;

/// The command that this program is started with as a holder.
pub const SUBCOMMAND: &str = "lab-host";
/// What it says when the host is there.
const READY: &str = "ready";
const READY_WITHIN_MS: u16 = 20_000;
/// The kernel ends all processes of the host in this time.
const END_WITHIN: Duration = Duration::from_secs(30);

/// Makes a host with namespaces of its own. `run` is a folder that the host loses with its power.
pub fn start(
    program: &Path,
    file: &Path,
    name: &str,
    run: Option<&Path>,
) -> Result<Process, Error> {
    let made = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file);
    made.map_err(Error::io("create", file))?;
    let failed = |source| Error::Run {
        program: format!("the host {name}"),
        source,
    };
    let spawn = || {
        Command::new(program)
            .arg(SUBCOMMAND)
            .args([file, Path::new(name)])
            .args(run)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    };
    let mut child = host::run_in_new(spawn)?.map_err(failed)?;
    let process = i32::try_from(child.id()).map_err(|error| failed(io::Error::other(error)))?;
    let process = Process::open(process)?;
    let said = child.stdout.take().map(hear).transpose();
    match said.map_err(failed)?.as_deref() {
        Some(READY) => Ok(process),
        said => {
            let _ = process.signal(Signal::SIGKILL);
            Err(Error::Failed {
                host: name.to_owned(),
                said: match said {
                    None | Some("") => "it ended before it was ready".to_owned(),
                    Some(said) => said.to_owned(),
                },
            })
        }
    }
}

/// All that the holder has to say; it closes its output then.
fn hear(mut output: impl Read + std::os::fd::AsFd) -> io::Result<String> {
    let mut waited = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
    if poll(&mut waited, PollTimeout::from(READY_WITHIN_MS))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut said = String::new();
    output.read_to_string(&mut said)?;
    Ok(said.trim().to_owned())
}

/// The host's first process, if it lives.
pub fn find(file: &Path) -> Result<Option<Process>, Error> {
    match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => of_lock(&opened.map_err(Error::io("open", file))?),
    }
}

/// The process that has the lock of that file.
fn of_lock(file: &File) -> Result<Option<Process>, Error> {
    loop {
        let Some(pid) = locker(file)? else {
            return Ok(None);
        };
        // Its number may be another's by now, unless it still has the lock.
        match Process::open(pid) {
            Ok(process) if locker(file)? == Some(pid) => return Ok(Some(process)),
            Ok(_) => {}
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn locker(file: &File) -> Result<Option<i32>, Error> {
    let mut lock = whole(libc::F_WRLCK);
    let asked = fcntl(file, FcntlArg::F_GETLK(&mut lock));
    asked.map_err(|errno| Error::io("ask for the lock of", "a host")(errno.into()))?;
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
}

fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Ends the hosts with all that runs on them, at once as a power loss does, and waits for their end.
pub fn kill(files: &[PathBuf]) -> Result<(), Error> {
    // All at once, since each takes the kernel a moment.
    let ending = files.iter().map(|file| end(file));
    let ending: Vec<Option<Process>> = ending.collect::<Result<_, _>>()?;
    for (file, process) in files.iter().zip(ending) {
        wait_for_end(file, process)?;
        retire(file)?;
    }
    Ok(())
}

/// Kills the holder, if there is one.
fn end(file: &Path) -> Result<Option<Process>, Error> {
    let Some(process) = find(file)? else {
        return Ok(None);
    };
    match process.signal(Signal::SIGKILL) {
        Err(error) if !error.is_absent() => Err(error.into()),
        _ => Ok(Some(process)),
    }
}

fn wait_for_end(file: &Path, process: Option<Process>) -> Result<(), Error> {
    match process {
        Some(process) if !process.has_ended_within(END_WITHIN)? => Err(Error::Late {
            what: format!("the end of {}", file.display()),
            longest: END_WITHIN,
        }),
        _ => Ok(()),
    }
}

/// Removes the file so that a holder which was just being started takes it no more: as long as it is there this
/// process has the lock.
fn retire(path: &Path) -> Result<(), Error> {
    const TRIES: usize = 3;
    for _ in 0..TRIES {
        let file = match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(Error::io("open", path))?,
        };
        match fcntl(&file, FcntlArg::F_SETLK(&whole(libc::F_WRLCK))) {
            Ok(_) => return fs::remove_file(path).map_err(Error::io("remove", path)),
            Err(Errno::EAGAIN | Errno::EACCES) => wait_for_end(path, end(path)?)?,
            Err(errno) => return Err(Error::io("lock", path)(errno.into())),
        }
    }
    Err(Error::io("lock", path)(io::ErrorKind::ResourceBusy.into()))
}

/// What a holder does: `FILE NAME [RUN]`.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let mut out = io::stdout();
    let held = match arguments {
        [file, name] => hold(Path::new(file), name, None),
        [file, name, run] => hold(Path::new(file), name, Some(Path::new(run))),
        _ => Err(io::Error::other("not to be started by hand")),
    };
    let file = match held {
        Ok(file) => file,
        Err(error) => {
            let _ = writeln!(out, "{error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = report(&mut out).and_then(|()| reap());
    drop(file);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Makes this process a host's first, in the namespaces that it was started in. The host is as long as the file
/// is open.
fn hold(file: &Path, name: &OsString, run: Option<&Path>) -> io::Result<File> {
    let lock = File::options().read(true).write(true).open(file)?;
    fcntl(&lock, FcntlArg::F_SETLK(&whole(libc::F_WRLCK)))?;
    if lock.metadata()?.nlink() == 0 {
        return Err(io::Error::other("the lab was removed"));
    }
    // No signal of a terminal concerns it.
    setsid()?;
    sethostname(name)?;
    let none = None::<&str>;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The one that is there shows the processes of the machine.
    mount(Some("proc"), "/proc", Some("proc"), plain, none)?;
    if let Some(run) = run {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("run"), run, Some("tmpfs"), flags, Some("mode=0700"))?;
    }
    // A privilege not every machine gives.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    Ok(lock)
}

/// Says that the host is there, and closes the output.
fn report(out: &mut impl Write) -> io::Result<()> {
    // Before anything can end.
    SigSet::from(Signal::SIGCHLD).thread_block()?;
    writeln!(out, "{READY}")?;
    out.flush()?;
    dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    Ok(())
}

/// Takes in processes whose parents are gone, to the end of its life.
fn reap() -> io::Result<()> {
    let ended = SigSet::from(Signal::SIGCHLD);
    loop {
        ended.wait()?;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_lock_is_told_by_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node1");
        assert!(find(&path).unwrap().is_none());
        File::create(&path).unwrap();
        assert!(find(&path).unwrap().is_none());
        // A process sees no lock of its own, so that another must have it.
        let script = "import fcntl, os, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); os.close(1); \
                      sys.stdin.read()";
        let mut other = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        hear(other.stdout.take().unwrap()).unwrap();
        let found = find(&path).unwrap().unwrap();
        assert_eq!(found.pid(), other.id() as i32);
        kill(std::slice::from_ref(&path)).unwrap();
        assert!(!path.exists());
        assert!(!other.wait().unwrap().success());
    }
}
