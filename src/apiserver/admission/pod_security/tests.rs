use serde_json::json;

use super::*;
use crate::apiserver::{
    admission::{
        Round,
        testing::{Memory, row},
    },
    request::User,
};

/// The refusal and the warnings of one write.
async fn write(
    plugin: &PodSecurity,
    labels: Value,
    what: &str,
    new: Value,
    old: Option<Value>,
) -> (Option<String>, Vec<String>) {
    let memory = Memory::with(&[
        (
            "namespaces",
            json!({"metadata": {"name": "shop", "labels": labels}}),
        ),
        (
            "pods",
            json!({"metadata": {"namespace": "shop", "name": "old"}, "spec": {"hostPID": true}}),
        ),
    ]);
    let (plural, part) = match what.split_once('/') {
        Some((plural, part)) => (plural, Some(part)),
        None => (what, None),
    };
    let (mut warnings, mut round) = (Vec::new(), Round::default());
    let user = User::internal("jane", &[]);
    let mut request = Request {
        user: &user,
        operation: if old.is_some() {
            Operation::Update
        } else {
            Operation::Create
        },
        resource: row(plural),
        subresource: part,
        namespace: if plural == "namespaces" { "" } else { "shop" },
        name: text(&new, "metadata.name"),
        old: old.as_ref(),
        dry_run: false,
        warnings: &mut warnings,
        round: &mut round,
    };
    let result = plugin.validate(&mut request, Some(&new), &*memory).await;
    (result.err().map(|status| status.message), warnings)
}

fn label(name: &str, value: &str) -> Value {
    json!({format!("pod-security.kubernetes.io/{name}"): value})
}

fn privileged(image: &str) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"runtimeClassName": "vm", "containers": [
        {"name": "c", "image": image, "securityContext": {"privileged": true}}]}})
}

const REFUSED: &str = "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)";
const STRICTEST: &str = "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": privileged (container \"c\" must not set securityContext.privileged=true), \
    allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
    unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
    runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
    seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
const WARNED: &str = "would violate PodSecurity \"baseline:v1.20\": privileged (container \"c\" must not set securityContext.privileged=true)";

#[tokio::test]
async fn pods_are_refused_or_warned_about() {
    let plugin = PodSecurity::default();
    let warn = json!({"pod-security.kubernetes.io/warn": "baseline", "pod-security.kubernetes.io/warn-version": "v1.20"});
    let mut debugged = privileged("i");
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "i"}]);
    for (labels, what, new, old, refused, warned) in [
        (json!({}), "pods", privileged("i"), None, None, None),
        (
            label("enforce", "privileged"),
            "pods",
            privileged("i"),
            None,
            None,
            None,
        ),
        (
            label("enforce", "baseline"),
            "pods",
            privileged("i"),
            None,
            Some(REFUSED),
            None,
        ),
        (
            warn.clone(),
            "pods",
            privileged("i"),
            None,
            None,
            Some(WARNED),
        ),
        // A label of before that is no level counts as the strictest.
        (
            label("enforce", "high"),
            "pods",
            privileged("i"),
            None,
            Some(STRICTEST),
            None,
        ),
        (
            label("enforce", "baseline"),
            "pods",
            privileged("i"),
            Some(privileged("i")),
            None,
            None,
        ),
        (
            label("enforce", "baseline"),
            "pods",
            privileged("j"),
            Some(privileged("i")),
            Some(REFUSED),
            None,
        ),
        (
            label("enforce", "baseline"),
            "pods/status",
            privileged("j"),
            Some(privileged("i")),
            None,
            None,
        ),
        (
            label("enforce", "baseline"),
            "pods/ephemeralcontainers",
            debugged,
            Some(privileged("i")),
            Some(REFUSED),
            None,
        ),
        (
            label("enforce", "baseline"),
            "pods/eviction",
            json!({}),
            None,
            None,
            None,
        ),
        (
            label("enforce", "baseline"),
            "configmaps",
            json!({}),
            None,
            None,
            None,
        ),
    ] {
        let said = format!("{labels} {what} {new}");
        let (status, warnings) = write(&plugin, labels, what, new, old).await;
        assert_eq!(status.as_deref(), refused, "{said}");
        let warned: Vec<&str> = warned.into_iter().collect();
        assert_eq!(warnings, warned, "{said}");
    }
}

#[tokio::test]
async fn templates_are_warned_about() {
    let plugin = PodSecurity::default();
    let warn = json!({"pod-security.kubernetes.io/warn": "baseline", "pod-security.kubernetes.io/warn-version": "v1.20",
        "pod-security.kubernetes.io/enforce": "restricted"});
    for (_, plural, path) in TEMPLATES {
        let mut object = json!({"metadata": {"name": "w"}});
        crate::apiserver::registry::kinds::value::set(&mut object, path, privileged("i"));
        let (status, warnings) = write(&plugin, warn.clone(), plural, object.clone(), None).await;
        assert_eq!(
            (status, warnings),
            (None, vec![WARNED.to_owned()]),
            "{plural}"
        );
        let part = format!("{plural}/status");
        let (status, warnings) = write(&plugin, warn.clone(), &part, object, None).await;
        assert_eq!((status, warnings), (None, vec![]), "{part}");
    }
    let none = json!({"metadata": {"name": "w"}, "spec": {}});
    let (_, warnings) = write(&plugin, warn, "replicationcontrollers", none, None).await;
    assert_eq!(warnings, Vec::<String>::new());
}

#[tokio::test]
async fn exemptions() {
    let named = |name: &str| vec![name.to_owned()];
    for exemptions in [
        Exemptions {
            users: named("jane"),
            ..Exemptions::default()
        },
        Exemptions {
            namespaces: named("shop"),
            ..Exemptions::default()
        },
        Exemptions {
            runtime_classes: named("vm"),
            ..Exemptions::default()
        },
    ] {
        let said = format!("{exemptions:?}");
        let plugin = PodSecurity::new(exemptions);
        let found = write(
            &plugin,
            label("enforce", "baseline"),
            "pods",
            privileged("i"),
            None,
        )
        .await;
        assert_eq!(found, (None, vec![]), "{said}");
    }
}

#[tokio::test]
async fn namespaces() {
    let plugin = PodSecurity::default();
    let namespace = |labels: Value| json!({"metadata": {"name": "shop", "labels": labels}});
    let (bad, baseline) = (label("enforce", "high"), label("enforce", "baseline"));
    let restricted = label("enforce", "restricted");
    let wrong = "Namespace \"shop\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"high\": must be one of privileged, baseline, restricted";
    let existing = |level: &str| {
        vec![format!(
            "existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"{level}:latest\""
        )]
    };
    for (new, old, refused, mut warned, more) in [
        (json!({}), None, None, vec![], None),
        (bad.clone(), None, Some(wrong), vec![], None),
        (bad.clone(), Some(json!({})), Some(wrong), vec![], None),
        (bad.clone(), Some(bad.clone()), None, vec![], None),
        (baseline.clone(), None, None, vec![], None),
        (baseline.clone(), Some(json!({})), None, existing("baseline"), Some("old: host namespaces")),
        (baseline.clone(), Some(restricted.clone()), None, vec![], None),
        (json!({}), Some(baseline), None, vec![], None),
        (
            label("audit", "baseline"),
            Some(json!({})),
            None,
            vec!["pod-security.kubernetes.io/audit: nothing is recorded for \"baseline:latest\", since this server keeps no audit log".to_owned()],
            None,
        ),
    ] {
        warned.extend(more.map(str::to_owned));
        let said = format!("{old:?} -> {new}");
        let old = old.map(namespace);
        let (status, warnings) = write(&plugin, json!({}), "namespaces", namespace(new), old).await;
        assert_eq!(status.as_deref(), refused, "{said}");
        assert_eq!(warnings, warned, "{said}");
    }
}
