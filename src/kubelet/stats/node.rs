//! What `/metrics` says of the node, its pods and the claims they use. Pure.

use std::collections::BTreeMap;

use super::{PodFigures, Snapshot, Volume};
use crate::{
    exposition::{Kind, Labels, Page},
    runtime::{Phase, PodState},
};

pub fn node(page: &mut Page, name: &str, snapshot: &Snapshot, pods: &[PodState]) {
    page.family(
        "kubelet_node_name",
        Kind::Gauge,
        "[ALPHA] The node's name. The count is always 1.",
        [(Labels::of(&[("node", name)]), 1.0)],
    );
    page.single(
        "kubelet_running_pods",
        Kind::Gauge,
        "[BETA] Number of pods that have a running pod sandbox",
        pods.iter().filter(|pod| pod.alive).count() as f64,
    );
    let mut states = BTreeMap::from([("created", 0_u32), ("exited", 0), ("running", 0)]);
    for container in pods.iter().flat_map(|pod| &pod.containers) {
        let state = match container.phase {
            Phase::Created => "created",
            Phase::Running { .. } => "running",
            Phase::Exited { .. } => "exited",
        };
        *states.entry(state).or_default() += 1;
    }
    page.family(
        "kubelet_running_containers",
        Kind::Gauge,
        "[BETA] Number of containers currently running",
        states.into_iter().map(|(state, count)| {
            let labels = Labels::of(&[("container_state", state)]);
            (labels, f64::from(count))
        }),
    );
    claims(page, snapshot);
}

fn claims(page: &mut Page, snapshot: &Snapshot) {
    // Pods may share a claim.
    let mut claims: BTreeMap<Labels, &Volume> = BTreeMap::new();
    for (pod, volume) in snapshot.pods.iter().flat_map(of_pod) {
        if let Some(claim) = &volume.claim {
            let namespace = ("namespace", pod.identity.namespace.as_str());
            let labels = Labels::of(&[namespace, ("persistentvolumeclaim", claim)]);
            claims.insert(labels, volume);
        }
    }
    type Figure = (&'static str, &'static str, fn(&Volume) -> u64);
    let figures: [Figure; 6] = [
        (
            "kubelet_volume_stats_available_bytes",
            "[ALPHA] Number of available bytes in the volume",
            |volume| volume.space.available_bytes,
        ),
        (
            "kubelet_volume_stats_capacity_bytes",
            "[ALPHA] Capacity in bytes of the volume",
            |volume| volume.space.capacity_bytes,
        ),
        (
            "kubelet_volume_stats_inodes",
            "[ALPHA] Maximum number of inodes in the volume",
            |volume| volume.space.inodes,
        ),
        (
            "kubelet_volume_stats_inodes_free",
            "[ALPHA] Number of free inodes in the volume",
            |volume| volume.space.inodes_free,
        ),
        (
            "kubelet_volume_stats_inodes_used",
            "[ALPHA] Number of used inodes in the volume",
            |volume| volume.taken.inodes,
        ),
        (
            "kubelet_volume_stats_used_bytes",
            "[ALPHA] Number of used bytes in the volume",
            |volume| volume.taken.bytes,
        ),
    ];
    for (name, help, value) in figures {
        let samples = claims
            .iter()
            .map(|(labels, volume)| (labels.clone(), value(volume) as f64));
        page.family(name, Kind::Gauge, help, samples);
    }
}

fn of_pod(pod: &PodFigures) -> impl Iterator<Item = (&PodFigures, &Volume)> {
    pod.volumes.iter().map(move |volume| (pod, volume))
}
