//! Memory, disk and process pressure: measured figures to conditions, with memory of the last five
//! minutes. Pure, apart from [`Figures::read`].

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use super::host;

/// Less available memory than this is pressure.
const MEMORY_BYTES: u64 = 100 << 20;
/// Less of the disk's bytes, inodes or of the kernel's processes than these parts is pressure.
const DISK_PART: f64 = 0.10;
const INODE_PART: f64 = 0.05;
const PROCESS_PART: f64 = 0.05;
/// Pressure is over when it was not seen for so long.
const CLEAR_AFTER: Duration = Duration::from_secs(300);

/// One look at the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    pub memory_available: u64,
    pub disk_bytes: u64,
    pub disk_free: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    pub processes: u64,
    pub processes_most: u64,
}

impl Figures {
    /// `dir` lies on the disk that pods use.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let disk = nix::sys::statvfs::statvfs(dir)?;
        let (processes, processes_most) = host::processes()?;
        Ok(Self {
            memory_available: host::available_memory()?,
            disk_bytes: disk.blocks() * disk.fragment_size(),
            disk_free: disk.blocks_available() * disk.fragment_size(),
            inodes: disk.files(),
            inodes_free: disk.files_available(),
            processes,
            processes_most,
        })
    }

    fn pressures(&self) -> [bool; 3] {
        let part = |of: u64, all: u64| of as f64 / all as f64;
        let short_of_inodes = self.inodes > 0 && part(self.inodes_free, self.inodes) < INODE_PART;
        let free_processes = self.processes_most.saturating_sub(self.processes);
        [
            self.memory_available < MEMORY_BYTES,
            part(self.disk_free, self.disk_bytes.max(1)) < DISK_PART || short_of_inodes,
            part(free_processes, self.processes_most.max(1)) < PROCESS_PART,
        ]
    }
}

/// When each pressure was seen last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pressure {
    seen: [Option<Instant>; 3],
}

/// What conditions say: memory, disk, processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    pub memory: bool,
    pub disk: bool,
    pub processes: bool,
}

impl Pressure {
    pub fn observe(&mut self, figures: &Figures, now: Instant) -> Pressures {
        let mut holds = [false; 3];
        let looks = self.seen.iter_mut().zip(&mut holds);
        for ((seen, holds), pressed) in looks.zip(figures.pressures()) {
            if pressed {
                *seen = Some(now);
            }
            *holds = seen.is_some_and(|seen| now.duration_since(seen) < CLEAR_AFTER);
        }
        let [memory, disk, processes] = holds;
        Pressures {
            memory,
            disk,
            processes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Figures = Figures {
        memory_available: 1 << 30,
        disk_bytes: 100,
        disk_free: 50,
        inodes: 100,
        inodes_free: 50,
        processes: 10,
        processes_most: 1000,
    };

    #[test]
    fn what_is_pressure() {
        let none = [false; 3];
        let (memory, disk, processes) = (
            [true, false, false],
            [false, true, false],
            [false, false, true],
        );
        for (figures, want) in [
            (FINE, none),
            (
                Figures {
                    memory_available: 99 << 20,
                    ..FINE
                },
                memory,
            ),
            (
                Figures {
                    disk_free: 9,
                    ..FINE
                },
                disk,
            ),
            (
                Figures {
                    inodes_free: 4,
                    ..FINE
                },
                disk,
            ),
            // Some filesystems count no inodes.
            (
                Figures {
                    inodes: 0,
                    inodes_free: 0,
                    ..FINE
                },
                none,
            ),
            (
                Figures {
                    processes: 960,
                    ..FINE
                },
                processes,
            ),
        ] {
            assert_eq!(figures.pressures(), want, "{figures:?}");
        }
    }

    #[test]
    fn it_comes_at_once_and_goes_after_five_minutes() {
        let mut pressure = Pressure::default();
        let start = Instant::now();
        let short = Figures {
            disk_free: 1,
            ..FINE
        };
        assert!(pressure.observe(&short, start).disk);
        assert!(
            pressure
                .observe(&FINE, start + Duration::from_secs(299))
                .disk
        );
        assert!(
            !pressure
                .observe(&FINE, start + Duration::from_secs(300))
                .disk
        );
    }
}
