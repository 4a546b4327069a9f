//! Labs with IPv6 alone and with both families: what holds of machines, pods and Services with IPv4 holds there too.

use std::net::IpAddr;

use super::{FLAGS, Machine, pod, text, until};

impl Machine {
    /// With machines, pods and Services of such addresses.
    fn up_with(&self, nodes: &str, ip_family: &str) -> String {
        let words = ["up", "--nodes", nodes, "--ip-family", ip_family, "--"];
        self.ok(&[&words[..], &FLAGS[..]].concat())
    }
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ipFamilyPolicy: PreferDualStack, selector: {{app: {name}}}, ports: [{{port: 80}}]}}
---
"
    )
}

/// As it stands in a URL.
fn host_of(address: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    }
}

/// A lab of two machines, and what its families are for.
struct Lab<'a> {
    machine: &'a Machine,
    name: &'a str,
}

impl Lab<'_> {
    fn field(&self, object: &str, path: &str) -> Vec<String> {
        let path = format!("jsonpath={{{path}}}");
        let said = self
            .machine
            .kubectl_ok(self.name, &["get", object, "-o", &path]);
        said.split_whitespace().map(str::to_owned).collect()
    }

    /// Whether that pod is answered by this address.
    fn asks(&self, pod: &str, address: &str) -> bool {
        let url = format!("http://{}/busybox", host_of(address));
        let ask = [
            "exec",
            pod,
            "--",
            "timeout",
            "2",
            "wget",
            "-qO",
            "/dev/null",
            &url,
        ];
        self.machine.kubectl(self.name, &ask).status.success()
    }

    fn exec(&self, host: &str, line: &str) -> String {
        let words = ["exec", "--name", self.name, host, "--", "sh", "-c", line];
        self.machine.ok(&words)
    }

    fn state(&self, host: &str) -> String {
        let all = self.machine.ok(&["list"]);
        let line = all.lines().find(|line| line.contains(host)).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    }
}

/// How many addresses of each family: none, or one.
fn families(addresses: &[String]) -> (usize, usize) {
    let parsed = addresses.iter().map(|one| one.parse::<IpAddr>().unwrap());
    let (v4, v6): (Vec<_>, Vec<_>) = parsed.partition(IpAddr::is_ipv4);
    (v4.len(), v6.len())
}

fn is_a_cluster_with_faults(ip_family: &str, of_each: (usize, usize)) {
    let machine = Machine::new();
    let said = machine.up_with("1", ip_family);
    let groups = machine.groups("default");
    let lab = Lab {
        machine: &machine,
        name: "default",
    };
    assert_eq!(machine.ready("default"), 2, "{said}");

    // The machines have these families and no others, on the link and in the API.
    for host in ["server1", "node1"] {
        let internal = ".status.addresses[?(@.type==\"InternalIP\")].address";
        let mut addresses = lab.field(&format!("node/{host}"), internal);
        assert_eq!(families(&addresses), of_each, "{host}: {addresses:?}");
        let line = "ip -o address show dev eth0 scope global | awk '{print $4}' | cut -d/ -f1";
        let mut on_link: Vec<String> = lab.exec(host, line).lines().map(str::to_owned).collect();
        on_link.sort();
        addresses.sort();
        assert_eq!(on_link, addresses, "{host}");
        assert!(said.contains(&addresses[0]), "{said}");
        let ranges = lab.field(&format!("node/{host}"), ".spec.podCIDRs[*]");
        assert_eq!(ranges.len(), of_each.0 + of_each.1, "{ranges:?}");
        machine.import("default", host, "busybox");
    }

    let app = |name: &str, node: &str| {
        let named = format!("{{name: {name}}}");
        let labelled = format!("{{name: {name}, labels: {{app: {name}}}}}");
        pod(name, node).replacen(&named, &labelled, 1) + &service(name)
    };
    machine.apply("default", &(app("one", "server1") + &app("two", "node1")));
    for name in ["one", "two"] {
        super::is_ready(&machine, name);
    }
    // Pods of both machines reach each other: by addresses, by Services and by their names.
    for (from, to) in [("one", "two"), ("two", "one")] {
        let pods = lab.field(&format!("pod/{to}"), ".status.podIPs[*].ip");
        let services = lab.field(&format!("service/{to}"), ".spec.clusterIPs[*]");
        for addresses in [&pods, &services] {
            assert_eq!(families(addresses), of_each, "{to}: {addresses:?}");
        }
        for address in pods.iter().chain(&services).chain([&to.to_owned()]) {
            until(&format!("{from} reaches {address}"), || {
                lab.asks(from, address)
            });
        }
    }

    // Its faults are those of any lab.
    let two = lab.field("pod/two", ".status.podIPs[*].ip");
    let service = lab.field("service/two", ".spec.clusterIPs[*]");
    let all: Vec<&String> = two.iter().chain(&service).collect();
    let reached = || all.iter().all(|address| lab.asks("one", address));
    machine.ok(&["cut", "node1"]);
    assert_eq!(lab.state("node1"), "cut");
    for address in &all {
        assert!(
            !lab.asks("one", address),
            "{address} of a machine that is cut off"
        );
    }
    machine.ok(&["heal"]);
    assert_eq!(lab.state("node1"), "up");
    until("it is reached again", reached);
    machine.ok(&["kill", "node1"]);
    machine.ok(&["heal", "node1"]);
    assert_eq!(machine.ready("default"), 2);
    until("its pod runs again", || {
        let two = lab.field("pod/two", ".status.podIPs[*].ip");
        families(&two) == of_each && two.iter().all(|address| lab.asks("one", address))
    });
    // And so is a restart of the machine.
    machine.restart("default");
    machine.ok(&["heal"]);
    assert_eq!(machine.ready("default"), 2);

    machine.ok(&["down"]);
    machine.is_as_before(&groups);
}

#[test]
#[ignore = "needs root"]
fn a_lab_of_ipv6_alone() {
    is_a_cluster_with_faults("ipv6", (0, 1));
}

#[test]
#[ignore = "needs root"]
fn a_lab_of_both_families() {
    is_a_cluster_with_faults("dual", (1, 1));
}

/// The links of a lab have IPv6 also where the machine gives it to no new link; its settings stay as they are.
#[test]
#[ignore = "needs root"]
fn a_machine_may_have_ipv6_switched_off() {
    let machine = Machine::new();
    machine
        .host
        .sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    let before = machine.host.picture();
    machine.up_with("0", "dual");
    assert_eq!(machine.ready("default"), 1);
    machine.ok(&["down"]);
    assert_eq!(machine.host.picture(), before);
    let wrong = ["up", "--ip-family", "both"];
    let refused = machine.run(&wrong);
    assert!(!refused.status.success());
    assert!(
        text(&refused).contains("possible values: ipv4, ipv6, dual"),
        "{}",
        text(&refused)
    );
}
