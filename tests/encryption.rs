//! Encryption of what pods send to other machines: what is requested of the whole cluster, and that nothing is sent in
//! plain where it is. With a kernel that has WireGuard `vagrant/qemu/run wireguard` looks at the rest. As root.

mod lab;

use lab::{Cluster, Machine, text, until};

fn pod(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, 'mkdir /w; cd /w; hostname > name; exec httpd -f -p 80']
---
"
    )
}

/// Whether this kernel can do it.
fn has_wireguard(cluster: &Cluster) -> bool {
    let line = "ip link add name wgprobe type wireguard 2>/dev/null && ip link del wgprobe && echo yes || true";
    cluster.host.sh(line).trim() == "yes"
}

/// Whether the pod gets an answer at that address.
fn reaches(cluster: &Cluster, from: &str, to: &str) -> bool {
    let line = format!("timeout 2 wget -qO- http://{to}/name");
    let got = cluster.kubectl_with(&["exec", from, "--", "sh", "-c", &line]);
    got.status.success()
}

#[test]
#[ignore = "needs root"]
fn what_encryption_there_is() {
    let cluster = Cluster::new();
    let output = cluster.vetch(&["up", "--pod-encryption", "rot13"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output);
    assert!(
        said.contains("[possible values: none, wireguard]"),
        "{said}"
    );
    let folder = "--cni-conf-dir=/etc/cni/net.d";
    let output = cluster.vetch(&[
        "up",
        "--pod-encryption=wireguard",
        folder,
        "--cni-bin-dir=/x",
    ]);
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains("no use with --cni-conf-dir"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn nothing_is_sent_in_plain_where_encryption_is_requested() {
    let mut cluster = Cluster::new();
    if has_wireguard(&cluster) {
        eprintln!("this kernel has WireGuard: vagrant/qemu/run wireguard tests that");
        return;
    }
    cluster.flags = vec!["--pod-encryption=wireguard"];
    cluster.up();
    let machine = Machine::beside(&cluster, 2);
    let idle = machine.host.picture();
    machine.join(&cluster, "second");
    let first = cluster.field(
        "nodes",
        ".items[?(@.metadata.name!=\"second\")].metadata.name",
    );
    cluster.import("busybox");
    machine.import("busybox");
    cluster.apply(&format!(
        "{}{}",
        pod("here", &first),
        pod("there", "second")
    ));
    for name in ["here", "there"] {
        cluster.ready(name);
    }
    let told = |node: &str| {
        let events = cluster.ok("get events -A");
        let is_it = |line: &str| {
            line.contains("PodsNotReached") && line.contains(node) && line.contains("no WireGuard")
        };
        events.lines().any(is_it)
    };
    for node in [&*first, "second"] {
        until(&format!("{node} says why"), || told(node));
    }
    let status = text(&cluster.vetch(&["status"]));
    assert!(status.contains("no WireGuard key"), "{status}");
    let check = cluster.host.command(lab::program()).arg("check").output();
    let check = text(&check.unwrap());
    assert!(check.contains("lacking  WireGuard"), "{check}");

    // Neither by a route of ours nor by one of somebody else's.
    let there = cluster.field("pod/there", ".status.podIP");
    let here = cluster.field("pod/here", ".status.podIP");
    assert_eq!(cluster.host.sh("ip route show proto 86"), "");
    assert_eq!(machine.host.sh("ip route show proto 86"), "");
    let range = |node: &str| cluster.field(&format!("node/{node}"), ".spec.podCIDR");
    let (first_range, second_range) = (range(&first), range("second"));
    let to_second = format!("ip route add {second_range} via 192.168.77.2");
    let to_first = format!("ip route add {first_range} via 192.168.77.1");
    cluster.host.sh(&to_second);
    machine.host.sh(&to_first);
    assert!(!reaches(&cluster, "here", &there) && !reaches(&cluster, "there", &here));
    let ask = format!("timeout 2 curl -s http://{there}/name || echo nothing");
    assert_eq!(
        cluster.host.sh(&ask).trim(),
        "nothing",
        "the machine itself"
    );
    // Who is no node passes itself off as no pod.
    let stranger = lab::Host::beside(&cluster.host, 3);
    stranger.sh("ip address add 10.42.200.9/32 dev lo");
    stranger.sh(&format!(
        "ip route add {second_range} via 192.168.77.2 src 10.42.200.9"
    ));
    machine
        .host
        .sh("ip route add 10.42.200.0/24 via 192.168.77.3");
    let forge = || stranger.sh(&ask).trim().to_owned();
    assert_eq!(forge(), "nothing");
    let table = |host: &lab::Host| {
        let names = host.sh("nft list tables ip");
        let name = names.lines().find(|line| line.ends_with("-wireguard"));
        name.map(|line| line.trim_start_matches("table ").to_owned())
    };
    let own = table(&cluster.host).unwrap();
    cluster.host.sh(&format!("nft flush chain {own} forward"));
    until("what others have changed is restored", || {
        let list = cluster.host.sh(&format!("nft list table {own}"));
        list.matches("drop").count() == 5
    });
    assert!(!reaches(&cluster, "here", &there));
    cluster.host.sh(&to_second.replace("add", "del"));
    machine.host.sh(&to_first.replace("add", "del"));

    // The object by which nodes know of it is put back, and says what the flag says.
    let asked = "get configmap pod-network -n kube-system -o jsonpath={.data.encryption}";
    cluster.ok("delete configmap pod-network -n kube-system");
    cluster.wait(asked, "wireguard");
    assert!(!reaches(&cluster, "here", &there));

    // Without the flag all nodes go back, and nothing of it stays.
    assert!(cluster.vetch(&["down"]).status.success());
    cluster.flags = Vec::new();
    cluster.up();
    cluster.wait(asked, "none");
    for (from, to) in [("here", &there), ("there", &here)] {
        until(&format!("{from} reaches {to}"), || {
            reaches(&cluster, from, to)
        });
    }
    assert_eq!(forge(), "there", "what was tried before can be done");
    machine.host.sh("ip route del 10.42.200.0/24");
    for host in [&cluster.host, &machine.host] {
        until("its tables are gone", || table(host).is_none());
    }
    machine.ok(&["reset", "--yes"]);
    assert_eq!(machine.host.picture(), idle);
}
