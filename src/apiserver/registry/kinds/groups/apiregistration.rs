//! APIServices: who serves which group and version.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource, StatusMetadata,
    Subresource::Status,
    kinds::{
        names,
        row::{self, AGE, column},
        value::{default_to, flag, has, items, number, set, text},
    },
};

pub const ROW: Resource = Resource {
    categories: &["api-extensions"],
    subresources: &[Status],
    columns: &[
        column("Service", |service| match has(service, "spec.service") {
            true => format!(
                "{}/{}",
                text(service, "spec.service.namespace"),
                text(service, "spec.service.name")
            )
            .into(),
            false => "Local".into(),
        }),
        column("Available", |service| {
            let all = items(service, "status.conditions");
            let found = all.iter().find(|one| text(one, "type") == "Available");
            match found.map(|one| (text(one, "status"), text(one, "reason"))) {
                None => "Unknown".into(),
                Some(("True", _)) => "True".into(),
                Some((state, reason)) => format!("{state} ({reason})").into(),
            }
        }),
        AGE,
    ],
    behaviour: Behaviour {
        default: |service| {
            if has(service, "spec.service") {
                default_to(service, "spec.service.port", 443);
            }
        },
        prepare_create: |service| set(service, "status", json!({})),
        validate,
        status_metadata: StatusMetadata::Kept,
        unconditional_update: false,
        ..PLAIN
    },
    ..row::cluster(
        "apiregistration.k8s.io",
        "v1",
        "APIService",
        "apiservices",
        "apiservice",
        "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
    )
};

fn validate(service: &Value, causes: &mut Causes) {
    let (group, version) = (text(service, "spec.group"), text(service, "spec.version"));
    let (name, wanted) = (text(service, "metadata.name"), format!("{version}.{group}"));
    if name != wanted {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        causes.invalid("metadata.name", name, &detail);
    }
    if version.is_empty() {
        causes.required("spec.version", "");
    } else {
        names::report(names::dns_label(version), version, "spec.version", causes);
    }
    if !group.is_empty() {
        names::report(names::dns_subdomain(group), group, "spec.group", causes);
    } else if has(service, "spec.service") {
        causes.required(
            "spec.group",
            "only v1 may have an empty group and it better be legacy kube",
        );
    }
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let path = format!("spec.{field}");
        let value = number(service, &path).unwrap_or(0);
        if !(1..=most).contains(&value) {
            let detail = format!("must be positive and at most {most}");
            causes.invalid(&path, value, &detail);
        }
    }
    let insecure = flag(service, "spec.insecureSkipTLSVerify");
    if !has(service, "spec.service") {
        for (field, given) in [
            ("caBundle", has(service, "spec.caBundle")),
            ("insecureSkipTLSVerify", insecure),
        ] {
            if given {
                let why = "local APIServices may not have one";
                causes.forbidden(format!("spec.{field}"), why);
            }
        }
        return;
    }
    for field in ["namespace", "name"] {
        let path = format!("spec.service.{field}");
        if text(service, &path).is_empty() {
            causes.required(&path, "");
        }
    }
    if let Some(port) = number(service, "spec.service.port") {
        names::port(port, "spec.service.port", causes);
    }
    if insecure && has(service, "spec.caBundle") {
        causes.invalid(
            "spec.insecureSkipTLSVerify",
            true,
            "may not be true if caBundle is present",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_registered() {
        let good = || {
            json!({"metadata": {"name": "v1.a.example"}, "spec": {"group": "a.example", "version": "v1",
                "groupPriorityMinimum": 10, "versionPriority": 5, "service": {"name": "s", "namespace": "n"}}})
        };
        for (pointer, value, want) in [
            ("/spec/version", json!("v1"), ""),
            ("/metadata/name", json!("x"), "metadata.name"),
            ("/spec/versionPriority", json!(0), "spec.versionPriority"),
            (
                "/spec/groupPriorityMinimum",
                json!(20_001),
                "spec.groupPriorityMinimum",
            ),
            (
                "/spec/service",
                json!({"name": "s"}),
                "spec.service.namespace",
            ),
        ] {
            let mut service = good();
            *service.pointer_mut(pointer).expect("a place") = value;
            let mut causes = Causes::default();
            validate(&service, &mut causes);
            let found: Vec<&str> = causes.0.iter().map(|cause| &*cause.field).collect();
            assert_eq!(found.join(","), want, "{pointer}");
        }
    }
}
