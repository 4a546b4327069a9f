//! Parts of the daemon that fail or end: each comes back by itself, and the health checks tell of it.
//!
//! What makes parts fail is in test builds only: `cargo test --features test-hooks --test order supervision::`.
#![cfg(feature = "test-hooks")]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use crate::lab::{Cluster, text, until, until_none};

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
pub fn provoke(cluster: &Cluster, part: &str, how: &str) {
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

/// Each of the parts is seen to be down.
fn reported(cluster: &Cluster, parts: &[&String]) {
    let mut unseen: Vec<String> = parts
        .iter()
        .map(|part| format!("[-]{part} failed: reason withheld"))
        .collect();
    until_none("each part is reported", || {
        let checks = checks(cluster);
        unseen.retain(|down| !checks.contains(down));
        unseen.clone()
    });
}

/// All is well again in time.
fn well(cluster: &Cluster, parts: &[&String], since: Instant) {
    until(&format!("all is well after {parts:?}"), || {
        checks(cluster).contains("livez check passed")
    });
    let took = since.elapsed();
    assert!(took < HEALED_WITHIN, "{parts:?} took {took:?}");
}

/// Each of the parts was seen to be down, and all is well again in time.
fn heal(cluster: &Cluster, parts: &[&String], since: Instant) {
    reported(cluster, parts);
    well(cluster, parts, since);
}

/// As [`heal`], of many parts that panic at once: the first may be well again before the last has its order.
fn panic_and_heal(cluster: &Cluster, parts: &[&String]) {
    let since = std::thread::scope(|scope| {
        scope.spawn(|| reported(cluster, parts));
        for part in parts {
            provoke(cluster, part, "Panic");
        }
        Instant::now()
    });
    well(cluster, parts, since);
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
    let ask = format!("curl -s -m 5 http://{address}/cgi-bin/name || true");
    until("the Service answers", || {
        cluster.host.sh(&ask).starts_with("web-")
    });
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
        heal(&cluster, &[part], since);
        cluster
            .host
            .sh(&format!("curl -s -m 5 http://{address}/cgi-bin/name"));
    }
    // What there are many of fails at once, which is worse.
    panic_and_heal(&cluster, &many);
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

const PROBED: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {word: first}
---
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  containers:
  - name: c
    image: 'busybox:1'
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'touch /tmp/well; sleep infinity']
    readinessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 1}
    volumeMounts: [{name: settings, mountPath: /settings}]
  volumes:
  - {name: settings, configMap: {name: settings}}
";

/// What the kubelet consists of is not seen from outside, but that it fails as a whole is.
#[test]
#[ignore = "needs root"]
fn pieces_of_the_kubelet_that_fail_are_noticed() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    cluster.apply(PROBED);
    cluster.ready("probed");
    let kubelet = "part/kubelet".to_owned();
    for (piece, how) in [
        ("sources", "End"),
        ("manifests", "Panic"),
        ("mirrors", "End"),
        ("volumes", "Panic"),
    ] {
        let since = Instant::now();
        provoke(&cluster, &format!("part/kubelet/{piece}"), how);
        heal(&cluster, &[&kubelet], since);
        let log = cluster.daemon_log();
        let said = match how {
            "End" => format!("part/kubelet/{piece}: it ended by itself"),
            _ => format!("part/kubelet/{piece}: panic: ordered for part/kubelet/{piece}"),
        };
        let failures: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("failed, it"))
            .collect();
        assert!(log.contains(&said), "{said}: {failures:#?}");
    }

    // A round of probes that panics goes on; so does the watch of what a volume is made of.
    let readiness = "get pod probed -o jsonpath={.status.containerStatuses[0].ready}";
    provoke(&cluster, "probes", "Panic");
    until("a probe panics", || {
        cluster.daemon_log().contains("ordered for probes")
    });
    cluster.ok("exec probed -- rm /tmp/well");
    cluster.wait(readiness, "false");
    cluster.ok("exec probed -- touch /tmp/well");
    cluster.wait(readiness, "true");
    provoke(&cluster, "volume-objects", "Panic");
    let change = r#"{"data":{"word":"second"}}"#;
    cluster.ok_with(&["patch", "configmap", "settings", "-p", change]);
    cluster.wait("exec probed -- cat /settings/word", "second");
    let log = cluster.daemon_log();
    assert!(log.contains("panic: ordered for volume-objects"), "{log}");
    assert_eq!(restarts(&cluster), "probed0 ");
}

#[test]
#[ignore = "needs root"]
fn a_part_that_does_nothing_any_more_is_told() {
    let cluster = Cluster::started();
    for (part, stalled) in [
        ("part/kubelet", "part/kubelet/pods"),
        ("part/kube-scheduler", "part/kube-scheduler"),
    ] {
        provoke(&cluster, stalled, "Stall");
        let down = format!("[-]{part} failed: reason withheld");
        until(&format!("{part} is told"), || {
            checks(&cluster).contains(&down)
        });
        let why = format!("it is stalled: {stalled} does not answer");
        let answer = text(&cluster.kubectl(&format!("get --raw /livez/{part}")));
        assert!(answer.contains(&why), "{answer}");
        // Its supervisor lets go of it as of any other.
        let since = Instant::now();
        provoke(&cluster, part, "Panic");
        heal(&cluster, &[&part.to_owned()], since);
    }
}
