//! Who writes a policy or a binding must be allowed to read what it reads for everybody: its
//! parameters.

use serde_json::Value;

use super::params::ParamKind;
use crate::apiserver::{
    admission::{Authority, Operation, Request},
    authz::MASTERS,
    objects::Lookup,
    registry::{
        Causes,
        kinds::{
            groups::admissionregistration::{MUTATING_BINDING, MUTATING_POLICY, VALIDATING_POLICY},
            value::{has, same, text},
        },
    },
    request::{Attributes, Target},
    status::{Status, qualified},
};

/// 422 if its writer may not.
pub async fn check(
    request: &Request<'_>,
    object: &Value,
    authority: &Authority,
    lookup: &dyn Lookup,
) -> Result<(), Status> {
    if request.subresource.is_some() || request.user.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    let plural = request.resource.plural;
    let is_policy = plural == VALIDATING_POLICY.plural || plural == MUTATING_POLICY.plural;
    let (path, told) = match is_policy {
        true => ("spec.paramKind", "spec.paramKind"),
        false => ("spec.paramRef", "spec.paramRef"),
    };
    if !has(object, path) {
        return Ok(());
    }
    if let (Operation::Update, Some(old)) = (request.operation, request.old) {
        let unchanged = has(old, path)
            && same(object, old, path)
            && (is_policy || same(object, old, "spec.policyName"));
        if unchanged {
            return Ok(());
        }
    }
    let Some(authorizer) = authority.get() else {
        return Err(Status::internal("there is no authorizer"));
    };
    let (kind, name, namespace) = if is_policy {
        (Some(ParamKind::new(&object["spec"]["paramKind"])), "*", "*")
    } else {
        let policies = match plural == MUTATING_BINDING.plural {
            true => &MUTATING_POLICY,
            false => &VALIDATING_POLICY,
        };
        let policies = qualified(policies.group, policies.plural);
        let policy = lookup
            .get(&policies, "", text(object, "spec.policyName"))
            .await;
        let kind = policy
            .filter(|policy| has(policy, "spec.paramKind"))
            .map(|policy| ParamKind::new(&policy["spec"]["paramKind"]));
        let reference = &object["spec"]["paramRef"];
        (kind, text(reference, "name"), text(reference, "namespace"))
    };
    // Of what is not known, everything must be allowed.
    let any = || "*".to_owned();
    let (group, version, resource) = match &kind {
        Some(kind) => (
            kind.group.clone(),
            kind.version.clone(),
            kind.row(lookup)
                .map_or_else(any, |row| row.plural.to_owned()),
        ),
        None => (any(), any(), any()),
    };
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let attributes = Attributes {
        verb: "get".to_owned(),
        target: Target::Resource {
            group,
            version,
            resource,
            subresource: None,
            namespace: some(namespace),
            name: some(name),
        },
        fields: Vec::new(),
    };
    let decision = authorizer.authorize(request.user, &attributes).await;
    if decision.is_allowed() {
        return Ok(());
    }
    let user = &request.user.name;
    let detail = match (is_policy, &kind) {
        (true, Some(_)) => format!(
            "user {user} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
            text(object, "spec.paramKind.kind"),
            text(object, "spec.paramKind.apiVersion")
        ),
        _ => format!(
            "user {user} does not have \"get\" permission on the object referenced by paramRef"
        ),
    };
    let mut causes = Causes::default();
    causes.forbidden(told, &detail);
    let row = request.resource;
    Err(Status::invalid(row.group, row.kind, request.name, causes.0))
}
