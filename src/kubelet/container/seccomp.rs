//! Which system calls a container may make: its profile's choice, and the default one's content.
//!
//! The default allows what ordinary programs use, refuses the rest with EPERM, and opens what a
//! capability is about only to containers that have it.

use std::{
    collections::HashSet,
    path::{Component, Path},
};

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::{Refused, security};
use crate::runtime::files;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// Every namespace flag of clone(2).
const NEW_NAMESPACES: u64 = 0x7E02_0000;
/// Execution domains that only change what a program sees of itself.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// UNIX, INET, INET6, KEY, NETLINK, PACKET, PPPOX, CAN, KCM, SMC, XDP. The kernel's crypto (38),
/// hypervisor (40) and long dead families are not for containers.
const SOCKET_FAMILIES: [u64; 11] = [1, 2, 10, 15, 16, 17, 24, 29, 41, 43, 44];

/// The container's filter; `None` is unconfined.
pub fn profile(
    pod: &Pod,
    container: &Container,
    folder: &Path,
) -> Result<Option<LinuxSeccomp>, Refused> {
    if security::privileged(container) {
        return Ok(None);
    }
    let own = container
        .security_context
        .as_ref()
        .and_then(|context| context.seccomp_profile.as_ref());
    let shared = || {
        pod.spec
            .as_ref()?
            .security_context
            .as_ref()?
            .seccomp_profile
            .as_ref()
    };
    match own.or_else(shared) {
        None => runtime_default(container).map(Some),
        Some(SeccompProfile {
            type_,
            localhost_profile,
        }) => match type_.as_str() {
            "Unconfined" => Ok(None),
            "RuntimeDefault" => runtime_default(container).map(Some),
            "Localhost" => {
                localhost(folder, localhost_profile.as_deref().unwrap_or_default()).map(Some)
            }
            other => Err(Refused::create(format!(
                "unknown seccomp profile type {other:?}"
            ))),
        },
    }
}

/// Profiles are a few kilobytes.
const LONGEST_PROFILE: u64 = 1 << 20;

fn localhost(folder: &Path, name: &str) -> Result<LinuxSeccomp, Refused> {
    let failed =
        |why: String| Refused::create(format!("failed to load seccomp profile {name:?}: {why}"));
    let relative = Path::new(name);
    let plain = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !plain {
        return Err(failed(
            "it must name a file below the node's folder of profiles".into(),
        ));
    }
    let file = files::open_following(&folder.join(relative));
    let text = file.and_then(|file| files::read_file_at_most(&file, LONGEST_PROFILE));
    let text = text.map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))
}

fn runtime_default(container: &Container) -> Result<LinuxSeccomp, Refused> {
    let capabilities = security::capabilities(container)?;
    Ok(default_profile(
        &capabilities.bounding().clone().unwrap_or_default(),
    ))
}

/// The default for a container with these capabilities.
fn default_profile(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let has = |capability: &Capability| capabilities.contains(capability);
    let mut rules = vec![allow(ALWAYS), allow(OLD_NUMBERS)];
    for (capability, names) in GATED {
        if has(&capability) {
            rules.push(allow(names));
        }
    }
    for value in PERSONALITIES {
        rules.push(allow_if(
            "personality",
            LinuxSeccompOperator::ScmpCmpEq,
            value,
            None,
        ));
    }
    for family in SOCKET_FAMILIES {
        rules.push(allow_if(
            "socket",
            LinuxSeccompOperator::ScmpCmpEq,
            family,
            None,
        ));
    }
    if !has(&Capability::SysAdmin) {
        let masked = LinuxSeccompOperator::ScmpCmpMaskedEq;
        rules.push(allow_if("clone", masked, NEW_NAMESPACES, Some(0)));
        // Its flags lie in memory, where a filter cannot look: C libraries fall back to clone.
        let mut clone3 = LinuxSyscall::default();
        clone3
            .set_names(vec!["clone3".into()])
            .set_action(LinuxSeccompAction::ScmpActErrno)
            .set_errno_ret(Some(ENOSYS));
        rules.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(vec![Arch::ScmpArchNative]))
        .set_syscalls(Some(rules));
    profile
}

/// `names` with spaces between.
fn allow(names: &str) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.split_whitespace().map(Into::into).collect())
        .set_action(LinuxSeccompAction::ScmpActAllow);
    rule
}

fn allow_if(
    name: &str,
    op: LinuxSeccompOperator,
    value: u64,
    value_two: Option<u64>,
) -> LinuxSyscall {
    let mut argument = LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .op(op)
        .value(value);
    if let Some(value) = value_two {
        argument = argument.value_two(value);
    }
    let argument = argument.build().expect("no field of it is required");
    let mut rule = allow(name);
    rule.set_args(Some(vec![argument]));
    rule
}

/// What opens with a capability.
const GATED: [(Capability, &str); 14] = [
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "\
         bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
         mount_setattr move_mount open_tree open_tree_attr perf_event_open quotactl quotactl_fd \
         setdomainname sethostname setns syslog umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (
        Capability::SysModule,
        "delete_module finit_module init_module",
    ),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (Capability::SysTime, "clock_settime settimeofday"),
    (Capability::SysTtyConfig, "vhangup"),
    (
        Capability::SysNice,
        "\
         get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// Calls of x86 that newer architectures do without.
const OLD_NUMBERS: &str = "\
    access alarm arch_prctl chmod chown creat dup2 epoll_create epoll_ctl_old epoll_wait \
    epoll_wait_old eventfd fork futimesat getdents getpgrp get_thread_area inotify_init lchown \
    link lstat map_shadow_stack mkdir mknod modify_ldt open pause pipe poll readlink rename rmdir \
    select set_thread_area signalfd stat symlink time unlink uretprobe utime utimes vfork";

const ALWAYS: &str = "\
    accept accept4 adjtimex bind brk cachestat capget capset chdir clock_adjtime clock_getres \
    clock_gettime clock_nanosleep close close_range connect copy_file_range dup dup3 epoll_create1 \
    epoll_ctl epoll_pwait epoll_pwait2 eventfd2 execve execveat exit exit_group faccessat \
    faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat \
    fcntl fdatasync fgetxattr file_getattr file_setattr flistxattr flock fremovexattr fsetxattr \
    fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake \
    get_robust_list getcpu getcwd getdents64 getegid geteuid getgid getgroups getitimer \
    getpeername getpgid getpid getppid getpriority getrandom getresgid getresuid getrlimit \
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat \
    inotify_add_watch inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents \
    io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lgetxattr linkat listen listmount listxattr \
    listxattrat llistxattr lremovexattr lseek lsetxattr madvise membarrier memfd_create \
    memfd_secret mincore mkdirat mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr \
    mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv \
    msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat openat openat2 \
    pidfd_open pidfd_send_signal pipe2 pkey_alloc pkey_free pkey_mprotect ppoll prctl pread64 \
    preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 ptrace \
    pwrite64 pwritev pwritev2 read readahead readlinkat readv recvfrom recvmmsg recvmsg \
    remap_file_pages removexattr removexattrat renameat renameat2 restart_syscall rseq \
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min \
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp semctl \
    semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address \
    setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid \
    setreuid setrlimit setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget \
    shutdown sigaltstack signalfd4 socketpair splice statfs statmount statx symlinkat sync \
    sync_file_range syncfs sysinfo tee tgkill timer_create timer_delete timer_getoverrun \
    timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill \
    truncate umask uname unlinkat utimensat vmsplice wait4 waitid write writev";

#[cfg(test)]
mod tests {
    use nix::{
        errno::Errno,
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
        sys::socket::{AddressFamily, SockFlag, SockType, socket},
    };
    use seccompiler::sock_filter;

    use super::*;
    use crate::runtime::seccomp::compile;

    fn program(capabilities: &[Capability]) -> Vec<sock_filter> {
        let profile = default_profile(&capabilities.iter().copied().collect());
        let steps = compile(&profile).unwrap().into_iter();
        let step = |step: libc::sock_filter| sock_filter {
            code: step.code,
            jt: step.jt,
            jf: step.jf,
            k: step.k,
        };
        steps.map(step).collect()
    }

    #[test]
    fn a_profile_is_no_larger_than_it_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let profile = |blanks: u64| {
            let text = format!(
                "{}{}",
                r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#,
                " ".repeat(blanks as usize)
            );
            std::fs::write(folder.path().join("p.json"), text).unwrap();
            localhost(folder.path(), "p.json").map(drop)
        };
        profile(LONGEST_PROFILE - 100).unwrap();
        let refused = profile(LONGEST_PROFILE).unwrap_err().to_string();
        assert!(
            refused.contains("failed to load seccomp profile \"p.json\""),
            "{refused}"
        );
    }

    /// What the kernel answers under the default filter, on a thread that ends with it.
    #[test]
    fn the_kernel_takes_and_obeys_it() {
        let filter = program(&[Capability::Chown]);
        let confined = std::thread::spawn(move || {
            seccompiler::apply_filter(&filter).unwrap();
            let family =
                |family| socket(family, SockType::Stream, SockFlag::empty(), None).map(drop);
            assert_eq!(family(AddressFamily::Vsock), Err(Errno::EPERM));
            assert_eq!(family(AddressFamily::Alg), Err(Errno::EPERM));
            assert_eq!(family(AddressFamily::Inet), Ok(()));
            assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM));
            let none = None::<&str>;
            let mounted = mount(none, "/nonexistent", none, MsFlags::MS_BIND, none);
            assert_eq!(mounted, Err(Errno::EPERM));
            assert_eq!(nix::unistd::sethostname("x"), Err(Errno::EPERM));
            // clone3 does not exist here, and clone serves threads and programs.
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            let ran = std::process::Command::new("/bin/true").status();
            assert!(ran.is_ok_and(|status| status.success()));
            std::fs::read("/proc/self/status").unwrap();
        });
        confined.join().unwrap();
    }

    #[test]
    fn capabilities_open_what_they_are_about() {
        let filter = program(&[Capability::SysAdmin]);
        let confined = std::thread::spawn(move || {
            seccompiler::apply_filter(&filter).unwrap();
            let none = None::<&str>;
            let mounted = mount(none, "/nonexistent", none, MsFlags::MS_BIND, none);
            // The kernel's own answer: no such folder, or no right without root.
            assert_ne!(mounted, Ok(()));
            assert!(unshare(CloneFlags::CLONE_FILES).is_ok());
        });
        confined.join().unwrap();
    }

    #[test]
    fn every_name_is_a_call() {
        let names = [ALWAYS, OLD_NUMBERS, "personality socket clone clone3"];
        let gated = GATED.iter().map(|(_, names)| *names);
        for name in names
            .into_iter()
            .chain(gated)
            .flat_map(str::split_whitespace)
        {
            let known = crate::runtime::seccomp::is_known(name);
            assert!(known || cfg!(not(target_arch = "x86_64")), "{name}");
        }
    }
}
