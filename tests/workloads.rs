//! Sets of pods: what belongs to whom, over the life of an owner and the next of its name.

mod lab;

use lab::Cluster;

fn set(kind: &str, more: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: {kind}
metadata: {{name: w}}
spec:
  {more}
  selector: {{matchLabels: {{app: w}}}}
  template:
    metadata: {{labels: {{app: w}}}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{{operator: Exists}}] # a test machine's disk may be nearly full
      containers: [{{name: c, image: 'busybox:1', command: [sleep, '1000']}}]
"
    )
}

/// An owner deleted without its pods, and another of its name and template: the pods stay, and are its.
fn orphans_are_taken_back(kind: &str, more: &str, ready: &str) {
    let cluster = Cluster::started();
    cluster.import("busybox");
    cluster.apply(&set(kind, more));
    let ready = format!("get {kind} w -o jsonpath={{.status.{ready}}}");
    cluster.wait(&ready, "1");
    let uids = "get pods -l app=w -o jsonpath={.items[*].metadata.uid}";
    let owners = "-l app=w -o jsonpath={.items[*].metadata.ownerReferences[*].uid}";
    let before = cluster.ok(uids);
    cluster.ok(&format!("delete {kind} w --cascade=orphan"));
    cluster.wait(&format!("get pods {owners}"), "");

    cluster.apply(&set(kind, more));
    let own = cluster.field(&format!("{kind}/w"), ".metadata.uid");
    cluster.wait(&format!("get pods {owners}"), &own);
    cluster.wait(&ready, "1");
    assert_eq!(cluster.ok(uids), before);
    if kind != "ReplicaSet" {
        cluster.wait(&format!("get controllerrevisions {owners}"), &own);
    }

    // One that is selected no more is let go, and another comes in its place.
    let pod = cluster.ok("get pods -l app=w -o name");
    cluster.ok(&format!("label {} app=other --overwrite", pod.trim()));
    let freed = "get pods -l app=other -o jsonpath={.items[*].metadata.ownerReferences}";
    cluster.wait(freed, "");
    if kind != "StatefulSet" {
        // Its pods have fixed names: the place is taken.
        cluster.wait(&ready, "1");
        let now = cluster.ok(uids);
        assert!(!now.is_empty() && now != before, "{now}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_replica_set_takes_back_its_orphans() {
    orphans_are_taken_back("ReplicaSet", "replicas: 1", "readyReplicas");
}

#[test]
#[ignore = "needs root"]
fn a_daemon_set_takes_back_its_orphans() {
    orphans_are_taken_back("DaemonSet", "minReadySeconds: 0", "numberReady");
}

#[test]
#[ignore = "needs root"]
fn a_stateful_set_takes_back_its_orphans() {
    orphans_are_taken_back("StatefulSet", "serviceName: w", "readyReplicas");
}
