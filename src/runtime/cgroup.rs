//! From OCI resources to the limits and device rules of control groups. Pure, apart from [`create`].

use cgroups::{
    Group, Hierarchy, Limits,
    devices::{self, Access, Kind, Rule},
};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::{Ceilings, Error, Usage};

/// All pods' groups lie in it; what all pods together may use is limited there.
const PODS: &str = "kubepods";
/// The supervisors' groups lie beside the pods': no limit of a pod or of all pods touches them.
const SUPERVISORS: &str = "supervisors";
/// The kernel's least share of the CPU.
const LEAST_SHARES: u64 = 2;

/// `<root>/<pod>`.
pub fn pod_name(cgroup_root: &str, pod: &str) -> String {
    format!("{cgroup_root}/{pod}")
}

/// `<root>/supervisors/<last part of the pod's name>`.
pub fn supervisor_name(cgroup_root: &str, pod: &str) -> String {
    let own = pod.rsplit('/').next().unwrap_or(pod);
    format!("{cgroup_root}/{SUPERVISORS}/{own}")
}

/// Makes the group of a pod's supervisor. Nothing is limited or counted there, so with cgroup v1 it is in one
/// tree; in the others the supervisor is in the group of all.
pub fn create_supervisor(hierarchy: &Hierarchy, name: &str) -> Result<(), cgroups::Error> {
    if let Some((all, _)) = name.rsplit_once('/') {
        Group::create(hierarchy, all)?;
    }
    Group::create(&hierarchy.one_tree(), name).map(drop)
}

/// The group around all pods.
pub fn pods_name(cgroup_root: &str) -> String {
    format!("{cgroup_root}/{PODS}")
}

/// Limits the group around all pods, and lets pods without requests have the CPU only when nobody
/// else wants it. Every limit is tried; returns the first that was refused.
pub fn set_ceilings(
    hierarchy: &Hierarchy,
    cgroup_root: &str,
    ceilings: Ceilings,
) -> Result<(), cgroups::Error> {
    let name = pods_name(cgroup_root);
    let besteffort = Group::create(hierarchy, &format!("{name}/besteffort"))?;
    Group::create(hierarchy, &format!("{name}/burstable"))?;
    let pods = Group::open(hierarchy, &name)?;
    let signed = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
    let all = [
        Limits {
            memory_bytes: Some(signed(ceilings.memory_bytes)),
            ..Limits::default()
        },
        Limits {
            pids: Some(signed(ceilings.pids)),
            ..Limits::default()
        },
        Limits {
            cpu_shares: Some(ceilings.cpu_shares),
            ..Limits::default()
        },
    ];
    let applied = all.iter().map(|limits| pods.apply(limits));
    let least = besteffort.apply(&Limits {
        cpu_shares: Some(LEAST_SHARES),
        ..Limits::default()
    });
    applied
        .chain([least])
        .collect::<Vec<_>>()
        .into_iter()
        .collect()
}

/// `<root>/<pod>/<child>`.
pub fn child_name(cgroup_root: &str, pod: &str, child: &str) -> String {
    format!("{cgroup_root}/{pod}/{child}")
}

pub fn failed(what: &str, source: cgroups::Error) -> Error {
    Error::Cgroup {
        what: what.into(),
        source: Box::new(source),
    }
}

/// Whose group it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Pod,
    /// Out of memory ends a container as a whole, unless its resources say otherwise.
    Container,
}

fn limits(resources: &LinuxResources, owner: Owner) -> Limits {
    let cpu = resources.cpu().as_ref();
    let memory = resources.memory().as_ref();
    Limits {
        cpu_shares: cpu.and_then(|cpu| cpu.shares()),
        cpu_quota_us: cpu.and_then(|cpu| cpu.quota()),
        cpu_period_us: cpu.and_then(|cpu| cpu.period()),
        memory_bytes: memory.and_then(|memory| memory.limit()),
        memory_swap_bytes: memory.and_then(|memory| memory.swap()),
        pids: resources.pids().as_ref().map(|pids| pids.limit()),
        cpuset_cpus: cpu.and_then(|cpu| cpu.cpus().clone()),
        cpuset_mems: cpu.and_then(|cpu| cpu.mems().clone()),
        swappiness: memory.and_then(|memory| memory.swappiness()),
        oom_group: (owner == Owner::Container).then_some(true),
    }
}

/// Puts all limits of the resources in place; devices apart.
pub fn apply(
    group: &Group,
    resources: &LinuxResources,
    owner: Owner,
) -> Result<(), cgroups::Error> {
    group.apply(&limits(resources, owner))?;
    for limit in resources.hugepage_limits().iter().flatten() {
        group.set_huge_pages(limit.page_size(), limit.limit())?;
    }
    for (file, value) in resources.unified().iter().flatten() {
        group.set_unified(file, value)?;
    }
    Ok(())
}

/// Nothing, then what the spec says, then what every container may do: a spec that begins with a
/// denial of everything, as most do, still leaves a usable `/dev`.
pub fn device_rules(given: &[LinuxDeviceCgroup]) -> Vec<Rule> {
    let mut rules = devices::default_rules();
    let after_denial = 1;
    rules.splice(after_denial..after_denial, given.iter().map(device_rule));
    rules
}

fn device_rule(rule: &LinuxDeviceCgroup) -> Rule {
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    Rule {
        allow: rule.allow(),
        kind: match rule.typ() {
            Some(LinuxDeviceType::B) => Kind::Block,
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
            Some(LinuxDeviceType::A | LinuxDeviceType::P) | None => Kind::All,
        },
        major: number(rule.major()),
        minor: number(rule.minor()),
        access: rule.access().as_deref().map_or(Access::FULL, Access::parse),
    }
}

/// Makes a group with its limits, or leaves nothing.
pub fn create(
    hierarchy: &Hierarchy,
    name: &str,
    resources: Option<(&LinuxResources, Owner)>,
    rules: Option<&[Rule]>,
) -> Result<Group, cgroups::Error> {
    let made = Group::create(hierarchy, name).and_then(|group| {
        if let Some((resources, owner)) = resources {
            apply(&group, resources, owner)?;
        }
        if let Some(rules) = rules {
            group.set_devices(rules)?;
        }
        Ok(group)
    });
    if made.is_err()
        && let Ok(group) = Group::open(hierarchy, name)
    {
        let _ = group.remove(); // the first error is the one to tell
    }
    made
}

pub fn usage(group: &Group) -> Result<Usage, cgroups::Error> {
    let stats = group.stats()?;
    Ok(Usage {
        cpu_ns: stats.cpu_ns,
        memory_bytes: stats.memory_bytes,
        memory_working_set_bytes: stats.working_set_bytes,
        memory_rss_bytes: stats.rss_bytes,
        page_faults: stats.page_faults,
        major_page_faults: stats.major_page_faults,
        swap_bytes: stats.swap_bytes,
        pids: stats.pids,
        oom_kills: stats.oom_kills,
        cache_bytes: stats.cache_bytes,
        throttling: stats.throttling,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    #[test]
    fn limits_of_resources() {
        let resources = LinuxResourcesBuilder::default()
            .cpu(LinuxCpuBuilder::default().shares(2_u64).build().unwrap())
            .memory(LinuxMemoryBuilder::default().limit(5).build().unwrap())
            .build()
            .unwrap();
        let found = limits(&resources, Owner::Pod);
        assert_eq!((found.cpu_shares, found.memory_bytes), (Some(2), Some(5)));
        assert_eq!((found.pids, found.oom_group), (None, None));
        assert_eq!(limits(&resources, Owner::Container).oom_group, Some(true));
    }

    #[test]
    fn supervisors_lie_beside_the_pods() {
        let name = supervisor_name("vetch", "kubepods/besteffort/pod1");
        assert_eq!(name, "vetch/supervisors/pod1");
        assert!(!name.starts_with(&pods_name("vetch")));
    }

    #[test]
    fn a_denial_in_the_spec_leaves_the_usual_devices() {
        let mut denial = LinuxDeviceCgroup::default();
        denial.set_allow(false);
        let rules = device_rules(&[denial]);
        assert_eq!(rules.iter().filter(|rule| !rule.allow).count(), 2);
        assert!(rules[2..].iter().all(|rule| rule.allow) && rules.len() > 3);
    }
}
