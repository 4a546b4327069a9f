//! What shows at the edges: amounts below the resolution, lines without an end, probes that never end,
//! and what users' webhooks and other programs of the host refuse the cluster itself.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Child, Stdio},
};

use crate::{
    dead_webhook,
    lab::{Cluster, text, until},
};

/// Rules for all that a node says of itself.
const NODES: &str = r#"
  - {apiGroups: ["", coordination.k8s.io], apiVersions: ["*"], operations: [CREATE, UPDATE],
     resources: [nodes, nodes/status, leases]}
  - {apiGroups: [rbac.authorization.k8s.io], apiVersions: ["*"], operations: ["*"],
     resources: [clusterroles]}
"#;

fn cluster() -> Cluster {
    let cluster = Cluster::started();
    cluster.import("busybox");
    cluster
}

/// One cluster for what shows best with kubectl.
#[test]
#[ignore = "needs root"]
fn small_things_are_as_the_original_has_them() {
    let cluster = cluster();
    cluster.apply(PODS);
    cpu_is_no_less_than_a_thousandth(&cluster);
    a_last_line_without_its_end_is_one(&cluster);
    what_a_resolver_cannot_take_is_told(&cluster);
    probes_that_never_end_leave_nothing(&cluster);
    logs_are_for_root_alone(&cluster);
    a_webhook_that_refuses_the_node_is_named(&cluster);
}

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: small}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, "echo one; printf two"]
    resources: {requests: {cpu: "0.0001"}, limits: {cpu: 100u, memory: 16Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: names}
spec:
  terminationGracePeriodSeconds: 0
  dnsConfig: {nameservers: [192.0.2.1, 192.0.2.2, 192.0.2.3]}
  containers:
  - {name: a, image: 'busybox:1', command: [sleep, infinity]}
  - {name: b, image: 'busybox:1', command: [sleep, infinity]}
---
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox:1
    command: [sleep, infinity]
    readinessProbe: {exec: {command: [sleep, "3600"]}, periodSeconds: 1, timeoutSeconds: 1}
"#;

fn cpu_is_no_less_than_a_thousandth(cluster: &Cluster) {
    let resources = cluster.field("pod/small", ".spec.containers[0].resources");
    let resources: serde_json::Value = serde_json::from_str(&resources).unwrap();
    let want = serde_json::json!({"requests": {"cpu": "1m", "memory": "16Mi"},
        "limits": {"cpu": "1m", "memory": "16Mi"}});
    assert_eq!(resources, want);
}

fn a_last_line_without_its_end_is_one(cluster: &Cluster) {
    cluster.wait("get pod small -o jsonpath={.status.phase}", "Succeeded");
    for (lines, want) in [("1", "two"), ("2", "one\ntwo"), ("-1", "one\ntwo")] {
        let got = cluster.ok(&format!("logs small --tail={lines}"));
        assert_eq!(got, want, "--tail={lines}");
    }
    assert_eq!(cluster.ok("logs small --limit-bytes=5"), "one\nt");
}

fn what_a_resolver_cannot_take_is_told(cluster: &Cluster) {
    cluster.ready("names");
    let reason = "get events --field-selector=reason=DNSConfigForming -o";
    let event = "jsonpath={range .items[*]}{.type} {.involvedObject.name} {.count} {.message}{end}";
    let said = cluster.wait_for(&format!("{reason} name"), |got| got.contains("event"));
    assert_eq!(
        said.lines().count(),
        1,
        "one event, whatever the containers"
    );
    let mut words: Vec<&str> = reason.split(' ').collect();
    words.push(event);
    let dns = cluster.field("service/kube-dns -n kube-system", ".spec.clusterIP");
    let want = format!(
        "Warning names 1 Nameserver limits were exceeded, some nameservers have been omitted, the \
         applied nameserver line is: {dns} 192.0.2.1 192.0.2.2"
    );
    assert_eq!(cluster.ok_with(&words), want);
    let file = cluster.ok("exec names -c b -- cat /etc/resolv.conf");
    assert_eq!(file.matches("nameserver").count(), 3, "{file}");
}

fn probes_that_never_end_leave_nothing(cluster: &Cluster) {
    let failed = "get events --field-selector=reason=Unhealthy -o jsonpath={.items[*].count}";
    cluster.wait_for(failed, |got| got.parse().is_ok_and(|count: u32| count >= 3));
    let states = "for stat in /proc/[0-9]*/stat; do cut -d' ' -f2,3 $stat; done 2>/dev/null; true";
    let there = cluster.ok_with(&["exec", "probed", "--", "sh", "-c", states]);
    assert!(!there.contains(" Z"), "{there}");
    let sleeping = there.matches("(sleep)").count();
    assert!(
        sleeping <= 2,
        "one that is probing now, and the first: {there}"
    );
    // And none whose parent is the pod's supervisor.
    let host = cluster.host.sh("ps -eo stat,comm | grep ^Z || true");
    assert!(!host.contains("sleep"), "{host}");
    cluster.ok("delete pod probed --now");
}

fn logs_are_for_root_alone(cluster: &Cluster) {
    let pods = cluster.path("log/pods");
    let open = || {
        let line = format!(
            "find {0}/*/ -perm /077 ! -type l -exec ls -ld {{}} +",
            pods.display()
        );
        let found = std::process::Command::new("sh")
            .args(["-c", &line])
            .output();
        text(&found.unwrap())
    };
    assert_eq!(open(), "");
    // As an older version has left them.
    let line = format!("chmod -R go+rX {}/*/", pods.display());
    let made = std::process::Command::new("sh")
        .args(["-c", &line])
        .status();
    assert!(made.unwrap().success() && !open().is_empty());
    cluster.kill_daemon();
    cluster.up();
    until("they are closed", || open().is_empty());
}

fn a_webhook_that_refuses_the_node_is_named(cluster: &Cluster) {
    // What a later version would give a role is missing.
    let rules = || cluster.field("clusterrole/system:node-proxier", ".rules[*].resources");
    let before = rules();
    let cut = r#"[{"op": "remove", "path": "/rules/0"}]"#;
    cluster.ok_with(&[
        "patch",
        "clusterrole",
        "system:node-proxier",
        "--type=json",
        "-p",
        cut,
    ]);
    cluster.apply(&dead_webhook("nodes", NODES));
    let node = cluster.ok("get nodes -o name");
    cluster.ok(&format!("delete {}", node.trim()));
    cluster.kill_daemon();
    cluster.up();
    let log = cluster.daemon_log();
    let said = "the API does not take its Node: Internal error occurred: failed calling webhook \
                \"nodes.example.com\"";
    assert!(log.contains(said), "{log}");
    assert!(log.contains("validatingwebhookconfigurations"), "{log}");
    cluster.ok("get --raw /readyz");
    let words = |rules: &str| -> BTreeSet<String> {
        rules.split(['[', ']', ' ']).map(str::to_owned).collect()
    };
    assert_eq!(
        words(&rules()),
        words(&before),
        "roles are completed all the same"
    );
    cluster.ok("delete validatingwebhookconfiguration nodes");
    let ready = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    cluster.wait(&format!("get nodes -o {ready}"), "True");
    cluster.ok("run after --image=busybox:1 --restart=Never -- sleep infinity");
    cluster.ready("after");
}

/// Another program that has a table for itself alone, until it is dropped.
struct Owner(Child);

impl Owner {
    /// Takes the place of a table that is there.
    fn of(cluster: &Cluster, table: &str) -> Self {
        let mut nft = cluster.host.command("nft");
        let child = nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut owner = Self(child.spawn().unwrap());
        let taking = format!("delete table ip {table}; add table ip {table} {{ flags owner; }}\n");
        let input = owner.0.stdin.as_mut().unwrap();
        input.write_all(taking.as_bytes()).unwrap();
        input.flush().unwrap();
        let listing = format!("nft list table ip {table} || true");
        until("the table is another's", || {
            cluster.host.sh(&listing).contains("owner")
        });
        owner
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn services_that_could_not_be_written_are_written_later() {
    let cluster = Cluster::started();
    cluster.import("nginx-1");
    cluster.ok("run web --image=nginx:1 --image-pull-policy=Never --port=80");
    cluster.ready("web");
    let tables = cluster.host.sh("nft list tables");
    let table = tables
        .split_whitespace()
        .find(|word| word.starts_with("vetch-proxy"))
        .unwrap();
    let owner = Owner::of(&cluster, table);
    cluster.ok("expose pod web --name=late --port=80");
    until("it could not be written", || {
        cluster.daemon_log().contains("write services to nf_tables")
    });
    let service = cluster.field("service/late", ".spec.clusterIP");
    let curl = format!("curl -s --max-time 1 http://{service}/version || true");
    assert_eq!(cluster.host.sh(&curl), "");
    drop(owner);
    until("the service answers", || {
        cluster.host.sh(&curl) == "nginx 1\n"
    });
}
