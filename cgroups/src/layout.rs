//! Which controllers are mounted where.

use crate::Error;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// How controllers are offered. A hybrid host, with controllers on v1 trees and an empty v2 tree
/// beside them, counts as `V1`: that is where its limits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    V1,
    V2,
}

/// The cgroup trees of this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub layout: Layout,
    /// Controller to mount point (v1). Co-mounted controllers share one.
    pub v1: BTreeMap<String, PathBuf>,
    /// Where cgroup2 is mounted, if it is.
    pub v2: Option<PathBuf>,
}

impl Hierarchy {
    /// One tree of it, for groups that only keep processes together: each tree costs a folder for each group.
    pub fn one_tree(&self) -> Self {
        let cheapest = ["freezer", "pids", "devices"]
            .iter()
            .find(|name| self.v1.contains_key(**name));
        let chosen = cheapest.map(|name| (*name).to_owned());
        let chosen = chosen.or_else(|| self.v1.keys().next().cloned());
        let mut narrow = self.clone();
        narrow.v1.retain(|name, _| Some(name) == chosen.as_ref());
        narrow
    }

    /// Reads `/proc/self/mountinfo`.
    pub fn detect() -> Result<Self, Error> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(|source| Error::Io {
            operation: "read",
            path: path.into(),
            source,
        })?;
        Self::parse(&text).ok_or_else(|| Error::NoController("any".into()))
    }

    /// Trees named in the text of a `mountinfo`; `None` without any. The first mount of a
    /// controller counts. Source: proc_pid_mountinfo(5).
    pub fn parse(mountinfo: &str) -> Option<Self> {
        const KNOWN: [&str; 12] = [
            "cpu",
            "cpuacct",
            "cpuset",
            "memory",
            "devices",
            "freezer",
            "blkio",
            "pids",
            "hugetlb",
            "net_cls",
            "net_prio",
            "perf_event",
        ];
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else {
                continue;
            };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => v2 = v2.or(Some(point)),
                (Some("cgroup"), Some(options)) => {
                    for name in options.split(',').filter(|name| KNOWN.contains(name)) {
                        v1.entry(name.to_owned()).or_insert_with(|| point.clone());
                    }
                }
                _ => {}
            }
        }
        let layout = match (v1.is_empty(), &v2) {
            (false, _) => Layout::V1,
            (true, Some(_)) => Layout::V2,
            (true, None) => return None,
        };
        Some(Self { layout, v1, v2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_from_mountinfo() {
        let v1 = "32 31 0:29 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let named = "40 31 0:37 / /c/systemd rw - cgroup cgroup rw,name=systemd\n";
        let v2 = "41 31 0:38 / /c/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        for (text, want) in [
            (v1.to_owned(), Some(Layout::V1)),
            (format!("{v1}{named}{v2}"), Some(Layout::V1)), // hybrid
            (format!("{named}{v2}"), Some(Layout::V2)),     // a named tree has no controllers
            (named.to_owned(), None),
            (String::new(), None),
        ] {
            let found = Hierarchy::parse(&text);
            assert_eq!(found.map(|found| found.layout), want, "{text}");
        }
        let found = Hierarchy::parse(v1).unwrap();
        assert_eq!(found.v1["cpuacct"], Path::new("/c/cpu"));
    }
}
