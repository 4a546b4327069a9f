//! PodSecurity: pods must meet the standard that their namespace's labels name.
//!
//! `policy.rs` reads the labels, `checks` has the standards, `existing.rs` looks at the pods of a
//! namespace that becomes stricter. There is no audit log here: the label `audit` is checked, and
//! whoever sets it is told that nothing comes of it.
//! Always true:
//! - A namespace without such labels costs one look at it.
//! - Only pods are refused; what makes pods is warned about, for its pods will be refused.

mod checks;
mod existing;
mod policy;
mod significant;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::Value;

use self::{
    checks::{Pod, details, violations},
    policy::{Level, Policy, Standard},
    significant::is_significant,
};
use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::{
        Causes,
        kinds::value::{at, text},
    },
    status::Status,
};

/// Who and what is not asked about; nobody and nothing unless configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exemptions {
    pub users: Vec<String>,
    pub namespaces: Vec<String>,
    pub runtime_classes: Vec<String>,
}

#[derive(Default)]
pub struct PodSecurity {
    exemptions: Arc<Exemptions>,
}

/// Parts of a pod's API whose bodies are no pods, or change nothing of its spec.
const IGNORED: [&str; 8] = [
    "exec",
    "attach",
    "binding",
    "eviction",
    "log",
    "portforward",
    "proxy",
    "status",
];

/// Where the kinds that make pods have their template.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "podtemplates", "template"),
    ("", "replicationcontrollers", "spec.template"),
    ("apps", "replicasets", "spec.template"),
    ("apps", "deployments", "spec.template"),
    ("apps", "statefulsets", "spec.template"),
    ("apps", "daemonsets", "spec.template"),
    ("batch", "jobs", "spec.template"),
    ("batch", "cronjobs", "spec.jobTemplate.spec.template"),
];

#[async_trait::async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn is_policy(&self) -> bool {
        true
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        if !matches!(request.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let (group, plural) = (request.resource.group, request.resource.plural);
        if group.is_empty() && plural == "namespaces" {
            return self.namespace(request, object, lookup).await;
        }
        if group.is_empty() && plural == "pods" {
            return self.pod(request, object, lookup).await;
        }
        let mut templates = TEMPLATES.iter();
        match templates.find(|(of, kind, _)| *of == group && *kind == plural) {
            Some((_, _, path)) => self.template(request, at(object, path), lookup).await,
            None => Ok(()),
        }
    }
}

impl PodSecurity {
    pub fn new(exemptions: Exemptions) -> Self {
        Self {
            exemptions: Arc::new(exemptions),
        }
    }

    async fn pod(
        &self,
        request: &mut Request<'_>,
        pod: &Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if request
            .subresource
            .is_some_and(|part| IGNORED.contains(&part))
            || self.exemptions.exempt(request)
        {
            return Ok(());
        }
        let policy = policy_of(request.namespace, lookup).await;
        if policy.enforce.level == Level::Privileged && policy.warn.level == Level::Privileged {
            return Ok(());
        }
        if request.old.is_some_and(|old| !is_significant(pod, old))
            || self.exemptions.exempt_class(pod)
        {
            return Ok(());
        }
        let found = violations(policy.enforce, &Pod(pod));
        if !found.is_empty() {
            return Err(request.forbidden(&format!(
                "violates PodSecurity \"{}\": {}",
                policy.enforce,
                details(&found)
            )));
        }
        warn(request, policy.warn, pod);
        Ok(())
    }

    async fn template(
        &self,
        request: &mut Request<'_>,
        template: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let Some(template) = template.filter(|_| request.subresource.is_none()) else {
            return Ok(());
        };
        if self.exemptions.exempt(request) || self.exemptions.exempt_class(template) {
            return Ok(());
        }
        let policy = policy_of(request.namespace, lookup).await;
        warn(request, policy.warn, template);
        Ok(())
    }

    async fn namespace(
        &self,
        request: &mut Request<'_>,
        new: &Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if request.subresource.is_some() {
            return Ok(());
        }
        let mut wrong = Causes::default();
        let policy = Policy::of(new, &mut wrong);
        let mut before = Causes::default();
        let old = request.old.map(|old| Policy::of(old, &mut before));
        // Labels that were wrong already do not stand in the way of other changes.
        if !wrong.0.is_empty() && wrong.0 != before.0 {
            return Err(Status::invalid("", "Namespace", request.name, wrong.0));
        }
        if policy.audit.level != Level::Privileged
            && old.is_none_or(|old| old.audit != policy.audit)
        {
            request.warnings.push(format!(
                "pod-security.kubernetes.io/audit: nothing is recorded for \"{}\", since this server keeps no audit log",
                policy.audit
            ));
        }
        let name = text(new, "metadata.name");
        if self
            .exemptions
            .namespaces
            .iter()
            .any(|exempt| exempt == name)
        {
            if policy != Policy::default() && old != Some(policy) {
                request.warnings.push(format!(
                    "namespace {name:?} is exempt from Pod Security, and the policy (enforce={}, audit={}, warn={}) will be ignored",
                    policy.enforce, policy.audit, policy.warn
                ));
            }
            return Ok(());
        }
        if !old.is_some_and(|old| is_stricter(policy.enforce, old.enforce)) {
            return Ok(());
        }
        let pods = lookup.list("pods", name).await;
        let (namespace, exemptions) = (name.to_owned(), self.exemptions.clone());
        let look = move || existing::warnings(&namespace, policy.enforce, &exemptions, &pods);
        let warnings = tokio::task::spawn_blocking(look).await;
        request.warnings.extend(warnings.map_err(Status::internal)?);
        Ok(())
    }
}

impl Exemptions {
    fn exempt(&self, request: &Request<'_>) -> bool {
        let user = &request.user.name;
        let namespace = request.namespace;
        self.namespaces.iter().any(|exempt| exempt == namespace)
            || (!user.is_empty() && self.users.contains(user))
    }

    fn exempt_class(&self, pod: &Value) -> bool {
        let class = text(pod, "spec.runtimeClassName");
        !class.is_empty() && self.runtime_classes.iter().any(|exempt| exempt == class)
    }
}

/// Whether pods that met the old one may not meet the new one. Versions are not compared: a later
/// one is stricter here and looser there.
fn is_stricter(new: Standard, old: Standard) -> bool {
    new != old
        && new.level != Level::Privileged
        && (new.version != old.version || new.level > old.level)
}

async fn policy_of(namespace: &str, lookup: &dyn Lookup) -> Policy {
    match lookup.get("namespaces", "", namespace).await {
        Some(namespace) => Policy::of(&namespace, &mut Causes::default()),
        None => Policy::default(),
    }
}

fn warn(request: &mut Request<'_>, standard: Standard, pod: &Value) {
    let found = violations(standard, &Pod(pod));
    if !found.is_empty() {
        request.warnings.push(format!(
            "would violate PodSecurity \"{standard}\": {}",
            details(&found)
        ));
    }
}
