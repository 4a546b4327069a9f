//! Configurations of admission: webhooks here, policies and their bindings beside.

mod bindings;
mod expressions;
mod policies;
mod rules;

use serde_json::{Value, json};

pub use self::{
    bindings::{MUTATING_BINDING, VALIDATING_BINDING},
    policies::{MUTATING_POLICY, VALIDATING_POLICY},
};
use self::{
    expressions::match_conditions,
    rules::{Operations, default_rule, rule},
};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    kinds::{
        cells::len,
        names,
        row::{self, AGE, count},
        selector,
        value::{default_text, default_to, has, items, items_mut, number, text, texts},
    },
};

const GROUP: &str = "admissionregistration.k8s.io";
const CATEGORIES: &[&str] = &["api-extensions"];
/// The forms of AdmissionReview that this server speaks, best first.
pub const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Whether these are objects that no webhook may see: it could lock itself in.
pub fn is_configuration(row: &Resource) -> bool {
    row.group == GROUP
}

/// Whether these are objects that no policy may judge, for the same reason.
pub fn is_policy(row: &Resource) -> bool {
    const PLURALS: [&str; 4] = [
        VALIDATING_POLICY.plural,
        VALIDATING_BINDING.plural,
        MUTATING_POLICY.plural,
        MUTATING_BINDING.plural,
    ];
    row.group == GROUP && PLURALS.contains(&row.plural)
}

const BEHAVIOUR: Behaviour = Behaviour {
    default,
    validate,
    generation: true,
    unconditional_update: false,
    ..PLAIN
};

pub const MUTATING: Resource = Resource {
    categories: CATEGORIES,
    columns: &[count("Webhooks", |all| len(all, "webhooks").into()), AGE],
    behaviour: BEHAVIOUR,
    ..row::cluster(
        GROUP,
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
        "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
    )
};

pub const VALIDATING: Resource = Resource {
    categories: CATEGORIES,
    columns: &[count("Webhooks", |all| len(all, "webhooks").into()), AGE],
    behaviour: BEHAVIOUR,
    ..row::cluster(
        GROUP,
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
        "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
    )
};

fn default(configuration: &mut Value) {
    let mutating = text(configuration, "kind") == MUTATING.kind;
    for hook in items_mut(configuration, "webhooks") {
        default_text(hook, "failurePolicy", "Fail");
        default_text(hook, "matchPolicy", "Equivalent");
        default_to(hook, "namespaceSelector", json!({}));
        default_to(hook, "objectSelector", json!({}));
        default_to(hook, "timeoutSeconds", 10);
        if mutating {
            default_text(hook, "reinvocationPolicy", "Never");
        }
        if has(hook, "clientConfig.service") {
            default_to(hook, "clientConfig.service.port", 443);
        }
        for rule in items_mut(hook, "rules") {
            default_rule(rule);
        }
    }
}

fn validate(configuration: &Value, causes: &mut Causes) {
    names::object_name(configuration, names::dns_subdomain, causes);
    let mut seen = Vec::new();
    for (index, hook) in items(configuration, "webhooks").iter().enumerate() {
        let path = format!("webhooks[{index}]");
        let name = text(hook, "name");
        let full = names::dns_subdomain(name).is_empty() && name.split('.').count() >= 3;
        if !full {
            causes.invalid(
                format!("{path}.name"),
                name,
                "should be a domain with at least three segments separated by dots",
            );
        }
        if seen.contains(&name) {
            causes.duplicate(format!("{path}.name"), name);
        }
        seen.push(name);
        webhook(hook, &path, causes);
    }
}

fn one_of(hook: &Value, path: &str, field: &str, known: &[&str], causes: &mut Causes) {
    let value = text(hook, field);
    if !value.is_empty() && !known.contains(&value) {
        causes.unsupported(format!("{path}.{field}"), value, known);
    }
}

fn webhook(hook: &Value, path: &str, causes: &mut Causes) {
    one_of(hook, path, "failurePolicy", &["Fail", "Ignore"], causes);
    one_of(hook, path, "matchPolicy", &["Equivalent", "Exact"], causes);
    one_of(
        hook,
        path,
        "reinvocationPolicy",
        &["IfNeeded", "Never"],
        causes,
    );
    match text(hook, "sideEffects") {
        "" => causes.required(
            format!("{path}.sideEffects"),
            "must specify one of None, NoneOnDryRun",
        ),
        _ => one_of(hook, path, "sideEffects", &["None", "NoneOnDryRun"], causes),
    }
    if let Some(seconds) = number(hook, "timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
        causes.invalid(
            format!("{path}.timeoutSeconds"),
            seconds,
            "the timeout value must be between 1 and 30 seconds",
        );
    }
    let versions = texts(hook, "admissionReviewVersions");
    if versions.is_empty() {
        causes.required(
            format!("{path}.admissionReviewVersions"),
            "must specify one of v1, v1beta1",
        );
    } else if !REVIEW_VERSIONS.iter().any(|known| versions.contains(known)) {
        causes.invalid(
            format!("{path}.admissionReviewVersions"),
            &versions,
            "must include at least one of v1, v1beta1",
        );
    }
    for field in ["namespaceSelector", "objectSelector"] {
        selector::validate(&hook[field], &format!("{path}.{field}"), causes);
    }
    for (index, rule) in items(hook, "rules").iter().enumerate() {
        let path = format!("{path}.rules[{index}]");
        self::rule(rule, &path, Operations::All, causes);
    }
    client_config(
        &hook["clientConfig"],
        &format!("{path}.clientConfig"),
        causes,
    );
    match_conditions(hook, path, false, causes);
}

/// How a webhook is reached; also of conversion webhooks.
pub fn client_config(config: &Value, path: &str, causes: &mut Causes) {
    match (has(config, "url"), has(config, "service")) {
        (true, false) => {
            let url = text(config, "url");
            let fine = url
                .parse::<http::Uri>()
                .is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
            if !fine {
                causes.invalid(
                    format!("{path}.url"),
                    url,
                    "must be an absolute URL whose scheme is https",
                );
            }
            for (sign, what) in [('#', "fragments"), ('?', "query parameters")] {
                if url.contains(sign) {
                    causes.invalid(
                        format!("{path}.url"),
                        url,
                        &format!("{what} are not permitted in webhook URLs"),
                    );
                }
            }
        }
        (false, true) => {
            for field in ["name", "namespace"] {
                if text(config, &format!("service.{field}")).is_empty() {
                    causes.required(format!("{path}.service.{field}"), "");
                }
            }
            let given = text(config, "service.path");
            if !given.is_empty() && !given.starts_with('/') {
                causes.invalid(
                    format!("{path}.service.path"),
                    given,
                    "must start with a '/'",
                );
            }
            if let Some(port) = number(config, "service.port") {
                names::port(port, &format!("{path}.service.port"), causes);
            }
        }
        _ => causes.required(path, "exactly one of url or service is required"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_configured() {
        let good = || {
            json!({"kind": "MutatingWebhookConfiguration", "metadata": {"name": "x"}, "webhooks": [{
                "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v2", "v1"],
                "clientConfig": {"service": {"name": "s", "namespace": "n"}},
                "rules": [{"operations": ["CREATE"], "apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["pods"]}],
            }]})
        };
        for (pointer, value, want) in [
            ("/webhooks/0/name", json!("a.example.com"), ""),
            ("/webhooks/0/name", json!("short"), "webhooks[0].name"),
            (
                "/webhooks/0/sideEffects",
                json!("Some"),
                "webhooks[0].sideEffects",
            ),
            (
                "/webhooks/0/admissionReviewVersions",
                json!(["v2"]),
                "webhooks[0].admissionReviewVersions",
            ),
            (
                "/webhooks/0/clientConfig",
                json!({}),
                "webhooks[0].clientConfig",
            ),
            (
                "/webhooks/0/clientConfig",
                json!({"url": "http://a/"}),
                "webhooks[0].clientConfig.url",
            ),
            (
                "/webhooks/0/rules/0/operations",
                json!(["GET"]),
                "webhooks[0].rules[0].operations[0]",
            ),
            (
                "/webhooks/0/rules/0/apiGroups",
                json!(["*", "apps"]),
                "webhooks[0].rules[0].apiGroups",
            ),
        ] {
            let mut configuration = good();
            *configuration.pointer_mut(pointer).expect("a place") = value;
            default(&mut configuration);
            let hook = &configuration["webhooks"][0];
            assert_eq!(
                (&hook["timeoutSeconds"], &hook["reinvocationPolicy"]),
                (&json!(10), &json!("Never"))
            );
            let mut causes = Causes::default();
            validate(&configuration, &mut causes);
            let found: Vec<&str> = causes.0.iter().map(|cause| &*cause.field).collect();
            assert_eq!(found.join(","), want, "{pointer}");
        }
    }
}
