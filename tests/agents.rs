//! A cluster of several machines, each a host of its own, by the commands that a user types. As root.

mod lab;

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use lab::{Cluster, Machine, SERVER, text, until};

/// A cluster with one more machine, the node `second`.
fn of_two() -> (Cluster, Machine) {
    let cluster = Cluster::started();
    let machine = Machine::beside(&cluster, 2);
    machine.join(&cluster, "second");
    (cluster, machine)
}

fn pod(name: &str, node: &str, command: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers: [{{name: c, image: 'busybox:1', command: [sh, -c, '{command}']}}]
---
"
    )
}

/// Answers each request with the address that it came from.
const TELL: &str = "mkdir /w; cd /w; mkdir cgi-bin; printf \"#!/bin/sh\\necho; echo \\$REMOTE_ADDR\" > cgi-bin/who; \
                    chmod 755 cgi-bin/who; exec httpd -f -p 80";

/// The address, as a server tells it that listens on both families.
fn plain(told: &str) -> String {
    let told = told.trim().trim_start_matches("[::ffff:");
    told.trim_end_matches(']').to_owned()
}

fn service(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {name}}}, \
         ports: [{{port: 80}}]}}}}\n---\n"
    )
}

#[test]
#[ignore = "needs root"]
fn pods_of_two_machines_reach_each_other() {
    let (cluster, machine) = of_two();
    let first = cluster.field(
        "nodes",
        ".items[?(@.metadata.name!=\"second\")].metadata.name",
    );
    cluster.import("busybox");
    machine.import("busybox");
    cluster.apply(&format!(
        "{}{}{}{}",
        pod("here", &first, TELL),
        pod("there", "second", TELL),
        service("here"),
        service("there"),
    ));
    for name in ["here", "there"] {
        cluster.ready(name);
    }
    let address = |name: &str| cluster.field(&format!("pod/{name}"), ".status.podIP");
    let ask = |from: &str, whom: &str| {
        let line = format!("timeout 5 wget -qO- http://{whom}/cgi-bin/who");
        plain(&cluster.ok_with(&["exec", from, "--", "sh", "-c", &line]))
    };
    for (from, to) in [("here", "there"), ("there", "here"), ("there", "there")] {
        until(&format!("{from} reaches {to}"), || {
            let line = format!("timeout 1 wget -qO- http://{}/cgi-bin/who", address(to));
            let asked = cluster.kubectl_with(&["exec", from, "--", "sh", "-c", &line]);
            asked.status.success()
        });
        assert_eq!(
            ask(from, &address(to)),
            address(from),
            "no NAT from {from} to {to}"
        );
        if from != to {
            // By name, which the node's own DNS answers.
            assert_eq!(ask(from, to), address(from), "service {to} from {from}");
        }
    }
    // The hosts themselves, and what goes by the kubelet.
    let there = address("there");
    let from_host = cluster
        .host
        .sh(&format!("curl -s -m 5 http://{there}/cgi-bin/who"));
    assert_eq!(plain(&from_host), "192.168.77.1");
    let services = cluster.field("service/there", ".spec.clusterIP");
    machine
        .host
        .sh(&format!("curl -s -m 5 http://{services}/cgi-bin/who"));
    cluster.ok("logs there");
    cluster.ok("get --raw /api/v1/nodes/second/proxy/stats/summary");

    // It starts again with what it has kept, and its pods go on.
    machine.ok(&["down"]);
    assert_eq!(
        ask("here", &there),
        address("here"),
        "pods outlive the daemon"
    );
    machine.ok(&["agent", "--detach"]);
    assert_eq!(
        cluster.field("pod/there", ".status.containerStatuses[0].restartCount"),
        "0"
    );
    assert_eq!(ask("there", "here"), address("there"));

    // Its Node is deleted by mistake: it gets the same range again.
    let range = cluster.field("node/second", ".spec.podCIDR");
    let uid = cluster.field("node/second", ".metadata.uid");
    cluster.ok("delete node second");
    cluster.wait_for("get node second -o jsonpath={.metadata.uid}", |got| {
        got.len() == uid.len() && got != uid
    });
    cluster.wait("get node second -o jsonpath={.spec.podCIDR}", &range);

    // The node goes, and its routes with it.
    let routes = || cluster.host.sh("ip route show proto 86");
    assert!(routes().contains("via 192.168.77.2"), "{}", routes());
    machine.ok(&["down", "--pods"]);
    cluster.ok("delete node second");
    until("its routes are gone", || routes().trim().is_empty());
    until("its DNS is not asked any more", || {
        !cluster
            .ok("get endpointslices -n kube-system -o name")
            .contains("second")
    });
}

/// A packet of the tunnel `vni` with one inside: UDP to that pod's port 7, as if from `from`.
fn forged(vni: u32, mac: &str, from: [u8; 4], to: [u8; 4], word: &[u8]) -> Vec<u8> {
    let mut udp = Vec::new();
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    for part in [&[0, 9, 0, 7][..], &length(8 + word.len()), &[0, 0], word] {
        udp.extend_from_slice(part);
    }
    let mut ip = vec![0x45, 0];
    ip.extend(length(20 + udp.len()));
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend([from, to].concat());
    let words = ip
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(&(vni << 8).to_be_bytes());
    packet.extend(
        mac.split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap()),
    );
    packet.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    packet.extend(ip);
    packet.extend(udp);
    packet
}

/// The process whose command line ends so.
fn find(end: &str) -> u32 {
    let mut found = None;
    until("the process is there", || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        found = pids.into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| line.ends_with(end.as_bytes()))
        });
        found.is_some()
    });
    found.unwrap()
}

/// A socket in the network of that process.
fn socket(pid: u32, address: &str) -> UdpSocket {
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            let space = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
            nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            UdpSocket::bind(address).unwrap()
        });
        opening.join().unwrap()
    })
}

#[test]
#[ignore = "needs root"]
fn a_machine_behind_a_router_is_reached_by_a_tunnel() {
    let cluster = Cluster::started();
    let machine = Machine::behind_a_router(&cluster);
    let idle = machine.host.picture();
    machine.join(&cluster, "second");
    let first = cluster.field(
        "nodes",
        ".items[?(@.metadata.name!=\"second\")].metadata.name",
    );
    cluster.import("busybox");
    machine.import("busybox");
    // A number that no other process has.
    let mark = format!("{}007", std::process::id());
    let listens = format!(
        "sleep {mark}8 & mkdir /w; cd /w; head -c 3000000 /dev/zero > big; exec httpd -f -p 80"
    );
    cluster.apply(&format!(
        "{}{}",
        pod("here", &first, &format!("sleep {mark}7 & {TELL}")),
        pod("there", "second", &listens),
    ));
    for name in ["here", "there"] {
        cluster.ready(name);
    }
    let there = cluster.field("pod/there", ".status.podIP");
    let here = cluster.field("pod/here", ".status.podIP");
    // More than one packet's worth, both ways.
    until("a large file comes through", || {
        let line = format!("timeout 5 wget -qO- http://{there}/big | wc -c");
        let got = cluster.kubectl_with(&["exec", "here", "--", "sh", "-c", &line]);
        text(&got).trim() == "3000000"
    });
    let line = format!("timeout 5 wget -qO- http://{here}/cgi-bin/who");
    assert_eq!(
        plain(&cluster.ok_with(&["exec", "there", "--", "sh", "-c", &line])),
        there
    );
    cluster
        .host
        .sh(&format!("curl -s -m 5 -o /dev/null http://{there}/big"));
    let link = cluster.host.sh("ip -d -o link show type vxlan");
    assert!(
        link.contains("mtu 1450") && link.contains("nolearning"),
        "{link}"
    );

    // A pod could name itself as it likes in a packet of the tunnel: none of its own comes there.
    let shown = machine.host.sh("ip -d -o link show type vxlan");
    let after = |word: &str| {
        let rest = shown.split(&format!("{word} ")).nth(1).unwrap_or_default();
        rest.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let (vni, mac) = (after("vxlan id").parse().unwrap(), after("link/ether"));
    let octets = |address: &str| address.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let packet = |word| forged(vni, &mac, [10, 42, 255, 9], octets(&there), word);
    let pod_of = |number: u8| find(&format!("sleep\0{mark}{number}\0"));
    let listener = socket(pod_of(8), "0.0.0.0:7");
    listener
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let tunnel = "192.168.88.2:8472";
    let sender = socket(pod_of(7), "0.0.0.0:0");
    sender.send_to(&packet(b"pod"), tunnel).unwrap();
    // From a peer's machine itself it does come: so the other would have been heard.
    let sender = socket(cluster.host.pid(), "0.0.0.0:0");
    sender.send_to(&packet(b"machine"), tunnel).unwrap();
    let mut heard = [0; 64];
    let (length, _) = listener.recv_from(&mut heard).unwrap();
    assert_eq!(&heard[..length], b"machine");

    // Others take it away.
    let name = link
        .split(": ")
        .nth(1)
        .unwrap()
        .split('@')
        .next()
        .unwrap()
        .to_owned();
    cluster.host.sh(&format!("ip link del {name}"));
    until("it is back", || {
        let line = format!("timeout 1 wget -qO- http://{there}/big | wc -c");
        let got = cluster.kubectl_with(&["exec", "here", "--", "sh", "-c", &line]);
        text(&got).trim() == "3000000"
    });
    machine.ok(&["reset", "--yes"]);
    assert_eq!(
        machine.host.picture(),
        idle,
        "reset leaves the host as it was"
    );
    cluster.ok("delete node second");
    until("the tunnel is gone", || {
        cluster
            .host
            .sh("ip -o link show type vxlan")
            .trim()
            .is_empty()
    });
}

#[test]
#[ignore = "needs root"]
fn a_claim_is_kept_on_the_machine_of_its_pod() {
    let (cluster, machine) = of_two();
    machine.import("busybox");
    let claim = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {accessModes: \
                 [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}\n---\n";
    let volume = "  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]\n---";
    let mounts = "volumeMounts: [{name: v, mountPath: /data}], command";
    let write = pod(
        "writes",
        "second",
        "echo kept > /data/file; exec sleep 100000",
    );
    let write = write.replace("command", mounts).replace("---", volume);
    cluster.apply(&format!("{claim}{write}"));
    cluster.ready("writes");
    let folders = machine.root.path().join("lib/volumes");
    let files = || -> Vec<String> {
        let all = std::fs::read_dir(&folders).into_iter().flatten().flatten();
        all.filter_map(|one| std::fs::read_to_string(one.path().join("file")).ok())
            .collect()
    };
    until("the pod has written", || files() == ["kept\n"]);
    // On this machine, and on no other.
    assert!(!cluster.root.path().join("lib/volumes").exists());
    cluster.ok("delete pod writes");
    cluster.ok("delete pvc data");
    cluster.wait("get pv -o name", "");
    until("its folder is gone", || {
        std::fs::read_dir(&folders).unwrap().next().is_none()
    });
    assert!(
        !machine.daemon_log().contains("forbidden"),
        "{}",
        machine.daemon_log()
    );
}

#[test]
#[ignore = "needs root"]
fn a_route_that_is_taken_away_comes_back() {
    let (cluster, _machine) = of_two();
    let routes = || cluster.host.sh("ip route show proto 86");
    until("there is a route", || routes().contains("via 192.168.77.2"));
    let route = routes();
    let began = Instant::now();
    cluster.host.sh(&format!(
        "ip route del {}",
        route.split(" proto").next().unwrap()
    ));
    until("it is back", || routes() == route);
    assert!(began.elapsed() < Duration::from_secs(5));
    cluster.wait_for(
        "get events -A --field-selector reason=HostStateRestored",
        |got| got.contains("the route to the pods in"),
    );
    // Of others only what is theirs.
    cluster
        .host
        .sh("ip route add 10.99.0.0/24 via 192.168.77.2 proto 86");
    cluster.ok("delete node second");
    until("its routes are gone", || !routes().contains("10.42."));
    assert!(routes().contains("10.99.0.0/24"));
    cluster.host.sh("ip route del 10.99.0.0/24");
}

#[test]
#[ignore = "needs root"]
fn an_agent_starts_without_its_server() {
    let (cluster, machine) = of_two();
    machine.import("busybox");
    cluster.apply(&pod("there", "second", "exec sleep 100000"));
    cluster.ready("there");
    let address = cluster.field("pod/there", ".status.podIP");
    assert!(cluster.vetch(&["down"]).status.success());
    machine.ok(&["down"]);
    machine.ok(&["agent", "--detach"]);
    // Its pod goes on.
    machine
        .host
        .sh(&format!("ip neigh show {address} | grep -q PERMANENT"));
    assert!(machine.daemon_log().contains("joins in when the cluster"));
    cluster.up();
    cluster.ready("there");
    let restarts = cluster.field("pod/there", ".status.containerStatuses[0].restartCount");
    assert_eq!(restarts, "0");
    cluster.ok("delete pod there");
    until("it hears of that", || {
        let shown = machine.host.sh(&format!("ip neigh show {address}"));
        shown.trim().is_empty()
    });
}

#[test]
#[ignore = "needs root"]
fn what_cannot_join_is_told_why() {
    let cluster = Cluster::started();
    let first = cluster.field("nodes", ".items[0].metadata.name");
    let machine = Machine::beside(&cluster, 2);
    let idle = machine.host.picture();
    let good = cluster.token();
    let wrong = format!("{}.0000000000000000", &good[..6]);
    let fails = |server: &str, token: &str, name: &str, says: &str| {
        let words = [
            "agent".to_owned(),
            format!("--server={server}"),
            format!("--token={token}"),
            format!("--node-name={name}"),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = machine.vetch(&words);
        assert!(!output.status.success(), "{words:?}");
        let said = text(&output);
        assert!(said.contains(says), "{words:?}: {said}");
    };
    fails(SERVER, &wrong, "second", "token");
    fails(SERVER, "abcdef.0123456789abcdef", "second", "token");
    fails(SERVER, &good, &first, "there is a node");
    fails("https://192.168.77.1:9", &good, "second", "does not answer");
    fails(
        "https://192.168.77.9:6443",
        &good,
        "second",
        "does not answer",
    );
    fails(
        "http://192.168.77.1:6443",
        &good,
        "second",
        "must be https://HOST:PORT",
    );
    fails(SERVER, "x", "second", "token");
    let none = machine.vetch(&["agent"]);
    assert!(
        text(&none).contains("--server and --token"),
        "{}",
        text(&none)
    );
    assert_eq!(
        machine.host.picture(),
        idle,
        "nothing half-made stays behind"
    );

    machine.join(&cluster, "second");
    let up = machine.vetch(&["up"]);
    assert!(text(&up).contains("already running"), "{}", text(&up));
    machine.ok(&["down"]);
    let up = machine.vetch(&["up"]);
    assert!(
        text(&up).contains("is the node second of the cluster"),
        "{}",
        text(&up)
    );
    let renamed = machine.vetch(&["agent", "--node-name=third"]);
    assert!(
        text(&renamed).contains("a node keeps its name"),
        "{}",
        text(&renamed)
    );
    let agent = cluster.vetch(&[
        "agent",
        &format!("--server={SERVER}"),
        &format!("--token={good}"),
    ]);
    assert!(text(&agent).contains("already running"), "{}", text(&agent));
    machine.ok(&["reset", "--yes"]);
    assert_eq!(
        machine.host.picture(),
        idle,
        "reset leaves the host as it was"
    );
}
