//! What an evicted pod is told, word for word as by the original. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use proto::quantity::Quantity;

use super::{
    decide::Observations,
    threshold::{Resource, Threshold},
};

/// Reason of the status and of the event.
pub const REASON: &str = "Evicted";

const OFFENDERS: &str = "offending_containers";
const OFFENDERS_USAGE: &str = "offending_containers_usage";
const STARVED: &str = "starved_resource";

/// Bytes that one container uses of the resource.
pub type Usages = BTreeMap<String, u64>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub message: String,
    /// Of the event.
    pub annotations: BTreeMap<String, String>,
}

/// Why the pod goes when the node is short of something.
pub fn node_is_low(
    resource: Resource,
    pod: &Pod,
    usages: &Usages,
    due: &[Threshold],
    observations: &Observations,
) -> Told {
    let name = resource.name();
    let mut message = format!("The node was low on resource: {name}. ");
    let met = due.iter().find_map(|threshold| {
        let observed = observations.get(&threshold.signal)?;
        let is_it = threshold.signal.resource() == resource;
        is_it.then(|| (threshold.amount.of(observed.capacity), observed.available))
    });
    if let Some((quantity, available)) = met {
        let (quantity, available) = (amount(resource, quantity), amount(resource, available));
        message += &format!("Threshold quantity: {quantity}, available: {available}. ");
    }
    let (mut offenders, mut used) = (Vec::new(), Vec::new());
    for container in containers(pod) {
        let Some(usage) = usages.get(&container.name) else {
            continue;
        };
        let request = requested(container, name);
        if i128::from(*usage) <= i128::from(request.value()) {
            continue;
        }
        let usage = amount(resource, *usage);
        message += &format!(
            "Container {} was using {usage}, request is {}, has larger consumption of {name}. ",
            container.name,
            request.canonical()
        );
        offenders.push(container.name.clone());
        used.push(usage);
    }
    Told {
        message,
        annotations: [
            (OFFENDERS, offenders.join(",")),
            (OFFENDERS_USAGE, used.join(",")),
            (STARVED, name.to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into(),
    }
}

fn amount(resource: Resource, amount: u64) -> String {
    match resource {
        Resource::Memory | Resource::EphemeralStorage => Quantity::from_bytes(amount),
        Resource::Inodes | Resource::Pids => {
            Quantity::from_value(i64::try_from(amount).unwrap_or(i64::MAX))
        }
    }
    .canonical()
}

fn requested(container: &Container, resource: &str) -> Quantity {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let text = requests.and_then(|requests| requests.get(resource));
    text.and_then(|text| Quantity::parse(&text.0).ok())
        .unwrap_or(Quantity::ZERO)
}

/// Regular containers first, then those of the start; ephemeral ones have no requests to exceed.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(init)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{decide::Observed, threshold::Settings},
        *,
    };

    #[test]
    fn the_words() {
        let pod = json!({"metadata": {}, "spec": {"containers": [
            {"name": "c"},
            {"name": "d", "resources": {"requests": {"memory": "1Gi"}}},
        ]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let settings = Settings::default();
        let due = |resource: Resource| -> Vec<Threshold> {
            let mut due = settings.thresholds.clone();
            due.retain(|one| one.signal.resource() == resource);
            due
        };
        let observations: Observations = settings
            .thresholds
            .iter()
            .map(|threshold| {
                let observed = Observed {
                    available: 50 << 10,
                    capacity: 1 << 30,
                };
                (threshold.signal, observed)
            })
            .collect();
        let usages: Usages = [("c".into(), 3 << 20), ("d".into(), 5)].into();
        let memory = node_is_low(
            Resource::Memory,
            &pod,
            &usages,
            &due(Resource::Memory),
            &observations,
        );
        assert_eq!(
            memory.message,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Ki. \
             Container c was using 3Mi, request is 0, has larger consumption of memory. "
        );
        assert_eq!(memory.annotations[OFFENDERS], "c");
        assert_eq!(memory.annotations[OFFENDERS_USAGE], "3Mi");
        assert_eq!(memory.annotations[STARVED], "memory");
        let inodes = node_is_low(
            Resource::Inodes,
            &pod,
            &Usages::new(),
            &due(Resource::Inodes),
            &observations,
        );
        assert_eq!(
            inodes.message,
            "The node was low on resource: inodes. Threshold quantity: 53687091, available: 51200. "
        );
    }
}
