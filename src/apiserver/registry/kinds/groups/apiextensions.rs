//! Definitions of custom resources.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource, StatusMetadata,
    Subresource::Status,
    custom::{convert::REVIEW_VERSIONS, schema::check_structure},
    kinds::{
        groups::admissionregistration::client_config,
        names,
        row::{self, column},
        value::{
            default_text, default_to, flag, has, items, items_mut, remove, same, set, text, texts,
        },
    },
};

/// Holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

pub const DEFINITION: Resource = Resource {
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    subresources: &[Status],
    columns: &[column("Created At", |definition| {
        row::cell(definition, "metadata.creationTimestamp")
    })],
    behaviour: Behaviour {
        status_metadata: StatusMetadata::Kept,
        default,
        prepare_create: |definition| {
            let stored: Vec<Value> = items(definition, "spec.versions")
                .iter()
                .filter(|version| flag(version, "storage"))
                .map(|version| version["name"].clone())
                .collect();
            let names = json!({"plural": "", "kind": ""});
            set(
                definition,
                "status",
                json!({"conditions": [], "acceptedNames": names, "storedVersions": stored}),
            );
        },
        validate,
        validate_update,
        generation: true,
        unconditional_update: false,
        ..PLAIN
    },
    ..row::cluster(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "customresourcedefinition",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
    )
};

fn default(definition: &mut Value) {
    let kind = text(definition, "spec.names.kind").to_owned();
    default_text(definition, "spec.names.singular", &kind.to_lowercase());
    default_text(definition, "spec.names.listKind", &format!("{kind}List"));
    default_text(definition, "spec.conversion.strategy", "None");
    // The only value there is.
    if !flag(definition, "spec.preserveUnknownFields") {
        remove(definition, "spec.preserveUnknownFields");
    }
    if has(definition, "spec.conversion.webhook.clientConfig.service") {
        let port = "spec.conversion.webhook.clientConfig.service.port";
        default_to(definition, port, 443);
    }
    for version in items_mut(definition, "spec.versions") {
        for column in items_mut(version, "additionalPrinterColumns") {
            // As a list without paths would be read: `spec.x` means `.spec.x`.
            let path = text(column, "jsonPath");
            if !path.is_empty() && !path.starts_with(['.', '[', '{', '$']) {
                let path = format!(".{path}");
                set(column, "jsonPath", path);
            }
        }
    }
}

fn validate(definition: &Value, causes: &mut Causes) {
    let (group, plural) = (
        text(definition, "spec.group"),
        text(definition, "spec.names.plural"),
    );
    let name = text(definition, "metadata.name");
    if name != format!("{plural}.{group}") {
        causes.invalid(
            "metadata.name",
            name,
            "must be spec.names.plural+\".\"+spec.group",
        );
    }
    if group.is_empty() {
        causes.required("spec.group", "");
    } else {
        each(names::dns_subdomain(group), group, "spec.group", causes);
    }
    if !group.is_empty() && !group.contains('.') {
        causes.invalid(
            "spec.group",
            group,
            "should be a domain with at least one dot",
        );
    }
    approved(definition, group, causes);
    match text(definition, "spec.scope") {
        "" => causes.required("spec.scope", ""),
        "Cluster" | "Namespaced" => {}
        other => causes.unsupported("spec.scope", other, &["Cluster", "Namespaced"]),
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        let path = format!("spec.names.{field}");
        let value = text(definition, &path);
        if value.is_empty() {
            causes.required(&path, "");
        } else {
            each(
                names::dns_label(&value.to_lowercase()),
                value,
                &path,
                causes,
            );
        }
    }
    if text(definition, "spec.names.kind") == text(definition, "spec.names.listKind") {
        let kind = text(definition, "spec.names.listKind");
        causes.invalid(
            "spec.names.listKind",
            kind,
            "kind and listKind may not be the same",
        );
    }
    if flag(definition, "spec.preserveUnknownFields") {
        causes.invalid("spec.preserveUnknownFields", true, "must be false in order to use defaults in the schema; use x-kubernetes-preserve-unknown-fields instead");
    }
    match text(definition, "spec.conversion.strategy") {
        "None" => {}
        "Webhook" => webhook(definition, causes),
        other => causes.unsupported("spec.conversion.strategy", other, &["None", "Webhook"]),
    }
    versions(definition, causes);
}

fn webhook(definition: &Value, causes: &mut Causes) {
    let conversion = &definition["spec"]["conversion"];
    let config = "spec.conversion.webhook.clientConfig";
    match has(definition, config) {
        true => client_config(&conversion["webhook"]["clientConfig"], config, causes),
        false => causes.required(config, "required when strategy is set to Webhook"),
    }
    let versions = texts(conversion, "webhook.conversionReviewVersions");
    let path = "spec.conversion.webhook.conversionReviewVersions";
    if versions.is_empty() {
        causes.required(path, "");
    } else if !REVIEW_VERSIONS.iter().any(|known| versions.contains(known)) {
        causes.invalid(path, &versions, "must include at least one of v1, v1beta1");
    }
}

/// Groups of the project itself want the word of those who own them.
fn approved(definition: &Value, group: &str, causes: &mut Causes) {
    const KEY: &str = "api-approved.kubernetes.io";
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|own| group == *own || group.ends_with(&format!(".{own}")));
    let word = definition["metadata"]["annotations"][KEY]
        .as_str()
        .unwrap_or_default();
    if protected && word.is_empty() {
        causes.required(
            format!("metadata.annotations[{KEY}]"),
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        );
    }
}

fn versions(definition: &Value, causes: &mut Causes) {
    let versions = items(definition, "spec.versions");
    if versions.is_empty() {
        causes.required("spec.versions", "must have at least one version");
    }
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = text(version, "name");
        each(names::dns_label(name), name, format!("{path}.name"), causes);
        if !seen.insert(name) {
            causes.duplicate(format!("{path}.name"), name);
        }
        if !has(version, "schema.openAPIV3Schema") {
            causes.required(
                format!("{path}.schema.openAPIV3Schema"),
                "schemas are required",
            );
        } else {
            check_structure(
                &version["schema"]["openAPIV3Schema"],
                &format!("{path}.schema.openAPIV3Schema"),
                true,
                causes,
            );
        }
        if !items(version, "selectableFields").is_empty() {
            causes.forbidden(
                format!("{path}.selectableFields"),
                "selectable fields are not supported by this server yet",
            );
        }
        let scale = &version["subresources"]["scale"];
        for (field, prefix) in [
            ("specReplicasPath", ".spec."),
            ("statusReplicasPath", ".status."),
        ] {
            if scale.is_object() && !text(scale, field).starts_with(prefix) {
                let path = format!("{path}.subresources.scale.{field}");
                let detail = format!(
                    "should be a json path under {}",
                    prefix.trim_end_matches('.')
                );
                causes.invalid(path, text(scale, field), &detail);
            }
        }
        for (at, column) in items(version, "additionalPrinterColumns")
            .iter()
            .enumerate()
        {
            let path = format!("{path}.additionalPrinterColumns[{at}]");
            for field in ["name", "type", "jsonPath"] {
                if text(column, field).is_empty() {
                    causes.required(format!("{path}.{field}"), "");
                }
            }
        }
    }
    let stored = versions
        .iter()
        .filter(|version| flag(version, "storage"))
        .count();
    if stored != 1 {
        causes.invalid(
            "spec.versions",
            versions,
            "must have exactly one version marked as storage version",
        );
    }
    for (index, version) in items(definition, "status.storedVersions")
        .iter()
        .enumerate()
    {
        if !versions.iter().any(|one| one["name"] == *version) {
            causes.invalid(
                format!("status.storedVersions[{index}]"),
                version,
                "must appear in spec.versions",
            );
        }
    }
}

fn each(problems: Vec<String>, value: &str, path: impl Into<String>, causes: &mut Causes) {
    let path = path.into();
    for problem in problems {
        causes.invalid(&path, value, &problem);
    }
}

fn validate_update(new: &Value, old: &Value, causes: &mut Causes) {
    for path in [
        "spec.group",
        "spec.scope",
        "spec.names.plural",
        "spec.names.kind",
    ] {
        if !same(new, old, path) {
            causes.invalid(path, text(new, path), "field is immutable");
        }
    }
}
