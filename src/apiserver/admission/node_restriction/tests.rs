use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::apiserver::{
    admission::{
        Round,
        testing::{Memory, row},
    },
    authz::{NODES, bootstrap},
    registry::kinds::value::set,
    request::User,
};

/// One write, and the words of its refusal; none where it is let through.
struct Case {
    operation: Operation,
    /// `pods/status`.
    what: &'static str,
    namespace: &'static str,
    name: &'static str,
    old: Option<Value>,
    new: Value,
}

impl Case {
    fn create(what: &'static str, namespace: &'static str, new: Value) -> Self {
        Self {
            operation: Operation::Create,
            what,
            namespace,
            name: "",
            old: None,
            new,
        }
    }

    fn update(what: &'static str, namespace: &'static str, old: Value, new: Value) -> Self {
        Self {
            operation: Operation::Update,
            old: Some(old),
            ..Self::create(what, namespace, new)
        }
    }

    fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }
}

fn pod(name: &str, node: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")},
        "spec": {"nodeName": node, "serviceAccountName": name, "volumes": [
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"audience": "vault"}}]}},
            {"name": "d", "csi": {"driver": "disk.example.com"}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "data"}}]}})
}

/// A cluster with node A and pod `web` on it, and pod `db` on node B.
async fn refusal(user: &User, case: Case) -> Option<String> {
    let driver = |name: &str, audience: &str| json!({"metadata": {"name": name}, "spec": {"tokenRequests": [{"audience": audience}]}});
    let memory = Memory::with(&[
        ("nodes", json!({"metadata": {"name": "A", "uid": "uid-A"}})),
        ("pods", pod("web", "A")),
        ("pods", pod("db", "B")),
        (
            "csidrivers.storage.k8s.io",
            driver("disk.example.com", "disks"),
        ),
        (
            "csidrivers.storage.k8s.io",
            driver("lake.example.com", "lakes"),
        ),
        (
            "persistentvolumeclaims",
            json!({"metadata": {"namespace": "shop", "name": "data"}, "spec": {"volumeName": "v"}}),
        ),
        (
            "persistentvolumes",
            json!({"metadata": {"name": "v"}, "spec": {"csi": {"driver": "lake.example.com"}}}),
        ),
    ]);
    for object in bootstrap::objects() {
        let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
        memory.put(&format!("{kind}s.rbac.authorization.k8s.io"), object);
    }
    let plugin = NodeRestriction(Arc::new(Authorizer::new(memory.clone())));
    let (plural, part) = match case.what.split_once('/') {
        Some((plural, part)) => (plural, Some(part)),
        None => (case.what, None),
    };
    let (mut warnings, mut round) = (Vec::new(), Round::default());
    let mut request = Request {
        user,
        operation: case.operation,
        resource: row(plural),
        subresource: part,
        namespace: case.namespace,
        name: match case.name {
            "" => text(&case.new, "metadata.name"),
            name => name,
        },
        old: case.old.as_ref(),
        dry_run: false,
        warnings: &mut warnings,
        round: &mut round,
    };
    let result = match case.operation {
        Operation::Delete => plugin.validate(&mut request, None, &*memory).await,
        _ => {
            let mut object = case.new.clone();
            plugin.mutate(&mut request, &mut object, &*memory).await
        }
    };
    result.err().map(|status| status.message)
}

async fn check(cases: Vec<(Case, Option<&str>)>) {
    let node = User::internal("system:node:A", &[NODES]);
    for (case, want) in cases {
        let said = format!("{:?} {} {}", case.operation, case.what, case.new);
        let found = refusal(&node, case).await;
        let found = found.map(|text| {
            let why = text
                .split_once(" is forbidden: ")
                .map(|(_, why)| why.to_owned());
            why.unwrap_or(text)
        });
        assert_eq!(found.as_deref(), want, "{said}");
    }
}

#[tokio::test]
async fn only_nodes_are_restricted_and_those_without_a_name_write_nothing() {
    let node = json!({"metadata": {"name": "foo"}});
    for (name, group, want) in [
        ("jane", NODES, None),
        ("system:node:A", "people", None),
        (
            "system:node:",
            NODES,
            Some("nodes \"foo\" is forbidden: could not determine node from user \"system:node:\""),
        ),
        (
            "system:node:A",
            NODES,
            Some("nodes \"foo\" is forbidden: node \"A\" is not allowed to modify node \"foo\""),
        ),
    ] {
        let user = User::internal(name, &[group]);
        let found = refusal(&user, Case::create("nodes", "", node.clone())).await;
        assert_eq!(found.as_deref(), want, "{name}");
    }
}

#[tokio::test]
async fn a_node_writes_its_own_node() {
    let own = |path: &str, value: Value| {
        let mut node = json!({"metadata": {"name": "A"}, "spec": {}});
        if !path.is_empty() {
            set(&mut node, path, value);
        }
        node
    };
    let plain = || own("", Value::Null);
    let label = |key: &str| own("metadata.labels", json!({key: "x"}));
    let owner = json!([{"kind": "Namespace", "name": "gone", "uid": "u"}]);
    let taint = json!([{"key": "k", "effect": "NoSchedule"}]);
    check(vec![
        (Case::create("nodes", "", label("kubernetes.io/os")), None),
        (
            Case::create("nodes", "", own("spec.taints", taint.clone())),
            None,
        ),
        (
            Case::create("nodes", "", label("node-role.kubernetes.io/x")),
            Some(
                "node \"A\" is not allowed to set the following labels: node-role.kubernetes.io/x",
            ),
        ),
        (
            Case::create("nodes", "", own("spec.configSource", json!({}))),
            Some("node \"A\" is not allowed to create pods with a non-nil configSource"),
        ),
        // A range of pod addresses leads others' packets there.
        (
            Case::create("nodes", "", own("spec.podCIDR", json!("10.42.0.0/24"))),
            Some("node \"A\" is not allowed to choose podCIDRs: the control plane gives them"),
        ),
        (
            Case::create("nodes", "", own("spec.podCIDRs", json!(["10.42.0.0/24"]))),
            Some("node \"A\" is not allowed to choose podCIDRs: the control plane gives them"),
        ),
        (
            Case::update(
                "nodes",
                "",
                plain(),
                own("spec.podCIDRs", json!(["10.42.0.0/24"])),
            ),
            Some("node \"A\" is not allowed to modify podCIDRs"),
        ),
        (
            Case::create("nodes", "", own("metadata.ownerReferences", owner.clone())),
            Some("node \"A\" is not allowed to set ownerReferences"),
        ),
        (
            Case::update("nodes", "", plain(), own("spec.unschedulable", json!(true))),
            None,
        ),
        (
            Case::update("nodes", "", own("spec.taints", taint), plain()),
            Some("node \"A\" is not allowed to modify taints"),
        ),
        (
            Case::update(
                "nodes/status",
                "",
                plain(),
                own("metadata.ownerReferences", owner),
            ),
            Some("node \"A\" is not allowed to modify ownerReferences"),
        ),
        (
            Case::update(
                "nodes/status",
                "",
                plain(),
                label("node-restriction.kubernetes.io/x"),
            ),
            Some("is not allowed to modify labels: node-restriction.kubernetes.io/x"),
        ),
        (
            Case::update("nodes/status", "", plain(), plain()).named("B"),
            Some("node \"A\" is not allowed to modify node \"B\""),
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_node_makes_mirrors_of_its_own_pods_only() {
    let mirror = |path: &str, value: Value| {
        let mut pod = json!({"metadata": {"name": "m", "annotations": {"kubernetes.io/config.mirror": "h"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "A", "uid": "uid-A", "controller": true}]},
            "spec": {"nodeName": "A"}});
        if !path.is_empty() {
            set(&mut pod, path, value);
        }
        pod
    };
    let owned = |change: &dyn Fn(&mut Value)| {
        let mut pod = mirror("", Value::Null);
        change(&mut pod["metadata"]["ownerReferences"][0]);
        pod
    };
    let of_itself = Some("node \"A\" can only create pods with an owner reference set to itself");
    let volume = |source: Value| mirror("spec.volumes", json!([source]));
    let create = |pod: Value| Case::create("pods", "shop", pod);
    check(vec![
        (create(mirror("", Value::Null)), None),
        (
            create(mirror("metadata.annotations", json!({}))),
            Some("pod does not have \"kubernetes.io/config.mirror\" annotation, node \"A\" can only create mirror pods"),
        ),
        (
            create(mirror("spec.nodeName", json!("B"))),
            Some("node \"A\" can only create pods with spec.nodeName set to itself"),
        ),
        (create(mirror("metadata.ownerReferences", json!([]))), of_itself),
        (create(owned(&|owner| owner["name"] = json!("B"))), of_itself),
        (create(owned(&|owner| owner["kind"] = json!("Pod"))), of_itself),
        (
            create(mirror("metadata.ownerReferences", json!([{}, {}]))),
            Some("node \"A\" can only create pods with a single owner reference set to itself"),
        ),
        (
            create(owned(&|owner| owner["controller"] = json!(false))),
            Some("node \"A\" can only create pods with a controller owner reference set to itself"),
        ),
        (
            create(owned(&|owner| owner["blockOwnerDeletion"] = json!(true))),
            Some("node \"A\" must not set blockOwnerDeletion on an owner reference"),
        ),
        (
            create(owned(&|owner| owner["uid"] = json!("other"))),
            Some("node A UID mismatch: expected other got uid-A"),
        ),
        (
            create(mirror("spec.serviceAccountName", json!("web"))),
            Some("node \"A\" can not create pods that reference a service account"),
        ),
        (
            create(volume(json!({"secret": {"secretName": "s"}}))),
            Some("node \"A\" can not create pods that reference secrets"),
        ),
        (
            create(volume(json!({"configMap": {"name": "c"}}))),
            Some("node \"A\" can not create pods that reference configmaps"),
        ),
        (
            create(volume(json!({"persistentVolumeClaim": {"claimName": "c"}}))),
            Some("node \"A\" can not create pods that reference persistentvolumeclaims"),
        ),
        (
            create(volume(json!({"projected": {"sources": [{"serviceAccountToken": {}}]}}))),
            Some("node \"A\" can not create pods that reference service account tokens"),
        ),
        (
            create(mirror("spec.resourceClaims", json!([{"name": "gpu"}]))),
            Some("node \"A\" can not create pods that reference resourceclaims"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_node_reports_and_ends_its_own_pods_only() {
    let with = |path: &str, value: Value| {
        let mut pod = pod("web", "A");
        set(&mut pod, path, value);
        pod
    };
    let delete = |name: &'static str, old: Value| Case {
        operation: Operation::Delete,
        ..Case::update("pods", "shop", old, Value::Null).named(name)
    };
    let status = |new: Value| Case::update("pods/status", "shop", pod("web", "A"), new);
    let evict = |name: &'static str| Case::create("pods/eviction", "shop", json!({})).named(name);
    check(vec![
        (status(with("status.phase", json!("Running"))), None),
        (
            status(with("metadata.labels", json!({"app": "x"}))),
            Some("node \"A\" cannot update labels through pod status"),
        ),
        (
            status(with("status.resourceClaimStatuses", json!([{"name": "a"}]))),
            Some("node \"A\" cannot update resource claim statues"),
        ),
        (
            Case::update("pods/status", "shop", pod("db", "B"), pod("db", "B")),
            Some("node \"A\" can only update pod status for pods with spec.nodeName set to itself"),
        ),
        (
            Case::update("pods", "shop", pod("web", "A"), pod("web", "A")),
            Some("unexpected operation \"UPDATE\", node \"A\" can only create and delete mirror pods"),
        ),
        (
            Case::create("pods/binding", "shop", json!({})).named("web"),
            Some("unexpected pod subresource \"binding\", only 'status' and 'eviction' are allowed"),
        ),
        (delete("web", pod("web", "A")), None),
        (
            delete("db", pod("db", "B")),
            Some("node \"A\" can only delete pods with spec.nodeName set to itself"),
        ),
        (evict("web"), None),
        (
            evict("db"),
            Some("node A can only evict pods with spec.nodeName set to itself"),
        ),
        (evict("gone"), Some("pods \"gone\" not found")),
    ])
    .await;
}

#[tokio::test]
async fn a_node_gets_tokens_that_its_pods_mount() {
    let token = |pod: &str, uid: &str, audiences: Value| {
        let spec = json!({"audiences": audiences, "boundObjectRef":
            {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}});
        Case::create("serviceaccounts/token", "shop", json!({"spec": spec})).named("web")
    };
    let other = |audience: &str| {
        format!(
            "audience {audience:?} not found in pod spec volume, system:node:A is not authorized to request tokens for this audience"
        )
    };
    let unbound = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": "A", "uid": "uid-A"}}});
    check(vec![
        (token("web", "uid-web", json!(["vault"])), None),
        // By way of a driver, and of a claim, a volume and its driver.
        (token("web", "uid-web", json!(["disks"])), None),
        (token("web", "uid-web", json!(["lakes"])), None),
        (token("web", "uid-web", json!(["bank"])), Some(&other("bank"))),
        (token("web", "uid-web", json!([])), Some(&other(""))),
        (
            token("web", "uid-web", json!(["vault", "disks"])),
            Some("node may only request 0 or 1 audiences"),
        ),
        (
            token("db", "uid-db", json!(["vault"])),
            Some("node requested token bound to a pod scheduled on a different node"),
        ),
        (
            token("web", "old", json!(["vault"])),
            Some("the UID in the bound object reference (old) does not match the UID in record. The object might have been deleted and then recreated"),
        ),
        (
            token("web", "", json!(["vault"])),
            Some("node requested token with a pod binding without a uid"),
        ),
        (token("gone", "u", json!([])), Some("pods \"gone\" not found")),
        (
            Case::create("serviceaccounts/token", "shop", unbound).named("web"),
            Some("node requested token not bound to a pod"),
        ),
        (
            Case::create("serviceaccounts/token", "shop", json!({"spec": {"boundObjectRef": "x"}})).named("web"),
            Some("node requested token not bound to a pod"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_node_writes_what_has_its_name() {
    let named = |name: &str| json!({"metadata": {"name": name}});
    let claim = |path: &str, value: Value| {
        let mut claim = json!({"metadata": {"name": "data"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
        if !path.is_empty() {
            set(&mut claim, path, value);
        }
        claim
    };
    let resize = |new: Value| {
        Case::update(
            "persistentvolumeclaims/status",
            "shop",
            claim("", Value::Null),
            new,
        )
    };
    let lease = Some("can only access node lease with the same name as the requesting node");
    check(vec![
        (Case::create("leases", "kube-node-lease", named("A")), None),
        (Case::create("leases", "kube-node-lease", named("B")), lease),
        (
            Case::update("leases", "kube-node-lease", named("B"), named("B")),
            lease,
        ),
        (
            Case::create("leases", "kube-system", named("A")),
            Some("can only access leases in the \"kube-node-lease\" system namespace"),
        ),
        (
            Case::create("leases", "kube-system", named("vetch-load-balancers-A")),
            None,
        ),
        (
            Case::create("leases", "kube-system", named("vetch-load-balancers-B")),
            Some("can only access leases in the \"kube-node-lease\" system namespace"),
        ),
        (
            Case::create("leases", "kube-node-lease", named("vetch-load-balancers-A")),
            lease,
        ),
        (Case::create("csinodes", "", named("A")), None),
        (
            Case::create("csinodes", "", named("B")),
            Some("can only access CSINode with the same name as the requesting node"),
        ),
        (resize(claim("status.capacity", json!({"storage": "2Gi"}))), None),
        (
            resize(claim("metadata.labels", json!({"a": "b"}))),
            Some("node \"A\" is not allowed to update fields other than status.quantity and status.conditions: metadata changed"),
        ),
        (
            resize(claim("status.phase", json!("Lost"))),
            Some("node \"A\" is not allowed to update fields other than status.quantity and status.conditions: status changed"),
        ),
        (
            Case::update("persistentvolumeclaims", "shop", named("data"), named("data")),
            Some("may only update PVC status"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_node_asks_for_certificates_in_its_own_name() {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let request = |signer: &str, name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let pem = params
            .serialize_request(&rcgen::KeyPair::generate().unwrap())
            .and_then(|request| request.pem())
            .unwrap();
        let csr = json!({"metadata": {"name": "c"}, "spec": {
            "signerName": signer, "request": BASE64_STANDARD.encode(pem)}});
        Case::create("certificatesigningrequests", "", csr)
    };
    let of_kubelets = "kubernetes.io/kube-apiserver-client-kubelet";
    check(vec![
        (request(of_kubelets, "system:node:A"), None),
        (
            request(of_kubelets, "system:node:B"),
            Some("can only create a node CSR with CN=system:node:A"),
        ),
        (
            request("kubernetes.io/kubelet-serving", "admin"),
            Some("can only create a node CSR with CN=system:node:A"),
        ),
        (request("example.com/signer", "anything"), None),
    ])
    .await;
}
