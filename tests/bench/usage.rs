//! What a cluster's processes take of the machine.

use std::fs;

use super::lab::Cluster;

/// Processes of ours below this cluster: the daemon and the supervisors.
fn processes(cluster: &Cluster) -> Vec<i32> {
    let program = fs::canonicalize(&cluster.program).unwrap();
    let root = cluster.root.path().display().to_string();
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
    let pss = |pid: i32| -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    processes(cluster).into_iter().filter_map(pss).sum::<f64>() / 1024.0
}

/// CPU seconds and bytes written by our processes so far.
pub fn work(cluster: &Cluster) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for pid in processes(cluster) {
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
