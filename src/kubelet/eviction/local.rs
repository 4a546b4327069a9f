//! Pods that use more of the node's disk than they may. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, EmptyDirVolumeSource, Pod},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use proto::quantity::Quantity;

const STORAGE: &str = "ephemeral-storage";

/// What one pod takes of the disk. Units: bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalUsage {
    /// Writable layer and logs, by the container's name.
    pub containers: BTreeMap<String, u64>,
    /// By the volume's name.
    pub empty_dirs: BTreeMap<String, u64>,
    /// All of it, with the files that the node keeps for the pod.
    pub total: u64,
    pub inodes: u64,
}

/// Whether there is anything that the pod could exceed.
pub fn has_limits(pod: &Pod) -> bool {
    pod_limit(pod).is_some() || empty_dirs(pod).any(|(_, wanted)| size_limit(wanted).is_some())
}

/// What the pod has exceeded, word for word as the original says it.
pub fn violation(pod: &Pod, usage: &LocalUsage) -> Option<String> {
    for (name, wanted) in empty_dirs(pod) {
        let used = usage.empty_dirs.get(name).copied().unwrap_or(0);
        if let Some(limit) = size_limit(wanted)
            && exceeds(used, limit)
        {
            let limit = limit.canonical();
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. "
            ));
        }
    }
    if let Some(limit) = pod_limit(pod)
        && exceeds(usage.total, limit)
    {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            limit.canonical()
        ));
    }
    lasting(pod).find_map(|container| {
        let limit = limit(container)?;
        let used = usage.containers.get(&container.name).copied().unwrap_or(0);
        exceeds(used, limit).then(|| {
            format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                container.name,
                limit.canonical()
            )
        })
    })
}

fn exceeds(used: u64, limit: Quantity) -> bool {
    i128::from(used) > i128::from(limit.value())
}

fn parse(text: &Text) -> Option<Quantity> {
    Quantity::parse(&text.0).ok()
}

/// In memory it is the filesystem's own size that limits it.
fn empty_dirs(pod: &Pod) -> impl Iterator<Item = (&str, &EmptyDirVolumeSource)> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some((volume.name.as_str(), volume.empty_dir.as_ref()?)))
}

fn size_limit(wanted: &EmptyDirVolumeSource) -> Option<Quantity> {
    let limit = wanted.size_limit.as_ref().and_then(parse)?;
    (!limit.is_zero() && !limit.is_negative()).then_some(limit)
}

/// Regular containers and sidecars.
fn lasting(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        spec.containers
            .iter()
            .chain(init.filter(|one| is_sidecar(one)))
    })
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn limit(container: &Container) -> Option<Quantity> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    parse(limits.get(STORAGE)?)
}

/// The sum over the containers that have one, or what an init container needs if that is more.
fn pod_limit(pod: &Pod) -> Option<Quantity> {
    let spec = pod.spec.as_ref()?;
    let init = || spec.init_containers.iter().flatten();
    let first = spec.containers.iter().chain(init()).find_map(limit)?;
    let (mut sidecars, mut peak) = (0_i128, 0_i128);
    for container in init() {
        let own = limit(container).map_or(0, |limit| i128::from(limit.value()));
        match is_sidecar(container) {
            true => {
                sidecars += own;
                peak = peak.max(sidecars);
            }
            false => peak = peak.max(sidecars + own),
        }
    }
    let regular = spec.containers.iter().filter_map(limit);
    let running: i128 = regular.map(|limit| i128::from(limit.value())).sum();
    let total = i64::try_from((running + sidecars).max(peak)).unwrap_or(i64::MAX);
    Some(Quantity::new(total, first.format()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    fn limited(name: &str, limit: &str) -> Value {
        json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
    }

    #[test]
    fn what_is_too_much() {
        let volumes = json!([
            {"name": "x", "emptyDir": {"sizeLimit": "1Mi"}},
            {"name": "free", "emptyDir": {}},
        ]);
        let two = json!([limited("c", "2Mi"), limited("d", "8Mi")]);
        let usage = |total, container, volume| LocalUsage {
            containers: [("c".into(), container)].into(),
            empty_dirs: [("x".into(), volume), ("free".into(), 1 << 40)].into(),
            total,
            inodes: 0,
        };
        const MI: u64 = 1 << 20;
        for (total, container, volume, want) in [
            (10 * MI, 2 * MI, MI, None),
            (
                10 * MI,
                2 * MI,
                MI + 1,
                Some("Usage of EmptyDir volume \"x\" exceeds the limit \"1Mi\". "),
            ),
            (
                10 * MI + 1,
                2 * MI,
                MI,
                Some(
                    "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ",
                ),
            ),
            (
                10 * MI,
                2 * MI + 1,
                MI,
                Some("Container c exceeded its local ephemeral storage limit \"2Mi\". "),
            ),
        ] {
            let pod = pod(json!({"containers": two, "volumes": volumes}));
            let got = violation(&pod, &usage(total, container, volume));
            assert_eq!(got.as_deref(), want);
        }
        let open = pod(json!({"containers": [{"name": "c"}]}));
        assert_eq!(violation(&open, &usage(1 << 40, 1 << 40, 1 << 40)), None);
    }

    #[test]
    fn who_is_looked_at() {
        let volume = |wanted: Value| json!([{"name": "x", "emptyDir": wanted}]);
        for (containers, volumes, want) in [
            (json!([{"name": "c"}]), json!([]), false),
            (json!([{"name": "c"}]), volume(json!({})), false),
            (
                json!([{"name": "c"}]),
                volume(json!({"sizeLimit": "0"})),
                false,
            ),
            (
                json!([{"name": "c"}]),
                volume(json!({"sizeLimit": "1"})),
                true,
            ),
            (json!([limited("c", "1Mi")]), json!([]), true),
        ] {
            let pod = pod(json!({"containers": containers, "volumes": volumes}));
            assert_eq!(has_limits(&pod), want, "{containers} {volumes}");
        }
    }

    #[test]
    fn limits_of_the_whole() {
        let mut sidecar = limited("s", "3Mi");
        sidecar["restartPolicy"] = "Always".into();
        for (init, want) in [
            (json!([]), "10Mi"),
            (json!([limited("i", "20Mi")]), "20Mi"),
            (json!([sidecar]), "13Mi"),
            (json!([sidecar, limited("i", "20Mi")]), "23Mi"),
        ] {
            let containers = json!([limited("a", "2Mi"), limited("b", "8Mi"), {"name": "c"}]);
            let pod = pod(json!({"containers": containers, "initContainers": init}));
            assert_eq!(pod_limit(&pod).unwrap().canonical(), want, "{init}");
        }
    }
}
