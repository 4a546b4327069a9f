//! What this process is and uses, under the names of Prometheus' clients.

use std::fs;

use k8s_openapi::jiff::Timestamp;
use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

use super::{Kind, Labels, Page};

/// What the program is built of; see `build.rs`. Clients parse the commit as hexadecimal digits.
pub const MAJOR: &str = "1";
pub const MINOR: &str = "37";
pub const VERSION: &str = concat!("v1.37.0+vetch", env!("CARGO_PKG_VERSION"));
pub const COMMIT: &str = env!("VETCH_BUILD_COMMIT");
pub const TREE: &str = env!("VETCH_BUILD_TREE");
/// In the place of a version of Go.
pub const GO: &str = concat!("none: ", env!("VETCH_BUILD_COMPILER"));
pub const COMPILER: &str = "rustc";

pub fn built() -> String {
    let built = env!("VETCH_BUILD_SECONDS").parse().unwrap_or_default();
    Timestamp::from_second(built)
        .unwrap_or_default()
        .to_string()
}

pub fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

/// `kubernetes_build_info` and `process_*`.
pub fn write(page: &mut Page) {
    let labels = Labels::of(&[
        ("build_date", &built()),
        ("compiler", COMPILER),
        ("git_commit", COMMIT),
        ("git_tree_state", TREE),
        ("git_version", VERSION),
        ("go_version", GO),
        ("major", MAJOR),
        ("minor", MINOR),
        ("platform", &platform()),
    ]);
    page.family(
        "kubernetes_build_info",
        Kind::Gauge,
        "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
        [(labels, 1.0)],
    );
    for (name, kind, help, value) in figures() {
        if let Some(value) = value {
            page.single(name, kind, help, value);
        }
    }
}

type Figure = (&'static str, Kind, &'static str, Option<f64>);

/// `None`: the kernel did not say.
fn figures() -> [Figure; 6] {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
    let own = Own::parse(&stat);
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second.filter(|ticks| *ticks > 0).unwrap_or(100) as f64;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let open = fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
    let most = getrlimit(Resource::RLIMIT_NOFILE).ok();
    let own = own.as_ref();
    let started =
        own.and_then(|own| Some(boot_time(&machine)? as f64 + own.started as f64 / per_second));
    [
        (
            "process_cpu_seconds_total",
            Kind::Counter,
            "Total user and system CPU time spent in seconds.",
            own.map(|own| own.ticks as f64 / per_second),
        ),
        (
            "process_max_fds",
            Kind::Gauge,
            "Maximum number of open file descriptors.",
            most.map(|(soft, _)| soft as f64),
        ),
        (
            "process_open_fds",
            Kind::Gauge,
            "Number of open file descriptors.",
            open.map(|count| count as f64),
        ),
        (
            "process_resident_memory_bytes",
            Kind::Gauge,
            "Resident memory size in bytes.",
            own.and_then(|own| Some(own.resident_pages as f64 * page? as f64)),
        ),
        (
            "process_start_time_seconds",
            Kind::Gauge,
            "Start time of the process since unix epoch in seconds.",
            started,
        ),
        (
            "process_virtual_memory_bytes",
            Kind::Gauge,
            "Virtual memory size in bytes.",
            own.map(|own| own.virtual_bytes as f64),
        ),
    ]
}

#[derive(Debug, PartialEq, Eq)]
struct Own {
    ticks: u64,
    /// Ticks after the machine.
    started: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Own {
    /// The program's name may hold anything, so fields count from its last `)`.
    fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // Fields as proc(5) numbers them begin at 3 here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            ticks: field(14)?.checked_add(field(15)?)?,
            started: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_any_name() {
        let stat = "7 (a ) (b) S 1 7 7 0 -1 4194560 11 0 13 0 20 5 0 0 20 0 1 0 100 4096 3";
        let want = Own {
            ticks: 25,
            started: 100,
            virtual_bytes: 4096,
            resident_pages: 3,
        };
        assert_eq!(Own::parse(stat), Some(want));
        assert_eq!(Own::parse("7 (a) S"), None);
        assert_eq!(boot_time("cpu 1\nbtime 1700000000\n"), Some(1_700_000_000));
    }

    #[test]
    fn this_process() {
        let figures = figures();
        for (name, _, _, value) in &figures {
            assert!(
                value.is_some_and(|value| value > 0.0) || name.contains("cpu"),
                "{name}"
            );
        }
        let mut page = Page::new();
        write(&mut page);
        let text = page.into_text();
        assert!(
            text.contains("\nkubernetes_build_info{build_date=\"20"),
            "{text}"
        );
    }
}
