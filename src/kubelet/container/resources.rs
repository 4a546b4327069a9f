//! Requests and limits: quality of service, CPU shares and quota, memory, swap, OOM score. Pure.
//!
//! Numbers are those of cgroup v1 (the OCI spec's); the runtime maps them to v2.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};

use super::{Facts, Refused, SwapBehavior};

/// Microseconds.
const PERIOD: i64 = 100_000;
/// The kernel refuses less.
const QUOTA_MIN: i64 = 1000;
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
const GUARANTEED_SCORE: i32 = -997;
const BEST_EFFORT_SCORE: i32 = 1000;
/// Followed by a container's name: how much swap it may use.
const SWAP_LIMIT: &str = "vetch.dev/swap-limit.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// Thousandths; what does not parse or is negative counts as nothing (the API admits neither).
pub fn milli(quantity: &Quantity) -> u64 {
    parse(quantity).map_or(0, |quantity| u64::try_from(quantity.milli()).unwrap_or(0))
}

/// Whole units, rounded up.
pub fn bytes(quantity: &Quantity) -> u64 {
    parse(quantity).map_or(0, |quantity| u64::try_from(quantity.value()).unwrap_or(0))
}

fn parse(quantity: &Quantity) -> Option<proto::quantity::Quantity> {
    proto::quantity::Quantity::parse(&quantity.0).ok()
}

/// CPU in thousandths and memory in bytes; 0 is not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amounts {
    cpu: u64,
    memory: u64,
}

impl Amounts {
    fn of(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let get = |name| list.and_then(|list| list.get(name));
        Self {
            cpu: get("cpu").map_or(0, milli),
            memory: get("memory").map_or(0, bytes),
        }
    }

    fn requests(resources: Option<&ResourceRequirements>) -> Self {
        let asked = Self::of(resources.and_then(|one| one.requests.as_ref()));
        let limits = Self::limits(resources);
        // As the API does for pods that come through it.
        let or = |asked, limit| if asked == 0 { limit } else { asked };
        Self {
            cpu: or(asked.cpu, limits.cpu),
            memory: or(asked.memory, limits.memory),
        }
    }

    fn limits(resources: Option<&ResourceRequirements>) -> Self {
        Self::of(resources.and_then(|one| one.limits.as_ref()))
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            memory: self.memory + other.memory,
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.max(other.cpu),
            memory: self.memory.max(other.memory),
        }
    }

    fn any(self) -> bool {
        self != Self::default()
    }
}

/// Every container of the pod, init containers first.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .into_iter()
        .flatten();
    init.chain(spec.into_iter().flat_map(|spec| &spec.containers))
}

fn of_pod(pod: &Pod) -> Option<&ResourceRequirements> {
    pod.spec.as_ref()?.resources.as_ref()
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The class comes from CPU and memory alone; resources of the pod as a whole decide alone.
pub fn qos_class(pod: &Pod) -> QosClass {
    let any = |one: Option<&ResourceRequirements>| {
        Amounts::requests(one).any() || Amounts::limits(one).any()
    };
    let guaranteed = |one: Option<&ResourceRequirements>| {
        let limits = Amounts::limits(one);
        limits.cpu > 0 && limits.memory > 0 && limits == Amounts::requests(one)
    };
    let whole = of_pod(pod);
    let (some, all) = match any(whole) {
        true => (true, guaranteed(whole)),
        false => containers(pod).fold((false, true), |(some, all), container| {
            let one = container.resources.as_ref();
            (some || any(one), all && guaranteed(one))
        }),
    };
    match (some, all) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// Sum over containers that run together: init containers run one after the other beside the
/// sidecars before them.
fn total(pod: &Pod, of: impl Fn(Option<&ResourceRequirements>) -> Amounts) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::default();
    };
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let one = of(container.resources.as_ref());
        if is_sidecar(container) {
            sidecars = sidecars.plus(one);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.plus(one));
        }
    }
    let running = spec.containers.iter().fold(sidecars, |sum, container| {
        sum.plus(of(container.resources.as_ref()))
    });
    let whole = of(spec.resources.as_ref());
    let or = |whole, sum| if whole == 0 { sum } else { whole };
    let sum = running.max(peak);
    Amounts {
        cpu: or(whole.cpu, sum.cpu),
        memory: or(whole.memory, sum.memory),
    }
    .plus(Amounts::of(spec.overhead.as_ref()))
}

/// CPU shares of a request.
fn shares(cpu_milli: u64) -> u64 {
    (cpu_milli * 1024 / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

/// Microseconds of CPU time a period, for a limit above zero.
fn quota(cpu_milli: u64) -> i64 {
    let micros = i64::try_from(cpu_milli)
        .unwrap_or(i64::MAX / PERIOD)
        .saturating_mul(PERIOD)
        / 1000;
    micros.max(QUOTA_MIN)
}

fn cpu(request: u64, limit: u64) -> LinuxCpu {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(Some(shares(request)));
    if limit > 0 {
        cpu.set_quota(Some(quota(limit)))
            .set_period(Some(PERIOD.unsigned_abs()));
    }
    cpu
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// Limits of the cgroup around the pod: what its containers may use together, and the node's limit
/// of processes.
pub fn pod_resources(pod: &Pod, facts: &Facts) -> LinuxResources {
    let mut resources = of_all_containers(pod);
    if let Some(limit) = facts.pod_pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit.get().into());
        resources.set_pids(Some(pids));
    }
    resources
}

/// CPU and memory, as far as each of the containers has limits.
fn of_all_containers(pod: &Pod) -> LinuxResources {
    let requests = total(pod, Amounts::requests);
    let limits = total(pod, Amounts::limits);
    let whole = Amounts::limits(of_pod(pod));
    let every = |of: fn(Amounts) -> u64| {
        of(whole) > 0
            || containers(pod)
                .all(|container| of(Amounts::limits(container.resources.as_ref())) > 0)
    };
    let mut resources = LinuxResources::default();
    if qos_class(pod) == QosClass::BestEffort {
        resources.set_cpu(Some(cpu(0, 0)));
        return resources;
    }
    let cpu_limit = if every(|amounts| amounts.cpu) {
        limits.cpu
    } else {
        0
    };
    resources.set_cpu(Some(cpu(requests.cpu, cpu_limit)));
    if every(|amounts| amounts.memory) {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(signed(limits.memory)));
        resources.set_memory(Some(memory));
    }
    resources
}

/// The memory all containers of the pod may use together; `None` if one has no limit.
pub fn pod_memory_limit(pod: &Pod) -> Option<u64> {
    let limit = of_all_containers(pod).memory().as_ref()?.limit()?;
    u64::try_from(limit).ok()
}

/// One container's limits, without device rules.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
) -> Result<LinuxResources, Refused> {
    let given = container.resources.as_ref();
    let (requests, limits) = (Amounts::requests(given), Amounts::limits(given));
    let mut memory = LinuxMemory::default();
    let mut resources = LinuxResources::default();
    if limits.memory > 0 {
        memory.set_limit(Some(signed(limits.memory)));
    }
    let allowed = swap(pod, container, requests, limits, facts)?;
    match (limits.memory, allowed) {
        // Version 2 can limit swap alone; version 1 can only be asked not to swap.
        (0, allowed) => {
            if allowed == 0 {
                memory.set_swappiness(Some(0));
            }
            let file = ("memory.swap.max".to_owned(), allowed.to_string());
            resources.set_unified(Some(HashMap::from([file])));
        }
        (limit, allowed) => {
            memory.set_swap(Some(signed(limit.saturating_add(allowed))));
        }
    }
    resources
        .set_cpu(Some(cpu(requests.cpu, limits.cpu)))
        .set_memory(Some(memory))
        .set_hugepage_limits(hugepages(given));
    Ok(resources)
}

/// Bytes of swap the container may use beside its memory.
fn swap(
    pod: &Pod,
    container: &Container,
    requests: Amounts,
    limits: Amounts,
    facts: &Facts,
) -> Result<u64, Refused> {
    let annotations = pod.metadata.annotations.as_ref();
    let name = format!("{SWAP_LIMIT}{}", container.name);
    if let Some(text) = annotations.and_then(|all| all.get(&name)) {
        let parsed = parse(&Quantity(text.clone())).filter(|quantity| !quantity.is_negative());
        let wrong = |why: &str| Refused::config(format!("annotation {name}: {text:?} {why}"));
        let amount = parsed.ok_or_else(|| wrong("is not an amount of bytes"))?;
        if limits.memory == 0 {
            return Err(wrong("needs a memory limit of the container"));
        }
        return Ok(u64::try_from(amount.value()).unwrap_or(0));
    }
    let gets_some = facts.swap == SwapBehavior::LimitedSwap
        && qos_class(pod) == QosClass::Burstable
        && requests.memory > 0
        && requests.memory != limits.memory
        && !is_critical(pod)
        && facts.memory_bytes > 0;
    if !gets_some {
        return Ok(0);
    }
    let share =
        u128::from(requests.memory) * u128::from(facts.swap_bytes) / u128::from(facts.memory_bytes);
    Ok(u64::try_from(share)
        .unwrap_or(facts.swap_bytes)
        .min(facts.swap_bytes))
}

/// Priority of the two system classes or above.
fn is_critical(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.priority)
        .is_some_and(|priority| priority >= 2_000_000_000)
}

fn hugepages(resources: Option<&ResourceRequirements>) -> Option<Vec<LinuxHugepageLimit>> {
    let limits = resources.and_then(|one| one.limits.as_ref());
    let sizes = limits.into_iter().flatten().filter_map(|(name, limit)| {
        let size = name.strip_prefix("hugepages-")?;
        let mut one = LinuxHugepageLimit::default();
        one.set_page_size(page_size(bytes(&Quantity(size.into()))))
            .set_limit(signed(bytes(limit)));
        Some(one)
    });
    let sizes: Vec<_> = sizes.collect();
    (!sizes.is_empty()).then_some(sizes)
}

/// `2MB`, `1GB`: how the kernel's files are named.
fn page_size(bytes: u64) -> String {
    match bytes {
        _ if bytes > 0 && bytes.is_multiple_of(1 << 30) => format!("{}GB", bytes >> 30),
        _ if bytes > 0 && bytes.is_multiple_of(1 << 20) => format!("{}MB", bytes >> 20),
        _ => format!("{}KB", bytes >> 10),
    }
}

/// Whom the kernel kills first when the node's memory ends.
pub fn oom_score_adj(pod: &Pod, container: &Container, facts: &Facts) -> i32 {
    let class_name = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.priority_class_name.as_deref());
    if class_name == Some("system-node-critical") {
        return GUARANTEED_SCORE;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => return GUARANTEED_SCORE,
        QosClass::BestEffort => return BEST_EFFORT_SCORE,
        QosClass::Burstable => {}
    }
    let request = |one: &Container| Amounts::requests(one.resources.as_ref()).memory;
    // What the pod asks for as a whole, beyond its containers, is spread evenly over them.
    let whole = Amounts::requests(of_pod(pod)).memory;
    let count = containers(pod).count().max(1) as u64;
    let extra = whole.saturating_sub(containers(pod).map(request).sum()) / count;
    let score = |memory: u64| {
        let part = 1000 * u128::from(memory + extra) / u128::from(facts.memory_bytes.max(1));
        1000 - i32::try_from(part).unwrap_or(1000)
    };
    let own = score(request(container));
    let regular = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .map(request)
        .min();
    let adjusted = match regular {
        // A sidecar goes no earlier than the containers it serves.
        Some(smallest) if is_sidecar(container) => own.min(score(smallest)),
        _ => own,
    };
    adjusted.clamp(1000 + GUARANTEED_SCORE, BEST_EFFORT_SCORE - 1)
}

#[cfg(test)]
mod tests;
