//! Nobody can give away what they do not have: the guard on writes of roles and bindings.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Authorizer, RBAC, is_master,
    rules::{Rule, missing, rules_of},
};
use crate::apiserver::{
    admission::{Operation, Plugin, Request},
    objects::Lookup,
    request::{Attributes, Target, User},
    status::{Status, qualified},
};

/// Refuses a role whose rules its writer does not hold (or have the verb `escalate` for), and a
/// binding to such a role (or without the verb `bind`).
pub struct EscalationGuard(pub Arc<Authorizer>);

#[async_trait::async_trait]
impl Plugin for EscalationGuard {
    fn name(&self) -> &'static str {
        "RBACEscalationGuard"
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        object: Option<&Value>,
        _: &dyn Lookup,
    ) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let Some(object) = object else { return Ok(()) };
        if !writes || request.resource.group != RBAC || is_master(request.user) {
            return Ok(());
        }
        match request.resource.plural {
            "roles" | "clusterroles" => self.check_role(request, object).await,
            "rolebindings" | "clusterrolebindings" => self.check_binding(request, object).await,
            _ => Ok(()),
        }
    }
}

impl EscalationGuard {
    async fn check_role(&self, request: &Request<'_>, role: &Value) -> Result<(), Status> {
        let same = |key: &str| request.old.is_some_and(|old| old[key] == role[key]);
        if same("rules") && same("aggregationRule") {
            return Ok(());
        }
        let mut wanted = rules_of(role);
        if !role["aggregationRule"].is_null() && !same("aggregationRule") {
            // Whatever it will choose one day.
            wanted.push(everything());
        }
        let plural = request.resource.plural;
        let name = object_name(request, role);
        if self
            .may(request.user, "escalate", plural, request.namespace, name)
            .await
        {
            return Ok(());
        }
        self.check_held(request, name, &wanted).await
    }

    async fn check_binding(&self, request: &Request<'_>, binding: &Value) -> Result<(), Status> {
        let same = |key: &str| request.old.is_some_and(|old| old[key] == binding[key]);
        if same("roleRef") && same("subjects") {
            return Ok(());
        }
        let role = binding["roleRef"]["name"].as_str().unwrap_or_default();
        let (plural, namespace) = if binding["roleRef"]["kind"] == "Role" {
            ("roles", request.namespace)
        } else {
            ("clusterroles", "")
        };
        if self
            .may(request.user, "bind", plural, request.namespace, role)
            .await
        {
            return Ok(());
        }
        let wanted = self
            .0
            .role_rules(namespace, role)
            .await
            .ok_or_else(|| Status::not_found(RBAC, plural, role))?;
        let name = object_name(request, binding);
        self.check_held(request, name, &wanted).await
    }

    async fn may(&self, user: &User, verb: &str, plural: &str, place: &str, name: &str) -> bool {
        let attributes = Attributes {
            verb: verb.to_owned(),
            target: Target::Resource {
                group: RBAC.to_owned(),
                version: "v1".to_owned(),
                resource: plural.to_owned(),
                subresource: None,
                namespace: (!place.is_empty()).then(|| place.to_owned()),
                name: Some(name.to_owned()),
            },
            fields: Vec::new(),
        };
        self.0.authorize(user, &attributes).await.is_allowed()
    }

    async fn check_held(
        &self,
        request: &Request<'_>,
        name: &str,
        wanted: &[Rule],
    ) -> Result<(), Status> {
        let user = request.user;
        let held = self.0.rules(user, request.namespace).await;
        let missing = missing(&held, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = missing.iter().map(Rule::to_string).collect();
        let groups: Vec<String> = user.groups.iter().map(|g| format!("{g:?}")).collect();
        let why = format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            groups.join(" "),
            list.join("\n"),
        );
        let resource = request.resource;
        tracing::debug!(
            resource = qualified(resource.group, resource.plural),
            name,
            "escalation refused"
        );
        Err(Status::forbidden(RBAC, resource.plural, name, &why))
    }
}

/// The URL has no name on create.
fn object_name<'a>(request: &Request<'a>, object: &'a Value) -> &'a str {
    if request.name.is_empty() {
        object["metadata"]["name"].as_str().unwrap_or_default()
    } else {
        request.name
    }
}

fn everything() -> Rule {
    let all = || vec!["*".to_owned()];
    Rule {
        verbs: all(),
        api_groups: all(),
        resources: all(),
        ..Rule::default()
    }
}
