//! Parts of the daemon that fail or end: each comes back by itself, and the health checks tell of it.
//!
//! What makes parts fail is in test builds only: `cargo test --features test-hooks --test order supervision::`.
#![cfg(feature = "test-hooks")]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use crate::lab::{Cluster, until};

/// A part that failed is well again after this.
const HEALED_WITHIN: Duration = Duration::from_secs(10);

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: 'hostname:1', imagePullPolicy: IfNotPresent}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: ADDRESS
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  containers:
  - {name: client, image: 'busybox:1', imagePullPolicy: IfNotPresent, command: [sleep, infinity]}
";

/// Orders a failure of the daemon that runs.
fn provoke(cluster: &Cluster, part: &str, how: &str) {
    let mut socket = UnixStream::connect(cluster.path("run/vetch.sock")).unwrap();
    writeln!(socket, r#"{{"Provoke":{{"part":"{part}","how":"{how}"}}}}"#).unwrap();
    let mut answer = String::new();
    // The part that would answer may be the one that fails.
    let _ = BufReader::new(socket).read_line(&mut answer);
    assert!(!answer.contains("Failed"), "{answer}");
}

/// The lines of `/livez?verbose`; none while nobody answers.
fn checks(cluster: &Cluster) -> String {
    cluster
        .host
        .sh("curl -sk -m 5 'https://127.0.0.1:6443/livez?verbose' || true")
}

fn parts(cluster: &Cluster) -> Vec<String> {
    let checks = checks(cluster);
    let names = checks
        .lines()
        .filter_map(|line| line.strip_prefix("[+]")?.strip_suffix(" ok"));
    names.map(str::to_owned).collect()
}

/// The part was seen to be down, and all is well again in time.
fn heals(cluster: &Cluster, part: &str, since: Instant) {
    let down = format!("[-]{part} failed: reason withheld");
    until(&format!("{part} is reported"), || {
        checks(cluster).contains(&down)
    });
    until(&format!("all is well after {part}"), || {
        checks(cluster).contains("livez check passed")
    });
    let took = since.elapsed();
    assert!(took < HEALED_WITHIN, "{part} took {took:?}");
}

fn restarts(cluster: &Cluster) -> String {
    let path = "jsonpath={range .items[*]}{.metadata.name}{.status.containerStatuses[*].restartCount} {end}";
    cluster.ok_with(&["get", "pods", "-o", path])
}

/// Whether everything works that has to do with a new pod: it is made, placed, started, and reached
/// through its Service, whose name is known.
fn serves(cluster: &Cluster, address: &str, replicas: u32) {
    cluster.ok(&format!("scale deployment web --replicas={replicas}"));
    let ready = "get deployment web -o jsonpath={.status.readyReplicas}";
    cluster.wait(ready, &replicas.to_string());
    let addresses = "get endpointslices -l kubernetes.io/service-name=web -o jsonpath={.items[*].endpoints[*].addresses[0]}";
    cluster.wait_for(addresses, |got| {
        got.split_whitespace().count() == replicas as usize
    });
    let ask = "exec client -- nslookup web.default.svc.cluster.local";
    cluster.wait_for(ask, |got| got.contains(address));
    let ask = format!("exec client -- wget -qO- -T 5 http://{address}/cgi-bin/name");
    cluster.wait_for(&ask, |got| got.starts_with("web-"));
}

#[test]
#[ignore = "needs root"]
fn every_part_comes_back() {
    let cluster = Cluster::started();
    cluster.import("hostname");
    cluster.import("busybox");
    let range = cluster.field("service kubernetes", ".spec.clusterIP");
    let (network, _) = range.rsplit_once('.').unwrap();
    let address = format!("{network}.77");
    cluster.apply(&WEB.replace("ADDRESS", &address));
    cluster.ready("client");
    serves(&cluster, &address, 2);
    let before = restarts(&cluster);

    let all = parts(&cluster);
    let is_many = |part: &&String| part.contains("-controller") || part.contains("/informer/");
    let (many, single): (Vec<&String>, Vec<&String>) = all
        .iter()
        .filter(|part| part.contains('/'))
        .partition(is_many);
    assert!(many.len() > 30 && single.len() >= 8, "{all:?}");
    for part in single {
        let since = Instant::now();
        provoke(&cluster, part, "Panic");
        heals(&cluster, part, since);
        cluster
            .host
            .sh(&format!("curl -s -m 5 http://{address}/cgi-bin/name"));
    }
    // What there are many of fails at once, which is worse.
    let since = Instant::now();
    many.iter()
        .for_each(|part| provoke(&cluster, part, "Panic"));
    many.iter().for_each(|part| heals(&cluster, part, since));
    let metrics = cluster.ok("get --raw /metrics");
    for part in all.iter().filter(|part| part.contains('/')) {
        let line = format!("vetch_part_restarts_total{{part=\"{part}\"}} 1");
        assert!(metrics.contains(&line), "{line}");
    }
    assert_eq!(restarts(&cluster), before);
    serves(&cluster, &address, 3);

    // A worker's panic is a failure of what it worked on, and of nothing else.
    provoke(&cluster, "replicaset-controller", "Panic");
    serves(&cluster, &address, 4);
    assert!(
        cluster
            .daemon_log()
            .contains("panic: ordered for replicaset-controller")
    );
    assert!(checks(&cluster).contains("livez check passed"));

    // Nothing was refused to any part: each has the rights it needs.
    let log = cluster.daemon_log();
    let refused = log.lines().find(|line| line.contains("is forbidden: User"));
    assert_eq!(refused, None);
}

#[test]
#[ignore = "needs root"]
fn a_daemon_whose_store_has_failed_ends_and_says_why() {
    let cluster = Cluster::started();
    let daemon = cluster.daemon();
    provoke(&cluster, "etcd", "End");
    until("the daemon ends", || {
        !std::path::Path::new(&format!("/proc/{daemon}")).exists()
    });
    let log = cluster.daemon_log();
    assert!(log.contains("vetch: etcd: it ended by itself"), "{log}");
    cluster.up();
    assert!(checks(&cluster).contains("livez check passed"));
}
