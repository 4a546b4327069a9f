//! The API server, scheduler and controllers.

use crate::{
    dead_webhook,
    lab::{Cluster, text},
};

/// Rules for all there is in these groups.
const OWN_OBJECTS: &str = r#"
  - apiGroups: ["", discovery.k8s.io, rbac.authorization.k8s.io]
    apiVersions: ["*"]
    operations: ["*"]
    resources: [configmaps, endpoints, endpointslices, namespaces, services, clusterroles]
"#;

/// One cluster for what shows best with kubectl.
#[test]
#[ignore = "needs root"]
fn what_users_do_at_the_wrong_moment() {
    let cluster = Cluster::started();
    an_orphaned_jobs_pods_can_go(&cluster);
    one_of_two_addresses_is_no_way_round(&cluster);
    a_group_that_does_not_answer_is_named(&cluster);
    the_cluster_starts_whatever_webhooks_refuse(&cluster);
}

fn an_orphaned_jobs_pods_can_go(cluster: &Cluster) {
    cluster.ok("create namespace jobs");
    cluster.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: j, namespace: jobs}
spec:
  parallelism: 8
  template:
    spec:
      restartPolicy: Never
      nodeSelector: {no: where}
      containers: [{name: c, image: busybox}]
"#,
    );
    let names = "get pods -n jobs -o name";
    cluster.wait_for(names, |got| got.lines().count() == 8);
    cluster.ok("delete job j -n jobs --cascade=orphan");
    let held = "get pods -n jobs -o jsonpath={.items[*].metadata.finalizers}";
    cluster.wait(held, "");
    cluster.ok("delete namespace jobs --timeout=20s");
}

fn one_of_two_addresses_is_no_way_round(cluster: &Cluster) {
    cluster.ok("create service clusterip s --tcp=80");
    let patch = r#"{"spec":{"clusterIP":"10.96.7.7"}}"#;
    let refused = cluster.kubectl_with(&["patch", "service", "s", "-p", patch]);
    let said = text(&refused);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("may not change once set"), "{said}");
}

fn a_group_that_does_not_answer_is_named(cluster: &Cluster) {
    cluster.apply(
        r#"
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.silent.example}
spec:
  group: silent.example
  version: v1
  groupPriorityMinimum: 10
  versionPriority: 10
  insecureSkipTLSVerify: true
  service: {name: nobody, namespace: default}
"#,
    );
    cluster.wait_for("get --raw /apis", |got| got.contains("silent.example"));
    let asked = cluster.kubectl("get --raw /apis/silent.example/v1");
    let said = text(&asked);
    assert!(
        said.contains("silent.example/v1: service unavailable"),
        "{said}"
    );
    cluster.ok("delete apiservice v1.silent.example");
}

fn the_cluster_starts_whatever_webhooks_refuse(cluster: &Cluster) {
    cluster.apply(&dead_webhook("dead", OWN_OBJECTS));
    let refused = cluster.kubectl("create configmap c");
    assert!(!refused.status.success(), "the webhook is asked");
    cluster.kill_daemon();
    cluster.up();
    cluster.ok("get --raw /readyz");
    cluster.ok("delete validatingwebhookconfiguration dead");
    cluster.ok("create configmap c");
}
