//! What the host is and has, from `/proc`, `/sys` and `/etc`. The parsers are pure.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use crate::kubelet::container::Facts;

/// What does not change while the daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub facts: Facts,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    /// Bytes reserved, by page size in kilobytes.
    pub huge_pages: BTreeMap<u64, u64>,
}

impl Host {
    pub fn read() -> io::Result<Self> {
        Ok(Self {
            facts: facts()?,
            machine_id: first_of(&["/etc/machine-id", "/var/lib/dbus/machine-id"]),
            system_uuid: first_of(&["/sys/class/dmi/id/product_uuid", "/etc/machine-id"]),
            boot_id: first_of(&["/proc/sys/kernel/random/boot_id"]),
            kernel: first_of(&["/proc/sys/kernel/osrelease"]),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
        })
    }
}

/// Cores and memory.
pub fn facts() -> io::Result<Facts> {
    use nix::unistd::{SysconfVar, sysconf};
    let text = fs::read_to_string("/proc/meminfo")?;
    let memory = kilobytes(&text, "MemTotal")
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "/proc/meminfo has no MemTotal"))?;
    let cores = sysconf(SysconfVar::_NPROCESSORS_ONLN)?.unwrap_or(1);
    Ok(Facts {
        cpu_milli: u64::try_from(cores).unwrap_or(1) * 1000,
        memory_bytes: memory * 1024,
        swap_bytes: kilobytes(&text, "SwapTotal").unwrap_or(0) * 1024,
        ..Facts::default()
    })
}

/// Processes and threads that exist, of how many the kernel allows.
pub fn processes() -> io::Result<(u64, u64)> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let now = running(&load).ok_or(ErrorKind::InvalidData)?;
    let limit = |path| {
        fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(u64::MAX)
    };
    let most = limit("/proc/sys/kernel/pid_max").min(limit("/proc/sys/kernel/threads-max"));
    Ok((now, most))
}

/// The value of one line of `/proc/meminfo`, in kilobytes.
fn kilobytes(meminfo: &str, name: &str) -> Option<u64> {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// The second number of `/proc/loadavg`'s fourth field (`1/234`).
fn running(loadavg: &str) -> Option<u64> {
    let field = loadavg.split_whitespace().nth(3)?;
    field.split_once('/')?.1.parse().ok()
}

fn os_image(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or("Linux", |name| name.trim_matches('"'))
        .to_owned()
}

/// What the first readable file says.
fn first_of(paths: &[&str]) -> String {
    paths
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn huge_pages(dir: &Path) -> BTreeMap<u64, u64> {
    let mut pages = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size = name.to_str().and_then(|name| {
            let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            size.parse::<u64>().ok()
        });
        let count = fs::read_to_string(entry.path().join("nr_hugepages"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        if let (Some(size), Some(count)) = (size, count) {
            pages.insert(size, size * 1024 * count);
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_meminfo() {
        let text = "MemTotal:        8021028 kB\nMemAvailable:  10 kB\nSwapTotal: 0 kB\n";
        assert_eq!(kilobytes(text, "MemTotal"), Some(8_021_028));
        assert_eq!(kilobytes(text, "MemAvailable"), Some(10));
        assert_eq!(kilobytes(text, "Mem"), None);
    }

    #[test]
    fn threads_from_loadavg() {
        assert_eq!(running("0.10 0.20 0.30 2/345 999"), Some(345));
        assert_eq!(running("nonsense"), None);
    }

    #[test]
    fn names_of_systems() {
        for (text, want) in [
            ("ID=x\nPRETTY_NAME=\"Debian 12\"\n", "Debian 12"),
            ("ID=x\n", "Linux"),
        ] {
            assert_eq!(os_image(text), want);
        }
    }

    #[test]
    fn this_host_has_cores_and_memory() {
        let host = Host::read().unwrap();
        assert!(host.facts.cpu_milli >= 1000 && host.facts.memory_bytes > 64 << 20);
        assert!(!host.boot_id.is_empty() && !host.kernel.is_empty());
        let (now, most) = processes().unwrap();
        assert!(now < most);
    }
}
