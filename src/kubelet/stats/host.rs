//! The machine's own figures, from `/proc`. The parsers are pure.

use std::{fs, io};

use nix::unistd::{SysconfVar, sysconf};

/// CPU and memory of the machine, or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    pub working_set_bytes: u64,
    pub rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub swap_bytes: u64,
    pub cache_bytes: u64,
}

/// The machine as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    pub all: Part,
    /// Logical CPUs.
    pub cores: u64,
    pub memory_total_bytes: u64,
    pub swap_free_bytes: u64,
    /// Seconds since the epoch.
    pub booted: i64,
    pub interfaces: Vec<Interface>,
    pub processes: u64,
    pub processes_most: u64,
    pub stalls: Stalls,
}

/// Counters of one network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Pressure stall information, where the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalls {
    pub cpu: Option<Stall>,
    pub memory: Option<Stall>,
    pub io: Option<Stall>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    pub some: Share,
    pub full: Share,
}

/// Percent of the last seconds, and microseconds in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

/// Reads the machine.
pub fn machine() -> io::Result<Machine> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let bytes = |name| number(&meminfo, name).unwrap_or(0) * 1024;
    let vmstat = fs::read_to_string("/proc/vmstat")?;
    let stat = fs::read_to_string("/proc/stat")?;
    let used = bytes("MemTotal:").saturating_sub(bytes("MemFree:"));
    let (processes, processes_most) = crate::kubelet::node::processes()?;
    Ok(Machine {
        all: Part {
            cpu_ns: busy_ticks(&stat) * tick_ns(),
            memory_bytes: used,
            working_set_bytes: used.saturating_sub(bytes("Inactive(file):")),
            rss_bytes: bytes("AnonPages:"),
            page_faults: number(&vmstat, "pgfault").unwrap_or(0),
            major_page_faults: number(&vmstat, "pgmajfault").unwrap_or(0),
            swap_bytes: bytes("SwapTotal:").saturating_sub(bytes("SwapFree:")),
            cache_bytes: bytes("Cached:"),
        },
        cores: cores(&stat),
        memory_total_bytes: bytes("MemTotal:"),
        swap_free_bytes: bytes("SwapFree:"),
        booted: number(&stat, "btime").map_or(0, u64::cast_signed),
        interfaces: interfaces(&fs::read_to_string("/proc/net/dev")?),
        processes,
        processes_most,
        stalls: Stalls {
            cpu: stall("cpu"),
            memory: stall("memory"),
            io: stall("io"),
        },
    })
}

/// Reads this process: the kubelet and all that runs in one with it.
pub fn own() -> io::Result<Part> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let status = fs::read_to_string("/proc/self/status")?;
    let bytes = |name| number(&status, name).unwrap_or(0) * 1024;
    let process = process(&stat).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Part {
        cpu_ns: process.ticks * tick_ns(),
        memory_bytes: bytes("VmRSS:"),
        working_set_bytes: bytes("VmRSS:"),
        rss_bytes: bytes("RssAnon:"),
        page_faults: process.minor_faults + process.major_faults,
        major_page_faults: process.major_faults,
        swap_bytes: bytes("VmSwap:"),
        ..Part::default()
    })
}

/// The interfaces that a process sees.
pub fn interfaces_of(pid: i32) -> io::Result<Vec<Interface>> {
    Ok(interfaces(&fs::read_to_string(format!(
        "/proc/{pid}/net/dev"
    ))?))
}

fn stall(what: &str) -> Option<Stall> {
    parse_stall(&fs::read_to_string(format!("/proc/pressure/{what}")).ok()?)
}

fn tick_ns() -> u64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    1_000_000_000 / u64::try_from(ticks).unwrap_or(100).max(1)
}

/// The number after `name` at a line's start.
fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name)
            .then(|| words.next())?
            .and_then(|word| word.parse().ok())
    })
}

/// Time that the machine was neither idle nor waiting for a disk. Guests count as users already.
fn busy_ticks(stat: &str) -> u64 {
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else {
        return 0;
    };
    let idle = [3, 4];
    line.split_whitespace()
        .take(8)
        .enumerate()
        .filter(|(index, _)| !idle.contains(index))
        .filter_map(|(_, word)| word.parse::<u64>().ok())
        .sum()
}

fn cores(stat: &str) -> u64 {
    let each = stat.lines().filter(|line| {
        let number = line.strip_prefix("cpu");
        number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
    });
    each.count() as u64
}

#[derive(Debug, PartialEq, Eq)]
struct Process {
    ticks: u64,
    minor_faults: u64,
    major_faults: u64,
}

/// The program's name in `/proc/<pid>/stat` may hold anything, so fields count from its last `)`.
fn process(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // Fields as proc(5) numbers them begin at 3 here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Process {
        ticks: field(14)? + field(15)?,
        minor_faults: field(10)?,
        major_faults: field(12)?,
    })
}

/// All but loopback.
fn interfaces(dev: &str) -> Vec<Interface> {
    dev.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> = counters
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            let counter = |index: usize| counters.get(index).copied();
            Some(Interface {
                name: name.trim().to_owned(),
                rx_bytes: counter(0)?,
                rx_packets: counter(1)?,
                rx_errors: counter(2)?,
                rx_dropped: counter(3)?,
                tx_bytes: counter(8)?,
                tx_packets: counter(9)?,
                tx_errors: counter(10)?,
                tx_dropped: counter(11)?,
            })
        })
        .filter(|interface| interface.name != "lo")
        .collect()
}

fn parse_stall(text: &str) -> Option<Stall> {
    let share = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let field = |name: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Share {
            avg10: field("avg10")?.parse().ok()?,
            avg60: field("avg60")?.parse().ok()?,
            avg300: field("avg300")?.parse().ok()?,
            total: field("total")?.parse().ok()?,
        })
    };
    Some(Stall {
        some: share("some ")?,
        // Older kernels have none for the CPU.
        full: share("full ").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time() {
        let stat = "cpu  100 10 50 9999 8888 5 3 2 77 7\ncpu0 1 1 1 1\nbtime 1700000000\n";
        assert_eq!(busy_ticks(stat), 170);
        assert_eq!(cores(stat), 1);
        assert_eq!(number(stat, "btime"), Some(1_700_000_000));
    }

    #[test]
    fn a_process_of_any_name() {
        let stat = "7 (a ) (b) S 1 7 7 0 -1 4194560 11 0 13 0 20 5 0 0 20 0 1 0 100 1 1";
        let want = Process {
            ticks: 25,
            minor_faults: 11,
            major_faults: 13,
        };
        assert_eq!(process(stat), Some(want));
        assert_eq!(process("7 (a) S"), None);
    }

    #[test]
    fn counters_of_interfaces() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed\n    lo:  1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0:10 2 3 4 0 0 0 0 40 5 6 7 0 0 0 0\n";
        let want = Interface {
            name: "eth0".into(),
            rx_bytes: 10,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 40,
            tx_packets: 5,
            tx_errors: 6,
            tx_dropped: 7,
        };
        assert_eq!(interfaces(dev), vec![want]);
    }

    #[test]
    fn stalls() {
        let some = "some avg10=1.50 avg60=0.20 avg300=0.00 total=123\n";
        let share = Share {
            avg10: 1.5,
            avg60: 0.2,
            avg300: 0.0,
            total: 123,
        };
        for (text, full) in [
            (some.to_owned(), Share::default()),
            (some.to_owned() + &some.replace("some", "full"), share),
        ] {
            assert_eq!(parse_stall(&text), Some(Stall { some: share, full }));
        }
        assert_eq!(parse_stall(""), None);
    }

    #[test]
    fn this_machine_and_this_process() {
        let machine = machine().unwrap();
        assert!(machine.all.cpu_ns > 0 && machine.booted > 0);
        assert!(machine.all.working_set_bytes <= machine.memory_total_bytes);
        let own = own().unwrap();
        assert!(own.memory_bytes > 0 && own.memory_bytes < machine.memory_total_bytes);
    }
}
