//! `/metrics/cadvisor`. Pure.

use super::{ContainerFigures, Gauge, Interface, OfGroup, PodFigures, Snapshot};
use crate::exposition::{Kind, Labels, Page, since_epoch};

/// A figure's name, kind, help and value.
pub(super) type Figure = (&'static str, Kind, &'static str, fn(&Gauge) -> f64);

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Figures of the family that others know from cadvisor: of the machine (`id="/"`), of pods, of
/// containers.
pub fn cadvisor(snapshot: &Snapshot) -> String {
    let mut page = Page::at(snapshot.at);
    let figures: [Figure; 9] = [
        (
            "container_cpu_usage_seconds_total",
            Kind::Counter,
            "Cumulative cpu time consumed in seconds.",
            |gauge| seconds(gauge.part.cpu_ns),
        ),
        (
            "container_memory_usage_bytes",
            Kind::Gauge,
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |gauge| gauge.part.memory_bytes as f64,
        ),
        (
            "container_memory_working_set_bytes",
            Kind::Gauge,
            "Current working set in bytes.",
            |gauge| gauge.part.working_set_bytes as f64,
        ),
        (
            "container_memory_rss",
            Kind::Gauge,
            "Size of RSS in bytes.",
            |gauge| gauge.part.rss_bytes as f64,
        ),
        (
            "container_memory_cache",
            Kind::Gauge,
            "Number of bytes of page cache memory.",
            |gauge| gauge.part.cache_bytes as f64,
        ),
        (
            "container_memory_swap",
            Kind::Gauge,
            "Container swap usage in bytes.",
            |gauge| gauge.part.swap_bytes as f64,
        ),
        (
            "container_page_faults_total",
            Kind::Counter,
            "Cumulative count of page faults.",
            |gauge| gauge.part.page_faults as f64,
        ),
        (
            "container_major_page_faults_total",
            Kind::Counter,
            "Cumulative count of major page faults.",
            |gauge| gauge.part.major_page_faults as f64,
        ),
        (
            "container_threads",
            Kind::Gauge,
            "Number of threads running inside the container",
            |gauge| gauge.processes as f64,
        ),
    ];
    let all = Gauge {
        part: snapshot.machine.all,
        rate: None,
        processes: snapshot.machine.processes,
        group: None,
    };
    let mut rows = vec![(root_labels(), Some(all))];
    for pod in &snapshot.pods {
        rows.push((pod_labels(pod), pod.usage));
        for container in &pod.containers {
            rows.push((container_labels(pod, container), container.usage));
        }
    }
    for (name, kind, help, value) in figures {
        let samples = rows
            .iter()
            .filter_map(|(labels, gauge)| Some((labels.clone(), value(gauge.as_ref()?))));
        page.family(name, kind, help, samples);
    }
    of_groups(&mut page, &rows);
    page.family(
        "container_last_seen",
        Kind::Gauge,
        "Last time a container was seen by the exporter",
        rows.iter()
            .map(|(labels, _)| (labels.clone(), since_epoch(snapshot.at).as_secs() as f64)),
    );
    page.family(
        "container_fs_usage_bytes",
        Kind::Gauge,
        "Number of bytes that are consumed by the container on this filesystem.",
        containers(snapshot).filter_map(|(pod, container)| {
            let taken = container.layer?;
            Some((container_labels(pod, container), taken.bytes as f64))
        }),
    );
    page.family(
        "container_start_time_seconds",
        Kind::Gauge,
        "Start time of the container since unix epoch in seconds.",
        containers(snapshot).map(|(pod, container)| {
            let started = since_epoch(container.started).as_secs_f64();
            (container_labels(pod, container), started)
        }),
    );
    network(&mut page, snapshot);
    page.family(
        "machine_memory_bytes",
        Kind::Gauge,
        "Amount of memory installed on the machine.",
        [(Labels::none(), snapshot.machine.memory_total_bytes as f64)],
    );
    page.single(
        "machine_cpu_cores",
        Kind::Gauge,
        "Number of logical CPU cores.",
        snapshot.machine.cores as f64,
    );
    page.into_text()
}

/// What only control groups tell.
fn of_groups(page: &mut Page, rows: &[(Labels, Option<Gauge>)]) {
    type Of = (&'static str, &'static str, fn(&OfGroup) -> Option<f64>);
    let figures: [Of; 4] = [
        (
            "container_oom_events_total",
            "Count of out of memory events observed for the container",
            |group| Some(group.oom_kills as f64),
        ),
        (
            "container_cpu_cfs_periods_total",
            "Number of elapsed enforcement period intervals.",
            |group| Some(group.throttling?.periods as f64),
        ),
        (
            "container_cpu_cfs_throttled_periods_total",
            "Number of throttled period intervals.",
            |group| Some(group.throttling?.throttled_periods as f64),
        ),
        (
            "container_cpu_cfs_throttled_seconds_total",
            "Total time duration the container has been throttled.",
            |group| Some(seconds(group.throttling?.throttled_ns)),
        ),
    ];
    for (name, help, value) in figures {
        let samples = rows.iter().filter_map(|(labels, gauge)| {
            let group = gauge.as_ref()?.group.as_ref()?;
            Some((labels.clone(), value(group)?))
        });
        page.family(name, Kind::Counter, help, samples);
    }
}

fn network(page: &mut Page, snapshot: &Snapshot) {
    type Counter = (&'static str, &'static str, fn(&Interface) -> u64);
    let figures: [Counter; 8] = [
        (
            "container_network_receive_bytes_total",
            "Cumulative count of bytes received",
            |one| one.rx_bytes,
        ),
        (
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
            |one| one.rx_errors,
        ),
        (
            "container_network_receive_packets_total",
            "Cumulative count of packets received",
            |one| one.rx_packets,
        ),
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
            |one| one.rx_dropped,
        ),
        (
            "container_network_transmit_packets_total",
            "Cumulative count of packets transmitted",
            |one| one.tx_packets,
        ),
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
            |one| one.tx_dropped,
        ),
        (
            "container_network_transmit_bytes_total",
            "Cumulative count of bytes transmitted",
            |one| one.tx_bytes,
        ),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            |one| one.tx_errors,
        ),
    ];
    for (name, help, value) in figures {
        let samples = snapshot.pods.iter().flat_map(|pod| {
            pod.interfaces.iter().map(move |interface| {
                let labels = Labels::of(&[
                    ("container", ""),
                    ("id", &pod_id(pod)),
                    ("image", ""),
                    ("interface", &interface.name),
                    ("name", ""),
                    ("namespace", &pod.identity.namespace),
                    ("pod", &pod.identity.name),
                ]);
                (labels, value(interface) as f64)
            })
        });
        page.family(name, Kind::Counter, help, samples);
    }
}

pub(super) fn containers(
    snapshot: &Snapshot,
) -> impl Iterator<Item = (&PodFigures, &ContainerFigures)> {
    snapshot
        .pods
        .iter()
        .flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
}

fn pod_id(pod: &PodFigures) -> String {
    format!("/pod{}", pod.identity.uid)
}

fn root_labels() -> Labels {
    Labels::of(&[
        ("container", ""),
        ("id", "/"),
        ("image", ""),
        ("name", ""),
        ("namespace", ""),
        ("pod", ""),
    ])
}

fn pod_labels(pod: &PodFigures) -> Labels {
    Labels::of(&[
        ("container", ""),
        ("id", &pod_id(pod)),
        ("image", ""),
        ("name", ""),
        ("namespace", &pod.identity.namespace),
        ("pod", &pod.identity.name),
    ])
}

fn container_labels(pod: &PodFigures, container: &ContainerFigures) -> Labels {
    Labels::of(&[
        ("container", &container.name),
        ("id", &format!("{}/{}", pod_id(pod), container.id)),
        ("image", &container.image),
        ("name", &container.id),
        ("namespace", &pod.identity.namespace),
        ("pod", &pod.identity.name),
    ])
}
