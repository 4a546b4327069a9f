//! What nodes and tenants may create and change.

use std::process::Output;

use serde_json::json;
use vetch::pki::{Leaf, Pki};

use crate::{
    harness::{Health, Tenant},
    lab::{Cluster, text},
};

/// Who holds a node's certificate.
struct Node<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Node<'a> {
    fn new(cluster: &'a Cluster, name: &str) -> Self {
        let pki = Pki::open(&cluster.path("lib/pki")).unwrap();
        let leaf = Leaf::client(&format!("system:node:{name}"), &["system:nodes"]);
        let identity = pki.issue(&leaf).unwrap();
        let root = cluster.root.path();
        std::fs::write(root.join(format!("{name}.crt")), identity.certificate).unwrap();
        std::fs::write(root.join(format!("{name}.key")), identity.key).unwrap();
        Self {
            cluster,
            name: name.to_owned(),
        }
    }

    fn kubectl_with(&self, arguments: &[&str]) -> Output {
        let root = self.cluster.root.path();
        let file = |end: &str| {
            root.join(format!("{}.{end}", self.name))
                .display()
                .to_string()
        };
        let mut command = self.cluster.host.command(&self.cluster.kubectl);
        command
            .env("HOME", root)
            .env("KUBECONFIG", "/dev/null")
            .arg("--server=https://127.0.0.1:6443")
            .arg("--insecure-skip-tls-verify")
            .arg(format!("--client-certificate={}", file("crt")))
            .arg(format!("--client-key={}", file("key")))
            .args(arguments);
        command.output().unwrap()
    }

    fn words(&self, line: &str) -> Output {
        self.kubectl_with(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// kubectl must fail, and say why.
    fn refused(&self, line: &str, why: &str) {
        refused(&self.words(line), why);
    }

    fn allowed(&self, line: &str) {
        let output = self.words(line);
        assert!(output.status.success(), "{line}: {}", text(&output));
    }

    /// Replaces what is at a path, which must be refused. (kubectl's patch reads it first, which no
    /// node may.)
    fn put_refused(&self, path: &str, object: &serde_json::Value, why: &str) {
        let file = self.cluster.root.path().join("object.json");
        std::fs::write(&file, object.to_string()).unwrap();
        self.refused(&format!("replace --raw {path} -f {}", file.display()), why);
    }

    /// Creates an object, which must be refused.
    fn create_refused(&self, object: &serde_json::Value, why: &str) {
        let file = self.cluster.root.path().join("object.json");
        std::fs::write(&file, object.to_string()).unwrap();
        self.refused(
            &format!("create --validate=false -f {}", file.display()),
            why,
        );
    }
}

fn refused(output: &Output, why: &str) {
    let said = text(output);
    assert!(!output.status.success() && said.contains(why), "{said}");
}

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox:1
    command: [sleep, '1000']
    envFrom: [{configMapRef: {name: settings}}]
    volumeMounts: [{name: s, mountPath: /s}]
  volumes: [{name: s, secret: {secretName: key}}]
";

/// A tenant with a pod that uses its account, a map and a secret: the node's own agent needs them.
fn running<'a>(cluster: &'a Cluster, namespace: &str) -> Tenant<'a> {
    cluster.import("busybox");
    let tenant = Tenant::new(cluster, namespace);
    cluster.ok(&format!(
        "create configmap settings --from-literal=a=b -n {namespace}"
    ));
    cluster.ok(&format!(
        "create secret generic key --from-literal=a=b -n {namespace}"
    ));
    tenant.create(POD);
    cluster.ready(&format!("web -n {namespace}"));
    tenant
}

/// A cluster that does not mind how full the machine's disk is: that is not what is tested here.
fn started() -> Cluster {
    let cluster = Cluster::new();
    let output = cluster.vetch(&["up", "--detach", "--eviction-hard=memory.available<50Mi"]);
    assert!(output.status.success(), "{}", text(&output));
    cluster
}

fn node_name(cluster: &Cluster) -> String {
    cluster.ok("get nodes -o jsonpath={.items[0].metadata.name}")
}

#[test]
#[ignore = "needs root"]
fn another_nodes_certificate_opens_nothing() {
    let cluster = started();
    let _tenant = running(&cluster, "shop");
    let health = Health::watch(&cluster);
    let own = node_name(&cluster);
    let intruder = Node::new(&cluster, "intruder");
    let node = |name: &str, labels: serde_json::Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
    intruder.create_refused(
        &node("foo", json!({})),
        "nodes \"foo\" is forbidden: node \"intruder\" is not allowed to modify node \"foo\"",
    );
    intruder.create_refused(
        &node(
            "intruder",
            json!({"node-role.kubernetes.io/control-plane": ""}),
        ),
        "is not allowed to set the following labels: node-role.kubernetes.io/control-plane",
    );
    let plain = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "kube-system"},
        "spec": {"nodeName": own, "containers": [{"name": "c", "image": "busybox:1"}]}});
    intruder.create_refused(
        &plain,
        "pods \"p\" is forbidden: pod does not have \"kubernetes.io/config.mirror\" annotation, node \"intruder\" can only create mirror pods",
    );
    let mut mirror = plain;
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "h"});
    intruder.create_refused(
        &mirror,
        "node \"intruder\" can only create pods with spec.nodeName set to itself",
    );
    mirror["spec"]["nodeName"] = json!("intruder");
    intruder.create_refused(
        &mirror,
        "node \"intruder\" can only create pods with an owner reference set to itself",
    );
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "foo", "namespace": "kube-node-lease"}, "spec": {}});
    intruder.create_refused(
        &lease,
        "can only access node lease with the same name as the requesting node",
    );
    let unrelated = "no relationship found between node 'intruder' and this object";
    for (line, why) in [
        ("create token default -n kube-system".to_owned(), unrelated),
        ("create token default -n shop".to_owned(), unrelated),
        ("get secret key -n shop".to_owned(), unrelated),
        ("get configmap settings -n shop".to_owned(), unrelated),
        (
            "get secrets -A".to_owned(),
            "can only read namespaced object of this type",
        ),
        ("get secrets -n shop".to_owned(), "No Object name found"),
        ("get pod web -n shop".to_owned(), unrelated),
        (
            "get pods -A".to_owned(),
            "can only list/watch pods with spec.nodeName field selector",
        ),
        (
            format!("get pods -A --field-selector spec.nodeName={own}"),
            "can only list/watch pods with spec.nodeName field selector",
        ),
        (format!("get node {own}"), "only its own Node object"),
        (format!("label node {own} a=b"), "only its own Node object"),
        (
            "delete pod web -n shop".to_owned(),
            "node \"intruder\" can only delete pods with spec.nodeName set to itself",
        ),
        (
            format!("get lease {own} -n kube-node-lease"),
            "can only access node lease with the same name",
        ),
        (format!("delete node {own}"), "is forbidden"),
    ] {
        intruder.refused(&line, why);
    }
    intruder.put_refused(
        &format!("/api/v1/nodes/{own}/status"),
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": own}, "status": {}}),
        "is not allowed to modify node",
    );
    intruder.put_refused(
        "/api/v1/namespaces/shop/pods/web/status",
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "status": {"phase": "Failed"}}),
        "can only update pod status for pods with spec.nodeName set to itself",
    );
    let eviction =
        "{\"apiVersion\":\"policy/v1\",\"kind\":\"Eviction\",\"metadata\":{\"name\":\"web\"}}";
    let file = cluster.root.path().join("eviction.json");
    std::fs::write(&file, eviction).unwrap();
    intruder.refused(
        &format!(
            "create --raw /api/v1/namespaces/shop/pods/web/eviction -f {}",
            file.display()
        ),
        "node intruder can only evict pods with spec.nodeName set to itself",
    );
    // A member of the group without a node's name is nobody.
    Node::new(&cluster, "").refused("get services -A", "unknown node for user \"system:node:\"");
    assert_eq!(cluster.field("pod/web -n shop", ".status.phase"), "Running");
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn a_node_stays_within_what_is_its_own() {
    let cluster = started();
    let _tenant = running(&cluster, "shop");
    let name = node_name(&cluster);
    let node = Node::new(&cluster, &name);
    let uid = cluster.field("pod/web -n shop", ".metadata.uid");
    // What its agent needs goes on working.
    node.allowed(&format!(
        "get pods -A --field-selector spec.nodeName={name}"
    ));
    for line in [
        "get secret key -n shop",
        "get configmap settings -n shop",
        "get pod web -n shop",
    ] {
        node.allowed(line);
    }
    let bound = "create token default -n shop --bound-object-kind=Pod --bound-object-name=web";
    node.allowed(&format!("{bound} --bound-object-uid={uid}"));
    node.allowed(&format!("label node {name} topology.kubernetes.io/zone=z"));
    // What would steer others' work to it, or give it others' rights, does not.
    cluster.ok(&format!("taint node {name} guarded=yes:PreferNoSchedule"));
    let untaint = format!("patch node {name} --type=merge -p {{\"spec\":{{\"taints\":null}}}}");
    node.refused(&untaint, "is not allowed to modify taints");
    let label = |key: &str| format!("label node {name} {key}=x");
    for key in [
        "node-restriction.kubernetes.io/secure",
        "node-role.kubernetes.io/db",
    ] {
        node.refused(
            &label(key),
            &format!("is not allowed to modify labels: {key}"),
        );
    }
    let owner = "[{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"name\":\"gone\",\"uid\":\"u\"}]";
    let owned = format!(
        "patch node {name} --type=merge -p {{\"metadata\":{{\"ownerReferences\":{owner}}}}}"
    );
    node.refused(&owned, "is not allowed to modify ownerReferences");
    node.refused(
        "create token default -n shop",
        "node requested token not bound to a pod",
    );
    node.refused(
        "create token tenant -n shop",
        "no relationship found between node",
    );
    node.refused(
        &format!("{bound} --bound-object-uid={uid} --audience=bank"),
        &format!("audience \"bank\" not found in pod spec volume, system:node:{name} is not authorized to request tokens for this audience"),
    );
    node.put_refused(
        "/api/v1/namespaces/shop/pods/web/status",
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "db"}}, "status": {"phase": "Running"}}),
        "cannot update labels through pod status",
    );
    // The agent itself is such a node: a restart of its pod needs all that it may do.
    cluster.ok("delete pod web -n shop");
    cluster.import("busybox");
    let again = Tenant::new(&cluster, "again");
    cluster.ok("create configmap settings -n again");
    cluster.ok("create secret generic key --from-literal=a=b -n again");
    again.create(POD);
    cluster.ready("web -n again");
}

fn pod(name: &str, spec: &str) -> String {
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{{spec}}}}}")
}

#[test]
#[ignore = "needs root"]
fn pods_that_break_their_namespaces_standard_are_refused() {
    let cluster = started();
    cluster.import("busybox");
    let tenant = Tenant::new(&cluster, "shop");
    let health = Health::watch(&cluster);
    cluster.ok("label namespace shop pod-security.kubernetes.io/enforce=baseline");
    let c = |more: &str| {
        format!("containers: [{{name: c, image: 'busybox:1', command: [sleep, '1000']{more}}}]")
    };
    for (spec, why) in [
        (
            c(", securityContext: {privileged: true}"),
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
        (
            format!("volumes: [{{name: v, hostPath: {{path: /}}}}], {}", c("")),
            "hostPath volumes (volume \"v\")",
        ),
        (
            format!("hostNetwork: true, hostPID: true, {}", c("")),
            "host namespaces (hostNetwork=true, hostPID=true)",
        ),
        (
            c(", ports: [{containerPort: 80, hostPort: 80}]"),
            "hostPort (container \"c\" uses hostPort 80)",
        ),
        (
            c(", securityContext: {capabilities: {add: [SYS_ADMIN]}}"),
            "non-default capabilities (container \"c\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
        ),
        (
            // What the tenant says about where the pod runs changes nothing.
            format!(
                "nodeName: {}, priorityClassName: system-node-critical, {}",
                node_name(&cluster),
                c(", securityContext: {privileged: true}")
            ),
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
    ] {
        let want =
            format!("pods \"bad\" is forbidden: violates PodSecurity \"baseline:latest\": {why}");
        refused(&tenant.apply(&pod("bad", &spec)), &want);
    }
    tenant.create(&pod(
        "good",
        &format!("terminationGracePeriodSeconds: 1, {}", c("")),
    ));
    cluster.ready("good -n shop");
    let debug = "{\"spec\":{\"ephemeralContainers\":[{\"name\":\"e\",\"image\":\"busybox:1\",\"securityContext\":{\"privileged\":true}}]}}";
    refused(
        &cluster.kubectl_with(&[
            "patch",
            "pod",
            "good",
            "-n",
            "shop",
            "--subresource=ephemeralcontainers",
            "--type=strategic",
            "-p",
            debug,
        ]),
        "violates PodSecurity \"baseline:latest\": privileged (container \"e\"",
    );
    cluster.ok("label namespace shop pod-security.kubernetes.io/warn=restricted");
    let output = tenant.kubectl("create deployment many --image=busybox:1");
    assert!(
        output.status.success() && text(&output).contains("Warning: would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false"),
        "{}",
        text(&output)
    );
    let label = "label namespace shop --overwrite pod-security.kubernetes.io/enforce=";
    let output = cluster.kubectl(&format!("{label}restricted --dry-run=server"));
    assert!(
        text(&output).contains("existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"restricted:latest\""),
        "{}",
        text(&output)
    );
    refused(
        &cluster.kubectl(&format!("{label}high")),
        "Invalid value: \"high\": must be one of privileged, baseline, restricted",
    );
    // The tenant cannot loosen it.
    refused(
        &tenant.kubectl(
            "label namespace shop --overwrite pod-security.kubernetes.io/enforce=privileged",
        ),
        "is forbidden",
    );
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn a_tenant_makes_no_mirror_pods() {
    let cluster = started();
    let tenant = running(&cluster, "shop");
    let name = node_name(&cluster);
    refused(
        &tenant.kubectl("annotate pod web kubernetes.io/config.mirror=x"),
        "metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not add mirror pod annotation",
    );
    let said = tenant.kubectl("exec web -- echo still here");
    assert!(text(&said).contains("still here"), "{}", text(&said));
    // One that is made as a mirror, of this tenant's pod or of nothing, runs nothing and goes.
    let uid = cluster.field("pod/web -n shop", ".metadata.uid");
    let forged = |name: &str, node: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, annotations: {{kubernetes.io/config.mirror: '{uid}'}}}}, \
             spec: {{{node} automountServiceAccountToken: false, containers: [{{name: c, image: 'busybox:1'}}]}}}}"
        )
    };
    refused(
        &tenant.apply(&forged("nowhere", "")),
        "must set spec.nodeName if mirror pod annotation is set",
    );
    tenant.create(&forged("forged", &format!("nodeName: '{name}',")));
    cluster.wait_for("get pod forged -n shop", |said| said.contains("NotFound"));
    assert_eq!(cluster.field("pod/web -n shop", ".metadata.uid"), uid);
    let said = tenant.kubectl("exec web -- echo still here");
    assert!(text(&said).contains("still here"), "{}", text(&said));
    // The node's own are shown, and are the node's.
    let manifests = cluster.path("etc/manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let own = pod(
        "own",
        "terminationGracePeriodSeconds: 1, containers: [{name: c, image: 'busybox:1', command: [sleep, '1000']}]",
    );
    std::fs::write(manifests.join("own.yaml"), own).unwrap();
    cluster.ready(&format!("own-{name}"));
    let owner = cluster.field(
        &format!("pod/own-{name}"),
        ".metadata.ownerReferences[0].name",
    );
    assert_eq!(owner, name);
}
