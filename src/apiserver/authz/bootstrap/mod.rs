//! The roles and bindings every cluster starts with.
//!
//! The tables say what upstream's policy says, in words separated by spaces: `core` is the group
//! without a name, `*` is all. Whoever writes them at start leaves objects alone that carry the
//! annotation `rbac.authorization.kubernetes.io/autoupdate: "false"`.

mod cluster;
mod controllers;
mod namespaced;
mod reconcile;

pub use reconcile::{complete, lacks};

use serde_json::{Value, json};

use super::rules::Rule;

const RBAC: &str = "rbac.authorization.k8s.io";
const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const READ_WRITE: &str = "create delete deletecollection get list patch update watch";

/// One rule, in words.
struct Row {
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
    urls: &'static str,
}

/// On all objects of some kinds.
const fn on(verbs: &'static str, groups: &'static str, resources: &'static str) -> Row {
    named(verbs, groups, resources, "")
}

/// On objects of certain names.
const fn named(
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
) -> Row {
    Row {
        verbs,
        groups,
        resources,
        names,
        urls: "",
    }
}

/// On paths that are not resources.
const fn paths(urls: &'static str) -> Row {
    Row {
        verbs: "get",
        groups: "",
        resources: "",
        names: "",
        urls,
    }
}

const EVENTS: Row = on("create patch update", "core events.k8s.io", "events");

/// A role by name.
struct Role {
    name: &'static str,
    /// Part of this aggregated role.
    part_of: Option<&'static str>,
    /// Made of the roles that are part of it.
    aggregated: bool,
    rules: &'static [Row],
}

const fn role(name: &'static str, rules: &'static [Row]) -> Role {
    Role {
        name,
        part_of: None,
        aggregated: false,
        rules,
    }
}

/// Who a binding is for, in words: `user:NAME`, `group:NAME`, `account:NAMESPACE/NAME`.
type Subjects = &'static [&'static str];

impl Row {
    fn rule(&self) -> Rule {
        let words = |text: &str| -> Vec<String> {
            let words = text.split_whitespace();
            words
                .map(|word| if word == "core" { "" } else { word }.to_owned())
                .collect()
        };
        Rule {
            verbs: words(self.verbs),
            api_groups: words(self.groups),
            resources: words(self.resources),
            resource_names: words(self.names),
            non_resource_urls: words(self.urls),
        }
    }
}

impl Role {
    fn cluster_role(&self) -> Value {
        let mut object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": metadata(self.name, None),
            "rules": rules(self.rules),
        });
        if let Some(whole) = self.part_of {
            object["metadata"]["labels"][aggregate_label(whole)] = json!("true");
        }
        if self.aggregated {
            object["aggregationRule"] = json!({
                "clusterRoleSelectors": [
                    { "matchLabels": { aggregate_label(self.name): "true" } },
                ],
            });
        }
        object
    }
}

fn aggregate_label(whole: &str) -> String {
    format!("{RBAC}/aggregate-to-{whole}")
}

fn rules(rows: &[Row]) -> Vec<Rule> {
    rows.iter().map(Row::rule).collect()
}

fn metadata(name: &str, namespace: Option<&str>) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
        "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

/// A binding in `namespace`, or of the cluster, to a role of that sort.
fn binding(name: &str, role: (&str, &str), namespace: Option<&str>, subjects: &[&str]) -> Value {
    let kind = match namespace {
        Some(_) => "RoleBinding",
        None => "ClusterRoleBinding",
    };
    let subjects: Vec<Value> = subjects.iter().filter_map(|words| subject(words)).collect();
    let mut object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(name, namespace),
        "roleRef": { "apiGroup": RBAC, "kind": role.0, "name": role.1 },
    });
    if !subjects.is_empty() {
        object["subjects"] = json!(subjects);
    }
    object
}

fn subject(words: &str) -> Option<Value> {
    let (kind, name) = words.split_once(':')?;
    Some(match kind {
        "user" => json!({ "kind": "User", "apiGroup": RBAC, "name": name }),
        "group" => json!({ "kind": "Group", "apiGroup": RBAC, "name": name }),
        _ => {
            let (namespace, name) = name.split_once('/')?;
            json!({ "kind": "ServiceAccount", "namespace": namespace, "name": name })
        }
    })
}

/// All default ClusterRoles, ClusterRoleBindings, Roles and RoleBindings, each after what it
/// refers to. Namespaces `kube-system` and `kube-public` must exist for the last ones.
pub fn objects() -> Vec<Value> {
    let mut objects: Vec<Value> = cluster::ROLES.iter().map(Role::cluster_role).collect();
    for (name, upstream) in controllers::ROLES {
        let mut object = role(name, upstream).cluster_role();
        let ours = controllers::OURS.iter().filter(|(of, _)| of == name);
        let ours = ours.flat_map(|(_, more)| more.iter());
        object["rules"] = json!(
            upstream
                .iter()
                .chain(ours)
                .map(Row::rule)
                .collect::<Vec<_>>()
        );
        objects.push(object);
    }
    for (name, subjects) in cluster::BINDINGS {
        objects.push(binding(name, ("ClusterRole", name), None, subjects));
    }
    for (name, _) in controllers::ROLES {
        let account = name.strip_prefix("system:controller:").unwrap_or(name);
        let subject = format!("account:kube-system/{account}");
        objects.push(binding(name, ("ClusterRole", name), None, &[&subject]));
    }
    for (namespace, name, rows) in namespaced::ROLES {
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata(name, Some(namespace)),
            "rules": rules(rows),
        }));
    }
    for (namespace, name, role, subjects) in namespaced::BINDINGS {
        objects.push(binding(name, ("Role", role), Some(namespace), subjects));
    }
    objects
}

/// What `system:node` allows.
pub(super) fn node_rules() -> Vec<Rule> {
    rules(cluster::NODE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_object_is_whole_and_refers_to_one_before_it() {
        let mut seen = HashSet::new();
        for object in objects() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
            let namespace = text(&object["metadata"]["namespace"]);
            assert!(
                seen.insert((kind.clone(), namespace.clone(), name.clone())),
                "{kind} {name} twice"
            );
            if kind.ends_with("Binding") {
                let role = &object["roleRef"];
                let place = match text(&role["kind"]).as_str() {
                    "Role" => namespace,
                    _ => String::new(),
                };
                let role = (text(&role["kind"]), place, text(&role["name"]));
                assert!(seen.contains(&role), "{name} refers to {role:?}");
            }
            for rule in object["rules"].as_array().into_iter().flatten() {
                let filled = |key: &str| rule[key].as_array().is_some_and(|list| !list.is_empty());
                assert!(filled("verbs"), "{name}: {rule}");
                assert!(
                    filled("nonResourceURLs") != (filled("apiGroups") && filled("resources")),
                    "{name}: {rule}"
                );
            }
        }
        assert!(seen.len() > 130, "{}", seen.len());
    }

    /// What a status says of a load balancer is taken for its controller's word (`addresses/balancing.rs`).
    #[test]
    fn owners_of_services_do_not_write_their_status() {
        let mut seen = 0;
        for object in objects() {
            let part_of =
                |whole: &str| object["metadata"]["labels"][aggregate_label(whole)] == "true";
            if !["admin", "edit", "view"].into_iter().any(part_of) {
                continue;
            }
            seen += 1;
            for rule in object["rules"].as_array().into_iter().flatten() {
                let has = |key: &str, word: &str| {
                    rule[key]
                        .as_array()
                        .is_some_and(|list| list.contains(&json!(word)))
                };
                let writes = ["create", "update", "patch", "delete", "*"];
                let writes = writes.into_iter().any(|verb| has("verbs", verb));
                let reaches = ["services/status", "*/status", "*"];
                let reaches = reaches.into_iter().any(|one| has("resources", one));
                assert!(
                    !(writes && reaches),
                    "{}: {rule}",
                    object["metadata"]["name"]
                );
            }
        }
        assert!(seen >= 3, "{seen}");
    }
}
