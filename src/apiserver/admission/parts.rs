//! What the endpoints for a part of an object may change: approval of certificate requests,
//! ephemeral containers of pods. The rest stays as it was.

use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::{
        Causes,
        kinds::{
            core::pod_update::{validate_annotations, validate_ephemeral},
            value::{at, default_to, items, keep, set, text},
        },
    },
    status::Status,
};

const VERDICTS: [&str; 2] = ["Approved", "Denied"];

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
            ("certificatesigningrequests", Some("approval")) => *object = approved(object, old),
            ("certificatesigningrequests", Some("status")) => {
                // Approval has its own endpoint and its own permission.
                let mut conditions = verdicts(old);
                conditions.extend(others(object));
                set_conditions(object, conditions);
                let before = text(old, "status.certificate");
                if !before.is_empty() && text(object, "status.certificate") != before {
                    let mut causes = Causes::default();
                    causes.forbidden("status.certificate", "field is immutable once set");
                    return Err(Status::invalid(
                        request.resource.group,
                        request.resource.kind,
                        request.name,
                        causes.0,
                    ));
                }
            }
            ("pods", Some("status")) => {
                let mut causes = Causes::default();
                validate_annotations(object, old, &mut causes);
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

fn is_verdict(condition: &Value) -> bool {
    VERDICTS.contains(&text(condition, "type"))
}

fn verdicts(csr: &Value) -> Vec<Value> {
    items(csr, "status.conditions")
        .iter()
        .filter(|condition| is_verdict(condition))
        .cloned()
        .collect()
}

fn others(csr: &Value) -> Vec<Value> {
    items(csr, "status.conditions")
        .iter()
        .filter(|condition| !is_verdict(condition))
        .cloned()
        .collect()
}

fn set_conditions(csr: &mut Value, conditions: Vec<Value>) {
    if !conditions.is_empty() || at(csr, "status.conditions").is_some() {
        set(csr, "status.conditions", conditions);
    }
}

/// The old request with the new conditions, stamped, and the new labels and annotations. What
/// was once said stays.
fn approved(new: &Value, old: &Value) -> Value {
    let now = jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let mut given = items(new, "status.conditions").to_vec();
    for condition in &mut given {
        for stamp in ["lastUpdateTime", "lastTransitionTime"] {
            default_to(condition, stamp, json!(now));
        }
    }
    let kept: Vec<Value> = items(old, "status.conditions")
        .iter()
        .filter(|held| {
            let kind = text(held, "type");
            !given.iter().any(|one| text(one, "type") == kind)
        })
        .cloned()
        .collect();
    given.extend(kept);
    let mut csr = old.clone();
    for part in ["metadata.labels", "metadata.annotations"] {
        keep(&mut csr, new, part);
    }
    set_conditions(&mut csr, given);
    csr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approval_changes_verdicts_only() {
        let old = json!({"spec": {"username": "me"}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}});
        let new = json!({"spec": {"username": "you"}, "status": {"certificate": "x", "conditions": [
            {"type": "Approved", "status": "True", "lastUpdateTime": "t", "lastTransitionTime": "t"}]}});
        assert_eq!(
            approved(&new, &old),
            json!({"spec": {"username": "me"}, "status": {"conditions": [
                {"type": "Approved", "status": "True", "lastUpdateTime": "t", "lastTransitionTime": "t"},
                {"type": "Failed", "status": "True"}]}})
        );
    }
}
