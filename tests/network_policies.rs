//! NetworkPolicies on two machines, by packets: every pair of pods and every port is probed. As root.

mod lab;

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lab::{Cluster, Machine, netns_of, text, until};
use serde_json::{Value, json};

const SERVER: &str = "https://192.168.77.1:6443";
const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 2] = [80, 81];
const TCP: &str = "TCP";
const UDP: &str = "UDP";
/// What does not answer within this time was dropped: nothing here leaves the machine.
const DROPPED: Duration = Duration::from_millis(400);
/// What a change may take until packets see it.
const SETTLED: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 300 });

struct Pod {
    namespace: String,
    name: String,
    /// The first one.
    address: IpAddr,
    /// One of each family.
    addresses: Vec<IpAddr>,
    netns: File,
}

impl Pod {
    /// A pod that runs, entered by its network namespace.
    fn of(cluster: &Cluster, namespace: &str, name: &str) -> Self {
        cluster.ready(&format!("-n {namespace} {name}"));
        let addresses = cluster.field(
            &format!("pod -n {namespace} {name}"),
            ".status.podIPs[*].ip",
        );
        let addresses = addresses.split(' ').map(|ip| ip.parse().unwrap());
        let addresses: Vec<IpAddr> = addresses.collect();
        let uid = cluster.field(&format!("pod -n {namespace} {name}"), ".metadata.uid");
        Self {
            namespace: namespace.into(),
            name: name.into(),
            address: addresses[0],
            addresses,
            netns: netns_of(&uid),
        }
    }

    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::namespace::run_in(self.netns.as_fd(), work).unwrap()
    }

    /// Answers on every port, until the namespace goes.
    fn serve(&self) {
        for port in PORTS {
            let (tcp, udp) = self.enter(move || {
                let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
                (
                    TcpListener::bind(any).unwrap(),
                    UdpSocket::bind(any).unwrap(),
                )
            });
            thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    thread::spawn(move || echo(stream));
                }
            });
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&buffer[..length], from);
                }
            });
        }
    }

    fn reaches(&self, to: IpAddr, protocol: &str, port: u16) -> bool {
        let to = SocketAddr::new(to, port);
        self.enter(|| match protocol {
            TCP => TcpStream::connect_timeout(&to, DROPPED).is_ok(),
            _ => {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
                socket.set_read_timeout(Some(DROPPED)).unwrap();
                let _ = socket.send_to(b"ping", mapped(to));
                socket.recv(&mut [0; 8]).is_ok()
            }
        })
    }
}

/// As a socket for both families takes it.
fn mapped(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), to.port()).into(),
        IpAddr::V6(_) => to,
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn manifest(namespace: &str, name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"pod": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "nodeName": node, "containers": [{
            "name": "c", "image": "busybox:1", "command": ["sleep", "3600"],
            "env": [{"name": "POD_PROBED", "value": "yes"}],
            "ports": [{"name": "serve-80", "containerPort": 80}, {"name": "serve-80-udp", "containerPort": 80, "protocol": "UDP"},
                {"name": "serve-81", "containerPort": 81}, {"name": "serve-81-udp", "containerPort": 81, "protocol": "UDP"}]}]}})
}

fn list(objects: impl IntoIterator<Item = Value>) -> String {
    let items: Vec<Value> = objects.into_iter().collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// Two machines and nine pods, spread over both.
struct Lab {
    cluster: Cluster,
    _machine: Machine,
    pods: Vec<Pod>,
}

fn lab() -> Lab {
    let cluster = Cluster::new();
    cluster.host.add_ipv6(1);
    let ranges = [
        "--pod-cidr=10.42.0.0/24,fd42::/64",
        "--service-cidr=10.96.0.0/16,fd96::/112",
    ];
    let up = cluster.vetch(&[&["up", "--detach"], &ranges[..]].concat());
    assert!(up.status.success(), "{}", text(&up));
    let machine = Machine::beside(&cluster, 2);
    machine.host.add_ipv6(2);
    let token = cluster.vetch(&["token", "create"]);
    assert!(token.status.success(), "{}", text(&token));
    let token = String::from_utf8(token.stdout).unwrap();
    let (server, token) = (
        format!("--server={SERVER}"),
        format!("--token={}", token.trim()),
    );
    machine.ok(&["agent", &server, &token, "--node-name=second", "--detach"]);
    let first = cluster.field(
        "nodes",
        ".items[?(@.metadata.name!=\"second\")].metadata.name",
    );
    cluster.import("busybox");
    machine.import("busybox");
    let namespaces = NAMESPACES.map(|name| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"ns": name}}})
    });
    cluster.apply(&list(namespaces));
    until("the accounts are there", || {
        let accounts = cluster.ok("get serviceaccounts -A -o name");
        accounts.lines().count() >= 3 + NAMESPACES.len()
    });
    let all = || {
        NAMESPACES
            .iter()
            .flat_map(|ns| PODS.map(|name| (*ns, name)))
    };
    let nodes = [first.as_str(), "second"];
    cluster.apply(&list(
        all()
            .enumerate()
            .map(|(at, (ns, name))| manifest(ns, name, nodes[at % 2])),
    ));
    let pods: Vec<Pod> = all()
        .map(|(ns, name)| Pod::of(&cluster, ns, name))
        .collect();
    pods.iter().for_each(Pod::serve);
    Lab {
        cluster,
        _machine: machine,
        pods,
    }
}

impl Lab {
    fn pod(&self, namespace: &str, name: &str) -> &Pod {
        let mut pods = self.pods.iter();
        pods.find(|pod| pod.namespace == namespace && pod.name == name)
            .unwrap()
    }

    /// Probes every pair of pods on every port, all at once, and compares with what the policies say.
    fn compare(&self, policies: &[Value], what: &str) {
        for family in 0..self.pods[0].addresses.len() {
            self.compare_family(policies, what, family);
        }
    }

    fn compare_family(&self, policies: &[Value], what: &str, family: usize) {
        let wrong = thread::scope(|scope| {
            let mut probes = Vec::new();
            for from in &self.pods {
                for to in &self.pods {
                    for protocol in [TCP, UDP] {
                        for port in PORTS {
                            let want = is_allowed(policies, family, from, to, protocol, port);
                            let probe = scope
                                .spawn(move || from.reaches(to.addresses[family], protocol, port));
                            probes.push((from, to, protocol, port, want, probe));
                        }
                    }
                }
            }
            let mut wrong = Vec::new();
            for (from, to, protocol, port, want, probe) in probes {
                let got = probe.join().unwrap();
                if got != want {
                    wrong.push(format!(
                        "{}/{} -> {}/{} {} {protocol} {port}: {}",
                        from.namespace,
                        from.name,
                        to.namespace,
                        to.name,
                        to.addresses[family],
                        if got { "came through" } else { "was dropped" }
                    ));
                }
            }
            wrong
        });
        assert!(
            wrong.is_empty(),
            "{what}: {wrong:#?}\n{}",
            list(policies.to_vec())
        );
    }
}

/// By the words of the API, written without the program's own code.
fn is_allowed(
    policies: &[Value],
    family: usize,
    from: &Pod,
    to: &Pod,
    protocol: &str,
    port: u16,
) -> bool {
    if from.address == to.address {
        return true;
    }
    let one_way = |pod: &Pod, peer: &Pod, kind: &str, rules: &str, peers: &str| {
        let selecting: Vec<&Value> = policies
            .iter()
            .filter(|policy| {
                let types = policy["spec"]["policyTypes"].as_array().unwrap();
                policy["metadata"]["namespace"] == *pod.namespace
                    && types.iter().any(|one| one == kind)
                    && selects(&policy["spec"]["podSelector"], "pod", &pod.name)
            })
            .collect();
        selecting.is_empty()
            || selecting.iter().any(|policy| {
                let rules = policy["spec"][rules].as_array();
                rules.into_iter().flatten().any(|rule| {
                    let peers = rule[peers].as_array().filter(|peers| !peers.is_empty());
                    let ports = rule["ports"].as_array().filter(|ports| !ports.is_empty());
                    peers.is_none_or(|peers| {
                        peers
                            .iter()
                            .any(|one| is_peer(one, &pod.namespace, peer, family))
                    }) && ports
                        .is_none_or(|ports| ports.iter().any(|one| is_port(one, protocol, port)))
                })
            })
    };
    one_way(from, to, "Egress", "egress", "to") && one_way(to, from, "Ingress", "ingress", "from")
}

fn selects(selector: &Value, key: &str, value: &str) -> bool {
    let labels = selector["matchLabels"].as_object();
    let equal = labels
        .into_iter()
        .flatten()
        .all(|(name, want)| name == key && want == value);
    let rules = selector["matchExpressions"].as_array();
    equal
        && rules.into_iter().flatten().all(|rule| {
            let has = rule["key"] == key;
            let values = rule["values"].as_array();
            let listed = has && values.into_iter().flatten().any(|one| one == value);
            match rule["operator"].as_str().unwrap() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => has,
                _ => !has,
            }
        })
}

fn is_peer(peer: &Value, namespace: &str, pod: &Pod, family: usize) -> bool {
    if let Some(block) = peer["ipBlock"].as_object() {
        let inside = |text: &Value| {
            let (network, length) = text.as_str().unwrap().split_once('/').unwrap();
            let length = length.parse::<u32>().unwrap();
            let (network, bits) = number(network.parse().unwrap());
            let (address, of) = number(pod.addresses[family]);
            bits == of && address >> (bits - length) == network >> (bits - length)
        };
        let except = block.get("except").and_then(Value::as_array);
        return inside(&block["cidr"]) && !except.into_iter().flatten().any(inside);
    }
    let there = match peer.get("namespaceSelector") {
        Some(selector) => selects(selector, "ns", &pod.namespace),
        None => pod.namespace == namespace,
    };
    there
        && peer
            .get("podSelector")
            .is_none_or(|selector| selects(selector, "pod", &pod.name))
}

/// And how many bits it has.
fn number(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

fn is_port(wanted: &Value, protocol: &str, port: u16) -> bool {
    if wanted["protocol"].as_str().unwrap_or(TCP) != protocol {
        return false;
    }
    match &wanted["port"] {
        Value::Null => true,
        Value::String(name) => {
            let suffix = if protocol == UDP { "-udp" } else { "" };
            *name == format!("serve-{port}{suffix}")
        }
        first => {
            let first = first.as_u64().unwrap();
            let last = wanted["endPort"].as_u64().unwrap_or(first);
            (first..=last).contains(&port.into())
        }
    }
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let at = self.roll(choices.len() as u64);
        &choices[usize::try_from(at).unwrap()]
    }

    fn selector(&mut self, key: &str, values: &[&str]) -> Value {
        let value = *self.of(values);
        let other = *self.of(values);
        match self.roll(6) {
            0 => json!({}),
            1 => {
                json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]})
            }
            2 => {
                json!({"matchExpressions": [{"key": key, "operator": "In", "values": [value, other]}]})
            }
            3 => json!({"matchExpressions": [{"key": "absent", "operator": "DoesNotExist"}]}),
            _ => json!({"matchLabels": {key: value}}),
        }
    }

    fn peer(&mut self, pods: &[Pod]) -> Value {
        let family = usize::from(self.roll(2) == 0);
        // The pod, all of its node, all of the cluster.
        let [pod_bits, node_bits, cluster_bits] = [[32, 24, 16], [128, 64, 56]][family];
        let block = |pod: &Pod, length: u32| {
            let (address, bits) = number(pod.addresses[family]);
            let network = address >> (bits - length) << (bits - length);
            match u32::try_from(network) {
                Ok(v4) if bits == 32 => format!("{}/{length}", std::net::Ipv4Addr::from(v4)),
                _ => format!("{}/{length}", Ipv6Addr::from(network)),
            }
        };
        match self.roll(4) {
            0 => {
                let (pod, hole) = (self.of(pods), self.of(pods));
                match self.roll(3) {
                    0 => json!({"ipBlock": {"cidr": block(pod, pod_bits)}}),
                    1 => {
                        json!({"ipBlock": {"cidr": block(pod, cluster_bits), "except": [block(hole, pod_bits)]}})
                    }
                    _ => json!({"ipBlock": {"cidr": block(pod, node_bits)}}),
                }
            }
            1 => json!({"podSelector": self.selector("pod", &PODS)}),
            2 => json!({"namespaceSelector": self.selector("ns", &NAMESPACES)}),
            _ => {
                json!({"namespaceSelector": self.selector("ns", &NAMESPACES), "podSelector": self.selector("pod", &PODS)})
            }
        }
    }

    fn port(&mut self) -> Value {
        let protocol = *self.of(&[TCP, UDP]);
        match self.roll(5) {
            0 => json!({"protocol": protocol}),
            1 => {
                json!({"protocol": protocol, "port": self.of(&["serve-80", "serve-81-udp", "nobody"])})
            }
            2 => json!({"protocol": protocol, "port": 79, "endPort": self.of(&[80, 81, 82])}),
            _ => json!({"protocol": protocol, "port": self.of(&PORTS)}),
        }
    }

    fn rules(&mut self, peers: &str, pods: &[Pod]) -> Value {
        let count = self.roll(3);
        let rules = (0..count).map(|_| {
            let mut rule = json!({});
            let (from, to) = (self.roll(3), self.roll(3));
            if from > 0 {
                rule[peers] = (0..from).map(|_| self.peer(pods)).collect();
            }
            if to > 0 {
                rule["ports"] = (0..to).map(|_| self.port()).collect();
            }
            rule
        });
        rules.collect()
    }

    fn policy(&mut self, name: &str, pods: &[Pod]) -> Value {
        let types = self
            .of(&[
                json!(["Ingress"]),
                json!(["Egress"]),
                json!(["Ingress", "Egress"]),
            ])
            .clone();
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": self.of(&NAMESPACES)},
            "spec": {"podSelector": self.selector("pod", &PODS), "policyTypes": types,
                "ingress": self.rules("from", pods), "egress": self.rules("to", pods)}})
    }
}

/// Sets of policies that come and go, some large: no cell is ever wrong.
#[test]
#[ignore = "needs root"]
fn a_matrix_of_generated_policies() {
    let lab = lab();
    lab.compare(&[], "no policy");
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut total = 0;
    for round in 0..24 {
        let count = [1, 2, 3, 5, 8, 30][round % 6];
        let policies: Vec<Value> = (0..count)
            .map(|number| dice.policy(&format!("p{number}"), &lab.pods))
            .collect();
        total += policies.len();
        lab.cluster.apply(&list(policies.clone()));
        thread::sleep(SETTLED);
        lab.compare(&policies, &format!("round {round}"));
        lab.cluster
            .ok("delete networkpolicies --all -A --wait=false");
    }
    assert!(total > 100, "{total}");
    thread::sleep(SETTLED);
    lab.compare(&[], "all policies are gone");
    let tables = lab.cluster.host.sh("nft list tables");
    assert!(!tables.contains("vetch-policy"), "{tables}");
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// From the first packet of a pod to the last of a connection.
#[test]
#[ignore = "needs root"]
fn from_the_first_packet_to_the_last() {
    let lab = lab();
    let (a, b) = (lab.pod("x", "a"), lab.pod("y", "b"));
    // A connection that is there when it is forbidden goes no further, in either direction.
    let mut open = a.enter(|| TcpStream::connect((b.address, 80)).unwrap());
    let talk = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(DROPPED)).unwrap();
        stream
            .write_all(b"ping")
            .and_then(|()| stream.read_exact(&mut [0; 4]))
    };
    talk(&mut open).unwrap();
    let mut kept = lab
        .pod("z", "a")
        .enter(|| TcpStream::connect((b.address, 80)).unwrap());
    let from_z = json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]}]});
    lab.cluster.apply(&list([policy("y", "from-z", &from_z)]));
    thread::sleep(SETTLED);
    assert!(talk(&mut open).is_err(), "a connection from before goes on");
    talk(&mut kept).expect("the other one is allowed");
    // The node itself reaches its pods.
    let node = lab
        .cluster
        .field(&format!("pod -n y {}", b.name), ".status.hostIP");
    let host = lab.cluster.host.sh(&format!(
        "busybox nc -w 1 {} 80 </dev/null && echo open || echo closed",
        b.address
    ));
    let is_own = node == "192.168.77.1";
    assert_eq!(host.trim() == "open", is_own, "{node} {host}");
    // A pod that comes is isolated at once: its first packet is too late.
    let deny = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    lab.cluster.apply(&list([policy("x", "deny", &deny)]));
    let mut early = manifest("x", "early", "second");
    early["spec"]["restartPolicy"] = json!("Never");
    early["spec"]["containers"][0]["command"] = json!([
        "sh",
        "-c",
        format!(
            "for i in 1 2 3 4 5; do nc -w 1 {} 80 </dev/null 2>/dev/null && echo through; done; true",
            lab.pod("z", "b").address
        )
    ]);
    lab.cluster.apply(&list([early]));
    lab.cluster.wait(
        "get pod -n x early -o jsonpath={.status.phase}",
        "Succeeded",
    );
    assert_eq!(lab.cluster.ok("logs -n x early"), "");
    // Why, for who asks.
    let traced = lab.cluster.vetch(&["policy", "trace", "x/a", "z/b", "80"]);
    let said = String::from_utf8_lossy(&traced.stdout).into_owned();
    assert_eq!(traced.status.code(), Some(1), "{}", text(&traced));
    assert_eq!(
        said,
        "egress   denied: isolated by deny, none of which allows it\n\
         ingress  allowed: no policy isolates it\n"
    );
    let traced = lab.cluster.vetch(&["policy", "trace", "z/a", "y/b", "80"]);
    assert!(traced.status.success(), "{}", text(&traced));
    let traced = lab
        .cluster
        .vetch(&["policy", "trace", "x/nobody", "z/b", "80"]);
    assert!(
        text(&traced).contains("there is no pod x/nobody"),
        "{}",
        text(&traced)
    );
    // DNS is a pod's as everywhere: it is reached where the policy names it.
    let dns = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}], "ports": [{"protocol": "UDP", "port": 53}]}]});
    let ask = "exec -n x a -- timeout 3 nslookup kubernetes.default.svc.cluster.local.";
    assert!(
        !lab.cluster.kubectl(ask).status.success(),
        "DNS was not denied"
    );
    lab.cluster.apply(&list([policy("x", "dns", &dns)]));
    thread::sleep(SETTLED);
    lab.cluster.ok(ask);
    // What others do to the rules is undone.
    lab.cluster.host.sh("nft flush ruleset");
    until("the rules are back", || {
        let tables = lab.cluster.host.sh("nft list tables");
        tables.contains("vetch-policy")
    });
    thread::sleep(SETTLED);
    assert!(!a.reaches(lab.pod("z", "b").address, TCP, 80));
}

/// Ten policies change while requests pass: none that is allowed is dropped.
#[test]
#[ignore = "needs root"]
fn no_allowed_request_is_dropped_by_a_change() {
    let lab = lab();
    let (a, b) = (lab.pod("x", "a"), lab.pod("y", "b"));
    let allow = |port: u16| {
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}, {"port": port}],
            "from": [{"namespaceSelector": {"matchLabels": {"ns": "x"}}}]}]})
    };
    lab.cluster.apply(&list(
        (0..10).map(|n| policy("y", &format!("p{n}"), &allow(1000))),
    ));
    thread::sleep(SETTLED);
    let (stop, done, denied) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let failed = Arc::new(AtomicU64::new(0));
    let to = SocketAddr::new(b.address, 80);
    let closed = lab.pod("z", "c");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                a.enter(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let answered = TcpStream::connect_timeout(&to, Duration::from_secs(1))
                            .and_then(|mut stream| {
                                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                                stream.write_all(b"ping")?;
                                stream.read_exact(&mut [0; 4])
                            });
                        match answered {
                            Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                            Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                        };
                    }
                });
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if closed.reaches(b.address, TCP, 80) {
                    denied.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let end = Instant::now() + Duration::from_secs(8);
        let mut port = 1000;
        while Instant::now() < end {
            port += 1;
            lab.cluster.apply(&list(
                (0..10).map(|n| policy("y", &format!("p{n}"), &allow(port))),
            ));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (done, failed) = (done.into_inner(), failed.load(Ordering::Relaxed));
    println!("{done} requests, {failed} failed");
    assert!(done > 1000, "{done}");
    assert_eq!(failed, 0, "of {done}");
    assert_eq!(denied.into_inner(), 0, "what was denied came through");
}

/// Where somebody else enforces policies, nothing of ours does.
#[test]
#[ignore = "needs root"]
fn what_is_disabled_enforces_nothing() {
    let cluster = Cluster::new();
    let up = cluster.vetch(&["up", "--detach", "--disable", "network-policy"]);
    assert!(up.status.success(), "{}", text(&up));
    cluster.import("busybox");
    cluster.wait(
        "get serviceaccount default -o name",
        "serviceaccount/default",
    );
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    cluster.apply(&list([policy("default", "deny", &deny)]));
    let node = cluster.field("nodes", ".items[0].metadata.name");
    cluster.apply(&list([
        manifest("default", "a", &node),
        manifest("default", "b", &node),
    ]));
    let (a, b) = (
        Pod::of(&cluster, "default", "a"),
        Pod::of(&cluster, "default", "b"),
    );
    b.serve();
    thread::sleep(SETTLED);
    assert!(a.reaches(b.address, TCP, 80));
    assert!(!cluster.host.sh("nft list tables").contains("vetch-policy"));
}
