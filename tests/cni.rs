//! A node whose pods' network is made by Debian's CNI plugins (`containernetworking-plugins`). As root.

mod lab;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use lab::{Cluster, Host, Machine, SERVER, program, text, until, until_none};
use serde_json::json;

/// Where Debian has them.
const PLUGINS: &str = "/usr/lib/cni";
const PODS: &str = "10.42.0.0/24,fd42::/64";
const SERVICES: &str = "10.96.0.0/12,fd96::/112";

struct Node {
    cluster: Cluster,
}

impl Node {
    fn new() -> Self {
        let bridge = format!("{PLUGINS}/bridge");
        assert!(
            fs::exists(bridge).unwrap(),
            "{PLUGINS} has no plugins: apt-get install containernetworking-plugins"
        );
        let cluster = Cluster::new();
        cluster.host.add_ipv6(1);
        let node = Self { cluster };
        fs::create_dir(node.configurations()).unwrap();
        node
    }

    fn configurations(&self) -> PathBuf {
        self.cluster.root.path().join("net.d")
    }

    /// What host-local has given out.
    fn given_out(&self) -> Vec<String> {
        given_out(self.cluster.root.path())
    }

    /// A bridge with room for two pods.
    fn configure(&self) {
        let range = |subnet: &str, first: &str, last: &str| json!([{"subnet": subnet, "rangeStart": first, "rangeEnd": last}]);
        let list = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": self.cluster.root.path().join("given"),
                "ranges": [
                    range("10.42.0.0/24", "10.42.0.2", "10.42.0.3"),
                    range("fd42::/64", "fd42::2", "fd42::9"),
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }]});
        let file = self.configurations().join("10-net.conflist");
        fs::write(file, list.to_string()).unwrap();
    }

    fn up(&self) {
        let configurations = self.configurations();
        let output = self.cluster.vetch(&[
            "up",
            "--detach",
            "--cni-conf-dir",
            configurations.to_str().unwrap(),
            "--cni-bin-dir",
            PLUGINS,
            "--pod-cidr",
            PODS,
            "--service-cidr",
            SERVICES,
        ]);
        assert!(output.status.success(), "{}", text(&output));
    }

    fn ask(&self, from: &str, whom: &str) -> Result<String, String> {
        ask(&self.cluster, from, whom)
    }

    fn reaches(&self, from: &str, whom: &str, want: &str) {
        reaches(&self.cluster, from, whom, want);
    }
}

/// What host-local has given out of the network `net`, by its files below this root.
fn given_out(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("given/net")).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| name.parse::<IpAddr>().is_ok())
        .collect();
    names.sort();
    names
}

/// What pod `from` gets from there.
fn ask(cluster: &Cluster, from: &str, whom: &str) -> Result<String, String> {
    let line = format!("timeout 5 wget -qO- http://{whom}/");
    let asked = cluster.kubectl_with(&["exec", from, "--", "sh", "-c", &line]);
    match asked.status.success() {
        true => Ok(text(&asked).trim().to_owned()),
        false => Err(text(&asked)),
    }
}

fn reaches(cluster: &Cluster, from: &str, whom: &str, want: &str) {
    let mut last = Err(String::new());
    until(&format!("{from} reaches {whom}"), || {
        last = ask(cluster, from, whom);
        last.is_ok()
    });
    assert_eq!(last.as_deref(), Ok(want), "{from} asks {whom}");
}

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, 'mkdir /w; echo {name} >/w/index.html; exec httpd -f -p 80 -h /w']
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ipFamilyPolicy: PreferDualStack, ports: [{{port: 80}}]}}
---
"
    )
}

#[test]
#[ignore = "needs root"]
fn pods_live_on_a_network_of_plugins() {
    let node = Node::new();
    let cluster = &node.cluster;

    // Nobody has brought a network yet: the cluster is up, its node is not ready, and that is told.
    node.up();
    let ready = "{.items[0].status.conditions[?(@.type==\"Ready\")]";
    let path = format!("get nodes -o jsonpath={ready}.reason}}/{ready}.message}}");
    let want = "KubeletNotReady/container runtime network not ready: NetworkReady=false \
                reason:NetworkPluginNotReady message:cni config uninitialized: there is no *.conflist";
    cluster.wait_for(&path, |told| told.starts_with(want));
    let status = cluster.vetch(&["status"]);
    assert!(!status.status.success());
    let status = text(&status);
    assert!(status.contains("networks of CNI plugins"), "{status}");
    assert!(
        status.contains("vetch check --cni-conf-dir DIR"),
        "{status}"
    );
    let check = |node: &Node| {
        let mut command = node.cluster.host.command(program());
        command.args(["check", "--cni-bin-dir", PLUGINS, "--cni-conf-dir"]);
        text(&command.arg(node.configurations()).output().unwrap())
    };
    let told = check(&node);
    assert!(told.contains("MISSING  a network of CNI plugins"), "{told}");

    node.configure();
    cluster.wait(&format!("get nodes -o jsonpath={ready}.status}}"), "True");
    let told = check(&node);
    assert!(told.contains("ok       a network of CNI plugins"), "{told}");
    cluster.import("busybox");
    cluster.apply(&(pod("a") + &pod("b")));
    cluster.ready("a");
    cluster.ready("b");
    let addresses = |pod: &str| cluster.field(&format!("pod/{pod}"), ".status.podIPs[*].ip");
    let before = [addresses("a"), addresses("b")];
    let mut both: Vec<&str> = before.iter().flat_map(|both| both.split(' ')).collect();
    both.sort_unstable();
    assert_eq!(both, ["10.42.0.2", "10.42.0.3", "fd42::2", "fd42::3"]);
    assert_eq!(node.given_out(), both);
    // Nothing of our own network.
    let links = cluster.host.sh("ip -o link");
    assert!(
        links.contains("cni0") && !links.contains("vetch"),
        "{links}"
    );
    let tables = cluster.host.sh("nft list tables");
    assert!(!tables.contains("bridge vetch"), "{tables}");

    // Pod to pod, by a Service's address and by its name, over both families, and to itself.
    let talk = || {
        for address in addresses("b").split(' ') {
            let address = match address.contains(':') {
                true => format!("[{address}]"),
                false => address.to_owned(),
            };
            node.reaches("a", &address, "b");
        }
        let services = cluster.field("service/b", ".spec.clusterIPs[*]");
        let v4 = services.split(' ').find(|one| !one.contains(':')).unwrap();
        let v6 = services.split(' ').find(|one| one.contains(':')).unwrap();
        node.reaches("a", v4, "b");
        node.reaches("a", &format!("[{v6}]"), "b");
        node.reaches("a", "b.default.svc.cluster.local", "b");
        node.reaches("b", "b", "b");
        let asked = cluster
            .host
            .sh(&format!("curl -s --max-time 5 http://{v4}/"));
        assert_eq!(asked.trim(), "b");
    };
    talk();
    // The DNS is the node's, and is found by the Service.
    let slices =
        "get endpointslices -n kube-system -o jsonpath={.items[*].endpoints[*].addresses[*]}";
    let mut found: Vec<String> = cluster.ok(slices).split(' ').map(str::to_owned).collect();
    found.sort();
    assert_eq!(found, ["192.168.77.1", "fd77::1"]);

    // Policies hold here too.
    cluster.apply(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: none}, \
         spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress]}}",
    );
    until("nobody reaches b any more", || node.ask("a", "b").is_err());
    cluster.ok("delete networkpolicy none");
    node.reaches("a", "b", "b");

    // A daemon that dies leaves them as they are.
    let started = |pod: &str| {
        let path = ".status.containerStatuses[0].containerID";
        cluster.field(&format!("pod/{pod}"), path)
    };
    let containers = [started("a"), started("b")];
    cluster.kill_daemon();
    node.up();
    cluster.ready("a");
    cluster.ready("b");
    assert_eq!([addresses("a"), addresses("b")], before);
    assert_eq!([started("a"), started("b")], containers);
    talk();

    // There is no address for a third, until one goes.
    cluster.apply(&pod("c"));
    let events =
        "get events --field-selector reason=FailedCreatePodSandBox -o jsonpath={.items[*].message}";
    let told = cluster.wait_for(events, |told| told.contains("no IP addresses available"));
    let want = "Failed to create pod sandbox: failed to setup network for sandbox ";
    assert!(told.starts_with(want), "{told}");
    assert!(
        told.contains("plugin type=\"bridge\" failed (add): "),
        "{told}"
    );
    assert!(told.contains(" (code "), "{told}");
    cluster.ok("delete pod b");
    cluster.ready("c");
    node.reaches("a", "c", "c");
    let ours = |pod: &str| {
        addresses(pod)
            .split(' ')
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut left = [ours("a"), ours("c")].concat();
    left.sort();
    assert_eq!(node.given_out(), left);

    // Pods keep their network as long as they run.
    let output = cluster.vetch(&["down"]);
    assert!(output.status.success(), "{}", text(&output));
    let output = cluster.vetch(&[
        "up",
        "--detach",
        "--pod-cidr",
        PODS,
        "--service-cidr",
        SERVICES,
    ]);
    let told = text(&output);
    assert!(!output.status.success(), "{told}");
    assert!(
        told.contains("pods of this node (2) run on a network of CNI plugins"),
        "{told}"
    );
    node.up();
    cluster.ready("c");
    assert_eq!(node.given_out(), left);

    // Nothing is left, but for what is the plugins' own.
    let output = cluster.vetch(&["reset", "--yes"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(node.given_out(), [""; 0]);
    let links = cluster.host.sh("ip -o link");
    assert!(!links.contains("veth"), "{links}");
    assert_eq!(cluster.host.sh("nft list ruleset"), "");
    let mounts = cluster.host.sh("cut -d' ' -f2 /proc/self/mounts");
    let root = cluster.root.path().to_str().unwrap();
    assert!(!mounts.contains(root), "{mounts}");
}

/// From the node's own network to that of plugins and back, without a pod that runs.
#[test]
#[ignore = "needs root"]
fn a_node_changes_over_when_no_pod_runs() {
    let node = Node::new();
    let cluster = &node.cluster;
    let ranges = ["--pod-cidr", PODS, "--service-cidr", SERVICES];
    let up = || cluster.vetch(&[&["up", "--detach"][..], &ranges[..]].concat());
    let output = up();
    assert!(output.status.success(), "{}", text(&output));
    cluster.import("busybox");
    cluster.apply(&pod("a"));
    cluster.ready("a");
    node.configure();
    let ok = |arguments: &[&str]| {
        let output = cluster.vetch(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    };
    ok(&["down"]);
    let configurations = node.configurations();
    let with_plugins = ["up", "--detach", "--cni-bin-dir", PLUGINS, "--cni-conf-dir"];
    let with_plugins = [&with_plugins[..], &[configurations.to_str().unwrap()]].concat();
    let output = cluster.vetch(&[&with_plugins[..], &ranges[..]].concat());
    let told = text(&output);
    assert!(!output.status.success(), "{told}");
    assert!(
        told.contains("pods of this node (1) run on the node's own network"),
        "{told}"
    );
    assert!(told.contains("vetch down --pods --root "), "{told}");

    let output = up();
    assert!(output.status.success(), "{}", text(&output));
    cluster.ready("a");
    ok(&["down", "--pods"]);
    node.up();
    // Its object is there still, and it starts anew on the other network.
    until("the pod is there again", || {
        cluster.kubectl("exec a -- true").status.success()
    });
    assert!(!node.given_out().is_empty());
    let links = cluster.host.sh("ip -o link");
    assert!(
        links.contains("cni0") && !links.contains("vetch"),
        "{links}"
    );
    node.reaches("a", "a", "a");

    ok(&["down", "--pods"]);
    assert!(node.given_out().is_empty());
    let output = up();
    assert!(output.status.success(), "{}", text(&output));
    until("the pod is there once more", || {
        cluster.kubectl("exec a -- true").status.success()
    });
    let links = cluster.host.sh("ip -o link");
    assert!(links.contains("vetch"), "{links}");
}

/// A network of plugins for any node of a cluster: addresses of the node's own range, and ports of the node by
/// Debian's `portmap`, which writes them with iptables.
fn with_ports(folder: &Path) -> String {
    let configurations = folder.join("net.d");
    fs::create_dir(&configurations).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
        {
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
            "capabilities": {"ipRanges": true},
            "ipam": {
                "type": "host-local", "dataDir": folder.join("given"),
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    ]});
    fs::write(configurations.join("10-net.conflist"), list.to_string()).unwrap();
    format!("--cni-conf-dir={}", configurations.display())
}

/// Chains of single pods that `portmap` has made on this host, in both families.
fn pod_chains(host: &Host) -> Vec<String> {
    let all = host.sh("iptables -t nat -S 2>/dev/null; ip6tables -t nat -S 2>/dev/null");
    let chains = all.lines().filter(|line| line.starts_with("-N CNI-DN-"));
    chains.map(str::to_owned).collect()
}

fn on_node(name: &str, node: &str, ports: &str) -> String {
    let more = format!("  nodeSelector: {{kubernetes.io/hostname: {node}}}\n  containers:");
    let ports = format!("image: busybox:1\n    ports: [{ports}]");
    pod(name)
        .replace("  containers:", &more)
        .replace("image: busybox:1", &ports)
}

#[test]
#[ignore = "needs root"]
fn plugins_open_ports_on_another_machine() {
    let cluster = Cluster::new();
    // What all names of it lead to.
    let iptables = cluster.host.sh("readlink -f \"$(command -v iptables)\"");
    let iptables = iptables.trim();
    assert!(!iptables.is_empty(), "apt-get install iptables");
    // The first host's end of the link is a bridge: its own rules must not take what passes for another host.
    for family in ["ip", "ip6"] {
        let setting = format!("net.bridge.bridge-nf-call-{family}tables");
        cluster.host.sh(&format!("sysctl -qw {setting}=0"));
    }
    cluster.host.add_ipv6(1);
    let bin = format!("--cni-bin-dir={PLUGINS}");
    let own = with_ports(cluster.root.path());
    let (pods, services) = (
        format!("--pod-cidr={PODS}"),
        format!("--service-cidr={SERVICES}"),
    );
    let up = cluster.vetch(&["up", "--detach", &own, &bin, &pods, &services]);
    assert!(up.status.success(), "{}", text(&up));
    let machine = Machine::beside(&cluster, 2);
    machine.host.add_ipv6(2);
    let outside = Host::beside(&cluster.host, 9);
    outside.add_ipv6(9);
    let configured = with_ports(machine.root.path());
    let token = format!("--token={}", cluster.token());
    let server = format!("--server={SERVER}");
    machine.ok(&[
        "agent",
        "--detach",
        &server,
        &token,
        "--node-name=second",
        &configured,
        &bin,
    ]);
    cluster.import("busybox");
    machine.import("busybox");
    let first = cluster.field(
        "nodes",
        ".items[?(@.metadata.name!=\"second\")].metadata.name",
    );
    for node in ["second", &first] {
        let path = format!(
            "get node {node} -o jsonpath={{.status.conditions[?(@.type==\"Ready\")].status}}"
        );
        cluster.wait(&path, "True");
    }
    // Routes between the nodes are the site's own.
    let ranges = |node: &str| cluster.field(&format!("node/{node}"), ".spec.podCIDRs[*]");
    for (host, node, number) in [(&cluster.host, "second", 2), (&machine.host, &*first, 1)] {
        for range in ranges(node).split(' ') {
            let via = match range.contains(':') {
                true => format!("fd77::{number}"),
                false => format!("192.168.77.{number}"),
            };
            host.sh(&format!("ip route add {range} via {via}"));
        }
    }

    let two_ports = "{containerPort: 80, hostPort: 8080}, {containerPort: 80, hostPort: 8081, hostIP: 192.168.77.2}";
    cluster.apply(&(on_node("here", &first, "") + &on_node("there", "second", two_ports)));
    cluster.ready("here");
    cluster.ready("there");
    let addresses = |pod: &str| cluster.field(&format!("pod/{pod}"), ".status.podIPs[*].ip");
    let given_out = || given_out(machine.root.path());
    let theirs: Vec<String> = addresses("there").split(' ').map(str::to_owned).collect();
    assert_eq!(given_out(), theirs);
    let wide: Vec<IpNet> = ranges("second")
        .split(' ')
        .map(|one| one.parse().unwrap())
        .collect();
    for (address, range) in theirs.iter().zip(&wide) {
        assert!(
            range.contains(&address.parse::<IpAddr>().unwrap()),
            "{address} {range}"
        );
    }

    // Between the machines, by addresses and by a Service.
    for address in theirs
        .iter()
        .map(|one| host_of(one))
        .chain(["there".into()])
    {
        reaches(&cluster, "here", &address, "there");
    }
    reaches(&cluster, "there", "here", "here");
    // The port of the machine, from elsewhere and from the machine itself.
    let answers = |host: &Host, at: &str| {
        let asked = host.command("curl").args(["-s", "-m", "2", at]).output();
        text(&asked.unwrap()).trim() == "there"
    };
    let everywhere = || {
        for (host, at) in [
            (&outside, "192.168.77.2:8080"),
            (&outside, "[fd77::2]:8080"),
            (&outside, "192.168.77.2:8081"),
            (&cluster.host, "192.168.77.2:8080"),
            (&machine.host, "192.168.77.2:8080"),
            (&machine.host, "127.0.0.1:8080"),
        ] {
            until(&format!("the pod answers at {at}"), || answers(host, at));
        }
    };
    everywhere();
    // Not by another family than that of its address.
    assert!(!answers(&outside, "[fd77::2]:8081"));
    assert!(
        !answers(&cluster.host, "127.0.0.1:8080"),
        "it is the other machine's"
    );
    assert_eq!(pod_chains(&machine.host).len(), 2, "one for each family");
    assert!(pod_chains(&cluster.host).is_empty());

    // A daemon that dies leaves the ports as they are.
    let kill = || {
        let daemon = fs::read_to_string(machine.root.path().join("run/vetch.lock")).unwrap();
        machine.host.sh(&format!("kill -9 {}", daemon.trim()));
    };
    kill();
    everywhere();
    machine.ok(&["agent", "--detach", &configured, &bin]);
    cluster.ready("there");
    everywhere();

    // With the pod all that its plugins have made goes.
    let nothing_is_left = || {
        until_none("what its plugins have given out", given_out);
        until_none("chains of its ports", || pod_chains(&machine.host));
        let links = machine.host.sh("ip -o link");
        assert!(!links.contains("veth"), "{links}");
        let mounts = machine.host.sh("cut -d' ' -f2 /proc/self/mounts");
        let root = machine.root.path().to_str().unwrap();
        let ours = mounts.lines().find(|one| one.starts_with(root));
        assert_eq!(ours, None);
        for at in ["192.168.77.2:8080", "[fd77::2]:8080", "192.168.77.2:8081"] {
            let asked = outside.command("curl").args(["-s", "-m", "2", at]).output();
            assert!(!asked.unwrap().status.success(), "{at}");
        }
    };
    cluster.ok("delete pod there");
    nothing_is_left();

    // Without iptables there is no such pod, and its events say what is missing; it comes as soon as that is there.
    machine
        .host
        .sh(&format!("mount --bind /dev/null {iptables}"));
    cluster.apply(&on_node("there", "second", two_ports));
    let events = "get events --field-selector involvedObject.name=there,reason=FailedCreatePodSandBox -o \
                  jsonpath={.items[*].message}";
    let told = cluster.wait_for(events, |told| {
        told.contains("\"iptables\": executable file not found in $PATH")
    });
    assert!(
        told.contains("plugin type=\"portmap\" failed (add): "),
        "{told}"
    );
    machine.host.sh(&format!("umount {iptables}"));
    cluster.ready("there");
    everywhere();
    assert_eq!(
        pod_chains(&machine.host).len(),
        2,
        "nothing is left of what failed"
    );
    assert_eq!(given_out().len(), 2);

    // A pod that goes while no daemon is there.
    kill();
    cluster.ok("delete pod there --force --grace-period=0");
    machine.ok(&["agent", "--detach", &configured, &bin]);
    nothing_is_left();
    let said = [cluster.daemon_log(), machine.daemon_log()].concat();
    assert!(!said.contains("forbidden"), "{said}");
}

fn host_of(address: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    }
}
