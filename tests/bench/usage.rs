//! What a cluster's processes take of the machine.
#![allow(dead_code, reason = "each bench uses its own part")]

use std::{fs, path::Path, time::Duration};

use nix::{
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use super::lab::{Cluster, program};

/// Processes of ours below this root: the daemon and the supervisors.
fn processes(program: &Path, root: &Path) -> Vec<i32> {
    let program = fs::canonicalize(program).unwrap();
    let root = root.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let ours = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program);
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if ours && String::from_utf8_lossy(&arguments).contains(&root) {
            found.push(pid);
        }
    }
    found
}

/// PSS of all our processes, in MB.
pub fn memory(cluster: &Cluster) -> f64 {
    memory_of(processes(&cluster.program, cluster.root.path()))
}

/// The same of what runs below another machine's root.
pub fn memory_below(root: &Path) -> f64 {
    memory_of(processes(&program(), root))
}

fn memory_of(processes: Vec<i32>) -> f64 {
    let pss = |pid: i32| -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    processes.into_iter().filter_map(pss).sum::<f64>() / 1024.0
}

/// CPU seconds and bytes written by our processes so far.
pub fn work(cluster: &Cluster) -> (f64, f64) {
    work_of(processes(&cluster.program, cluster.root.path()))
}

/// The same of what runs below another machine's root.
pub fn work_below(root: &Path) -> (f64, f64) {
    work_of(processes(&program(), root))
}

/// The processor's time of one process so far, threads that have ended among it.
pub fn processor(pid: i32) -> Duration {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).unwrap();
    clock_gettime(clock).unwrap().into()
}

fn work_of(processes: Vec<i32>) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for pid in processes {
        // In nanoseconds, where /proc/PID/stat counts ticks of 10 ms.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        for thread in threads.flatten() {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let spent = text
                .split(' ')
                .next()
                .and_then(|text| text.parse::<f64>().ok());
            sum.0 += spent.unwrap_or(0.0) / 1e9;
        }
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let written = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        sum.1 += written
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0);
    }
    sum
}
