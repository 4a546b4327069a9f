//! Clients that hold up cluster DNS.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::{
    harness::Health,
    lab::Cluster,
    pod::{Pod, Running, script},
};

const UPSTREAM: &str = "192.168.77.53";
const SECOND_UPSTREAM: &str = "192.168.77.54";
/// As many names as a node's DNS remembers of others, and more.
const NAMES: usize = 10_000;

/// A cluster whose node asks these servers, of which nobody has heard yet.
fn cluster_that_asks(servers: &[&str]) -> Cluster {
    let cluster = Cluster::new();
    let file = cluster.root.path().join("upstream.conf");
    let lines = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"));
    std::fs::write(&file, lines.collect::<String>()).unwrap();
    for server in servers {
        cluster
            .host
            .sh(&format!("ip address add {server}/32 dev host0"));
    }
    let line = format!("mount --bind {} /etc/resolv.conf", file.display());
    cluster.host.sh(&line);
    cluster
}

fn start_upstream(cluster: &Cluster, address: &str) -> Running {
    let mut upstream = cluster.host.command("python3");
    upstream
        .arg(script("resolver.py"))
        .args(["upstream", address]);
    Running::start(upstream)
}

/// What a pod is told, and how long that took.
fn ask(pod: &Pod, dns: &str, name: &str, transport: &str) -> (String, Duration) {
    let script = script("resolver.py");
    let line = format!("python3 {} ask {dns} {name} {transport}", script.display());
    let begun = Instant::now();
    let answer = pod.sh(&line);
    (answer, begun.elapsed())
}

/// Two pods hold more connections than there are places and ask what nobody answers; a neighbour
/// still resolves names of the cluster and names outside, by UDP and TCP.
#[test]
#[ignore = "needs root"]
fn names_are_found_while_neighbours_flood() {
    let cluster = cluster_that_asks(&[UPSTREAM]);
    let _upstream = start_upstream(&cluster, UPSTREAM);
    cluster.up();
    cluster.import("busybox");
    let dns = cluster.ok("get service kube-dns -n kube-system -o jsonpath={.spec.clusterIP}");
    let pods = ["one", "two", "neighbour"].map(|name| Pod::start(&cluster, name));
    let [one, two, neighbour] = &pods;
    let health = Health::watch(&cluster);

    let ask = |name: &str, transport: &str| {
        let (answer, took) = ask(neighbour, &dns, name, transport);
        assert!(took < Duration::from_secs(3), "{name} took {took:?}");
        answer
    };
    let api = cluster.field("service/kubernetes", ".spec.clusterIP");
    let resolves = |round: usize| {
        for transport in ["udp", "tcp"] {
            let own = ask("kubernetes.default.svc.cluster.local", transport);
            assert_eq!(own, format!("0 {api}"), "{transport}");
            // One that is remembered, and one that nobody has asked for.
            for name in ["any.good", &format!("{transport}{round}.good")] {
                assert_eq!(ask(name, transport), "0 192.0.2.80", "{name} {transport}");
            }
        }
    };
    resolves(0);
    let _floods = [one, two].map(|pod| {
        let mut flood = pod.command("python3");
        flood.arg(script("resolver.py")).args(["flood", &dns]);
        Running::start(flood)
    });
    for round in 1..=5 {
        resolves(round);
    }
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", cluster.daemon())).unwrap();
    let descriptors = descriptors.count();
    assert!(
        descriptors < 2000,
        "the daemon has {descriptors} descriptors"
    );
    health.assert();
}

/// One server upstream dies, then it hangs, then both are gone: pods do not wait, and what was known stays known.
#[test]
#[ignore = "needs root"]
fn pods_do_not_notice_that_a_server_upstream_died() {
    let cluster = cluster_that_asks(&[UPSTREAM, SECOND_UPSTREAM]);
    let [first, second] =
        [UPSTREAM, SECOND_UPSTREAM].map(|server| start_upstream(&cluster, server));
    cluster.up();
    cluster.import("busybox");
    let dns = cluster.ok("get service kube-dns -n kube-system -o jsonpath={.spec.clusterIP}");
    let pod = Pod::start(&cluster, "one");
    let finds = |name: &str, patience: Duration| {
        for transport in ["udp", "tcp"] {
            let (answer, took) = ask(&pod, &dns, &format!("{transport}.{name}"), transport);
            assert_eq!(answer, "0 192.0.2.80", "{name} {transport}");
            assert!(took < patience, "{name} {transport} took {took:?}");
        }
    };
    // Most of it is python's start.
    let patience = Duration::from_secs(1);
    finds("first.good", patience);
    finds("first.short.good", patience);
    // It hangs: the kernel still takes what is sent.
    first.signal(Signal::SIGSTOP);
    for number in 0..5 {
        finds(&format!("hangs{number}.good"), patience);
    }
    drop(first);
    for number in 0..5 {
        finds(&format!("dead{number}.good"), patience);
    }
    finds("second.short.good", patience);
    second.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(1100));
    finds("first.good", patience);
    // Its time is over, and nobody tells a new one: once, that takes a while.
    finds("second.short.good", Duration::from_secs(4));
    finds("second.short.good", patience);
    drop(second);
    finds("first.good", patience);
    let (answer, took) = ask(&pod, &dns, "unknown.good", "udp");
    assert!(answer.starts_with("2 "), "{answer}");
    assert!(took < patience, "took {took:?}");
    let _first = start_upstream(&cluster, UPSTREAM);
    std::thread::sleep(Duration::from_millis(1100));
    finds("unknown.good", patience);
}

/// A pod asks for more names than are remembered; those of its neighbour are remembered all the same.
#[test]
#[ignore = "needs root"]
fn who_asks_for_many_names_does_not_make_others_names_forgotten() {
    let cluster = cluster_that_asks(&[UPSTREAM]);
    let upstream = start_upstream(&cluster, UPSTREAM);
    cluster.up();
    cluster.import("busybox");
    let dns = cluster.ok("get service kube-dns -n kube-system -o jsonpath={.spec.clusterIP}");
    let [greedy, neighbour] = ["greedy", "neighbour"].map(|name| Pod::start(&cluster, name));
    let known = || ask(&neighbour, &dns, "known.good", "udp").0;
    assert_eq!(known(), "0 192.0.2.80");
    let begun = Instant::now();
    let line = format!(
        "python3 {} fill {dns} {NAMES}",
        script("resolver.py").display()
    );
    greedy.sh(&line);
    assert!(
        begun.elapsed() < Duration::from_secs(50),
        "too slow to tell"
    );
    drop(upstream);
    assert_eq!(known(), "0 192.0.2.80");
    // Its own oldest names are forgotten.
    let (first, _) = ask(&greedy, &dns, "n1.fill.good", "udp");
    assert!(first.starts_with("2 "), "{first}");
}
