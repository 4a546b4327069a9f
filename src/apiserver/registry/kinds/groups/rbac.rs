//! Roles and bindings.

use serde_json::Value;

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    kinds::{
        names,
        row::{self, AGE, column, wide},
        value::{at, default_text, items, items_mut, text, texts},
    },
};

const GROUP: &str = "rbac.authorization.k8s.io";

pub const ROLE: Resource = Resource {
    columns: &[column("Created At", |role| {
        row::cell(role, "metadata.creationTimestamp")
    })],
    behaviour: Behaviour {
        validate: |role, causes| {
            names::object_name(role, names::path_segment, causes);
            rules(role, false, causes);
        },
        ..PLAIN
    },
    ..row::namespaced(
        GROUP,
        "v1",
        "Role",
        "roles",
        "role",
        "io.k8s.api.rbac.v1.Role",
    )
};

pub const CLUSTERROLE: Resource = Resource {
    columns: ROLE.columns,
    behaviour: Behaviour {
        validate: |role, causes| {
            names::object_name(role, names::path_segment, causes);
            rules(role, true, causes);
        },
        ..PLAIN
    },
    ..row::cluster(
        GROUP,
        "v1",
        "ClusterRole",
        "clusterroles",
        "clusterrole",
        "io.k8s.api.rbac.v1.ClusterRole",
    )
};

pub const ROLEBINDING: Resource = Resource {
    columns: &[
        column("Role", |binding| {
            format!(
                "{}/{}",
                text(binding, "roleRef.kind"),
                text(binding, "roleRef.name")
            )
            .into()
        }),
        AGE,
        wide("Users", |binding| subjects(binding, "User").into()),
        wide("Groups", |binding| subjects(binding, "Group").into()),
        wide("ServiceAccounts", |binding| {
            subjects(binding, "ServiceAccount").into()
        }),
    ],
    behaviour: Behaviour {
        default,
        validate: |binding, causes| validate_binding(binding, true, causes),
        validate_update: |new, old, causes| {
            if at(new, "roleRef") != at(old, "roleRef") {
                causes.invalid("roleRef", at(new, "roleRef"), "cannot change roleRef");
            }
        },
        ..PLAIN
    },
    ..row::namespaced(
        GROUP,
        "v1",
        "RoleBinding",
        "rolebindings",
        "rolebinding",
        "io.k8s.api.rbac.v1.RoleBinding",
    )
};

pub const CLUSTERROLEBINDING: Resource = Resource {
    columns: ROLEBINDING.columns,
    behaviour: Behaviour {
        validate: |binding, causes| validate_binding(binding, false, causes),
        ..ROLEBINDING.behaviour
    },
    ..row::cluster(
        GROUP,
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
        "io.k8s.api.rbac.v1.ClusterRoleBinding",
    )
};

fn default(binding: &mut Value) {
    default_text(binding, "roleRef.apiGroup", GROUP);
    for subject in items_mut(binding, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            default_text(subject, "apiGroup", GROUP);
        }
    }
}

fn rules(role: &Value, cluster: bool, causes: &mut Causes) {
    for (index, rule) in items(role, "rules").iter().enumerate() {
        let path = format!("rules[{index}]");
        let none = |name: &str| texts(rule, name).is_empty();
        if none("verbs") {
            causes.required(
                format!("{path}.verbs"),
                "verbs must contain at least one value",
            );
        }
        if !none("nonResourceURLs") {
            if !cluster {
                causes.invalid(
                    format!("{path}.nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if !none("apiGroups") || !none("resources") || !none("resourceNames") {
                causes.invalid(
                    format!("{path}.nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if none("apiGroups") {
            causes.required(
                format!("{path}.apiGroups"),
                "resource rules must supply at least one api group",
            );
        }
        if none("resources") {
            causes.required(
                format!("{path}.resources"),
                "resource rules must supply at least one resource",
            );
        }
    }
}

fn validate_binding(binding: &Value, namespaced: bool, causes: &mut Causes) {
    names::object_name(binding, names::path_segment, causes);
    if text(binding, "roleRef.apiGroup") != GROUP {
        causes.unsupported(
            "roleRef.apiGroup",
            text(binding, "roleRef.apiGroup"),
            &[GROUP],
        );
    }
    let kinds: &[&str] = if namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    if !kinds.contains(&text(binding, "roleRef.kind")) {
        causes.unsupported("roleRef.kind", text(binding, "roleRef.kind"), kinds);
    }
    if text(binding, "roleRef.name").is_empty() {
        causes.required("roleRef.name", "");
    }
    for (index, subject) in items(binding, "subjects").iter().enumerate() {
        let path = format!("subjects[{index}]");
        if text(subject, "name").is_empty() {
            causes.required(format!("{path}.name"), "");
        }
        let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
        match text(subject, "kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    let field = format!("{path}.name");
                    names::report(names::dns_subdomain(name), name, &field, causes);
                }
                if !group.is_empty() {
                    causes.unsupported(format!("{path}.apiGroup"), group, &[""]);
                }
                if !namespaced && text(subject, "namespace").is_empty() {
                    causes.required(format!("{path}.namespace"), "");
                }
            }
            "User" | "Group" if group != GROUP => {
                causes.unsupported(format!("{path}.apiGroup"), group, &[GROUP]);
            }
            "User" | "Group" => {}
            other => causes.unsupported(
                format!("{path}.kind"),
                other,
                &["Group", "ServiceAccount", "User"],
            ),
        }
    }
}

fn subjects(binding: &Value, kind: &str) -> String {
    let names = items(binding, "subjects")
        .iter()
        .filter(|subject| text(subject, "kind") == kind)
        .map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", text(subject, "namespace"), text(subject, "name")),
            _ => text(subject, "name").to_owned(),
        });
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subjects_of_bindings() {
        for (subject, role_binding, cluster_role_binding) in [
            (json!({"kind": "User", "name": "jane"}), None, None),
            (
                json!({"kind": "ServiceAccount", "name": "a", "namespace": "n"}),
                None,
                None,
            ),
            (
                json!({"kind": "ServiceAccount", "name": "a"}),
                None,
                Some("subjects[0].namespace: Required value"),
            ),
            (
                json!({"kind": "ServiceAccount", "name": "a", "namespace": "n", "apiGroup": GROUP}),
                Some(
                    "subjects[0].apiGroup: Unsupported value: \"rbac.authorization.k8s.io\": supported values: \"\"",
                ),
                Some(
                    "subjects[0].apiGroup: Unsupported value: \"rbac.authorization.k8s.io\": supported values: \"\"",
                ),
            ),
            (
                json!({"kind": "Group", "name": "g", "apiGroup": "v1"}),
                Some(
                    "subjects[0].apiGroup: Unsupported value: \"v1\": supported values: \"rbac.authorization.k8s.io\"",
                ),
                Some(
                    "subjects[0].apiGroup: Unsupported value: \"v1\": supported values: \"rbac.authorization.k8s.io\"",
                ),
            ),
        ] {
            for (namespaced, want) in [(true, role_binding), (false, cluster_role_binding)] {
                let mut binding = json!({"metadata": {"name": "b"},
                    "roleRef": {"kind": "ClusterRole", "name": "edit"}, "subjects": [subject]});
                default(&mut binding);
                let mut causes = Causes::default();
                validate_binding(&binding, namespaced, &mut causes);
                let found: Vec<String> = causes
                    .0
                    .iter()
                    .map(|cause| format!("{}: {}", cause.field, cause.message))
                    .collect();
                assert_eq!(found, want.into_iter().collect::<Vec<_>>(), "{subject}");
            }
        }
    }
}
