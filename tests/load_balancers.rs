//! Services of the type LoadBalancer on the nodes' own addresses, by the commands that a user types. As root.

mod lab;

use std::net::TcpListener;

use lab::{Cluster, Host, Machine, text, until};

const FIRST: &str = "192.168.77.1";
const SECOND: &str = "192.168.77.2";
const OUTSIDE: &str = "192.168.77.9";
const INGRESS: &str = "{.status.loadBalancer.ingress[*].ip}";

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

/// The client that the server saw, if it answered.
fn seen_from(host: &Host, address: &str) -> Option<String> {
    let url = format!("http://{address}/cgi-bin/who");
    let output = host.command("curl").args(["-sf", "-m", "2", &url]).output();
    let output = output.unwrap();
    output.status.success().then(|| plain(&text(&output)))
}

fn seen_from_pod(cluster: &Cluster, pod: &str, address: &str) -> Option<String> {
    let line = format!("timeout 2 wget -qO- http://{address}/cgi-bin/who");
    let output = cluster.kubectl_with(&["exec", pod, "--", "sh", "-c", &line]);
    output.status.success().then(|| plain(&text(&output)))
}

/// The address, as a server tells it that listens on both families.
fn plain(told: &str) -> String {
    let told = told.trim().trim_start_matches("[::ffff:");
    told.trim_end_matches(']').to_owned()
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

/// Waits for an event about the Service that says so.
fn is_told(cluster: &Cluster, service: &str, reason: &str, says: &str) {
    let line = format!(
        "get events --field-selector involvedObject.name={service},reason={reason} -o \
         jsonpath={{.items[*].message}}"
    );
    cluster.wait_for(&line, |got| got.contains(says));
}

fn first_node(cluster: &Cluster) -> String {
    let others = ".items[?(@.metadata.name!=\"second\")].metadata.name";
    cluster.field("nodes", others)
}

#[test]
#[ignore = "needs root"]
fn a_service_answers_on_the_addresses_of_the_nodes() {
    let cluster = Cluster::started();
    let machine = Machine::beside(&cluster, 2);
    machine.join(&cluster, "second");
    let outside = Host::beside(&cluster.host, 9);
    cluster.import("busybox");
    machine.import("busybox");
    let both = format!("{FIRST} {SECOND}");
    cluster.apply(&format!(
        "{}{}{}",
        pod("here", &first_node(&cluster), "web"),
        pod("there", "second", "other"),
        balancer("web", 80, ""),
    ));
    for name in ["here", "there"] {
        cluster.ready(name);
    }
    has_addresses(&cluster, "web", &both);
    is_told(
        &cluster,
        "web",
        "EnsuringLoadBalancer",
        "Ensuring load balancer",
    );
    is_told(
        &cluster,
        "web",
        "EnsuredLoadBalancer",
        "Ensured load balancer",
    );
    let service = |path: &str| cluster.field("service/web", path);
    cluster.wait(
        "get service web -o jsonpath={.metadata.finalizers[*]}",
        "service.kubernetes.io/load-balancer-cleanup",
    );
    assert_eq!(service(".status.loadBalancer.ingress[*].ipMode"), "VIP VIP");
    assert!(
        cluster
            .ok("get service web")
            .contains("192.168.77.1,192.168.77.2")
    );

    // From everywhere, by every node: the one with the endpoint, and the one without.
    for address in [FIRST, SECOND] {
        for (name, host) in [
            ("outside", &outside),
            ("the first node", &cluster.host),
            ("the second node", &machine.host),
        ] {
            until(&format!("{name} is answered by {address}"), || {
                seen_from(host, address).is_some()
            });
        }
        for pod in ["here", "there"] {
            until(&format!("{pod} is answered by {address}"), || {
                seen_from_pod(&cluster, pod, address).is_some()
            });
        }
    }
    // Another port is still the node's own.
    let program = listener(&cluster.host, "0.0.0.0:81");
    outside.sh(&format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{FIRST}/81'"));
    drop(program);

    // Local: the nodes with endpoints alone, and they see the client.
    patch(
        &cluster,
        "service/web",
        "{\"spec\": {\"externalTrafficPolicy\": \"Local\"}}",
    );
    has_addresses(&cluster, "web", FIRST);
    until("the client is seen as it is", || {
        seen_from(&outside, FIRST).as_deref() == Some(OUTSIDE)
    });
    let there = cluster.field("pod/there", ".status.podIP");
    assert_eq!(seen_from_pod(&cluster, "there", FIRST), Some(there));
    until("the other node has nothing", || {
        seen_from(&outside, SECOND).is_none()
    });
    cluster.apply(&pod("there-too", "second", "web"));
    has_addresses(&cluster, "web", &both);
    cluster.ok("delete pod there-too");
    has_addresses(&cluster, "web", FIRST);
    patch(
        &cluster,
        "service/web",
        "{\"spec\": {\"externalTrafficPolicy\": \"Cluster\"}}",
    );
    has_addresses(&cluster, "web", &both);

    // Who may come.
    let ranges =
        |range: &str| format!("{{\"spec\": {{\"loadBalancerSourceRanges\": [\"{range}\"]}}}}");
    patch(&cluster, "service/web", &ranges("192.168.77.8/32"));
    until("outside is kept out", || {
        [FIRST, SECOND]
            .into_iter()
            .all(|address| seen_from(&outside, address).is_none())
    });
    patch(&cluster, "service/web", &ranges("192.168.77.9/32"));
    for address in [FIRST, SECOND] {
        until("outside is let in", || {
            seen_from(&outside, address).is_some()
        });
    }
    patch(
        &cluster,
        "service/web",
        "{\"spec\": {\"loadBalancerSourceRanges\": null}}",
    );

    // A node that does not want it, and one that is not ready.
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    cluster.ok(&format!("label node second {label}="));
    has_addresses(&cluster, "web", FIRST);
    cluster.ok(&format!("label node second {label}-"));
    has_addresses(&cluster, "web", &both);
    machine.ok(&["down"]);
    // As the control plane does after a while.
    let not_ready =
        "{\"status\": {\"conditions\": [{\"type\": \"Ready\", \"status\": \"Unknown\"}]}}";
    cluster.ok_with(&[
        "patch",
        "node",
        "second",
        "--subresource=status",
        "-p",
        not_ready,
    ]);
    has_addresses(&cluster, "web", FIRST);
    machine.ok(&["agent", "--detach"]);
    has_addresses(&cluster, "web", &both);
    is_told(&cluster, "web", "UpdatedLoadBalancer", "with new hosts");

    // Another type takes it all back.
    patch(
        &cluster,
        "service/web",
        "{\"spec\": {\"type\": \"ClusterIP\"}}",
    );
    has_addresses(&cluster, "web", "");
    cluster.wait("get service web -o jsonpath={.status.conditions}", "");
    assert_eq!(service(".metadata.finalizers"), "");
    until("nobody answers any more", || {
        [FIRST, SECOND]
            .into_iter()
            .all(|address| seen_from(&outside, address).is_none())
    });
    patch(
        &cluster,
        "service/web",
        "{\"spec\": {\"type\": \"LoadBalancer\"}}",
    );
    has_addresses(&cluster, "web", &both);
    cluster.ok("delete service web --timeout=30s");
    until("nobody answers any more", || {
        seen_from(&outside, FIRST).is_none()
    });
    let said = [cluster.daemon_log(), machine.daemon_log()].concat();
    assert!(!said.contains("forbidden"), "{said}");
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
fn ports_that_others_have_are_not_taken() {
    let cluster = Cluster::started();
    let outside = Host::beside(&cluster.host, 9);
    cluster.import("busybox");
    cluster.apply(&format!(
        "{}{}",
        pod("here", &first_node(&cluster), "web"),
        balancer("first", 80, "")
    ));
    cluster.ready("here");
    has_addresses(&cluster, "first", FIRST);

    // The older Service keeps a port, and its heir gets it. Ages are told in seconds.
    let created = cluster.field("service/first", ".metadata.creationTimestamp");
    until("another one is younger", || {
        cluster.host.sh("date -u +%FT%TZ").trim() != created
    });
    cluster.apply(&balancer("second", 80, ""));
    let says = "the older Service default/first has port 80/TCP of ";
    is_told(&cluster, "second", "SyncLoadBalancerFailed", says);
    has_addresses(&cluster, "second", "");
    assert!(cluster.ok("get service second").contains("<pending>"));
    let condition = ".status.conditions[?(@.type==\"vetch.io/NodeAddresses\")].reason";
    assert_eq!(cluster.field("service/second", condition), "PortTaken");
    cluster.ok("delete service first --timeout=30s");
    has_addresses(&cluster, "second", FIRST);
    until("the heir is served", || {
        seen_from(&outside, FIRST).is_some()
    });

    // Nobody gets the API server's, the kubelet's or the tunnel's.
    cluster.apply(&format!(
        "{}{}{}{}",
        balancer("api", 6443, ""),
        balancer("kubelet", 10250, ""),
        balancer("tunnel", 8472, "").replace("port: 8472", "protocol: UDP, port: 8472"),
        // Two ports, and one of them is enough.
        balancer("both", 8081, "")
            .replace("ports: [", "ports: [{port: 10250, name: k}, ")
            .replace("port: 8081", "name: p, port: 8081"),
    ));
    for (name, user) in [
        ("api", "the API server"),
        ("kubelet", "the kubelet"),
        ("tunnel", "the tunnel between machines"),
        ("both", "the kubelet"),
    ] {
        is_told(
            &cluster,
            name,
            "SyncLoadBalancerFailed",
            &format!("belongs to {user}"),
        );
        has_addresses(&cluster, name, "");
    }
    for (port, says) in [(10250, "401"), (6443, "403")] {
        let url = format!("https://{FIRST}:{port}/pods");
        let line = format!("curl -sk -m 5 -o /dev/null -w '%{{http_code}}' {url}");
        let said = outside.sh(&line);
        assert!(said == says || said == "401", "{port}: {said}");
    }
    assert_eq!(seen_from(&outside, &format!("{FIRST}:8081")), None);
    // Nor by a change of the one that it has.
    patch(
        &cluster,
        "service/second",
        "{\"spec\": {\"ports\": [{\"port\": 10250, \"targetPort\": 80}]}}",
    );
    is_told(
        &cluster,
        "second",
        "SyncLoadBalancerFailed",
        "belongs to the kubelet",
    );
    has_addresses(&cluster, "second", "");
    // Whoever owns a Service has no say in its status.
    cluster.ok("create rolebinding jane --clusterrole=admin --user=jane");
    for verb in ["update", "patch"] {
        let line = format!("auth can-i {verb} services --subresource=status --as=jane");
        assert_eq!(text(&cluster.kubectl(&line)).trim(), "no");
    }

    // A program of the node that listens keeps its port.
    let program = listener(&cluster.host, "0.0.0.0:8022");
    cluster.apply(&balancer("program", 8022, ""));
    is_told(
        &cluster,
        "program",
        "AddressNotServed",
        "192.168.77.1:8022 is not served: a program of the node listens on the port",
    );
    assert_eq!(seen_from(&outside, &format!("{FIRST}:8022")), None);
    drop(program);
    // A change of the Service, or some minutes, and it is noticed.
    cluster.ok("annotate service program a=b");
    patch(
        &cluster,
        "service/program",
        "{\"spec\": {\"sessionAffinity\": \"ClientIP\"}}",
    );
    until("it is served", || {
        seen_from(&outside, &format!("{FIRST}:8022")).is_some()
    });

    // An address that is no node's, and a class that is somebody else's.
    cluster.apply(&format!(
        "{}{}{}",
        balancer("pinned", 8082, ", loadBalancerIP: 192.168.77.200"),
        balancer("other", 8083, ", loadBalancerClass: example.org/other"),
        balancer(
            "asked",
            8084,
            ", loadBalancerClass: vetch.io/node, allocateLoadBalancerNodePorts: false"
        ),
    ));
    is_told(
        &cluster,
        "pinned",
        "SyncLoadBalancerFailed",
        "set it to one of 192.168.77.1, or remove it",
    );
    has_addresses(&cluster, "asked", FIRST);
    has_addresses(&cluster, "other", "");
    assert_eq!(cluster.field("service/other", ".metadata.finalizers"), "");
    assert_eq!(
        cluster.field("service/asked", ".spec.ports[0].nodePort"),
        ""
    );
    until("it is served", || {
        seen_from(&outside, &format!("{FIRST}:8084")).is_some()
    });
    patch(
        &cluster,
        "service/pinned",
        "{\"spec\": {\"loadBalancerIP\": \"192.168.77.1\"}}",
    );
    has_addresses(&cluster, "pinned", FIRST);
}

#[test]
#[ignore = "needs root"]
fn another_program_can_give_the_addresses() {
    let cluster = Cluster::started();
    cluster.apply(&balancer("web", 80, ""));
    has_addresses(&cluster, "web", FIRST);
    assert!(cluster.vetch(&["down"]).status.success());
    let up = cluster.vetch(&["up", "--detach", "--disable=service-lb"]);
    assert!(up.status.success(), "{}", text(&up));
    // What was given is taken back, so that nothing waits for who does not run.
    has_addresses(&cluster, "web", "");
    assert_eq!(cluster.field("service/web", ".metadata.finalizers"), "");
    cluster.apply(&balancer("more", 81, ""));
    let status = "{\"status\": {\"loadBalancer\": {\"ingress\": [{\"ip\": \"192.168.77.100\"}]}}}";
    cluster.ok_with(&[
        "patch",
        "service",
        "more",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    cluster.ok("delete service web --timeout=30s");
    assert_eq!(
        cluster.field("service/more", ".status.loadBalancer.ingress[*].ip"),
        "192.168.77.100"
    );
    let unknown = cluster.vetch(&["up", "--disable=everything"]);
    assert!(text(&unknown).contains("service-lb"), "{}", text(&unknown));
}
