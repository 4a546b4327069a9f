//! Frames, addresses and ports that are not the pod's own.

use std::net::SocketAddr;

use crate::{
    harness::{Health, Tenant, assert_restarts},
    lab::{Cluster, text},
    pod::{Pod, Running, script},
};

const UPLINK: &str = "host0";
const NODE: &str = "192.168.77.1";
const LOOPBACK: &str = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
const LINK_LOCAL: &str = "may not be in the link-local range (169.254.0.0/16, fe80::/10)";
const LINK_LOCAL_GROUP: &str =
    "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";

fn bridge(cluster: &Cluster) -> String {
    let line = "ip -o link show type bridge | grep -o 'vetch[0-9a-f]*' | head -1";
    cluster.host.sh(line).trim().to_owned()
}

fn link_mac(cluster: &Cluster, link: &str) -> String {
    let line = format!("ip -o link show {link} | sed 's/.*ether //; s/ .*//'");
    cluster.host.sh(&line).trim().to_owned()
}

fn listen(mut command: std::process::Command, link: &str) -> Running {
    command.arg(script("frames.py")).args(["listen", link]);
    Running::start(command)
}

/// Every kind of frame that is not a packet with the pod's own addresses to its gateway.
#[test]
#[ignore = "needs root"]
fn no_pod_sends_as_another_or_hears_what_is_not_for_it() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    // What goes out is seen on the uplink, though nobody is there.
    let neighbour = "ip neigh add 192.168.77.254 lladdr 02:00:00:00:77:fe dev host0 nud permanent";
    cluster.host.sh(neighbour);
    let (attacker, victim) = (
        Pod::start(&cluster, "attacker"),
        Pod::start(&cluster, "victim"),
    );
    let health = Health::watch(&cluster);
    let bridge = bridge(&cluster);
    let gateway = cluster.host.sh(&format!(
        "ip -o -4 address show {bridge} | sed 's/.*inet //; s/[/].*//'"
    ));
    let before = cluster.host.sh(&format!("bridge fdb show br {bridge}"));

    let host = |link: &str| listen(cluster.host.command("python3"), link);
    let (on_bridge, on_uplink, at_host) = (host(&bridge), host(UPLINK), host("ip"));
    let at_victim = listen(victim.command("python3"), "eth0");
    let sent = attacker
        .command("python3")
        .arg(script("frames.py"))
        .arg("send")
        .arg(format!("{}/{}", attacker.mac(), attacker.address))
        .arg(format!("{}/{}", victim.mac(), victim.address))
        .arg(format!(
            "{}/{}",
            link_mac(&cluster, &bridge),
            gateway.trim()
        ))
        .arg(format!("{}/-", link_mac(&cluster, &attacker.wire())))
        .arg("192.0.2.9")
        .output()
        .unwrap();
    assert!(sent.status.success(), "{}", text(&sent));
    let names: u32 = text(&sent).trim().parse().unwrap();
    assert!(names > 50, "{names} kinds of frames");
    assert_eq!(at_victim.output(), "done");
    assert_eq!(on_bridge.output(), "done own");
    assert_eq!(on_uplink.output(), "done own");
    assert_eq!(at_host.output(), "done");

    // Nothing was learned, and what is right still passes.
    let after = cluster.host.sh(&format!("bridge fdb show br {bridge}"));
    assert_eq!(before, after);
    let wire = attacker.wire();
    let port = cluster.host.sh(&format!("bridge -d link show dev {wire}"));
    for setting in [
        "learning off",
        "flood off",
        "mcast_flood off",
        "bcast_flood off",
    ] {
        assert!(port.contains(setting), "{port}");
    }
    cluster.ok("expose pod victim --port=80 --target-port=8080");
    let service = cluster.field("service/victim", ".spec.clusterIP");
    let mut server = victim.command("python3");
    server.args(["-u", "-c", SERVER]);
    let _server = Running::start(server);
    for target in [format!("{}:8080", victim.address), format!("{service}:80")] {
        let line = format!("python3 -c \"{CLIENT}\" {}", target.replace(':', " "));
        assert_eq!(attacker.sh(&line), "hello", "{target}");
    }
    health.assert();

    // An older daemon's pods: what it did not set up is there after a restart.
    cluster.host.sh(&format!(
        "nft delete table bridge \"$(nft list tables bridge | head -1 | cut -d' ' -f3)\"
         ip link set {wire} type bridge_slave learning on flood on mcast_flood on bcast_flood on locked off group_fwd_mask 0"
    ));
    assert_restarts(&cluster);
    let again = cluster.host.sh(&format!("bridge -d link show dev {wire}"));
    assert_eq!(again, port);
    let port = cluster.host.sh(&format!("ip -d link show dev {wire}"));
    assert!(port.contains("group_fwd_mask 0xfffd "), "{port}");
    let table = cluster.host.sh("nft list ruleset bridge");
    assert!(
        table.contains(&attacker.address) && table.contains(&victim.address),
        "{table}"
    );
}

const SERVER: &str = "
import socket
s = socket.create_server(('', 8080), family=socket.AF_INET6, dualstack_ipv6=True)
print('ready')
while True:
    c, _ = s.accept()
    c.sendall(b'hello')
    c.close()
";
const CLIENT: &str = "
import socket, sys, time
for attempt in range(50):
    try:
        s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
        break
    except OSError:
        time.sleep(0.1) # the service is a moment old
print(s.makefile().read())
";

/// Host ports, external addresses and cluster IPs that are the cluster's own.
#[test]
#[ignore = "needs root"]
fn what_is_the_nodes_stays_the_nodes() {
    let impossible = [
        ("127.0.0.1", LOOPBACK),
        ("::ffff:127.0.0.1", LOOPBACK),
        ("0.0.0.0", "may not be unspecified (0.0.0.0)"),
        ("169.254.169.254", LINK_LOCAL),
        ("224.0.0.1", LINK_LOCAL_GROUP),
    ];
    nothing_of_the_nodes_is_taken(&Cluster::started(), NODE, &impossible);
}

#[test]
#[ignore = "needs root"]
fn what_is_the_nodes_stays_the_nodes_over_ipv6() {
    let mut cluster = Cluster::new();
    cluster.host.add_ipv6(1);
    cluster.flags = vec!["--pod-cidr=fd42::/64", "--service-cidr=fd96::/112"];
    cluster.up();
    let impossible = [
        ("::1", LOOPBACK),
        ("::", "may not be unspecified (::)"),
        ("fe80::1", LINK_LOCAL),
        ("ff02::1", LINK_LOCAL_GROUP),
    ];
    nothing_of_the_nodes_is_taken(&cluster, "fd77::1", &impossible);
}

/// `node`: its address; `impossible`: external addresses, and why they are refused.
fn nothing_of_the_nodes_is_taken(cluster: &Cluster, node: &str, impossible: &[(&str, &str)]) {
    cluster.import("busybox");
    let tenant = Tenant::new(cluster, "tenant");
    let health = Health::watch(cluster);
    let at = |ip: &str, port: u16| SocketAddr::new(ip.parse().unwrap(), port);

    // The daemon's ports.
    for (name, port, user) in [
        ("api", 6443, "the API server"),
        ("kubelet", 10250, "the kubelet"),
    ] {
        tenant.create(&host_port(name, port));
        let pod = format!("pod/{name} -n tenant");
        cluster.wait(
            &format!("get {pod} -o jsonpath={{.status.reason}}"),
            "NodePorts",
        );
        let said = cluster.ok(&format!("get {pod} -o jsonpath={{.status.message}}"));
        assert!(
            said.ends_with(&format!("host port {port}/TCP is used by {user}")),
            "{said}"
        );
    }
    // Cluster DNS is on one address only: the others' port can be had.
    tenant.create(&host_port("dns", 53));
    cluster.ready("dns -n tenant");
    tenant.create(&host_port("free", 8081));
    cluster.ready("free -n tenant");
    let ask_node = format!("curl -sk -m 5 https://{}/readyz", at(node, 6443));
    cluster.host.sh(&ask_node);

    // Addresses that are impossible.
    for (ip, why) in impossible {
        let refused = tenant.apply(&external("bad", ip, 80));
        let said = text(&refused);
        assert!(
            !refused.status.success() && said.contains(why),
            "{ip}: {said}"
        );
    }

    // Addresses that are taken: the API server's by the node, by its cluster IP, and the DNS'.
    let api = cluster.field("service/kubernetes", ".spec.clusterIP");
    let dns = cluster.ok("get service kube-dns -n kube-system -o jsonpath={.spec.clusterIP}");
    let gateway = cluster.host.sh(&format!(
        "ip -o address show {} scope global | sed 's/.*inet6* //; s/[/].*//'",
        bridge(cluster)
    ));
    for (name, ip, port) in [
        ("node", node, 6443),
        ("node-ssh", node, 2222),
        ("api-ip", &*api, 443),
        ("dns-ip", &*dns, 53),
        ("gateway", gateway.trim(), 53),
    ] {
        tenant.create(&external(name, ip, port));
        let events = format!(
            "get events -n tenant -o jsonpath={{.items[?(@.involvedObject.name==\"{name}\")].reason}}"
        );
        cluster.wait_for(&events, |reasons| reasons.contains("AddressNotServed"));
    }
    // A listener of the host's own is reached, not the tenant's pod.
    let mut ssh = cluster.host.command("python3");
    ssh.args(["-u", "-c", &SERVER.replace("8080", "2222")]);
    let _ssh = Running::start(ssh);
    let client = format!("python3 -c \"{CLIENT}\" {node} 2222");
    assert_eq!(cluster.host.sh(&client).trim(), "hello");
    for target in [at(node, 6443), at(&api, 443)] {
        let line = format!("curl -sk -m 5 https://{target}/readyz");
        assert_eq!(cluster.host.sh(&line), "ok", "{target}");
    }
    // Nor can the addresses be had as cluster IPs, or the daemon's port as node port.
    for ip in [&api, &dns] {
        let service = external("claim", "198.51.100.1", 80)
            .replace("externalIPs: ['198.51.100.1']", &format!("clusterIP: {ip}"));
        let refused = tenant.apply(&service);
        assert!(
            text(&refused).contains("provided IP is already allocated"),
            "{}",
            text(&refused)
        );
    }
    health.assert();
    assert_restarts(cluster);
    assert_eq!(cluster.host.sh(&ask_node), "ok");
}

fn host_port(name: &str, port: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: thief}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox:1
    imagePullPolicy: Never
    command: [sleep, '1000']
    ports: [{{containerPort: 80, hostPort: {port}}}]
"
    )
}

fn external(name: &str, ip: &str, port: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: thief}}
  ports: [{{port: {port}, targetPort: 80}}]
  externalIPs: ['{ip}']
"
    )
}
