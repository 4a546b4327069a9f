use std::time::{Duration, SystemTime};

use super::*;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn gauge(cpu_ns: u64, working_set_bytes: u64, rate: Option<u64>) -> Option<Gauge> {
    let part = Part {
        cpu_ns,
        working_set_bytes,
        ..Part::default()
    };
    Some(Gauge {
        part,
        rate,
        processes: 2,
        group: None,
    })
}

fn taken(bytes: u64) -> Taken {
    Taken { bytes, inodes: 1 }
}

fn snapshot() -> Snapshot {
    let volume = |name: &str, in_memory, claim: Option<&str>| Volume {
        name: name.into(),
        claim: claim.map(str::to_owned),
        taken: taken(1000),
        space: Space::default(),
        in_memory,
    };
    let pod = PodFigures {
        identity: Identity {
            uid: "u".into(),
            namespace: "n".into(),
            name: "p".into(),
        },
        created: at(1_700_000_000),
        usage: gauge(3_500_000_000, 4096, Some(250)),
        containers: vec![ContainerFigures {
            id: "id".into(),
            name: "c\"".into(),
            image: "busybox".into(),
            started: at(1_700_000_001),
            usage: gauge(1_500_000_000, 2048, None),
            layer: Some(taken(10)),
            logs: Some(taken(5)),
        }],
        interfaces: vec![Interface {
            name: "eth0".into(),
            rx_bytes: 7,
            ..Interface::default()
        }],
        managed: Taken::default(),
        volumes: vec![
            volume("data", false, None),
            volume("cache", true, None),
            volume("disk", false, Some("claim")),
        ],
    };
    let mut machine = Machine {
        memory_total_bytes: 100,
        ..Machine::default()
    };
    machine.all.working_set_bytes = 40;
    Snapshot {
        at: at(1_700_000_010),
        machine,
        parts: vec![("kubelet", Gauge::default())],
        cpu_rate: None,
        pods: vec![pod],
        disk: Some(Space::default()),
        images: Some(taken(1)),
        incomplete: false,
    }
}

#[test]
fn summary_of_all_and_of_compute() {
    let all = summary::summary(&snapshot(), "node", Depth::All);
    for (pointer, want) in [
        ("/node/nodeName", Value::from("node")),
        ("/node/memory/availableBytes", 60.into()),
        ("/node/systemContainers/0/name", "kubelet".into()),
        ("/pods/0/podRef/uid", "u".into()),
        ("/pods/0/cpu/usageNanoCores", 250.into()),
        ("/pods/0/process_stats/process_count", 2.into()),
        ("/pods/0/network/rxBytes", 7.into()),
        ("/pods/0/containers/0/rootfs/usedBytes", 10.into()),
        (
            "/pods/0/containers/0/startTime",
            "2023-11-14T22:13:21Z".into(),
        ),
        // Layer, log and the volume that is neither in memory nor a claim.
        ("/pods/0/ephemeral-storage/usedBytes", 1015.into()),
        ("/pods/0/volume/2/pvcRef/name", "claim".into()),
    ] {
        assert_eq!(all.pointer(pointer), Some(&want), "{pointer}");
    }
    // Nothing is told of a rate before the second reading.
    let rate = all.pointer("/pods/0/containers/0/cpu/usageNanoCores");
    assert_eq!(rate, None);
    let compute = summary::summary(&snapshot(), "node", Depth::Compute);
    assert_eq!(compute.pointer("/pods/0/network"), None);
    assert_eq!(compute.pointer("/node/fs"), None);
}

#[test]
fn lines_for_metrics_server() {
    let text = resource::resource(&snapshot());
    for line in [
        "# TYPE container_cpu_usage_seconds_total counter",
        "container_cpu_usage_seconds_total{container=\"c\\\"\",namespace=\"n\",pod=\"p\"} 1.5 1700000010000",
        "container_memory_working_set_bytes{container=\"c\\\"\",namespace=\"n\",pod=\"p\"} 2048 1700000010000",
        "node_memory_working_set_bytes 40 1700000010000",
        "pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 3.5 1700000010000",
        "container_start_time_seconds{container=\"c\\\"\",namespace=\"n\",pod=\"p\"} 1700000001 1700000010000",
        "resource_scrape_error 0",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
    }
}

#[test]
fn rows_of_cadvisor() {
    let text = cadvisor::cadvisor(&snapshot());
    for line in [
        "container_memory_working_set_bytes{container=\"\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"} 40 1700000010000",
        "container_network_receive_bytes_total{container=\"\",id=\"/podu\",image=\"\",interface=\"eth0\",name=\"\",namespace=\"n\",pod=\"p\"} 7 1700000010000",
        "container_fs_usage_bytes{container=\"c\\\"\",id=\"/podu/id\",image=\"busybox\",name=\"id\",namespace=\"n\",pod=\"p\"} 10 1700000010000",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
    }
}

#[test]
fn claims_and_containers_of_the_node() {
    let mut page = Page::new();
    node::node(&mut page, "n1", &snapshot(), &[]);
    let text = page.into_text();
    for line in [
        "kubelet_node_name{node=\"n1\"} 1",
        "kubelet_running_pods 0",
        "kubelet_running_containers{container_state=\"running\"} 0",
        // Of volumes only claims are told.
        "kubelet_volume_stats_used_bytes{namespace=\"n\",persistentvolumeclaim=\"claim\"} 1000",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
    }
    assert_eq!(
        text.matches("\nkubelet_volume_stats_used_bytes{").count(),
        1
    );
}

#[test]
fn what_control_groups_tell() {
    let mut snapshot = snapshot();
    let gauge = snapshot.pods[0].containers[0].usage.as_mut().unwrap();
    gauge.group = Some(OfGroup {
        oom_kills: 2,
        throttling: Some(cgroups::Throttling {
            periods: 10,
            throttled_periods: 3,
            throttled_ns: 500_000_000,
        }),
    });
    let text = cadvisor::cadvisor(&snapshot);
    let row = "{container=\"c\\\"\",id=\"/podu/id\",image=\"busybox\",name=\"id\",namespace=\"n\",pod=\"p\"}";
    for (name, value) in [
        ("container_oom_events_total", "2"),
        ("container_cpu_cfs_periods_total", "10"),
        ("container_cpu_cfs_throttled_periods_total", "3"),
        ("container_cpu_cfs_throttled_seconds_total", "0.5"),
    ] {
        let line = format!("{name}{row} {value} 1700000010000");
        assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
        // The machine and the pod have told nothing here.
        assert_eq!(text.matches(&format!("\n{name}{{")).count(), 1, "{text}");
    }
}
