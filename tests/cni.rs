//! A node whose pods' network is made by Debian's CNI plugins (`containernetworking-plugins`). As root.

mod lab;

use std::{fs, path::PathBuf};

use lab::{Cluster, program, text, until};
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
        let folder = self.cluster.root.path().join("given/net");
        let entries = fs::read_dir(folder).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .collect();
        names.sort();
        names
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

    /// What pod `from` gets from there.
    fn ask(&self, from: &str, whom: &str) -> Result<String, String> {
        let line = format!("timeout 5 wget -qO- http://{whom}/");
        let asked = self
            .cluster
            .kubectl_with(&["exec", from, "--", "sh", "-c", &line]);
        match asked.status.success() {
            true => Ok(text(&asked).trim().to_owned()),
            false => Err(text(&asked)),
        }
    }

    fn reaches(&self, from: &str, whom: &str, want: &str) {
        let mut last = Err(String::new());
        until(&format!("{from} reaches {whom}"), || {
            last = self.ask(from, whom);
            last.is_ok()
        });
        assert_eq!(last.as_deref(), Ok(want), "{from} asks {whom}");
    }
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
