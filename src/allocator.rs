//! The C library's allocator, told to give memory back.
//!
//! By itself it keeps what one large image or list needed, for good: it raises the size from which a
//! block is mapped alone with each such block that is freed, and makes eight heaps a core.
#![allow(unsafe_code)] // calls of the C library, which nothing safe stands for

#[cfg(target_env = "gnu")]
mod heap;
#[cfg(target_env = "gnu")]
mod quiet;

#[cfg(target_env = "gnu")]
use std::time::Duration;

#[cfg(target_env = "gnu")]
use crate::{program_text, ticks};

/// For the start of the program, while it has one thread.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    /// Blocks of this size and more are mapped alone and go back to the kernel when they are freed.
    const MAPPED_BYTES: libc::c_int = 128 << 10;
    const HEAPS: libc::c_int = 2;
    for (option, value) in [
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES),
        (libc::M_TRIM_THRESHOLD, MAPPED_BYTES),
        (libc::M_ARENA_MAX, HEAPS),
    ] {
        // SAFETY: takes two numbers; one it does not know it refuses, and nothing depends on it.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Told by [`freed_much`].
#[cfg(target_env = "gnu")]
static FREED: tokio::sync::Notify = tokio::sync::Notify::const_new();

/// Something large has just been done with: what it took goes back soon, not within a minute.
pub fn freed_much() {
    #[cfg(target_env = "gnu")]
    FREED.notify_one();
}

/// Gives back the pages that lie free between used ones, and what is mapped of the program's code: when a
/// start is over, and whenever a minute finds more in memory than the quiet after the last time. After
/// [`freed_much`], and when a minute finds much that was freed since the last time, the free pages only.
#[cfg(target_env = "gnu")]
pub async fn keep_small() {
    /// The last of it is an answer, which somebody has to read; and each time keeps everyone else from
    /// allocating for some milliseconds.
    const SOON: Duration = Duration::from_millis(200);
    const START: Duration = Duration::from_secs(3);
    let mut minutes = ticks::every(Duration::from_secs(60));
    let mut start = std::pin::pin!(tokio::time::sleep(START));
    let mut quiet = quiet::Quiet::default();
    let mut heap = heap::Heap::default();
    loop {
        let due = tokio::select! {
            () = &mut start, if !start.is_elapsed() => Due::Start,
            _ = minutes.tick() => Due::Minute,
            () = FREED.notified() => {
                tokio::time::sleep(SOON).await;
                Due::Freed
            }
        };
        if due != Due::Freed {
            if quiet.is_over(program_text::resident()) {
                // A start needs much, and soon; what is needed later is little, here and there.
                if due == Due::Minute {
                    program_text::map_single_pages();
                }
                program_text::unmap();
            } else if !heap.has_more_free(free_bytes()) {
                continue;
            }
        }
        // SAFETY: any thread may call it at any time; it touches free memory only.
        let trim = || unsafe { libc::malloc_trim(0) };
        let _ = tokio::task::spawn_blocking(trim).await;
        heap.trimmed(free_bytes());
    }
}

/// Why it is time to give memory back.
#[cfg(target_env = "gnu")]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    Start,
    Minute,
    Freed,
}

/// In blocks that are free, whether or not the kernel has their pages back.
#[cfg(target_env = "gnu")]
fn free_bytes() -> usize {
    // SAFETY: any thread may call it at any time; it reads the allocator's own lists, under its locks.
    unsafe { libc::mallinfo2() }.fordblks
}

/// Other C libraries' allocators keep nothing.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}

#[cfg(not(target_env = "gnu"))]
pub async fn keep_small() {
    std::future::pending().await
}
