//! Figures in the text format of Prometheus. Pure.

use std::{fmt::Write, time::SystemTime};

use super::{ContainerFigures, Gauge, Interface, PodFigures, Snapshot};

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// Lines as they grow: one family after the other.
struct Page {
    text: String,
    /// Milliseconds since the epoch, behind each sample.
    at: u128,
}

impl Page {
    fn new(at: SystemTime) -> Self {
        Self {
            text: String::new(),
            at: since_epoch(at).as_millis(),
        }
    }

    /// One family; it is left out when there is no sample of it.
    fn family(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (String, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing into a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.text, "{name}{labels} {value} {}", self.at);
        }
    }
}

fn since_epoch(at: SystemTime) -> std::time::Duration {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

fn labels(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        })
        .collect();
    format!("{{{}}}", pairs.join(","))
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A figure's name, kind, help and value.
type Figure = (&'static str, Kind, &'static str, fn(&Gauge) -> f64);

pub fn resource(snapshot: &Snapshot) -> String {
    let mut page = Page::new(snapshot.at);
    let containers: Vec<(&PodFigures, &ContainerFigures)> = containers(snapshot).collect();
    let of_container = |pod: &PodFigures, container: &ContainerFigures| {
        labels(&[
            ("container", &container.name),
            ("namespace", &pod.identity.namespace),
            ("pod", &pod.identity.name),
        ])
    };
    let of_pod = |pod: &PodFigures| {
        labels(&[
            ("namespace", &pod.identity.namespace),
            ("pod", &pod.identity.name),
        ])
    };
    let figures: [Figure; 3] = [
        (
            "cpu_usage_seconds_total",
            Kind::Counter,
            "[STABLE] Cumulative cpu time consumed by the {} in core-seconds",
            |gauge| seconds(gauge.part.cpu_ns),
        ),
        (
            "memory_working_set_bytes",
            Kind::Gauge,
            "[STABLE] Current working set of the {} in bytes",
            |gauge| gauge.part.working_set_bytes as f64,
        ),
        (
            "swap_usage_bytes",
            Kind::Gauge,
            "[ALPHA] Current amount of the {} swap usage in bytes. Reported only on non-windows systems",
            |gauge| gauge.part.swap_bytes as f64,
        ),
    ];
    for (name, kind, help, value) in figures {
        let of_containers = containers.iter().filter_map(|(pod, container)| {
            let gauge = container.usage.as_ref()?;
            Some((of_container(pod, container), value(gauge)))
        });
        let help_for = |what| help.replace("{}", what);
        let whole = format!("container_{name}");
        page.family(&whole, kind, &help_for("container"), of_containers);
        let all = Gauge {
            part: snapshot.machine.all,
            ..Gauge::default()
        };
        let of_node = [(String::new(), value(&all))];
        page.family(&format!("node_{name}"), kind, &help_for("node"), of_node);
        let of_pods = snapshot.pods.iter().filter_map(|pod| {
            let gauge = pod.usage.as_ref()?;
            Some((of_pod(pod), value(gauge)))
        });
        page.family(&format!("pod_{name}"), kind, &help_for("pod"), of_pods);
    }
    page.family(
        "container_start_time_seconds",
        Kind::Gauge,
        "[STABLE] Start time of the container since unix epoch in seconds",
        containers.iter().map(|(pod, container)| {
            let started = since_epoch(container.started).as_secs_f64();
            (of_container(pod, container), started)
        }),
    );
    let failed = u8::from(snapshot.incomplete);
    for (name, help) in [
        (
            "resource_scrape_error",
            "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        ),
        (
            "scrape_error",
            "[ALPHA] (Deprecated since 1.29.0) 1 if there was an error while getting container metrics, 0 otherwise",
        ),
    ] {
        let _ = writeln!(
            page.text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {failed}"
        );
    }
    page.text
}

/// Figures of the family that others know from cadvisor: of the machine (`id="/"`), of pods, of
/// containers.
pub fn cadvisor(snapshot: &Snapshot) -> String {
    let mut page = Page::new(snapshot.at);
    let figures: [Figure; 8] = [
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
        [(String::new(), snapshot.machine.memory_total_bytes as f64)],
    );
    page.text
}

fn network(page: &mut Page, snapshot: &Snapshot) {
    type Counter = (&'static str, &'static str, fn(&Interface) -> u64);
    let figures: [Counter; 4] = [
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
                let labels = labels(&[
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

fn containers(snapshot: &Snapshot) -> impl Iterator<Item = (&PodFigures, &ContainerFigures)> {
    snapshot
        .pods
        .iter()
        .flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
}

fn pod_id(pod: &PodFigures) -> String {
    format!("/pod{}", pod.identity.uid)
}

fn root_labels() -> String {
    labels(&[
        ("container", ""),
        ("id", "/"),
        ("image", ""),
        ("name", ""),
        ("namespace", ""),
        ("pod", ""),
    ])
}

fn pod_labels(pod: &PodFigures) -> String {
    labels(&[
        ("container", ""),
        ("id", &pod_id(pod)),
        ("image", ""),
        ("name", ""),
        ("namespace", &pod.identity.namespace),
        ("pod", &pod.identity.name),
    ])
}

fn container_labels(pod: &PodFigures, container: &ContainerFigures) -> String {
    labels(&[
        ("container", &container.name),
        ("id", &format!("{}/{}", pod_id(pod), container.id)),
        ("image", &container.image),
        ("name", &container.id),
        ("namespace", &pod.identity.namespace),
        ("pod", &pod.identity.name),
    ])
}
