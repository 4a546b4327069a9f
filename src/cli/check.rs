//! `vetch check`: what this host has and lacks, and how to mend it.

use std::{borrow::Cow, io::Write, path::Path, process::ExitCode};

use super::{Error, block_on, cni::CniArgs};
use crate::{
    causes::causes,
    kubelet::network::cni::{self, Folders},
};

/// Say what this host has and lacks to run pods, with the remedy for each lack
#[derive(clap::Args)]
pub struct Check {
    #[command(flatten)]
    cni: CniArgs,
}

/// One thing a host has or lacks.
struct Finding {
    name: &'static str,
    good: bool,
    needed: Need,
    remedy: Cow<'static, str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Without it no pod runs, and nothing but the remedy brings it.
    AtStart,
    /// Without it no pod runs; the kernel may load it when it is first used.
    OnUse,
    /// Something is less good without it.
    Wish,
}

/// What keeps `up` from running any pod, with the remedies; `None` if nothing does.
pub fn obstacles() -> Option<String> {
    obstacles_of(&findings(&Host::read_settled()))
}

fn obstacles_of(findings: &[Finding]) -> Option<String> {
    let lines: Vec<String> = findings
        .iter()
        .filter(|finding| !finding.good && finding.needed == Need::AtStart)
        .map(|finding| format!("{}: {}", finding.name, finding.remedy))
        .collect();
    (!lines.is_empty()).then(|| {
        format!(
            "this host lacks what pods need:\n  {}\n`vetch check` says more",
            lines.join("\n  ")
        )
    })
}

impl Check {
    /// 1 when something needed is missing.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        let mut findings = findings(&Host::read());
        if let Some(folders) = self.cni.folders(None)? {
            with_plugins(&mut findings, lack(&folders)?);
        }
        for finding in &findings {
            let mark = match (finding.good, finding.needed) {
                (true, _) => "ok     ",
                (false, Need::Wish) => "lacking",
                (false, _) => "MISSING",
            };
            writeln!(out, "{mark}  {}", finding.name)?;
            if !finding.good {
                writeln!(out, "         {}", finding.remedy)?;
            }
        }
        let missing = findings
            .iter()
            .any(|finding| finding.needed != Need::Wish && !finding.good);
        Ok(if missing {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Why the plugins would make no network, if they would not.
fn lack(folders: &Folders) -> Result<Option<String>, Error> {
    block_on(async { Ok(cni::look(folders).await.err().map(|error| causes(&error))) })
}

/// What a host must have whose pods' network is made by plugins. Pure.
fn with_plugins(findings: &mut Vec<Finding>, lack: Option<String>) {
    for finding in findings.iter_mut() {
        if finding.name == BRIDGE_TABLES {
            finding.needed = Need::Wish;
        }
        if finding.name == BRIDGE_NETFILTER {
            finding.remedy = "modprobe br_netfilter; without it pods on a bridge of CNI plugins do not reach each \
                              other through services"
                .into();
        }
    }
    findings.push(Finding {
        name: "a network of CNI plugins",
        good: lack.is_none(),
        needed: Need::OnUse,
        remedy: lack.unwrap_or_default().into(),
    });
}

/// What `/proc` and `/sys` say.
#[derive(Default)]
struct Host {
    root: bool,
    /// Version and patch level; `None` if it cannot be told.
    kernel: Option<(u32, u32)>,
    filesystems: String,
    mounts: String,
    namespaces: Vec<&'static str>,
    seccomp: bool,
    bridge_netfilter: bool,
    bridge_tables: bool,
    wireguard: bool,
    v2_controllers: String,
    v1_swap: bool,
    v2_swap: bool,
}

const BRIDGE_TABLES: &str = "nf_tables for bridges";
const BRIDGE_NETFILTER: &str = "bridge netfilter";

/// Needed; [`findings`] and the README name it too.
const KERNEL: (u32, u32) = (5, 12);

/// `6.1.0-18-amd64` is (6, 1).
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .trim()
        .split(|character: char| !character.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

impl Host {
    /// What is tried, too.
    fn read() -> Self {
        Self {
            bridge_tables: crate::kubelet::network::can_guard(),
            wireguard: netns::wireguard::is_supported(),
            ..Self::read_settled()
        }
    }

    /// What files say; costs next to nothing.
    fn read_settled() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let exists = |path: &str| Path::new(path).exists();
        Self {
            root: nix::unistd::geteuid().is_root(),
            kernel: release(&text("/proc/sys/kernel/osrelease")),
            filesystems: text("/proc/filesystems"),
            mounts: text("/proc/self/mounts"),
            namespaces: NAMESPACES
                .into_iter()
                .filter(|name| exists(&format!("/proc/self/ns/{name}")))
                .collect(),
            seccomp: text("/proc/self/status").contains("Seccomp:"),
            bridge_netfilter: exists("/proc/sys/net/bridge/bridge-nf-call-iptables"),
            bridge_tables: false,
            wireguard: false,
            v2_controllers: text("/sys/fs/cgroup/cgroup.controllers"),
            v1_swap: exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"),
            // The root group has no limits of its own: look whether a child has.
            v2_swap: std::fs::read_dir("/sys/fs/cgroup")
                .into_iter()
                .flatten()
                .flatten()
                .any(|entry| entry.path().join("memory.swap.max").exists()),
        }
    }

    /// mount_setattr(2), by which containers' mounts get their flags, is the newest call that the
    /// runtime cannot do without.
    fn has_kernel(&self) -> bool {
        self.kernel.is_some_and(|kernel| kernel >= KERNEL)
    }

    fn has_filesystem(&self, name: &str) -> bool {
        self.filesystems
            .lines()
            .any(|line| line.split_whitespace().last() == Some(name))
    }

    /// Whether a controller is there, in either layout.
    fn has_controller(&self, name: &str) -> bool {
        let v1 = self
            .mounts
            .lines()
            .filter(|line| line.split(' ').nth(2) == Some("cgroup"));
        self.v2_controllers
            .split_whitespace()
            .any(|have| have == name)
            || v1
                .flat_map(|line| line.split(' ').nth(3))
                .any(|options| options.split(',').any(|option| option == name))
    }
}

/// Pure.
fn findings(host: &Host) -> Vec<Finding> {
    let finding = |name, good, needed, remedy: &'static str| Finding {
        name,
        good,
        needed,
        remedy: remedy.into(),
    };
    vec![
        finding("root", host.root, Need::AtStart, "run vetch with sudo"),
        finding(
            "Linux 5.12 or later",
            host.has_kernel(),
            Need::AtStart,
            "boot a newer kernel; Debian 12 has 6.1",
        ),
        finding(
            "namespaces (cgroup, ipc, mnt, net, pid, user, uts)",
            host.namespaces.len() == NAMESPACES.len(),
            Need::AtStart,
            "use a kernel with CONFIG_NAMESPACES and all its parts",
        ),
        finding(
            "overlayfs",
            host.has_filesystem("overlay"),
            Need::OnUse,
            "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS",
        ),
        finding(
            "seccomp",
            host.seccomp,
            Need::AtStart,
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
        finding(
            "cgroup memory",
            host.has_controller("memory"),
            Need::AtStart,
            "add cgroup_enable=memory to the kernel's command line",
        ),
        finding(
            "cgroup cpu",
            host.has_controller("cpu"),
            Need::AtStart,
            "mount the cpu controller, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
        finding(
            "cgroup pids",
            host.has_controller("pids"),
            Need::AtStart,
            "mount the pids controller, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
        finding(
            BRIDGE_TABLES,
            host.bridge_tables,
            Need::OnUse,
            "use a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_BRIDGE (Debian, Ubuntu and Fedora have \
             them), as root; by it pods are kept from sending with others' addresses",
        ),
        finding(
            "swap accounting",
            host.v1_swap || host.v2_swap,
            Need::Wish,
            "add swapaccount=1 to the kernel's command line; without it swap limits cannot be kept",
        ),
        finding(
            BRIDGE_NETFILTER,
            host.bridge_netfilter,
            Need::Wish,
            "modprobe br_netfilter; without it pods on one bridge are reached through services by routing only",
        ),
        finding(
            "WireGuard",
            host.wireguard,
            Need::Wish,
            "modprobe wireguard, as root, or a kernel with CONFIG_WIREGUARD (Debian, Ubuntu and Fedora have it); without it \
             pods of other machines are not reached where encryption is requested (--pod-encryption wireguard)",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_host_lacks_everything_and_says_why() {
        let findings = findings(&Host::default());
        assert!(
            findings
                .iter()
                .all(|finding| !finding.good && !finding.remedy.is_empty())
        );
    }

    #[test]
    fn who_brings_plugins_needs_a_network_and_no_tables_for_bridges() {
        let with = |lack| {
            let mut findings = findings(&Host::default());
            with_plugins(&mut findings, lack);
            findings
        };
        let findings = with(Some("no file".to_owned()));
        let tables = findings.iter().find(|one| one.name == BRIDGE_TABLES);
        assert_eq!(tables.unwrap().needed, Need::Wish);
        let network = findings.last().unwrap();
        assert!(!network.good && network.remedy == "no file");
        assert!(with(None).last().unwrap().good);
    }

    #[test]
    fn a_start_needs_what_no_use_brings() {
        let bare = obstacles_of(&findings(&Host::default())).unwrap();
        assert!(
            bare.contains("cgroup memory: add cgroup_enable=memory"),
            "{bare}"
        );
        assert!(
            !bare.contains("overlayfs") && !bare.contains("swap"),
            "{bare}"
        );
        let good = |mut finding: Finding| {
            finding.good |= finding.needed == Need::AtStart;
            finding
        };
        let enough: Vec<Finding> = findings(&Host::default()).into_iter().map(good).collect();
        assert_eq!(obstacles_of(&enough), None);
    }

    #[test]
    fn kernels() {
        for (text, want) in [
            ("6.1.0-50-cloud-amd64\n", true),
            ("5.12", true),
            ("5.12-rc1", true),
            ("5.11.22", false),
            ("5.4.0-150-generic", false),
            ("10.0", true), // numbers, not texts
            ("", false),
            ("six", false),
        ] {
            let host = Host {
                kernel: release(text),
                ..Host::default()
            };
            assert_eq!(host.has_kernel(), want, "{text:?}");
        }
    }

    #[test]
    fn controllers_in_either_layout() {
        let v1 = Host {
            mounts: "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n".to_owned(),
            ..Host::default()
        };
        let v2 = Host {
            v2_controllers: "cpu memory pids\n".to_owned(),
            ..Host::default()
        };
        assert!(v1.has_controller("memory") && v2.has_controller("memory"));
        assert!(!v1.has_controller("cpu") && v2.has_controller("cpu"));
    }
}
