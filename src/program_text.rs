//! The program's code and constants, as far as they are mapped into this process, and how much is in memory.
//!
//! Most of what a start runs through is not needed again, and would count as this process's memory for as
//! long as nobody else wants it. Unmapped, it is the page cache's; what is needed again comes back by
//! itself.
#![allow(unsafe_code)] // calls of the C library and of the kernel, which nothing safe stands for

mod single_pages;

use std::{ffi::c_void, ops::Range};

use nix::unistd::{SysconfVar, sysconf};

pub use single_pages::map_single_pages;

/// Lets go of all of it. Any thread may go on running it meanwhile.
pub fn unmap() {
    for segment in unwritten() {
        let length = segment.len();
        // SAFETY: the range lies within a segment of the program's file that is mapped read-only, so that
        // no page of it was ever written: each is read from the file again when it is touched.
        let done =
            unsafe { libc::madvise(segment.start as *mut c_void, length, libc::MADV_DONTNEED) };
        if done != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, "the program's code stays mapped");
        }
    }
}

/// Bytes of this process that are in memory, the program's among them.
pub fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * page_size()?)
}

fn page_size() -> Option<usize> {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    page.and_then(|page| usize::try_from(page).ok())
}

/// The program's segments that are mapped from its file and never written, in whole pages. None if they
/// are not found for certain.
fn unwritten() -> Vec<Range<usize>> {
    let Some(page) = page_size() else {
        return Vec::new();
    };
    let mut found: Vec<Range<usize>> = Vec::new();
    // SAFETY: `note` is given this very vector, and is called before the function returns.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut found).cast()) };
    let here = unmap as fn() as usize;
    if !found.iter().any(|segment| segment.contains(&here)) {
        return Vec::new();
    }
    // What the last page holds beyond the segment is nobody's.
    let whole = |one: Range<usize>| one.start.next_multiple_of(page)..one.end / page * page;
    found
        .into_iter()
        .map(whole)
        .filter(|one| !one.is_empty())
        .collect()
}

/// Takes down the segments of the first object, which is the program.
unsafe extern "C" fn note(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    found: *mut c_void,
) -> libc::c_int {
    const STOP: libc::c_int = 1;
    // SAFETY: the C library gives an object that lives during the call, with as many headers as it says;
    // `found` is what `unwritten` gave.
    let (object, found) = unsafe { (&*object, &mut *found.cast::<Vec<Range<usize>>>()) };
    let count = usize::from(object.dlpi_phnum);
    // SAFETY: as above.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, count) };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = object.dlpi_addr as usize + header.p_vaddr as usize;
        found.push(start..start + header.p_filesz as usize);
    }
    STOP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_unmapped_is_not_counted_and_still_runs() {
        // This program's, of files: in KiB.
        let mapped = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssFile:"));
            let number = line.unwrap().split_whitespace().nth(1);
            number.unwrap().parse().unwrap()
        };
        let segments = unwritten();
        assert!(segments.len() >= 2, "{segments:?}");
        for segment in &segments {
            for page in segment.clone().step_by(4096) {
                // SAFETY: a byte of this program, which can be read.
                std::hint::black_box(unsafe { std::ptr::read_volatile(page as *const u8) });
            }
        }
        let before = mapped();
        unmap();
        let after = mapped();
        assert!(after < before / 2, "{before} {after}");
    }
}
