use serde_json::{Value, json};

use super::*;
use crate::apiserver::{
    admission::{Operation, Plugin, Request, Round},
    request::FieldTerm,
    special::{Call, Special},
    status::qualified,
    testing::{InMemory, row},
};

/// A cluster with the default roles.
fn cluster() -> (Arc<InMemory>, Arc<Authorizer>) {
    let objects = Arc::new(InMemory::default());
    for object in bootstrap::objects() {
        put(&objects, object);
    }
    let authorizer = Arc::new(Authorizer::new(objects.clone()));
    (objects, authorizer)
}

fn put(objects: &InMemory, object: Value) {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    objects.put(&qualified(RBAC, &format!("{kind}s")), object);
}

fn bind(objects: &InMemory, namespace: &str, role: (&str, &str), subject: Value) {
    let kind = if namespace.is_empty() {
        "ClusterRoleBinding"
    } else {
        "RoleBinding"
    };
    put(
        objects,
        json!({
            "kind": kind,
            "metadata": { "name": "test", "namespace": namespace },
            "roleRef": { "kind": role.0, "name": role.1 },
            "subjects": [subject],
        }),
    );
}

/// `get pods/log web` of a group in a namespace.
fn on(verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, some(subresource)),
        None => (resource, None),
    };
    Attributes {
        verb: verb.to_owned(),
        target: Target::Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource,
            namespace: some(namespace),
            name: some(name),
        },
        fields: Vec::new(),
    }
}

/// The same, of objects whose field has that value.
fn where_equal(mut attributes: Attributes, label: &str, value: &str) -> Attributes {
    attributes.fields.push(FieldTerm {
        label: label.to_owned(),
        value: value.to_owned(),
        equal: true,
    });
    attributes
}

fn path(verb: &str, path: &str) -> Attributes {
    Attributes {
        verb: verb.to_owned(),
        target: Target::Path(path.to_owned()),
        fields: Vec::new(),
    }
}

async fn may(authorizer: &Authorizer, user: &User, attributes: &Attributes) -> bool {
    authorizer.authorize(user, attributes).await.is_allowed()
}

#[tokio::test]
async fn default_roles() {
    let (objects, authorizer) = cluster();
    let editor = json!({ "kind": "User", "name": "editor" });
    bind(&objects, "shop", ("ClusterRole", "edit"), editor);
    let anonymous = User {
        name: "system:anonymous".to_owned(),
        groups: vec!["system:unauthenticated".to_owned()],
        ..User::default()
    };
    let jane = User::internal("jane", &[]);
    let editor = User::internal("editor", &[]);
    let root = User::internal("root", &[MASTERS]);
    let job = User::internal("system:serviceaccount:kube-system:job-controller", &[]);
    let scheduler = User::internal("system:kube-scheduler", &[]);
    for (user, attributes, allowed) in [
        (&root, on("delete", "any", "thing", "", "x"), true),
        (&anonymous, path("get", "/version"), true),
        (&anonymous, path("get", "/apis"), false),
        (&anonymous, on("list", "", "pods", "", ""), false),
        (&jane, path("get", "/apis/apps/v1"), true),
        (&jane, path("get", "/metrics"), false),
        (
            &jane,
            on(
                "create",
                "authorization.k8s.io",
                "selfsubjectaccessreviews",
                "",
                "",
            ),
            true,
        ),
        (&jane, on("get", "", "pods", "shop", "web"), false),
        // By way of system:aggregate-to-edit, and of view.
        (&editor, on("delete", "", "pods", "shop", "web"), true),
        (&editor, on("get", "", "pods/log", "shop", "web"), true),
        (&editor, on("get", "", "pods", "other", "web"), false),
        (&editor, on("get", "", "pods", "", ""), false),
        (&editor, on("create", RBAC, "roles", "shop", ""), false),
        (
            &job,
            on("update", "batch", "jobs/status", "shop", "x"),
            true,
        ),
        (
            &job,
            on("update", "apps", "deployments", "shop", "x"),
            false,
        ),
        (
            &scheduler,
            on("create", "", "pods/binding", "shop", "web"),
            true,
        ),
    ] {
        let found = may(&authorizer, user, &attributes).await;
        assert_eq!(found, allowed, "{}: {attributes:?}", user.name);
    }
    let attributes = on("get", "", "pods", "shop", "web");
    assert_eq!(
        authorizer.authorize(&editor, &attributes).await.reason(),
        r#"RBAC: allowed by RoleBinding "test/shop" of ClusterRole "edit" to User "editor""#
    );
}

#[tokio::test]
async fn a_change_counts_at_once() {
    let (objects, authorizer) = cluster();
    let account = json!({ "kind": "ServiceAccount", "namespace": "shop", "name": "till" });
    let user = User::internal("system:serviceaccount:shop:till", &[]);
    let attributes = on("get", "example.com", "widgets", "shop", "x");
    bind(&objects, "shop", ("ClusterRole", "view"), account);
    assert!(!may(&authorizer, &user, &attributes).await);
    put(
        &objects,
        json!({
            "kind": "ClusterRole",
            "metadata": {
                "name": "widgets",
                "labels": { "rbac.authorization.k8s.io/aggregate-to-view": "true" },
            },
            "rules": [{ "verbs": ["get"], "apiGroups": ["example.com"], "resources": ["widgets"] }],
        }),
    );
    assert!(may(&authorizer, &user, &attributes).await);
    objects.remove("rolebindings.rbac.authorization.k8s.io", "shop", "test");
    assert!(!may(&authorizer, &user, &attributes).await);
}

#[tokio::test]
async fn a_service_account_without_a_namespace_is_of_the_bindings_own() {
    let (objects, authorizer) = cluster();
    let account = json!({ "kind": "ServiceAccount", "name": "till" });
    bind(&objects, "shop", ("ClusterRole", "view"), account);
    let get = on("get", "", "pods", "shop", "web");
    for (name, want) in [
        ("system:serviceaccount:shop:till", true),
        ("system:serviceaccount:other:till", false),
        ("system:serviceaccount::till", false),
    ] {
        let user = User::internal(name, &[]);
        assert_eq!(may(&authorizer, &user, &get).await, want, "{name}");
    }
}

#[test]
fn what_a_403_says() {
    let user = User::internal("jane", &[]);
    let no = |reason: &str| Decision::NoOpinion {
        reason: reason.to_owned(),
    };
    for (attributes, reason, message) in [
        (
            on("get", "", "pods/log", "shop", "web"),
            "",
            r#"pods "web" is forbidden: User "jane" cannot get resource "pods/log" in API group "" in the namespace "shop""#,
        ),
        (
            on("list", "apps", "deployments", "", ""),
            "",
            r#"deployments.apps is forbidden: User "jane" cannot list resource "deployments" in API group "apps" at the cluster scope"#,
        ),
        (
            on("get", "", "secrets", "shop", "s"),
            "why",
            r#"secrets "s" is forbidden: User "jane" cannot get resource "secrets" in API group "" in the namespace "shop": why"#,
        ),
        (
            path("get", "/metrics"),
            "",
            r#"forbidden: User "jane" cannot get path "/metrics""#,
        ),
    ] {
        let status = forbidden(&user, &attributes, &no(reason));
        assert_eq!((status.code, status.message.as_str()), (403, message));
    }
}

#[tokio::test]
async fn a_node_reaches_what_its_pods_use() {
    let (objects, authorizer) = cluster();
    for (name, node, secret) in [("web", "node-1", "ours"), ("db", "node-2", "theirs")] {
        objects.put(
            "pods",
            json!({
                "metadata": { "namespace": "shop", "name": name },
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": name,
                    "volumes": [
                        { "name": "v", "secret": { "secretName": secret } },
                        { "name": "c", "persistentVolumeClaim": { "claimName":
                            if node == "node-1" { "data" } else { "foreign" } } },
                    ],
                },
            }),
        );
    }
    objects.put(
        "pods",
        json!({
            "metadata": { "namespace": "shop", "name": "mirror",
                "annotations": { "kubernetes.io/config.mirror": "x" } },
            "spec": { "nodeName": "node-1", "imagePullSecrets": [{ "name": "mirrored" }] },
        }),
    );
    for (name, claim, secret) in [("disk", "data", "key"), ("other", "foreign", "lock")] {
        objects.put(
            "persistentvolumes",
            json!({
                "metadata": { "name": name },
                "spec": {
                    "claimRef": { "namespace": "shop", "name": claim },
                    "csi": { "nodeStageSecretRef": { "namespace": "storage", "name": secret } },
                },
            }),
        );
    }
    for (name, node) in [("here", "node-1"), ("there", "node-2")] {
        let by_name = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
        objects.put(
            "persistentvolumes",
            json!({
                "metadata": { "name": name },
                "spec": { "nodeAffinity": { "required": {
                    "nodeSelectorTerms": [{ "matchExpressions": [by_name] }] } } },
            }),
        );
    }
    let own_pods = |node| where_equal(on("watch", "", "pods", "", ""), "spec.nodeName", node);
    let nameless = User::internal("system:node:", &[NODES]);
    let node = User::internal("system:node:node-1", &[NODES]);
    let impostor = User::internal("system:node:node-1", &[]);
    for (user, attributes, allowed) in [
        (&node, on("get", "", "secrets", "shop", "ours"), true),
        (&node, on("watch", "", "secrets", "shop", "ours"), true),
        (&impostor, on("get", "", "secrets", "shop", "ours"), false),
        (&node, on("get", "", "secrets", "shop", "theirs"), false),
        (&node, on("get", "", "secrets", "other", "ours"), false),
        (&node, on("list", "", "secrets", "shop", ""), false),
        (&node, on("update", "", "secrets", "shop", "ours"), false),
        (
            &node,
            on("create", "", "serviceaccounts/token", "shop", "web"),
            true,
        ),
        (
            &node,
            on("create", "", "serviceaccounts/token", "shop", "db"),
            false,
        ),
        (&node, on("get", "", "secrets", "shop", "mirrored"), false),
        // Which Node or pod is written is for admission to see.
        (&node, on("create", "", "nodes", "", ""), true),
        (&node, on("patch", "", "nodes/status", "", "node-2"), true),
        (&node, on("patch", "", "pods/status", "shop", "db"), true),
        (&node, on("get", "", "nodes", "", "node-1"), true),
        (&node, on("get", "", "nodes", "", "node-2"), false),
        (&node, on("list", "", "nodes", "", ""), false),
        (&node, on("delete", "", "nodes", "", "node-1"), false),
        (&node, on("get", "", "pods", "shop", "web"), true),
        (&node, on("get", "", "pods", "shop", "db"), false),
        (&node, on("list", "", "pods", "", ""), false),
        (&node, own_pods("node-1"), true),
        (&node, own_pods("node-2"), false),
        (&node, on("create", "", "pods/binding", "shop", "db"), false),
        (&node, on("create", "", "pods/exec", "shop", "web"), false),
        (&node, on("list", "", "persistentvolumes", "", ""), true),
        (
            &node,
            on("update", "", "persistentvolumes", "", "here"),
            true,
        ),
        (
            &node,
            on("update", "", "persistentvolumes", "", "there"),
            false,
        ),
        (
            &node,
            on("update", "", "persistentvolumes", "", "disk"),
            false,
        ),
        (
            &node,
            on("delete", "", "persistentvolumes", "", "here"),
            false,
        ),
        (&node, on("get", "", "persistentvolumes", "", "disk"), true),
        (
            &node,
            on("get", "", "persistentvolumes", "", "other"),
            false,
        ),
        (&node, on("get", "", "secrets", "storage", "key"), true),
        (&node, on("get", "", "secrets", "storage", "lock"), false),
        (&nameless, on("get", "", "services", "", "x"), false),
        (
            &node,
            on(
                "update",
                "coordination.k8s.io",
                "leases",
                "kube-node-lease",
                "node-1",
            ),
            true,
        ),
        (
            &node,
            on(
                "update",
                "coordination.k8s.io",
                "leases",
                "kube-node-lease",
                "node-2",
            ),
            false,
        ),
        (
            &node,
            on(
                "patch",
                "coordination.k8s.io",
                "leases",
                "kube-system",
                "vetch-load-balancers-node-1",
            ),
            true,
        ),
        (
            &node,
            on(
                "patch",
                "coordination.k8s.io",
                "leases",
                "kube-system",
                "vetch-load-balancers-node-2",
            ),
            false,
        ),
        (
            &node,
            on("watch", "coordination.k8s.io", "leases", "kube-system", ""),
            true,
        ),
        (&node, on("list", "", "services", "", ""), true),
        (&node, on("list", "apps", "deployments", "", ""), false),
    ] {
        let found = may(&authorizer, user, &attributes).await;
        assert_eq!(found, allowed, "{}: {attributes:?}", user.name);
    }
}

#[tokio::test]
async fn nobody_gives_away_what_they_do_not_have() {
    let (objects, authorizer) = cluster();
    let admin = json!({ "kind": "User", "name": "admin" });
    bind(&objects, "shop", ("ClusterRole", "admin"), admin);
    let guard = EscalationGuard(authorizer);
    let admin = User::internal("admin", &[]);
    let root = User::internal("root", &[MASTERS]);
    let role = |verb: &str, resource: &str| {
        json!({
            "metadata": { "name": "r" },
            "rules": [{ "verbs": [verb], "apiGroups": [""], "resources": [resource] }],
        })
    };
    let binding = |kind: &str, name: &str| json!({ "metadata": { "name": "b" }, "roleRef": { "kind": kind, "name": name } });
    for (user, plural, object, code) in [
        (&admin, "roles", role("get", "pods"), None),
        (&admin, "roles", role("get", "nodes"), Some(403)),
        (&admin, "roles", role("*", "pods"), Some(403)),
        (&root, "roles", role("*", "*"), None),
        (&admin, "rolebindings", binding("ClusterRole", "edit"), None),
        (
            &admin,
            "rolebindings",
            binding("ClusterRole", "cluster-admin"),
            Some(403),
        ),
        (&admin, "rolebindings", binding("Role", "none"), Some(404)),
    ] {
        let resource = row(RBAC, plural, "");
        let mut warnings = Vec::new();
        let mut round = Round::default();
        let mut request = Request {
            user,
            operation: Operation::Create,
            resource: &resource,
            subresource: None,
            namespace: "shop",
            name: "",
            old: None,
            dry_run: false,
            warnings: &mut warnings,
            round: &mut round,
        };
        let checked = guard.validate(&mut request, Some(&object), &*objects).await;
        let found = checked.as_ref().err().map(|status| status.code);
        assert_eq!(found, code, "{plural} {object}: {checked:?}");
    }
}

#[tokio::test]
async fn reviews() {
    let (objects, authorizer) = cluster();
    bind(
        &objects,
        "shop",
        ("ClusterRole", "view"),
        json!({ "kind": "Group", "name": "devs" }),
    );
    let jane = User::internal("jane", &["devs"]);
    let resource = row("authorization.k8s.io", "", "");
    let call = Call {
        user: &jane,
        resource: &resource,
        subresource: None,
        namespace: "shop",
        name: "",
        dry_run: false,
        objects: &*objects,
    };
    let ask = |namespace: &str| json!({ "verb": "get", "resource": "pods", "namespace": namespace, "name": "web" });
    let own = SelfSubjectAccessReviews(authorizer.clone());
    let any = SubjectAccessReviews(authorizer.clone());
    let local = LocalSubjectAccessReviews(authorizer.clone());
    let path = json!({ "verb": "get", "path": "/apis" });
    for (special, spec, expected) in [
        (
            &own as &dyn Special,
            json!({ "resourceAttributes": ask("shop") }),
            Ok(true),
        ),
        (
            &own,
            json!({ "resourceAttributes": ask("other") }),
            Ok(false),
        ),
        (&own, json!({ "nonResourceAttributes": path }), Ok(true)),
        (&own, json!({}), Err(422)),
        (
            &own,
            json!({ "resourceAttributes": ask("shop"), "nonResourceAttributes": path }),
            Err(422),
        ),
        (&any, json!({ "resourceAttributes": ask("shop") }), Err(422)),
        (
            &any,
            json!({ "user": "x", "groups": ["devs"], "resourceAttributes": ask("shop") }),
            Ok(true),
        ),
        (
            &any,
            json!({ "user": "x", "resourceAttributes": ask("shop") }),
            Ok(false),
        ),
        (
            &local,
            json!({ "groups": ["devs"], "resourceAttributes": ask("shop") }),
            Ok(true),
        ),
        (
            &local,
            json!({ "groups": ["devs"], "resourceAttributes": ask("other") }),
            Err(400),
        ),
    ] {
        let answer = special.create(&call, json!({ "spec": spec })).await;
        let found = answer
            .map(|answer| answer["status"]["allowed"] == true)
            .map_err(|status| status.code);
        assert_eq!(found, expected, "{spec}");
    }
    let rules = SelfSubjectRulesReviews(authorizer);
    let answer = rules
        .create(&call, json!({ "spec": { "namespace": "shop" } }))
        .await
        .expect("an answer");
    let status = &answer["status"];
    assert_eq!(status["incomplete"], false);
    let listed = |key: &str, wanted: &Value| {
        let rules = status[key].as_array().into_iter().flatten();
        rules.filter(|rule| rule["verbs"] == *wanted).count()
    };
    assert!(listed("resourceRules", &json!(["get", "list", "watch"])) > 5);
    assert!(listed("nonResourceRules", &json!(["get"])) >= 2);
}
