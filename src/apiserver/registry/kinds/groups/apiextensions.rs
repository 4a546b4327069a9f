//! Definitions of custom resources.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource, StatusMetadata,
    Subresource::Status,
    custom::{
        convert::REVIEW_VERSIONS,
        definition::{self, Before},
    },
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
        validate_new: |definition, causes| validate(definition, &Before::default(), causes),
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

fn validate(definition: &Value, before: &Before<'_>, causes: &mut Causes) {
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
        joined(names::dns_subdomain(group), group, "spec.group", causes);
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
    all_names(definition, causes);
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
    versions(definition, before, causes);
}

fn all_names(definition: &Value, causes: &mut Causes) {
    for field in ["plural", "singular", "kind", "listKind"] {
        let path = format!("spec.names.{field}");
        let value = text(definition, &path);
        let mixed = field.ends_with("ind");
        if value.is_empty() {
            causes.required(&path, "");
            continue;
        }
        let problems = match mixed {
            true => names::dns_label_1035(&value.to_lowercase()),
            false => names::dns_label_1035(value),
        };
        if !problems.is_empty() {
            let said = problems.join(",");
            let detail = match mixed {
                true => format!("may have mixed case, but should otherwise match: {said}"),
                false => said,
            };
            causes.invalid(&path, value, &detail);
        }
    }
    for field in ["shortNames", "categories"] {
        let names = texts(definition, &format!("spec.names.{field}"));
        for (index, name) in names.into_iter().enumerate() {
            let path = format!("spec.names.{field}[{index}]");
            joined(names::dns_label_1035(name), name, path, causes);
        }
    }
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

fn versions(definition: &Value, before: &Before<'_>, causes: &mut Causes) {
    let versions = items(definition, "spec.versions");
    if versions.is_empty() {
        causes.required("spec.versions", "must have at least one version");
    }
    let mut seen = BTreeSet::new();
    let mut unique = true;
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = text(version, "name");
        let at = format!("{path}.name");
        joined(names::dns_label_1035(name), name, at, causes);
        unique &= seen.insert(name);
        deprecation(version, &path, causes);
        if !has(version, "schema.openAPIV3Schema") {
            causes.required(
                format!("{path}.schema.openAPIV3Schema"),
                "schemas are required",
            );
        } else {
            let was = before.version(name);
            definition::schema(
                &version["schema"]["openAPIV3Schema"],
                &format!("{path}.schema.openAPIV3Schema"),
                has(version, "subresources.status"),
                before,
                was.is_some_and(|was| was["schema"] == version["schema"]),
                causes,
            );
        }
        definition::selectable_fields(version, &path, before, causes);
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
            printer_column(
                column,
                &format!("{path}.additionalPrinterColumns[{at}]"),
                causes,
            );
        }
    }
    if !unique {
        causes.invalid(
            "spec.versions",
            versions,
            "must contain unique version names",
        );
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
                &missing(version.as_str().unwrap_or_default()),
            );
        }
    }
}

fn missing(version: &str) -> String {
    format!(
        "missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {version} and removes {version} from status.storedVersions"
    )
}

fn deprecation(version: &Value, path: &str, causes: &mut Causes) {
    let Some(warning) = version["deprecationWarning"].as_str() else {
        return;
    };
    let path = format!("{path}.deprecationWarning");
    if !flag(version, "deprecated") {
        causes.invalid(&path, warning, "can only be set for deprecated versions");
    }
    if warning.len() > 256 {
        causes.invalid(&path, warning, "must be <= 256 characters long");
    }
    if warning.is_empty() {
        causes.invalid(&path, warning, "must not be an empty string");
    }
    if let Some((index, _)) = warning.char_indices().find(|(_, one)| one.is_control()) {
        let detail = format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {index}"
        );
        causes.invalid(&path, warning, &detail);
    }
}

fn printer_column(column: &Value, path: &str, causes: &mut Causes) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 9] = [
        "byte",
        "date",
        "date-time",
        "double",
        "float",
        "int32",
        "int64",
        "name",
        "password",
    ];
    let [name, kind, format, at] =
        ["name", "type", "format", "jsonPath"].map(|one| text(column, one));
    if name.is_empty() {
        causes.required(format!("{path}.name"), "");
    }
    let one_of = |all: &[&str]| format!("must be one of {}", all.join(","));
    if kind.is_empty() {
        causes.required(format!("{path}.type"), &one_of(&TYPES));
    } else if !TYPES.contains(&kind) {
        causes.invalid(format!("{path}.type"), kind, &one_of(&TYPES));
    }
    if !format.is_empty() && !FORMATS.contains(&format) {
        causes.invalid(format!("{path}.format"), format, &one_of(&FORMATS));
    }
    if at.is_empty() {
        causes.required(format!("{path}.JSONPath"), "");
    } else if !at.starts_with('.') {
        let detail = "must be a simple json path starting with .";
        causes.invalid(format!("{path}.JSONPath"), at, detail);
    }
}

fn joined(problems: Vec<String>, value: &str, path: impl Into<String>, causes: &mut Causes) {
    if !problems.is_empty() {
        causes.invalid(path, value, &problems.join(","));
    }
}

fn validate_update(new: &Value, old: &Value, causes: &mut Causes) {
    // What was accepted stays so: nobody else can have changed what it is held against.
    if new["spec"] != old["spec"] {
        validate(new, &Before::of(Some(old)), causes);
    }
    let established = items(old, "status.conditions")
        .iter()
        .any(|one| text(one, "type") == "Established" && text(one, "status") == "True");
    for (path, always) in [
        ("spec.scope", false),
        ("spec.names.kind", false),
        ("spec.group", true),
        ("spec.names.plural", true),
    ] {
        if (always || established) && !same(new, old, path) {
            causes.invalid(path, text(new, path), "field is immutable");
        }
    }
}
