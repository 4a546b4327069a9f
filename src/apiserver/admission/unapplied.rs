//! Says in a warning that a field is kept but has no effect here, so that nobody relies on it.
//!
//! A row for each field. It warns on create, and on an update that changes it.

use serde_json::Value;

use super::{Operation, Plugin, Request};
use crate::apiserver::{objects::Lookup, registry::kinds::value::at, status::Status};

/// Group, plural, field, and what does not happen.
const FIELDS: [(&str, &str, &str, &str); 2] = [
    (
        "",
        "services",
        "spec.loadBalancerSourceRanges",
        "clients are not filtered by their address, use a NetworkPolicy or a firewall",
    ),
    (
        "",
        "services",
        "spec.healthCheckNodePort",
        "nodes do not answer health checks on this port",
    ),
];

pub struct UnappliedFields;

#[async_trait::async_trait]
impl Plugin for UnappliedFields {
    fn name(&self) -> &'static str {
        "UnappliedFields"
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        object: Option<&Value>,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let (Some(object), true, None) = (object, writes, request.subresource) else {
            return Ok(());
        };
        for (group, plural, field, consequence) in FIELDS {
            if request.resource.group != group || request.resource.plural != plural {
                continue;
            }
            let value = at(object, field).filter(|value| **value != serde_json::json!([]));
            let before = request.old.and_then(|old| at(old, field));
            if value.is_some() && value != before {
                let warning = format!("{field} has no effect in this cluster: {consequence}");
                request.warnings.push(warning);
            }
        }
        Ok(())
    }
}
