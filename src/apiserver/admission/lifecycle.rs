//! NamespaceLifecycle: nothing is created in a namespace that is missing or on its way out, and
//! the system's own namespaces stay.

use serde_json::Value;

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::{Resource, Scope},
    status::{Cause, CauseType, Status},
};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

#[async_trait::async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        _object: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        // An access review may ask about a namespace that is not there.
        if request.operation != Operation::Create
            || request.subresource.is_some()
            || request.resource.scope != Scope::Namespaced
            || request.resource.group == "authorization.k8s.io"
        {
            return Ok(());
        }
        let found = lookup.get("namespaces", "", request.namespace).await;
        let row = request.resource;
        match refusal(row, request.name, request.namespace, found.as_deref()) {
            Some(status) => Err(status),
            None => Ok(()),
        }
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        _object: Option<&Value>,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let immortal = IMMORTAL.contains(&request.name);
        if request.is(Operation::Delete, "", "namespaces") && immortal {
            return Err(request.forbidden("this namespace may not be deleted"));
        }
        Ok(())
    }
}

/// Why nothing may be created in this namespace, as it was found now. Asked here before others look
/// at the object, and once more when it is committed.
pub fn refusal(
    row: &Resource,
    name: &str,
    namespace: &str,
    found: Option<&Value>,
) -> Option<Status> {
    let Some(found) = found else {
        return Some(Status::not_found("", "namespaces", namespace));
    };
    let terminating = found["status"]["phase"] == "Terminating"
        || found["metadata"]["deletionTimestamp"].is_string();
    if !terminating {
        return None;
    }
    let why = format!(
        "unable to create new content in namespace {namespace} because it is being terminated"
    );
    let mut status = Status::forbidden(row.group, row.plural, name, &why);
    if let Some(details) = &mut status.details {
        details.causes.push(Cause {
            reason: CauseType::NamespaceTerminating,
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::{admission::testing, status::Reason};

    #[tokio::test]
    async fn namespaces_gate_creation() {
        let memory = testing::Memory::with(&[
            (
                "namespaces",
                json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}}),
            ),
            (
                "namespaces",
                json!({"metadata": {"name": "b"}, "status": {"phase": "Terminating"}}),
            ),
        ]);
        for (namespace, want) in [
            ("a", None),
            ("b", Some(Reason::Forbidden)),
            ("c", Some(Reason::NotFound)),
        ] {
            let mut pod = json!({"metadata": {"name": "p", "namespace": namespace}});
            let got = testing::admit(&NamespaceLifecycle, &memory, "pods", &mut pod, None).await;
            assert_eq!(got.err().map(|status| status.reason), want, "{namespace}");
        }
    }
}
