//! The pod template of a workload: validation against the workload's selector.

use serde_json::Value;

use super::{annotations, validate};
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names, selector,
        value::{at, text},
    },
};

/// Which restart policies a workload's pods may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restarts {
    /// Deployments and their like.
    Always,
    /// Jobs.
    Finite,
    /// Bare PodTemplate objects.
    Any,
}

/// Validates `spec.selector` (a LabelSelector) and `spec.template` together.
pub fn validate_with_selector(object: &Value, restarts: Restarts, causes: &mut Causes) {
    match at(object, "spec.selector") {
        None => causes.required("spec.selector", ""),
        Some(selector) => {
            selector::validate(selector, "spec.selector", causes);
            if selector::is_empty(selector) {
                causes.invalid(
                    "spec.selector",
                    selector,
                    "empty selector is invalid for this workload",
                );
            }
            let labels = at(object, "spec.template.metadata.labels");
            if !selector::matches(selector, labels) {
                causes.invalid(
                    "spec.template.metadata.labels",
                    labels,
                    "`selector` does not match template `labels`",
                );
            }
        }
    }
    validate_template(object, "spec.template", restarts, causes);
}

/// Validates the template at `path`.
pub fn validate_template(object: &Value, path: &str, restarts: Restarts, causes: &mut Causes) {
    let Some(template) = at(object, path) else {
        causes.required(path, "");
        return;
    };
    names::labels(
        at(template, "metadata.labels"),
        &format!("{path}.labels"),
        causes,
    );
    names::annotations(
        at(template, "metadata.annotations"),
        &format!("{path}.annotations"),
        causes,
    );
    let spec_path = format!("{path}.spec");
    let Some(spec) = template.get("spec") else {
        causes.required(spec_path, "");
        return;
    };
    let metadata = &template["metadata"];
    annotations::validate(metadata, spec, &format!("{path}.annotations"), causes);
    validate::spec(spec, &spec_path, causes);
    annotations::seccomp_matches(metadata, spec, &spec_path, causes);
    if !super::super::value::items(spec, "ephemeralContainers").is_empty() {
        causes.forbidden(
            format!("{spec_path}.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
    let policy = text(spec, "restartPolicy");
    let allowed: &[&str] = match restarts {
        Restarts::Always => &["Always"],
        Restarts::Finite => &["OnFailure", "Never"],
        Restarts::Any => return,
    };
    if !allowed.contains(&policy) && matches!(policy, "Always" | "OnFailure" | "Never") {
        match restarts {
            Restarts::Finite => causes.required(
                format!("{spec_path}.restartPolicy"),
                "valid values: \"OnFailure\", \"Never\"",
            ),
            Restarts::Always | Restarts::Any => {
                causes.unsupported(format!("{spec_path}.restartPolicy"), policy, allowed);
            }
        }
    }
    if restarts == Restarts::Always && super::super::value::has(spec, "activeDeadlineSeconds") {
        causes.forbidden(
            format!("{spec_path}.activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        );
    }
}
