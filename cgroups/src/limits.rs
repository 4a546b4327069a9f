//! What limits become: the files to write and their order. Pure.

use crate::{Error, Layout};

/// Limits to set; `None` leaves a file alone. Units and signs as in the OCI runtime spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// v1 scale, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; -1 is none.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    /// -1 is none.
    pub memory_bytes: Option<i64>,
    /// Memory and swap together; -1 is none.
    pub memory_swap_bytes: Option<i64>,
    /// -1 is none; 0 is a real limit and written as 1.
    pub pids: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// 0 to 100, how readily memory is swapped (v1 only; v2 limits swap instead).
    pub swappiness: Option<u64>,
    /// Out of memory ends all processes of the group together (v2 only; v1 has no such thing).
    pub oom_group: Option<bool>,
}

/// What the group has now, as far as the order of writes depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Current {
    /// `memory.limit_in_bytes` (v1).
    pub memory_bytes: u64,
}

/// One write. The file's prefix up to the first dot is its controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub file: &'static str,
    pub value: String,
}

/// Writes that put `limits` in place, in order.
pub fn plan(layout: Layout, limits: &Limits, current: Current) -> Result<Vec<Write>, Error> {
    let mut writes = Vec::new();
    let mut add = |file, value: String| writes.push(Write { file, value });
    if let (Some(memory), Some(swap)) = (limits.memory_bytes, limits.memory_swap_bytes)
        && swap >= 0
        && (memory < 0 || swap < memory)
    {
        return Err(Error::Swap { memory, swap });
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        add("cpuset.cpus", cpus.clone());
    }
    if let Some(mems) = &limits.cpuset_mems {
        add("cpuset.mems", mems.clone());
    }
    match layout {
        Layout::V1 => v1(limits, current, &mut add),
        Layout::V2 => v2(limits, &mut add)?,
    }
    if let Some(pids) = limits.pids {
        add("pids.max", max_or(pids.max(-1), 1));
    }
    Ok(writes)
}

fn v1(limits: &Limits, current: Current, add: &mut impl FnMut(&'static str, String)) {
    const MEMORY: &str = "memory.limit_in_bytes";
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    if let Some(shares) = limits.cpu_shares {
        add("cpu.shares", shares.clamp(2, 262_144).to_string());
    }
    if let Some(period) = limits.cpu_period_us {
        // Unlimited in between: else old quota over new period may exceed the parent's share.
        if limits.cpu_quota_us.is_some() {
            add("cpu.cfs_quota_us", "-1".into());
        }
        add("cpu.cfs_period_us", period.to_string());
    }
    if let Some(quota) = limits.cpu_quota_us {
        add("cpu.cfs_quota_us", floor_quota(quota).to_string());
    }
    // The kernel holds memory <= memsw at every moment (cgroup-v1/memory.rst, section 2.4).
    match (limits.memory_bytes, limits.memory_swap_bytes) {
        (Some(memory), Some(swap)) if swap < 0 || swap.unsigned_abs() > current.memory_bytes => {
            add(BOTH, swap.to_string());
            add(MEMORY, memory.to_string());
        }
        (Some(memory), Some(swap)) => {
            add(MEMORY, memory.to_string());
            add(BOTH, swap.to_string());
        }
        (Some(memory), None) => {
            if memory < 0 {
                add(BOTH, "-1".into()); // unlimited memory under a limited sum is refused
            }
            add(MEMORY, memory.to_string());
        }
        (None, Some(swap)) => add(BOTH, swap.to_string()),
        (None, None) => {}
    }
    if let Some(swappiness) = limits.swappiness {
        add("memory.swappiness", swappiness.to_string());
    }
}

fn v2(limits: &Limits, add: &mut impl FnMut(&'static str, String)) -> Result<(), Error> {
    if let Some(shares) = limits.cpu_shares {
        add("cpu.weight", cpu_weight(shares).to_string());
    }
    match (limits.cpu_quota_us, limits.cpu_period_us) {
        (None, None) => {}
        (Some(quota), None) => add("cpu.max", max_or(floor_quota(quota), 1000)),
        (quota, Some(period)) => {
            let quota = max_or(floor_quota(quota.unwrap_or(-1)), 1000);
            add("cpu.max", format!("{quota} {period}"));
        }
    }
    if let Some(swap) = limits.memory_swap_bytes {
        let only_swap = match (swap, limits.memory_bytes) {
            (..0, _) => -1,
            (_, Some(memory)) => swap - memory,
            (_, None) => return Err(Error::SwapAlone),
        };
        add("memory.swap.max", max_or(only_swap, 0));
    }
    if let Some(memory) = limits.memory_bytes {
        add("memory.max", max_or(memory, 0));
    }
    if let Some(together) = limits.oom_group {
        add("memory.oom.group", u8::from(together).to_string());
    }
    Ok(())
}

/// The scheduler refuses less than 1 ms (kernel/sched/core.c, `min_cfs_quota_period`).
fn floor_quota(quota_us: i64) -> i64 {
    if quota_us <= 0 {
        -1
    } else {
        quota_us.max(1000)
    }
}

fn max_or(value: i64, least: i64) -> String {
    match value {
        ..0 => "max".into(),
        _ => value.max(least).to_string(),
    }
}

/// v1 shares on v2's scale, so that the defaults 1024 and 100 meet.
/// Source: opencontainers/cgroups `ConvertCPUSharesToCgroupV2Value`: 10^((L²+125L)/612 − 7/34)
/// rounded up, L = log2(shares). Not invertible: never read requests back from it.
pub fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            10f64
                .powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0)
                .ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(layout: Layout, limits: Limits, memory_bytes: u64) -> Vec<String> {
        let writes = plan(layout, &limits, Current { memory_bytes }).unwrap();
        let line = |write: Write| format!("{}={}", write.file, write.value);
        writes.into_iter().map(line).collect()
    }

    #[test]
    fn weights() {
        // Vectors of the formula's source.
        for (shares, want) in [
            (0, 1),
            (2, 1),
            (102, 17),
            (256, 35),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (4096, 303),
            (8192, 532),
            (16_384, 942),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(cpu_weight(shares), want, "{shares} shares");
        }
    }

    #[test]
    fn memory_and_swap_order_on_v1() {
        let memory = |value| format!("memory.limit_in_bytes={value}");
        let both = |value| format!("memory.memsw.limit_in_bytes={value}");
        for (now, limit, swap, want) in [
            (100, 150, Some(250), vec![both(250), memory(150)]), // grows
            (100, 50, Some(80), vec![memory(50), both(80)]),     // shrinks
            (100, 50, Some(100), vec![memory(50), both(100)]),
            (100, -1, Some(-1), vec![both(-1), memory(-1)]),
            (100, -1, None, vec![both(-1), memory(-1)]),
            (100, 70, None, vec![memory(70)]),
        ] {
            let limits = Limits {
                memory_bytes: Some(limit),
                memory_swap_bytes: swap,
                ..Limits::default()
            };
            assert_eq!(planned(Layout::V1, limits, now), want, "{limit} {swap:?}");
        }
    }

    #[test]
    fn whole_plans() {
        let limits = Limits {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(500), // below 1 ms
            cpu_period_us: Some(100_000),
            memory_bytes: Some(64),
            memory_swap_bytes: Some(96),
            pids: Some(0),
            ..Limits::default()
        };
        let v2 = [
            "cpu.weight=100",
            "cpu.max=1000 100000",
            "memory.swap.max=32",
            "memory.max=64",
            "pids.max=1",
        ];
        assert_eq!(planned(Layout::V2, limits.clone(), 0), v2);
        let v1 = [
            "cpu.shares=1024",
            "cpu.cfs_quota_us=-1",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=1000",
            "memory.memsw.limit_in_bytes=96",
            "memory.limit_in_bytes=64",
            "pids.max=1",
        ];
        assert_eq!(planned(Layout::V1, limits, 0), v1);
        let none = Limits {
            cpu_quota_us: Some(-1),
            pids: Some(-1),
            ..Limits::default()
        };
        assert_eq!(
            planned(Layout::V2, none, 0),
            ["cpu.max=max", "pids.max=max"]
        );
    }

    #[test]
    fn impossible_swap_is_refused() {
        for (memory, swap) in [(Some(64), 32), (Some(-1), 32), (None, 32)] {
            let limits = Limits {
                memory_bytes: memory,
                memory_swap_bytes: Some(swap),
                ..Limits::default()
            };
            assert!(
                plan(Layout::V2, &limits, Current::default()).is_err(),
                "{memory:?}"
            );
        }
    }
}
