//! Pages of the program come into memory one by one.
//!
//! The kernel maps the pages around one that is touched too, up to sixteen of them, which for code that is
//! scattered over a large program is more than twice as much memory as is used. It does not where a
//! userfaultfd is registered, which must see each page by itself. This one asks to see only writes to
//! protected pages and protects none, so that nothing ever waits for anybody.

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::OnceLock,
};

use nix::errno::Errno;

/// `linux/userfaultfd.h`.
mod abi {
    #[repr(C)]
    pub struct Api {
        pub api: u64,
        pub features: u64,
        pub ioctls: u64,
    }

    #[repr(C)]
    pub struct Register {
        pub start: u64,
        pub len: u64,
        pub mode: u64,
        pub ioctls: u64,
    }

    pub const API: u64 = 0xAA;
    /// Of faults in user mode only: needs no privilege.
    pub const USER_MODE_ONLY: libc::c_int = 1;
    /// Since Linux 6.7: a write to a protected page goes on by itself.
    pub const FEATURE_WP_ASYNC: u64 = 1 << 15;
    pub const MODE_WP: u64 = 1 << 1;

    nix::ioctl_readwrite!(api, API, 0x3F, Api);
    nix::ioctl_readwrite!(register, API, 0x00, Register);
}

/// Of the program's code and constants from now on. An older kernel goes on as it did.
pub fn map_single_pages() {
    /// The registration lasts as long as the descriptor.
    static HELD: OnceLock<Option<OwnedFd>> = OnceLock::new();
    HELD.get_or_init(|| match register() {
        Ok(descriptor) => Some(descriptor),
        Err(error) => {
            tracing::debug!(%error, "the program's pages are mapped with those around them");
            None
        }
    });
}

fn register() -> Result<OwnedFd, Errno> {
    let flags = libc::O_CLOEXEC | abi::USER_MODE_ONLY;
    // SAFETY: takes flags and makes a descriptor.
    let made = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
    let made = i32::try_from(made).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(made) };
    let mut api = abi::Api {
        api: abi::API,
        features: abi::FEATURE_WP_ASYNC,
        ioctls: 0,
    };
    // SAFETY: the structure is the one of this request, and lives during the call.
    unsafe { abi::api(descriptor.as_raw_fd(), &raw mut api) }?;
    for segment in super::unwritten() {
        let mut register = abi::Register {
            start: segment.start as u64,
            len: segment.len() as u64,
            mode: abi::MODE_WP,
            ioctls: 0,
        };
        // SAFETY: as above; the range is mapped from the program's file for as long as the process lives,
        // and to register it changes nothing of what is read or run.
        unsafe { abi::register(descriptor.as_raw_fd(), &raw mut register) }?;
    }
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program_text::{resident, unmap, unwritten};

    #[test]
    fn what_lies_around_a_touched_page_stays_out() {
        const FAR: usize = 64 << 10;
        let touch = || {
            unmap();
            let before = resident().unwrap();
            let mut count = 0;
            for segment in unwritten() {
                for page in segment.step_by(FAR) {
                    // SAFETY: a byte of this program, which can be read.
                    std::hint::black_box(unsafe { std::ptr::read_volatile(page as *const u8) });
                    count += 1;
                }
            }
            (resident().unwrap() - before) / count
        };
        let with_neighbours = touch();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let held = register();
        if version < (6, 7) {
            assert_eq!(held.unwrap_err(), Errno::EINVAL);
            return;
        }
        let _held = held.unwrap();
        let alone = touch();
        assert!(alone < with_neighbours / 2, "{alone} {with_neighbours}");
    }
}
