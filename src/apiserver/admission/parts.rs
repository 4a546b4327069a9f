//! What the endpoints for a part of a pod may change: its status and its ephemeral containers.
//! The rest stays as it was.

use serde_json::Value;

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::{
        Causes,
        kinds::{
            core::{pod_status, pod_update::validate_ephemeral},
            value::keep,
        },
    },
    status::Status,
};

pub struct Parts;

#[async_trait::async_trait]
impl Plugin for Parts {
    fn name(&self) -> &'static str {
        "Parts"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        object: &mut Value,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let (Operation::Update, Some(old)) = (request.operation, request.old) else {
            return Ok(());
        };
        match (request.resource.plural, request.subresource) {
            ("pods", Some("status")) => {
                let mut causes = Causes::default();
                pod_status::validate(object, old, &mut causes);
                if !causes.0.is_empty() {
                    return Err(Status::invalid("", "Pod", request.name, causes.0));
                }
            }
            ("pods", Some("ephemeralcontainers")) => {
                let mut causes = Causes::default();
                keep(object, old, "status");
                validate_ephemeral(object, old, &mut causes);
                if !causes.0.is_empty() {
                    return Err(Status::invalid("", "Pod", request.name, causes.0));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
