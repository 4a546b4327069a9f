//! `/metrics/resource`. Pure.

use super::{
    ContainerFigures, Gauge, PodFigures, Snapshot,
    cadvisor::{Figure, containers, seconds},
};
use crate::exposition::{Kind, Labels, Page, since_epoch};

pub fn resource(snapshot: &Snapshot) -> String {
    let mut page = Page::at(snapshot.at);
    let containers: Vec<(&PodFigures, &ContainerFigures)> = containers(snapshot).collect();
    let of_container = |pod: &PodFigures, container: &ContainerFigures| {
        Labels::of(&[
            ("container", &container.name),
            ("namespace", &pod.identity.namespace),
            ("pod", &pod.identity.name),
        ])
    };
    let of_pod = |pod: &PodFigures| {
        Labels::of(&[
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
        let of_node = [(Labels::none(), value(&all))];
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
    let mut errors = Page::new();
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
        // Of the reading itself, hence without its time.
        errors.single(name, Kind::Gauge, help, f64::from(failed));
    }
    page.into_text() + &errors.into_text()
}
