//! System calls that no crate in use wraps safely, one thin function each.
//!
//! Owns every `unsafe` block of the runtime. Nothing here decides anything: arguments go to the
//! kernel as they are, results come back as `io::Result`.
#![allow(unsafe_code)] // the calls themselves are the point of this module

use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

/// Which side of a [`clone3`] this is.
pub enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Forks with new namespaces. Only for single-threaded processes: the child goes on with all of
/// the parent's memory.
pub fn clone3(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is plain data, for which zero means "not used".
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = (flags as u32 as u64) | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of memory and stack, and
    // the process is single-threaded, so no lock is held by a thread the child lacks.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &args, mem::size_of_val(&args)) };
    match result {
        0 => Ok(Cloned::Child),
        1.. => Ok(Cloned::Parent {
            pid: result as i32,
            // SAFETY: the kernel just made this descriptor for us alone.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process without running destructors or flushing: for a forked child.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)? as RawFd;
    // SAFETY: callers pass results of calls that make a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the empty path of the mount calls stands for: the descriptor itself.
pub const ITSELF: &CStr = c"";

pub fn open_tree(dir: Option<BorrowedFd<'_>>, path: &CStr, flags: u32) -> io::Result<OwnedFd> {
    let dir = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    let flags = flags | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a C string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

pub fn fsopen(kind: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: as above.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })
}

fn fsconfig(
    fs: BorrowedFd<'_>,
    command: u32,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: both are C strings that outlive the call, or null where the command takes none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fs.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    };
    check(result).map(drop)
}

pub fn fsconfig_string(fs: BorrowedFd<'_>, key: &CStr, value: &CStr) -> io::Result<()> {
    fsconfig(fs, 1, Some(key), Some(value))
}

pub fn fsconfig_flag(fs: BorrowedFd<'_>, key: &CStr) -> io::Result<()> {
    fsconfig(fs, 0, Some(key), None)
}

pub fn fsconfig_create(fs: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig(fs, 6, None, None)
}

pub fn fsmount(fs: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            fs.as_raw_fd(),
            libc::FSMOUNT_CLOEXEC,
            attributes as u32,
        )
    })
}

/// Attaches the detached `mount` on `target`.
pub fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both paths are constant C strings.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            ITSELF.as_ptr(),
            target.as_raw_fd(),
            ITSELF.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    check(result).map(drop)
}

/// Changes a mount's attributes and propagation (0 leaves it), with those below it if `recursive`.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    let depth = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` outlives the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            ITSELF.as_ptr(),
            libc::AT_EMPTY_PATH | depth,
            &attr,
            mem::size_of_val(&attr),
        )
    };
    check(result).map(drop)
}

pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends a signal to the process behind `pidfd`, and never to another that got its number.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result).map(drop)
}

/// A child that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub pid: i32,
    pub code: i32,
    pub signal: Option<i32>,
}

/// The next ended child, left as it is; `None` when no child has ended. See [`reap`].
pub fn next_ended() -> io::Result<Option<Ended>> {
    // SAFETY: plain data that the call fills; zero is its "nothing happened".
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` outlives the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &mut info, flags) } < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ECHILD) => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: waitid fills the SIGCHLD member, or leaves the zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => Ended {
            pid,
            code: status,
            signal: None,
        },
        _ => Ended {
            pid,
            code: 128 + status,
            signal: Some(status),
        },
    }))
}

/// Takes an ended child away.
pub fn reap(pid: i32) {
    // SAFETY: a null status is allowed.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
}

/// From now on the kernel takes away children that have ended, unasked.
pub fn forget_children() {
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Undoes [`forget_children`], which children inherit.
pub fn heed_children() {
    // SAFETY: the default action runs no code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Takes any ended child away; false when there is none.
pub fn reap_any() -> bool {
    // SAFETY: as above.
    unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) > 0 }
}

/// Closes every descriptor from `first` on: for a process that owns none of them.
pub fn close_from(first: u32) {
    // SAFETY: no pointers. The caller promises that nothing of its own lies there.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
}

/// What accept4 gave, with an owner.
pub fn owned_socket(accepted: nix::Result<RawFd>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted?) })
}

/// Marks every descriptor from 3 on to close at exec.
pub fn close_others_on_exec() -> io::Result<()> {
    // SAFETY: no pointers; nothing is closed yet.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Sets effective and permitted capabilities (bit n is capability n) and empties the inheritable.
pub fn set_capabilities(caps: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let half = |bits: u32| Data {
        effective: bits,
        permitted: bits,
        inheritable: 0,
    };
    let data = [half(caps as u32), half((caps >> 32) as u32)];
    // SAFETY: header and two data words are what version 3 of the call reads.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) }).map(drop)
}

/// Bits of the capabilities this process may still have.
pub fn permitted_capabilities() -> io::Result<u64> {
    let header = [0x2008_0522_u32, 0];
    let mut data = [0_u32; 6];
    // SAFETY: version 3 fills two words of three numbers: effective, permitted, inheritable.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}

/// Drops every capability that is not in `keep` from the bounding set, and all ambient ones.
pub fn bound_capabilities(keep: u64) -> io::Result<()> {
    for cap in 0..64 {
        // SAFETY: no pointers.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, cap as libc::c_ulong, 0, 0, 0) };
        if known < 0 {
            break;
        }
        if known == 1 && keep & (1 << cap) == 0 {
            // SAFETY: no pointers.
            let result =
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap as libc::c_ulong, 0, 0, 0) };
            check(result.into())?;
        }
    }
    // SAFETY: no pointers. A kernel without ambient capabilities has none to clear.
    unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    Ok(())
}

/// Loads a seccomp filter for this process and all it starts.
pub fn load_filter(filter: &[libc::sock_filter], flags: u64) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len())
            .map_err(|_| io::Error::other("the filter has too many instructions"))?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program points at `filter`, which outlives the call; the kernel only reads it.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &program,
        )
    })
    .map(drop)
}

/// Every signal back to its default, none blocked.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is always a valid handler; the two signals that refuse keep theirs.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is emptied before use.
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// A session keyring of its own instead of the daemon's.
pub fn join_new_keyring() -> io::Result<()> {
    // SAFETY: command 1 (join session keyring) takes a null name for an anonymous one.
    check(unsafe { libc::syscall(libc::SYS_keyctl, 1, ptr::null::<libc::c_char>(), 0, 0, 0) })
        .map(drop)
}

/// Sets `lo` of the current network namespace up.
pub fn loopback_up() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: plain data.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }.into()).map(drop)
}

/// Makes `terminal` the controlling terminal of this session's leader.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Unlocks a new pseudo terminal and opens its other side, without going through a path.
pub fn terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlocked) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and returns a new descriptor.
    owned(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())
}

pub fn resize_terminal(master: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads a winsize.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size) }.into()).map(drop)
}

/// Most descriptors one message may carry.
pub const MAX_FDS: usize = 4;

/// Sends one packet with descriptors.
pub fn send_packet(socket: BorrowedFd<'_>, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights
    };
    let data = [io::IoSlice::new(data)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &data,
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one packet with its descriptors; `None` when the peer is gone.
pub fn receive_packet(
    socket: BorrowedFd<'_>,
    longest: usize,
) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recv, recvmsg};
    // The real length first: packets are short, and the longest allowed is long.
    let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    let length = recv(socket.as_raw_fd(), &mut [], peek)?;
    if length == 0 {
        return Ok(None);
    }
    if length > longest {
        return Err(io::Error::other("the message is longer than allowed"));
    }
    let mut buffer = vec![0; length];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut data = [io::IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut data,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel installed these descriptors for us with this message.
            let given = raw
                .into_iter()
                .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            fds.extend(given);
        }
    }
    Ok(Some((buffer, fds)))
}

/// Lets the async runtime wait for a descriptor.
pub fn watch(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and names the same descriptor, as long as it lives.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(fd) }?)
}

/// Reads what is there into `buffer`.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::unistd::read(fd, buffer)?)
}

/// Fills `buffer` with a folder's next entries, as the kernel lays them out (`linux_dirent64`);
/// 0 at the end.
pub fn getdents(folder: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let filled = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            folder.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    Ok(check(filled)? as usize)
}

/// As [`watch`], for what the kernel tells out of the ordinary only.
pub fn watch_priority(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its one descriptor open for as long as it lives.
    let watched = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(fd, tokio::io::Interest::PRIORITY)
    };
    Ok(watched?)
}
