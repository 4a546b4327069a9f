//! Services of the type LoadBalancer with addresses of a pool, on machines of one link. As root.

mod ipv6;
#[path = "../lab/mod.rs"]
mod lab;

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use lab::{Cluster, Host, Machine, patiently, text, until};
use sha2::{Digest, Sha256};

const FIRST: &str = "192.168.77.1";
const OUTSIDE: &str = "192.168.77.9";
const INGRESS: &str = "{.status.loadBalancer.ingress[*].ip}";
const LEASES: &str = "get leases -n kube-system -l vetch.io/announces=load-balancers -o name";

/// Answers each request with the address that it came from.
const TELL: &str = "mkdir /w; cd /w; mkdir cgi-bin; printf \"#!/bin/sh\\necho; echo \\$REMOTE_ADDR\" > cgi-bin/who; \
                    chmod 755 cgi-bin/who; exec httpd -f -p 80";

fn pod(name: &str, node: &str, app: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers: [{{name: c, image: 'busybox:1', command: [sh, -c, '{TELL}']}}]
---
"
    )
}

/// `more` is the rest of its spec.
fn balancer(name: &str, port: u16, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: LoadBalancer, selector: \
         {{app: web}}, ports: [{{port: {port}, targetPort: 80}}]{more}}}}}\n---\n"
    )
}

fn up(cluster: &Cluster, pool: &str) {
    let flag = format!("--load-balancer-pool={pool}");
    let output = cluster.vetch(&["up", "--detach", &flag]);
    assert!(output.status.success(), "{}", text(&output));
}

/// The client that the server saw, if it answered within so many seconds.
fn seen_within(host: &Host, address: &str, seconds: &str) -> Option<String> {
    let url = format!("http://{address}/cgi-bin/who");
    let mut command = host.command("curl");
    let output = command.args(["-sf", "-m", seconds, &url]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let told = told.trim().trim_matches(['[', ']']);
    let told = told.trim_start_matches("::ffff:");
    output.status.success().then(|| told.to_owned())
}

fn seen_from(host: &Host, address: &str) -> Option<String> {
    seen_within(host, address, "2")
}

/// Whether somebody says at once that nobody is there.
fn is_refused(host: &Host, address: &str) -> bool {
    const REFUSED: i32 = 7;
    let mut command = host.command("curl");
    let output = command.args(["-s", "-m", "2", address]).output().unwrap();
    output.status.code() == Some(REFUSED)
}

fn has_addresses(cluster: &Cluster, service: &str, want: &str) {
    cluster.wait(
        &format!("get service {service} -o jsonpath={INGRESS}"),
        want,
    );
}

fn patch(cluster: &Cluster, object: &str, patch: &str) {
    cluster.ok_with(&["patch", object, "--type=merge", "-p", patch]);
}

/// Waits for an event about the object that says so.
fn is_told(cluster: &Cluster, object: &str, reason: &str, says: &str) {
    let line = format!(
        "get events -A --field-selector involvedObject.name={object},reason={reason} -o \
         jsonpath={{.items[*].message}}"
    );
    cluster.wait_for(&line, |got| got.contains(says));
}

/// Whether the address alone is on a link of the host.
fn holds(host: &Host, address: &str) -> bool {
    let length = if address.contains(':') { 128 } else { 32 };
    host.sh("ip -o address")
        .contains(&format!(" {address}/{length} "))
}

fn mac(host: &Host) -> String {
    let line = host.sh("ip -o link show host0");
    let mut words = line
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    words.nth(1).unwrap().to_owned()
}

/// Where the host sends what is for this address.
fn neighbour(host: &Host, address: &str) -> String {
    let line = host.sh(&format!("ip neigh show {address} dev host0"));
    let mut words = line.split_whitespace().skip_while(|word| *word != "lladdr");
    words.nth(1).unwrap_or_default().to_owned()
}

/// The address from 100 on behind the prefix that comes to the first one of these nodes.
fn address_of(prefix: &str, node: &str, other: &str) -> String {
    let weight =
        |node: &str, address: &str| Sha256::digest(format!("{node}/{address}"))[..8].to_vec();
    let mut addresses = (100..120).map(|last| format!("{prefix}{last}"));
    let found = addresses.find(|address| weight(node, address) > weight(other, address));
    found.expect("twenty addresses do not all come to one of two nodes")
}

/// A program that listens on this host, as long as this lives.
fn listener(host: &Host, address: &str) -> TcpListener {
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            let space = std::fs::File::open(format!("/proc/{}/ns/net", host.pid())).unwrap();
            nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind(address).unwrap()
        });
        opening.join().unwrap()
    })
}

#[test]
#[ignore = "needs root"]
fn one_node_answers_for_an_address_and_another_takes_over() {
    let cluster = Cluster::new();
    // The first host's end of the link is a bridge: its own rules must not take what passes for another host.
    cluster
        .host
        .sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
    up(&cluster, "192.168.77.100-192.168.77.119");
    let machine = Machine::beside(&cluster, 2);
    machine.join(&cluster, "second");
    let outside = Host::beside(&cluster.host, 9);
    cluster.import("busybox");
    machine.import("busybox");
    let others = ".items[?(@.metadata.name!=\"second\")].metadata.name";
    let first = cluster.field("nodes", others);
    let address = &address_of("192.168.77.", "second", &first);
    cluster.apply(&format!(
        "{}{}",
        pod("here", &first, "web"),
        pod("there", "second", "other")
    ));
    for name in ["here", "there"] {
        cluster.ready(name);
    }
    // Without a Service there is nothing.
    assert_eq!(text(&cluster.kubectl(LEASES)).trim(), "");

    cluster.apply(&balancer(
        "web",
        80,
        &format!(", loadBalancerIP: {address}"),
    ));
    has_addresses(&cluster, "web", address);
    is_told(
        &cluster,
        "web",
        "EnsuredLoadBalancer",
        "Ensured load balancer",
    );
    let by_second = format!("the node second answers for {address}");
    is_told(&cluster, "web", "AddressAnnounced", &by_second);
    let service = |path: &str| cluster.field("service/web", path);
    let ingress = |path: &str| service(&format!(".status.loadBalancer.ingress[0].{path}"));
    assert_eq!(
        (ingress("ipMode"), ingress("ports[0].port")),
        ("VIP".into(), "80".into())
    );
    cluster.wait(
        "get service web -o jsonpath={.metadata.finalizers[*]}",
        "service.kubernetes.io/load-balancer-cleanup",
    );

    // From everywhere, and one machine alone says that it has it.
    for (name, host) in [
        ("outside", &outside),
        ("the first node", &cluster.host),
        ("the second node", &machine.host),
    ] {
        until(&format!("{name} is answered"), || {
            seen_from(host, address).is_some()
        });
    }
    for pod in ["here", "there"] {
        let line = format!("timeout 2 wget -qO- http://{address}/cgi-bin/who");
        until(&format!("{pod} is answered"), || {
            let output = cluster.kubectl_with(&["exec", pod, "--", "sh", "-c", &line]);
            output.status.success()
        });
    }
    until("the second node has it", || holds(&machine.host, address));
    assert!(!holds(&cluster.host, address));
    assert_eq!(neighbour(&outside, address), mac(&machine.host));
    outside.sh("ip neigh flush dev host0");
    assert!(seen_from(&outside, address).is_some());
    assert_eq!(neighbour(&outside, address), mac(&machine.host));

    // Whatever else the node has is not there: its own ports, programs, node ports.
    let program = listener(&machine.host, "0.0.0.0:81");
    let node_port = service(".spec.ports[0].nodePort");
    for port in ["81", "10250", "6443", &node_port] {
        for (name, host) in [
            ("outside", &outside),
            ("the first node", &cluster.host),
            ("the second node", &machine.host),
        ] {
            let at = format!("{address}:{port}");
            assert!(is_refused(host, &at), "{name}: {at}");
        }
    }
    drop(program);

    // Others' changes are taken back.
    machine
        .host
        .sh(&format!("ip address del {address}/32 dev host0"));
    let begun = Instant::now();
    until("the address is there again", || {
        holds(&machine.host, address)
    });
    assert!(begun.elapsed() < patiently(Duration::from_secs(5)));
    is_told(
        &cluster,
        "second",
        "HostStateRestored",
        &format!("the address {address}/32"),
    );

    // Local: only a node with an endpoint has it, and the client is seen.
    let policy =
        |policy: &str| format!("{{\"spec\": {{\"externalTrafficPolicy\": \"{policy}\"}}}}");
    patch(&cluster, "service/web", &policy("Local"));
    until("the node with the endpoint has it", || {
        holds(&cluster.host, address) && !holds(&machine.host, address)
    });
    until("the client is seen as it is", || {
        seen_from(&outside, address).as_deref() == Some(OUTSIDE)
    });
    assert_eq!(neighbour(&outside, address), mac(&cluster.host));
    patch(&cluster, "service/web", &policy("Cluster"));
    until("the second node has it again", || {
        holds(&machine.host, address) && !holds(&cluster.host, address)
    });
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    cluster.ok(&format!("label node second {label}="));
    until("the node that shall not have it has it not", || {
        holds(&cluster.host, address) && !holds(&machine.host, address)
    });
    cluster.ok(&format!("label node second {label}-"));
    until("the second node has it again", || {
        holds(&machine.host, address) && !holds(&cluster.host, address)
    });
    until("outside knows", || {
        neighbour(&outside, address) == mac(&machine.host)
    });
    assert!(seen_from(&outside, address).is_some());

    // The machine is gone at once.
    let daemon = std::fs::read_to_string(machine.root.path().join("run/vetch.lock")).unwrap();
    cluster.host.sh(&format!(
        "ip link set port2 down; kill -9 {}",
        daemon.trim()
    ));
    let begun = Instant::now();
    until("another machine answers", || {
        seen_within(&outside, address, "0.3").is_some()
    });
    let taken = begun.elapsed();
    eprintln!("taken over after {taken:?}");
    assert!(taken < patiently(Duration::from_secs(3)), "{taken:?}");
    assert_eq!(neighbour(&outside, address), mac(&cluster.host));
    is_told(
        &cluster,
        "web",
        "AddressAnnounced",
        &format!("the node {first} answers for {address}"),
    );
    // Nobody is left there who could take it away, and it is gone.
    until("the address is not left behind", || {
        !holds(&machine.host, address)
    });
    cluster.host.sh("ip link set port2 up");
    machine.ok(&["agent", "--detach"]);
    until("the second node has it again, and never both", || {
        let both = [&cluster.host, &machine.host].map(|host| holds(host, address));
        assert_ne!(both, [true, true]);
        both == [false, true]
    });
    until("outside knows", || {
        neighbour(&outside, address) == mac(&machine.host)
    });
    assert!(seen_from(&outside, address).is_some());

    // Who stops in order does not let others wait.
    machine.ok(&["down"]);
    assert!(!holds(&machine.host, address));
    until("the first node has it", || holds(&cluster.host, address));
    machine.ok(&["agent", "--detach"]);
    until("the second node has it again", || {
        holds(&machine.host, address)
    });
    machine.ok(&["reset", "--yes"]);
    assert!(!holds(&machine.host, address));
    until("the first node has it", || holds(&cluster.host, address));
    cluster.ok("delete service web --timeout=30s");
    until("nobody has it", || !holds(&cluster.host, address));
    cluster.wait(LEASES, "");
    let said = [cluster.daemon_log(), machine.daemon_log()].concat();
    assert!(!said.contains("forbidden"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn a_pool_has_so_many_addresses() {
    let cluster = Cluster::new();
    for (flags, says) in [
        (
            &[
                "--pod-cidr=10.42.0.0/24",
                "--load-balancer-pool=10.42.7.0/28",
            ][..],
            "--load-balancer-pool: 10.42.7.0-10.42.7.15 overlaps 10.42.0.0/16, from which pods",
        ),
        (
            &["--load-balancer-pool=192.168.77.0/28,192.168.77.8-192.168.77.20"],
            "--load-balancer-pool: 192.168.77.0-192.168.77.15 and 192.168.77.8-192.168.77.20 overlap",
        ),
        (
            &["--load-balancer-pool=nonsense"],
            "must be CIDR or FIRST-LAST",
        ),
        (
            &[
                "--load-balancer-pool=192.168.77.0/28",
                "--disable=service-lb",
            ],
            "of no use with --disable service-lb",
        ),
    ] {
        let refused = cluster.vetch(&[&["up", "--detach"], flags].concat());
        assert!(
            !refused.status.success() && text(&refused).contains(says),
            "{}",
            text(&refused)
        );
    }
    let (one, two) = ("192.168.77.100", "192.168.77.101");
    let pool = format!("{one}-{two}");
    up(&cluster, &pool);
    let outside = Host::beside(&cluster.host, 9);
    cluster.import("busybox");
    let node = cluster.field("nodes", ".items[0].metadata.name");
    cluster.apply(&pod("here", &node, "web"));
    cluster.ready("here");

    // Two of three; the third one waits, and says for what.
    cluster.apply(&balancer("a", 80, ""));
    has_addresses(&cluster, "a", one);
    cluster.apply(&balancer("b", 81, ""));
    has_addresses(&cluster, "b", two);
    cluster.apply(&balancer("c", 82, ""));
    is_told(
        &cluster,
        "c",
        "SyncLoadBalancerFailed",
        "all IPv4 addresses of the pool are taken",
    );
    let condition = ".status.conditions[?(@.type==\"vetch.io/PoolAddresses\")].reason";
    assert_eq!(cluster.field("service/c", condition), "PoolExhausted");
    assert!(cluster.ok("get service c").contains("<pending>"));
    until("it is served", || seen_from(&outside, one).is_some());
    cluster.ok("delete service a --timeout=30s");
    has_addresses(&cluster, "c", one);
    until("the heir is served", || {
        seen_from(&outside, &format!("{one}:82")).is_some()
    });
    assert!(is_refused(&outside, one));
    // Another type gives it back too.
    cluster.apply(&balancer("d", 83, ""));
    patch(
        &cluster,
        "service/c",
        "{\"spec\": {\"type\": \"ClusterIP\"}}",
    );
    has_addresses(&cluster, "d", one);
    has_addresses(&cluster, "c", "");
    assert_eq!(cluster.field("service/c", ".metadata.finalizers"), "");

    // One that is asked for.
    let asks = |address: &str| format!(", loadBalancerIP: {address}");
    cluster.apply(&format!(
        "{}{}{}",
        balancer("far", 84, &asks("192.168.77.200")),
        balancer("taken", 85, &asks(two)),
        balancer("nodes", 86, &asks(FIRST)),
    ));
    is_told(
        &cluster,
        "far",
        "SyncLoadBalancerFailed",
        "192.168.77.200 is neither",
    );
    is_told(
        &cluster,
        "taken",
        "SyncLoadBalancerFailed",
        "the Service default/b has",
    );
    has_addresses(&cluster, "nodes", FIRST);
    until("a node's address is served as before", || {
        seen_from(&outside, &format!("{FIRST}:86")).is_some()
    });
    cluster.ok("delete service b --timeout=30s");
    has_addresses(&cluster, "taken", two);
    // Shared by those that ask for it, by port.
    cluster.apply(&format!(
        "{}{}",
        balancer("shares", 87, &asks(two)),
        balancer("clashes", 85, &asks(two)),
    ));
    has_addresses(&cluster, "shares", two);
    is_told(
        &cluster,
        "clashes",
        "SyncLoadBalancerFailed",
        "both have port 85/TCP",
    );
    for port in [85, 87] {
        until("both are served", || {
            seen_from(&outside, &format!("{two}:{port}")).is_some()
        });
    }
    cluster.ok("delete service clashes far");

    // They stay with their Services; the host has none while nobody is there.
    assert!(cluster.vetch(&["down"]).status.success());
    assert!(!holds(&cluster.host, one) && !holds(&cluster.host, two));
    up(&cluster, &pool);
    for (service, address) in [("d", one), ("taken", two), ("shares", two)] {
        has_addresses(&cluster, service, address);
    }
    until("the host has them", || {
        holds(&cluster.host, one) && holds(&cluster.host, two)
    });
    until("it is served", || {
        seen_from(&outside, &format!("{one}:83")).is_some()
    });

    // Without a pool the nodes' addresses take their place.
    assert!(cluster.vetch(&["down"]).status.success());
    cluster.up();
    has_addresses(&cluster, "d", FIRST);
    is_told(&cluster, "d", "UpdatedLoadBalancer", "with new hosts");
    until("it is served", || {
        seen_from(&outside, &format!("{FIRST}:83")).is_some()
    });
    assert!(!holds(&cluster.host, one));
    is_told(
        &cluster,
        "taken",
        "SyncLoadBalancerFailed",
        "is not the address of a node",
    );
    has_addresses(&cluster, "taken", "");
    let said = cluster.daemon_log();
    assert!(!said.contains("forbidden"), "{said}");
}
