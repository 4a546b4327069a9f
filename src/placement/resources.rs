//! What pods ask for and nodes have, in whole numbers. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodStatus, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

/// A container that asks for no CPU counts as this much when nodes are scored.
const DEFAULT_MILLI_CPU: i64 = 100;
/// A container that asks for no memory counts as this much when nodes are scored.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// CPU in thousandths, everything else in its own unit (bytes or pieces).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral: i64,
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    pub fn of(map: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in map.into_iter().flatten() {
            let Ok(quantity) = proto::quantity::Quantity::parse(&quantity.0) else {
                continue; // the API server admits none that does not parse
            };
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.milli(),
                "memory" => resources.memory = quantity.value(),
                "ephemeral-storage" => resources.ephemeral = quantity.value(),
                "pods" => {}
                _ => {
                    resources.extended.insert(name.clone(), quantity.value());
                }
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, |a, b| a + b);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, |a, b| a - b);
        self.extended.retain(|_, amount| *amount != 0);
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral = with(self.ephemeral, other.ephemeral);
        for (name, amount) in &other.extended {
            let held = self.extended.entry(name.clone()).or_default();
            *held = with(*held, *amount);
        }
    }

    fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// What a pod needs of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub needed: Resources,
    /// CPU and memory for scoring: what was not asked for counts as the default.
    pub scored_milli_cpu: i64,
    pub scored_memory: i64,
}

impl Requests {
    pub fn of(pod: &Pod) -> Self {
        let needed = total(pod, |resources| resources);
        let scored = total(pod, |mut resources| {
            if resources.milli_cpu == 0 {
                resources.milli_cpu = DEFAULT_MILLI_CPU;
            }
            if resources.memory == 0 {
                resources.memory = DEFAULT_MEMORY;
            }
            resources
        });
        Self {
            needed,
            scored_milli_cpu: scored.milli_cpu,
            scored_memory: scored.memory,
        }
    }

    pub fn is_best_effort(&self) -> bool {
        self.needed.is_zero()
    }
}

/// Containers run together, init containers one after the other beside the sidecars started
/// before them: the larger of the two sums, plus the pod's overhead.
fn total(pod: &Pod, each: fn(Resources) -> Resources) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let of = |container: &Container| {
        let mut asked = requested(container.resources.as_ref());
        if let Some(allocated) = allocated(pod.status.as_ref(), &container.name) {
            asked.raise_to(&allocated);
        }
        each(asked)
    };
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let asked = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&asked);
            peak.raise_to(&sidecars);
        } else {
            let mut now = sidecars.clone();
            now.add(&asked);
            peak.raise_to(&now);
        }
    }
    running.add(&sidecars);
    running.raise_to(&peak);
    // What is set for the pod as a whole takes the place of the sum.
    let whole = requested(spec.resources.as_ref());
    if whole.milli_cpu > 0 {
        running.milli_cpu = whole.milli_cpu;
    }
    if whole.memory > 0 {
        running.memory = whole.memory;
    }
    running.add(&Resources::of(spec.overhead.as_ref()));
    running
}

fn requested(resources: Option<&ResourceRequirements>) -> Resources {
    Resources::of(resources.and_then(|resources| resources.requests.as_ref()))
}

/// While a resize is under way the node still holds the larger amount.
fn allocated(status: Option<&PodStatus>, container: &str) -> Option<Resources> {
    let status = status?;
    let all = status.container_statuses.iter().flatten();
    let held = all
        .chain(status.init_container_statuses.iter().flatten())
        .find(|status| status.name == container)?;
    held.allocated_resources
        .as_ref()
        .map(|map| Resources::of(Some(map)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn requests(spec: &Value) -> Requests {
        Requests::of(&serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a pod"))
    }

    fn container(name: &str, cpu: &str) -> Value {
        json!({"name": name, "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn cpu_of_pods() {
        // Source: documentation of init and sidecar containers, "Resource sharing within containers".
        let sidecar = json!({"name": "s", "restartPolicy": "Always",
            "resources": {"requests": {"cpu": "300m"}}});
        for (spec, want) in [
            (
                json!({"containers": [container("a", "1"), container("b", "500m")]}),
                1500,
            ),
            (
                json!({"containers": [container("a", "1")],
                       "initContainers": [container("i", "2"), container("j", "500m")]}),
                2000,
            ),
            (
                // The later init container runs beside the sidecar.
                json!({"containers": [container("a", "100m")],
                       "initContainers": [sidecar.clone(), container("i", "1")]}),
                1300,
            ),
            (
                json!({"containers": [container("a", "1")], "initContainers": [sidecar],
                       "overhead": {"cpu": "50m"}}),
                1350,
            ),
            (
                json!({"containers": [container("a", "1")],
                       "resources": {"requests": {"cpu": "4"}}}),
                4000,
            ),
        ] {
            assert_eq!(requests(&spec).needed.milli_cpu, want, "{spec}");
        }
        let nothing = requests(&json!({"containers": [{"name": "a"}]}));
        assert!(nothing.is_best_effort());
        assert_eq!(nothing.scored_milli_cpu, 100);
        assert_eq!(nothing.scored_memory, 200 << 20);
    }
}
