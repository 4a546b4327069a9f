//! Clients that hold up cluster DNS.

use std::time::{Duration, Instant};

use crate::{
    harness::Health,
    lab::Cluster,
    pod::{Pod, Running, script},
};

const UPSTREAM: &str = "192.168.77.53";

/// Two pods hold more connections than there are places and ask what nobody answers; a neighbour
/// still resolves names of the cluster and names outside, by UDP and TCP.
#[test]
#[ignore = "needs root"]
fn names_are_found_while_neighbours_flood() {
    let cluster = Cluster::new();
    let file = cluster.root.path().join("upstream.conf");
    std::fs::write(&file, format!("nameserver {UPSTREAM}\n")).unwrap();
    cluster.host.sh(&format!(
        "ip address add {UPSTREAM}/32 dev host0; mount --bind {} /etc/resolv.conf",
        file.display()
    ));
    let mut upstream = cluster.host.command("python3");
    upstream
        .arg(script("resolver.py"))
        .args(["upstream", UPSTREAM]);
    let _upstream = Running::start(upstream);
    cluster.up();
    cluster.import("busybox");
    let dns = cluster.ok("get service kube-dns -n kube-system -o jsonpath={.spec.clusterIP}");
    let pods = ["one", "two", "neighbour"].map(|name| Pod::start(&cluster, name));
    let [one, two, neighbour] = &pods;
    let health = Health::watch(&cluster);

    let ask = |name: &str, transport: &str| {
        let begun = Instant::now();
        let script = script("resolver.py");
        let line = format!("python3 {} ask {dns} {name} {transport}", script.display());
        let answer = neighbour.sh(&line);
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "{name} took {:?}",
            begun.elapsed()
        );
        answer
    };
    let api = cluster.field("service/kubernetes", ".spec.clusterIP");
    let resolves = || {
        for transport in ["udp", "tcp"] {
            let own = ask("kubernetes.default.svc.cluster.local", transport);
            assert_eq!(own, format!("0 {api}"), "{transport}");
            assert_eq!(ask("any.good", transport), "0 192.0.2.80", "{transport}");
        }
    };
    resolves();
    let _floods = [one, two].map(|pod| {
        let mut flood = pod.command("python3");
        flood.arg(script("resolver.py")).args(["flood", &dns]);
        Running::start(flood)
    });
    for _ in 0..5 {
        resolves();
    }
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", cluster.daemon())).unwrap();
    let descriptors = descriptors.count();
    assert!(
        descriptors < 2000,
        "the daemon has {descriptors} descriptors"
    );
    health.assert();
}
