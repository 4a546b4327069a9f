//! Jobs.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        cells::{between, containers, images, label_selector, short_duration},
        names,
        pods::{
            self, defaults,
            template::{Restarts, validate_template},
        },
        row::{self, AGE, column, field, read, wide},
        selector,
        value::{
            at, default_text, default_to, flag, has, items, items_mut, keep, number, object_mut,
            set, text,
        },
    },
};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
/// The labels' names before they had a prefix; still set.
const OLD_LABELS: [&str; 2] = ["controller-uid", "job-name"];

pub const ROW: Resource = Resource {
    categories: &["all"],
    subresources: &[Status],
    columns: &[
        column("Status", |job| status(job).into()),
        column("Completions", |job| completions(job).into()),
        column("Duration", |job| duration(job).into()),
        AGE,
        wide("Containers", containers),
        wide("Images", images),
        wide("Selector", |job| label_selector(job, "spec.selector")),
    ],
    fields: &[field("status.successful", |job| {
        match read(job, "status.succeeded") {
            empty if empty.is_empty() => "0".to_owned(),
            count => count,
        }
    })],
    behaviour: Behaviour {
        warnings: |new, old| pods::warnings::template("spec.template", new, old),
        default,
        prepare_create,
        validate,
        validate_update,
        generation: true,
        orphans: true,
        ..PLAIN
    },
    ..row::namespaced(
        "batch",
        "v1",
        "Job",
        "jobs",
        "job",
        "io.k8s.api.batch.v1.Job",
    )
};

fn default(job: &mut Value) {
    if !has(job, "spec.completions") && !has(job, "spec.parallelism") {
        set(job, "spec.completions", 1);
    }
    default_to(job, "spec.parallelism", 1);
    let limit = if has(job, "spec.backoffLimitPerIndex") {
        i32::MAX
    } else {
        6
    };
    default_to(job, "spec.backoffLimit", limit);
    default_text(job, "spec.completionMode", "NonIndexed");
    default_to(job, "spec.suspend", false);
    default_to(job, "spec.manualSelector", false);
    let replace = if has(job, "spec.podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    default_text(job, "spec.podReplacementPolicy", replace);
    for rule in items_mut(job, "spec.podFailurePolicy.rules") {
        for pattern in items_mut(rule, "onPodConditions") {
            default_text(pattern, "status", "True");
        }
    }
    if let Some(labels) = at(job, "spec.template.metadata.labels").cloned() {
        default_to(job, "metadata.labels", labels);
    }
    defaults::template(job, "spec.template");
}

/// Selector and pod labels name the Job by its uid, which is made here when there is none yet.
fn prepare_create(job: &mut Value) {
    set(job, "status", json!({}));
    if flag(job, "spec.manualSelector") {
        return;
    }
    if text(job, "metadata.uid").is_empty() {
        set(job, "metadata.uid", Uuid::new_v4().to_string());
    }
    let (uid, name) = (
        text(job, "metadata.uid").to_owned(),
        text(job, "metadata.name").to_owned(),
    );
    let labels = object_mut(job, "spec.template.metadata.labels");
    for key in [UID_LABEL, OLD_LABELS[0]] {
        labels.insert(key.to_owned(), uid.clone().into());
    }
    for key in [NAME_LABEL, OLD_LABELS[1]] {
        labels.insert(key.to_owned(), name.clone().into());
    }
    object_mut(job, "spec.selector.matchLabels").insert(UID_LABEL.to_owned(), uid.into());
}

fn validate(job: &Value, causes: &mut Causes) {
    names::object_name(job, names::dns_subdomain, causes);
    match at(job, "spec.selector") {
        None => causes.required("spec.selector", ""),
        Some(selector) => {
            selector::validate(selector, "spec.selector", causes);
            let labels = at(job, "spec.template.metadata.labels");
            if !selector::matches(selector, labels) {
                causes.invalid(
                    "spec.template.metadata.labels",
                    labels,
                    "`selector` does not match template `labels`",
                );
            }
        }
    }
    spec(&job["spec"], "spec", causes);
}

/// The rules of a JobSpec apart from its selector; also of a CronJob's template.
pub fn spec(spec: &Value, path: &str, causes: &mut Causes) {
    let mut own = Causes::default();
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        names::not_negative(spec, name, &mut own);
    }
    let indexed = text(spec, "completionMode") == "Indexed";
    match text(spec, "completionMode") {
        "" | "NonIndexed" | "Indexed" => {}
        other => own.unsupported("completionMode", other, &["NonIndexed", "Indexed"]),
    }
    if indexed && !has(spec, "completions") {
        own.required("completions", "when completion mode is Indexed");
    }
    if !indexed {
        for name in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if has(spec, name) {
                own.invalid(name, &spec[name], "requires indexed completion mode");
            }
        }
    }
    match text(spec, "podReplacementPolicy") {
        "" | "Failed" | "TerminatingOrFailed" => {}
        other => own.unsupported(
            "podReplacementPolicy",
            other,
            &["Failed", "TerminatingOrFailed"],
        ),
    }
    validate_template(spec, "template", Restarts::Finite, &mut own);
    if has(spec, "podFailurePolicy") && text(spec, "template.spec.restartPolicy") != "Never" {
        own.invalid(
            "template.spec.restartPolicy",
            text(spec, "template.spec.restartPolicy"),
            "only \"Never\" is supported when podFailurePolicy is specified",
        );
    }
    for (index, rule) in items(spec, "podFailurePolicy.rules").iter().enumerate() {
        let rule_path = format!("podFailurePolicy.rules[{index}]");
        match text(rule, "action") {
            "FailJob" | "FailIndex" | "Ignore" | "Count" => {}
            "" => own.required(
                format!("{rule_path}.action"),
                "valid values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\"",
            ),
            other => own.unsupported(
                format!("{rule_path}.action"),
                other,
                &["Count", "FailIndex", "FailJob", "Ignore"],
            ),
        }
        match (
            has(rule, "onExitCodes"),
            items(rule, "onPodConditions").is_empty(),
        ) {
            (true, false) => own.invalid(
                rule_path,
                rule,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            ),
            (false, true) => own.invalid(
                rule_path,
                rule,
                "specifying one of OnExitCodes and OnPodConditions is required",
            ),
            _ => {}
        }
    }
    for mut cause in own.0 {
        cause.field = format!("{path}.{}", cause.field);
        causes.add(cause);
    }
}

fn validate_update(new: &Value, old: &Value, causes: &mut Causes) {
    let indexed = text(new, "spec.completionMode") == "Indexed";
    let elastic = indexed && at(new, "spec.completions") == at(new, "spec.parallelism");
    let mut fixed = vec![
        "spec.selector",
        "spec.completionMode",
        "spec.podFailurePolicy",
        "spec.backoffLimitPerIndex",
        "spec.managedBy",
        "spec.successPolicy",
    ];
    if !elastic {
        fixed.push("spec.completions");
    }
    for path in fixed {
        if at(new, path) != at(old, path) {
            causes.invalid(path, at(new, path), "field is immutable");
        }
    }
    let mut template = new.clone();
    // A suspended job that never started may still be steered to other nodes.
    if flag(old, "spec.suspend") && !has(old, "status.startTime") {
        for free in [
            "spec.nodeSelector",
            "spec.affinity",
            "spec.tolerations",
            "spec.schedulingGates",
            "metadata.labels",
            "metadata.annotations",
        ] {
            keep(&mut template, old, &format!("spec.template.{free}"));
        }
    }
    if at(&template, "spec.template") != at(old, "spec.template") {
        causes.invalid(
            "spec.template",
            at(new, "spec.template"),
            "field is immutable",
        );
    }
}

fn condition(job: &Value, kind: &str) -> bool {
    items(job, "status.conditions")
        .iter()
        .any(|condition| text(condition, "type") == kind && text(condition, "status") == "True")
}

fn status(job: &Value) -> &'static str {
    if condition(job, "Complete") {
        "Complete"
    } else if condition(job, "Failed") {
        "Failed"
    } else if has(job, "metadata.deletionTimestamp") {
        "Terminating"
    } else if condition(job, "Suspended") {
        "Suspended"
    } else if condition(job, "FailureTarget") {
        "FailureTarget"
    } else if condition(job, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Value) -> String {
    let succeeded = number(job, "status.succeeded").unwrap_or_default();
    match (
        number(job, "spec.completions"),
        number(job, "spec.parallelism").unwrap_or_default(),
    ) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn duration(job: &Value) -> String {
    let end = match text(job, "status.completionTime") {
        "" => items(job, "status.conditions")
            .iter()
            .find(|condition| {
                text(condition, "type") == "Failed" && text(condition, "status") == "True"
            })
            .map_or("", |condition| text(condition, "lastTransitionTime")),
        time => time,
    };
    between(text(job, "status.startTime"), end)
        .map(short_duration)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selector_and_labels_are_made() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}}});
        default(&mut job);
        prepare_create(&mut job);
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"]["job-name"],
            "j"
        );
        assert_eq!(job["spec"]["completions"], 1);
        assert_eq!(job["spec"]["backoffLimit"], 6);
        let mut causes = Causes::default();
        validate(&job, &mut causes);
        assert!(causes.0.is_empty(), "{causes:?}");
        set(&mut job, "spec.template.spec.restartPolicy", "Always");
        validate(&job, &mut causes);
        assert_eq!(causes.0[0].field, "spec.template.spec.restartPolicy");
        assert_eq!(
            causes.0[0].message,
            "Required value: valid values: \"OnFailure\", \"Never\""
        );
    }

    #[test]
    fn columns() {
        let job = json!({"spec": {"completions": 3}, "status": {"succeeded": 1,
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:02:05Z",
            "conditions": [{"type": "Complete", "status": "True"}]}});
        assert_eq!(
            (status(&job), &*completions(&job), &*duration(&job)),
            ("Complete", "1/3", "2m5s")
        );
        assert_eq!(
            completions(&json!({"spec": {"parallelism": 2}})),
            "0/1 of 2"
        );
    }
}
