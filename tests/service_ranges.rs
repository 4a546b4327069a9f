//! The range of Services' addresses: it is used up, and grows, on a cluster that runs; a start of another family.

mod lab;

use lab::{Cluster, text};

const RANGE: &str = "10.111.0.0/28";

fn service(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}
---"
    )
}

fn range(name: &str, cidr: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {{name: {name}}}
spec: {{cidrs: [{cidr}]}}
---"
    )
}

/// The pod and the node reach it by its address, the pod also by its name, which the address leads to.
fn is_served(cluster: &Cluster, name: &str, address: &str) {
    let page =
        format!("curl -sf --max-time 5 --retry 5 --retry-connrefused http://{address}/version");
    assert_eq!(cluster.host.sh(&page).trim(), "nginx 1");
    let by_name = cluster.ok(&format!("exec client -- wget -qO- http://{name}/version"));
    assert_eq!(by_name.trim(), "nginx 1");
    let full = format!("{name}.default.svc.cluster.local");
    let forward = cluster.ok(&format!("exec client -- nslookup {full}"));
    assert!(forward.contains(address), "{forward}");
    let back = cluster.ok(&format!("exec client -- nslookup {address}"));
    assert!(back.contains(&full), "{back}");
}

#[test]
#[ignore = "needs root"]
fn a_full_range_grows() {
    let cluster = Cluster::new();
    let up = || {
        let output = cluster.vetch(&["up", "--detach", "--service-cidr", RANGE]);
        assert!(output.status.success(), "{}", text(&output));
    };
    up();
    for image in ["nginx-1", "busybox"] {
        cluster.import(image);
    }
    cluster.ok("run web --image=nginx:1 --labels=app=web --port=80");
    cluster.ok("run client --image=busybox:1 -- sleep 1000");

    // 14 addresses, two of which the API server and the DNS have.
    let all: String = (0..12).map(|index| service(&format!("s{index}"))).collect();
    cluster.apply(&all);
    let file = cluster.root.path().join("one-more.yaml");
    std::fs::write(&file, service("extra")).unwrap();
    let refused = text(&cluster.kubectl(&format!("create -f {}", file.display())));
    let words = "Internal error occurred: failed to allocate a serviceIP: range is full";
    assert!(refused.contains(words), "{refused}");
    let told = "get events --field-selector=reason=ServiceCIDRFull -o jsonpath={.items[*].involvedObject.name}";
    cluster.wait(told, "kubernetes");

    cluster.apply(&(range("more", "10.112.0.0/24") + &range("inside", "10.111.0.0/29")));
    cluster.ok("wait servicecidr --all --for=condition=Ready --timeout=30s");
    cluster.ok(&format!("create -f {}", file.display()));
    let address = cluster.field("service/extra", ".spec.clusterIP");
    assert!(address.starts_with("10.112.0."), "{address}");
    cluster.ready("web");
    cluster.ready("client");
    is_served(&cluster, "extra", &address);
    let route = || cluster.host.sh("ip route show 10.112.0.0/24");
    assert!(route().contains("dev vetch"), "{}", route());

    cluster.kill_daemon();
    up();
    is_served(&cluster, "extra", &address);
    assert!(route().contains("dev vetch"), "{}", route());

    // What another range has as well goes; what nobody else has stays while it is used.
    cluster.ok("delete servicecidr more inside --wait=false");
    let reason =
        "get servicecidr more -o jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
    cluster.wait(reason, "Terminating");
    cluster.wait("get servicecidr inside --ignore-not-found", "");
    is_served(&cluster, "extra", &address);
    let refused = text(&cluster.kubectl("create service clusterip late --tcp=80"));
    assert!(refused.contains(words), "{refused}");
    cluster.ok("delete service extra");
    cluster.wait("get servicecidr more --ignore-not-found", "");
    lab::until("its route is gone", || route().is_empty());
}

#[test]
#[ignore = "needs root"]
fn a_start_without_the_first_ones_flags_names_them() {
    let mut cluster = Cluster::new();
    cluster.host.add_ipv6(1);
    cluster.flags = vec!["--pod-cidr=fd42::/64", "--service-cidr=fd96::/112"];
    cluster.up();
    let down = || {
        let output = cluster.vetch(&["down"]);
        assert!(output.status.success(), "{}", text(&output));
    };
    down();
    let refused = cluster.vetch(&["up", "--detach"]);
    assert!(!refused.status.success());
    let words = "--service-cidr fd96::/112 and a --pod-cidr of the same families";
    assert!(text(&refused).contains(words), "{}", text(&refused));
    // Nothing has begun, and the cluster is as it was.
    cluster.up();
    assert_eq!(
        cluster.field("service/kubernetes", ".spec.clusterIP"),
        "fd96::1"
    );
}
