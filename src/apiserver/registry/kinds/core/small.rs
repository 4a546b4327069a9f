//! Core kinds with little of their own: endpoints, service accounts, templates, limits, quotas,
//! bindings.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource, SpecialSubresource,
    Subresource::{Special, Status},
    kinds::{
        cells::{self, NONE, join, len},
        ips, names,
        pods::{
            self, defaults, resources,
            template::{Restarts, validate_template},
        },
        row::{self, AGE, column, count, special},
        value::{
            default_text, default_to, items, items_mut, members, number, object_mut, set, text,
        },
    },
};

const TOKEN: SpecialSubresource = special(
    "token",
    row::CREATE,
    "authentication.k8s.io",
    "v1",
    "TokenRequest",
);

pub const ENDPOINTS: Resource = Resource {
    short_names: &["ep"],
    columns: &[
        column("Endpoints", |endpoints| endpoints_cell(endpoints).into()),
        AGE,
    ],
    behaviour: Behaviour {
        default: |endpoints| {
            for subset in items_mut(endpoints, "subsets") {
                for port in items_mut(subset, "ports") {
                    default_text(port, "protocol", "TCP");
                }
            }
        },
        validate: validate_endpoints,
        create_on_update: true,
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "Endpoints",
        "endpoints",
        "endpoints",
        "io.k8s.api.core.v1.Endpoints",
    )
};

fn validate_endpoints(endpoints: &Value, causes: &mut Causes) {
    names::object_name(endpoints, names::dns_subdomain, causes);
    for (index, subset) in items(endpoints, "subsets").iter().enumerate() {
        let path = format!("subsets[{index}]");
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|list| items(subset, list).is_empty()) {
            causes.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in lists {
            for (at, address) in items(subset, list).iter().enumerate() {
                let path = format!("{path}.{list}[{at}].ip");
                ips::endpoint(text(address, "ip"), &path, causes);
            }
        }
    }
}

pub const SERVICEACCOUNT: Resource = Resource {
    short_names: &["sa"],
    subresources: &[Special(&TOKEN)],
    columns: &[
        count("Secrets", |account| len(account, "secrets").into()),
        AGE,
    ],
    behaviour: Behaviour {
        validate: |account, causes| names::object_name(account, names::dns_subdomain, causes),
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "ServiceAccount",
        "serviceaccounts",
        "serviceaccount",
        "io.k8s.api.core.v1.ServiceAccount",
    )
};

pub const PODTEMPLATE: Resource = Resource {
    columns: &[
        column("Containers", |object| {
            cells::template_containers(object, "template.spec.containers")
        }),
        column("Images", |object| {
            cells::template_images(object, "template.spec.containers")
        }),
        column("Pod Labels", |object| {
            cells::labels(object, "template.metadata.labels")
        }),
    ],
    behaviour: Behaviour {
        warnings: |new, old| pods::warnings::template("template", new, old),
        default: |object| defaults::template(object, "template"),
        validate: |object, causes| {
            names::object_name(object, names::dns_subdomain, causes);
            validate_template(object, "template", Restarts::Any, causes);
        },
        generation: true,
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "PodTemplate",
        "podtemplates",
        "podtemplate",
        "io.k8s.api.core.v1.PodTemplate",
    )
};

pub const LIMITRANGE: Resource = Resource {
    short_names: &["limits"],
    columns: &[column("Created At", |range| {
        row::cell(range, "metadata.creationTimestamp")
    })],
    behaviour: Behaviour {
        default: default_limits,
        validate: |range, causes| {
            names::object_name(range, names::dns_subdomain, causes);
            for (index, limit) in items(range, "spec.limits").iter().enumerate() {
                for list in [
                    "max",
                    "min",
                    "default",
                    "defaultRequest",
                    "maxLimitRequestRatio",
                ] {
                    resources::quantities(limit, list, &format!("spec.limits[{index}]"), causes);
                }
            }
        },
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "LimitRange",
        "limitranges",
        "limitrange",
        "io.k8s.api.core.v1.LimitRange",
    )
};

pub const RESOURCEQUOTA: Resource = Resource {
    short_names: &["quota"],
    subresources: &[Status],
    columns: &[
        column("Request", |quota| quota_cell(quota, false).into()),
        column("Limit", |quota| quota_cell(quota, true).into()),
        AGE,
    ],
    behaviour: Behaviour {
        prepare_create: |quota| set(quota, "status", json!({})),
        validate: |quota, causes| {
            names::object_name(quota, names::dns_subdomain, causes);
            resources::quantities(&quota["spec"], "hard", "spec", causes);
            resources::whole(&quota["spec"], "hard", "spec", causes);
        },
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "ResourceQuota",
        "resourcequotas",
        "resourcequota",
        "io.k8s.api.core.v1.ResourceQuota",
    )
};

/// Created only: the handler writes the pod's node.
pub const BINDING: Resource = Resource {
    verbs: row::CREATE,
    ..row::namespaced(
        "",
        "v1",
        "Binding",
        "bindings",
        "binding",
        "io.k8s.api.core.v1.Binding",
    )
};

/// Of a healthy component its condition says so.
fn component_condition<'a>(status: &'a Value, field: &str) -> Option<&'a str> {
    let mut conditions = items(status, "conditions").iter();
    let healthy = conditions.find(|condition| text(condition, "type") == "Healthy");
    healthy.map(|condition| text(condition, field))
}

/// Read only, and not stored: the parts of the daemon.
pub const COMPONENTSTATUS: Resource = Resource {
    verbs: &["get", "list"],
    short_names: &["cs"],
    columns: &[
        column("Status", |status| {
            match component_condition(status, "status") {
                Some("True") => "Healthy".into(),
                Some("False") => "Unhealthy".into(),
                _ => "Unknown".into(),
            }
        }),
        column("Message", |status| {
            component_condition(status, "message")
                .unwrap_or_default()
                .into()
        }),
        column("Error", |status| {
            component_condition(status, "error")
                .unwrap_or_default()
                .into()
        }),
    ],
    ..row::cluster(
        "",
        "v1",
        "ComponentStatus",
        "componentstatuses",
        "componentstatus",
        "io.k8s.api.core.v1.ComponentStatus",
    )
};

/// A container's default limit is its maximum, its default request the limit or the minimum.
fn default_limits(range: &mut Value) {
    for limit in items_mut(range, "spec.limits") {
        if text(limit, "type") != "Container" {
            continue;
        }
        for (from, to) in [
            ("max", "default"),
            ("default", "defaultRequest"),
            ("min", "defaultRequest"),
        ] {
            let Some(values) = members(limit, from).cloned() else {
                continue;
            };
            let target = object_mut(limit, to);
            for (name, value) in values {
                target.entry(name).or_insert(value);
            }
        }
    }
    default_to(range, "spec", json!({"limits": []}));
}

fn endpoints_cell(endpoints: &Value) -> String {
    const SHOWN: usize = 3;
    let mut all = Vec::new();
    for subset in items(endpoints, "subsets") {
        let ports = items(subset, "ports");
        for address in items(subset, "addresses") {
            let ip = text(address, "ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            for port in ports {
                let port = number(port, "port").unwrap_or_default();
                all.push(match ip.contains(':') {
                    true => format!("[{ip}]:{port}"),
                    false => format!("{ip}:{port}"),
                });
            }
        }
    }
    match all.len() {
        0 => NONE.to_owned(),
        count if count > SHOWN => {
            let first = join(all.into_iter().take(SHOWN));
            format!("{first} + {} more...", count - SHOWN)
        }
        _ => join(all.into_iter()),
    }
}

fn quota_cell(quota: &Value, limits: bool) -> String {
    let parts = members(quota, "status.hard")
        .into_iter()
        .flatten()
        .filter_map(|(name, hard)| {
            let used = quota["status"]["used"]
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or("0");
            (name.starts_with("limits.") == limits)
                .then(|| format!("{name}: {used}/{}", hard.as_str().unwrap_or_default()))
        });
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_defaults() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        default_limits(&mut range);
        assert_eq!(
            range["spec"]["limits"][0],
            json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"},
                "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Mi"}})
        );
    }

    #[test]
    fn endpoints_are_cut_after_three() {
        let endpoints = json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.2"}], "ports": [{"port": 1}, {"port": 2}]}]});
        assert_eq!(
            endpoints_cell(&endpoints),
            "1.1.1.1:1,1.1.1.1:2,1.1.1.2:1 + 1 more..."
        );
    }
}
