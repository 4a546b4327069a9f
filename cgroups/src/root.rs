//! What the machine as a whole uses of its memory, as the root of the cgroup trees counts it.

use std::path::Path;

use crate::{
    Error, Hierarchy, Layout,
    group::{field, read},
};

/// Memory of the whole machine. Units: bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineMemory {
    pub total_bytes: u64,
    /// In use without file pages that have not been used lately: what cannot easily be freed.
    pub working_set_bytes: u64,
}

impl MachineMemory {
    pub fn available_bytes(self) -> u64 {
        self.total_bytes.saturating_sub(self.working_set_bytes)
    }
}

impl Hierarchy {
    /// Reads the root group. On v2 it has no `memory.current`: memory that is not free stands in.
    pub fn machine_memory(&self) -> Result<MachineMemory, Error> {
        let path = Path::new("/proc/meminfo");
        let text = read(path)?;
        let meminfo = |name: &str| kilobytes(&text, name) * 1024;
        let total_bytes = meminfo("MemTotal");
        let (usage, inactive) = match (self.layout, self.v1.get("memory"), &self.v2) {
            (Layout::V1, Some(root), _) => {
                let usage = read(&root.join("memory.usage_in_bytes"))?;
                let stat = read(&root.join("memory.stat"))?;
                let usage = usage.trim().parse().unwrap_or(0);
                (usage, field(&stat, "total_inactive_file"))
            }
            (_, _, Some(root)) => {
                let usage = total_bytes.saturating_sub(meminfo("MemFree"));
                // Only the root of all has no such file on some kernels.
                let inactive = match read(&root.join("memory.stat")) {
                    Ok(stat) => field(&stat, "inactive_file"),
                    Err(_) => meminfo("Inactive(file)"),
                };
                (usage, inactive)
            }
            _ => return Err(Error::NoController("memory".into())),
        };
        Ok(MachineMemory {
            total_bytes,
            working_set_bytes: usage.saturating_sub(inactive),
        })
    }
}

/// The value of one line of `/proc/meminfo`; 0 where this kernel has no such line.
fn kilobytes(meminfo: &str, name: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_left() {
        let Ok(hierarchy) = Hierarchy::detect() else {
            return; // no cgroups here, hence nothing to read
        };
        let Ok(memory) = hierarchy.machine_memory() else {
            return; // no memory controller
        };
        assert!(memory.total_bytes > 64 << 20);
        assert!(memory.working_set_bytes < memory.total_bytes);
    }

    #[test]
    fn lines_of_meminfo() {
        let text = "MemTotal:  8021028 kB\nInactive(file):  10 kB\n";
        assert_eq!(kilobytes(text, "Inactive(file)"), 10);
        assert_eq!(kilobytes(text, "Mem"), 0);
    }
}
