//! From a forked child inside its namespaces to the program: environment, limits, identity, exec.
//!
//! Shared by a container's first process and by execs, so that both have the same rights. Runs in
//! the child only; what it sets cannot be taken back. Order matters: see [`become_program`].

use std::{
    ffi::{CStr, CString},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{AccessFlags, Gid, Pid, Uid},
};
use oci_spec::runtime::{Capabilities, Capability, LinuxSeccomp, PosixRlimitType, Process};

use super::{
    container::{Failed, Stage},
    seccomp, sys,
    users::Resolved,
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SYS_ADMIN: u64 = 1 << 21;
/// Open files when the spec says nothing: the daemon's own limit is no answer.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// What a process is to become.
pub struct Program<'a> {
    pub process: &'a Process,
    pub argv: &'a [String],
    pub user: &'a Resolved,
    pub seccomp: Option<&'a LinuxSeccomp>,
    pub tty: bool,
}

/// Turns this child into the program. `ready` runs last, before the system call filter may forbid
/// talking. Returns only on failure.
pub fn become_program(
    program: &Program<'_>,
    ready: impl FnOnce(),
) -> Result<std::convert::Infallible, Failed> {
    let process = program.process;
    let mut env = environment(
        process.env().as_deref().unwrap_or_default(),
        &program.user.home,
        program.tty,
    );
    if !env.iter().any(|entry| entry.starts_with("HOSTNAME="))
        && let Ok(name) = nix::unistd::gethostname()
    {
        env.push(format!("HOSTNAME={}", name.to_string_lossy()));
    }
    let filter = match program.seccomp {
        Some(profile) => Some(seccomp::compile(profile).stage("seccomp")?),
        None => None,
    };
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let changed_dir = enter_dir(process.cwd());
    set_limits(process).stage("rlimits")?;
    reset_affinity();
    let _ = sys::join_new_keyring(); // kernels without keyrings have none to inherit
    umask(Mode::from_bits_truncate(
        process.user().umask().unwrap_or(0o022),
    ));
    if no_new_privileges {
        prctl::set_no_new_privs().stage("no_new_privs")?;
    }
    let caps = capabilities(process)?;
    sys::bound_capabilities(caps.bounding).stage("capabilities")?;
    prctl::set_keepcaps(true).stage("capabilities")?;
    set_ids(program.user).stage("user")?;
    // Loading a filter needs either no_new_privs or CAP_SYS_ADMIN: keep it until then.
    let until_filter = match (&filter, no_new_privileges) {
        (Some(_), false) => caps.permitted | (SYS_ADMIN & caps.available),
        _ => caps.permitted,
    };
    sys::set_capabilities(until_filter).stage("capabilities")?;
    if changed_dir.is_err() {
        enter_dir(process.cwd()).stage("working directory")?;
    }
    let path = find_program(program.argv, &env).stage("exec")?;
    let argv = c_strings(program.argv).stage("exec")?;
    let env = c_strings(&env).stage("exec")?;
    sys::close_others_on_exec().stage("close files")?;
    sys::reset_signals();
    ready();
    if let Some(filter) = &filter {
        sys::load_filter(filter, 0).stage("seccomp")?;
        if until_filter != caps.permitted {
            sys::set_capabilities(caps.permitted).stage("capabilities")?;
        }
    }
    let Err(errno) = nix::unistd::execve(&path, &argv, &env);
    Err(Failed {
        stage: "exec",
        message: exec_message(&program.argv[0], errno),
    })
}

fn exec_message(name: &str, errno: Errno) -> String {
    let words = match errno {
        Errno::ENOENT => "no such file or directory".into(),
        Errno::EACCES => "permission denied".into(),
        Errno::ENOEXEC => "exec format error".into(),
        other => other.desc().to_lowercase(),
    };
    format!("exec: {name:?}: {words}")
}

fn c_strings(texts: &[String]) -> io::Result<Vec<CString>> {
    texts
        .iter()
        .map(|text| Ok(CString::new(text.as_str())?))
        .collect()
}

/// The environment with what every process may expect: PATH, HOME and, on a terminal, TERM.
fn environment(given: &[String], home: &str, tty: bool) -> Vec<String> {
    let mut env: Vec<String> = given.to_vec();
    let value = |env: &[String], name: &str| {
        env.iter().rev().find_map(|entry| {
            entry
                .strip_prefix(name)?
                .strip_prefix('=')
                .map(str::to_owned)
        })
    };
    if value(&env, "PATH").is_none() {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if value(&env, "HOME").is_none_or(|home| home.is_empty()) {
        let home = if home.is_empty() { "/" } else { home };
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={home}"));
    }
    if tty && value(&env, "TERM").is_none() {
        env.push("TERM=xterm".into());
    }
    env
}

/// Where the program lies, looked up as its user in its own PATH.
fn find_program(argv: &[String], env: &[String]) -> Result<CString, String> {
    let Some(name) = argv.first().filter(|name| !name.is_empty()) else {
        return Err("no command was given".into());
    };
    let c_string = |path: &str| CString::new(path).map_err(|error| error.to_string());
    if name.contains('/') {
        // What is wrong with it is best said by the kernel at exec, except these two.
        return match std::fs::metadata(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
                "exec: {name:?}: stat {name}: no such file or directory"
            )),
            Ok(file) if file.is_dir() => Err(format!("exec: {name:?}: is a directory")),
            _ => c_string(name),
        };
    }
    let path = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let candidate = format!("{dir}/{name}");
        let Ok(file) = std::fs::metadata(&candidate) else {
            continue;
        };
        if !file.is_file() {
            continue;
        }
        let allowed = nix::unistd::faccessat(
            nix::fcntl::AT_FDCWD,
            candidate.as_str(),
            AccessFlags::X_OK,
            nix::fcntl::AtFlags::AT_EACCESS,
        );
        if allowed.is_ok() && file.permissions().mode() & 0o111 != 0 {
            return c_string(&candidate);
        }
        denied = true;
    }
    Err(if denied {
        format!("exec: {name:?}: permission denied")
    } else {
        format!("exec: {name:?}: executable file not found in $PATH")
    })
}

/// Changes into a folder that must lie below the root: a descriptor to elsewhere is no way out.
fn enter_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new("/")
    } else {
        dir
    };
    nix::unistd::chdir(dir).map_err(|errno| {
        io::Error::other(format!("chdir to {}: {}", dir.display(), errno.desc()))
    })?;
    let here = nix::unistd::getcwd()
        .map_err(|_| io::Error::other(format!("{} is not inside the root", dir.display())))?;
    if !here.is_absolute() || here.starts_with("(unreachable)") {
        return Err(io::Error::other(format!(
            "{} is not inside the root",
            dir.display()
        )));
    }
    Ok(())
}

/// Gives up every right: for the pod's first process, which needs none.
pub fn drop_all(nobody: &Resolved) -> io::Result<()> {
    prctl::set_no_new_privs()?;
    sys::bound_capabilities(0)?;
    set_ids(nobody)?;
    sys::set_capabilities(0)
}

fn set_ids(user: &Resolved) -> nix::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups)?;
    let (gid, uid) = (Gid::from_raw(user.gid), Uid::from_raw(user.uid));
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}

fn set_limits(process: &Process) -> io::Result<()> {
    let given = process.rlimits().as_deref().unwrap_or_default();
    let mut wanted: Vec<(Resource, u64, u64)> = Vec::new();
    if !given
        .iter()
        .any(|limit| limit.typ() == PosixRlimitType::RlimitNofile)
    {
        wanted.push((Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1));
    }
    for limit in given {
        wanted.push((resource(limit.typ()), limit.soft(), limit.hard()));
    }
    for (resource, soft, hard) in wanted {
        match setrlimit(resource, soft, hard) {
            Ok(()) => {}
            // Not allowed to raise the hard limit: as much as there is.
            Err(Errno::EPERM) => {
                let (_, most) = getrlimit(resource)?;
                setrlimit(resource, soft.min(most), hard.min(most))?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn resource(limit: PosixRlimitType) -> Resource {
    match limit {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

/// All CPUs the container's cpuset allows, not those the daemon was bound to.
fn reset_affinity() {
    let mut all = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        let _ = all.set(cpu);
    }
    let _ = sched_setaffinity(Pid::from_raw(0), &all);
}

struct Caps {
    bounding: u64,
    permitted: u64,
    available: u64,
}

/// Capabilities of the spec as far as this host has them itself.
fn capabilities(process: &Process) -> Result<Caps, Failed> {
    let available = sys::permitted_capabilities().stage("capabilities")?;
    let Some(given) = process.capabilities() else {
        return Ok(Caps {
            bounding: 0,
            permitted: 0,
            available,
        });
    };
    let bits = |set: &Option<Capabilities>| {
        set.iter()
            .flatten()
            .map(|cap| 1_u64 << capability(*cap))
            .fold(0, |all, bit| all | bit)
    };
    let bounding = bits(given.bounding());
    Ok(Caps {
        bounding,
        permitted: (bits(given.permitted()) | bits(given.effective())) & bounding & available,
        available,
    })
}

/// The kernel's number of a capability. Source: include/uapi/linux/capability.h.
fn capability(cap: Capability) -> u8 {
    match cap {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

/// Name under which the child shows until it is the program.
pub fn rename(name: &CStr) {
    let _ = prctl::set_name(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_is_completed() {
        let given = |list: &[&str]| {
            list.iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        let path = format!("PATH={DEFAULT_PATH}");
        for (env, home, tty, want) in [
            (&[][..], "", false, vec![path.as_str(), "HOME=/"]),
            (
                &["PATH=/x", "HOME=/h"],
                "/root",
                false,
                vec!["PATH=/x", "HOME=/h"],
            ),
            (
                &["PATH=/x", "HOME="],
                "/root",
                false,
                vec!["PATH=/x", "HOME=/root"],
            ),
            (
                &["PATH=/x"],
                "/root",
                true,
                vec!["PATH=/x", "HOME=/root", "TERM=xterm"],
            ),
        ] {
            assert_eq!(environment(&given(env), home, tty), want);
        }
    }
}
