//! What a group uses, read from the kernel.

use std::io;

use crate::{
    Error, Group, Layout,
    group::{field, read},
};

/// Use so far and now. Units: nanoseconds and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    /// Memory without inactive file pages, never below 0.
    pub working_set_bytes: u64,
    /// Memory that belongs to no file.
    pub rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// 0 where the kernel does not account swap.
    pub swap_bytes: u64,
    pub pids: u64,
    /// Processes of this group the OOM killer has ended.
    pub oom_kills: u64,
    /// Pages of files.
    pub cache_bytes: u64,
    /// `None`: the kernel keeps none of this group, for want of a limit of CPU time say.
    pub throttling: Option<Throttling>,
}

/// How often a limit of CPU time has held a group up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
}

impl Throttling {
    /// Of the text of `cpu.stat`.
    fn parse(layout: Layout, text: &str) -> Option<Self> {
        let periods = field(text, "nr_periods");
        (periods > 0).then(|| Self {
            periods,
            throttled_periods: field(text, "nr_throttled"),
            throttled_ns: match layout {
                Layout::V1 => field(text, "throttled_time"),
                Layout::V2 => field(text, "throttled_usec").saturating_mul(1000),
            },
        })
    }
}

impl Group {
    fn memory_bytes(&self) -> Result<u64, Error> {
        self.number(match self.hierarchy.layout {
            Layout::V1 => "memory.usage_in_bytes",
            Layout::V2 => "memory.current",
        })
    }

    /// One line of `memory.stat`, for the group and all below it: on v1 the figures of the group alone
    /// are beside those of its whole tree.
    fn of_tree(&self, stat: &str, name: &str) -> u64 {
        match self.hierarchy.layout {
            Layout::V1 => field(stat, &format!("total_{name}")),
            Layout::V2 => field(stat, name),
        }
    }

    /// As in [`Group::stats`], at a third of its cost.
    pub fn working_set(&self) -> Result<u64, Error> {
        let inactive = self.of_tree(&self.text("memory.stat")?, "inactive_file");
        Ok(self.memory_bytes()?.saturating_sub(inactive))
    }

    pub fn stats(&self) -> Result<Stats, Error> {
        let stat = self.text("memory.stat")?;
        let of_tree = |name: &str| self.of_tree(&stat, name);
        let usage = self.memory_bytes()?;
        let (cpu_ns, swap, oom, cpu) = match self.hierarchy.layout {
            Layout::V1 => {
                let oom = self.text("memory.oom_control")?;
                (
                    self.number("cpuacct.usage")?,
                    of_tree("swap"),
                    field(&oom, "oom_kill"),
                    self.text("cpu.stat").unwrap_or_default(),
                )
            }
            Layout::V2 => {
                let swap = match self.number("memory.swap.current") {
                    Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => 0,
                    other => other?,
                };
                let cpu = read(&self.unified()?.join("cpu.stat"))?;
                (
                    field(&cpu, "usage_usec") * 1000,
                    swap,
                    field(&self.text("memory.events")?, "oom_kill"),
                    cpu,
                )
            }
        };
        Ok(Stats {
            cpu_ns,
            memory_bytes: usage,
            working_set_bytes: usage.saturating_sub(of_tree("inactive_file")),
            rss_bytes: match self.hierarchy.layout {
                Layout::V1 => of_tree("rss"),
                Layout::V2 => of_tree("anon"),
            },
            page_faults: of_tree("pgfault"),
            major_page_faults: of_tree("pgmajfault"),
            swap_bytes: swap,
            pids: self.number("pids.current")?,
            oom_kills: oom,
            cache_bytes: match self.hierarchy.layout {
                Layout::V1 => of_tree("cache"),
                Layout::V2 => of_tree("file"),
            },
            throttling: Throttling::parse(self.hierarchy.layout, &cpu),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_often_a_limit_held_up() {
        let (periods, throttled_periods, throttled_ns) = (10, 3, 2000);
        let want = Throttling {
            periods,
            throttled_periods,
            throttled_ns,
        };
        for (layout, text, want) in [
            (
                Layout::V1,
                "nr_periods 10\nnr_throttled 3\nthrottled_time 2000\n",
                Some(want),
            ),
            (
                Layout::V2,
                "usage_usec 5\nnr_periods 10\nnr_throttled 3\nthrottled_usec 2\n",
                Some(want),
            ),
            // Without a limit.
            (Layout::V2, "usage_usec 5\nnr_periods 0\n", None),
            (Layout::V1, "", None),
        ] {
            assert_eq!(Throttling::parse(layout, text), want, "{text}");
        }
    }
}
