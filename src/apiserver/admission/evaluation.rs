//! Expressions about one request: what they are told, and what comes of them.
//!
//! Used by webhooks and policies. Values are read where they lie, so everything that has to be
//! waited for is gathered first ([`Facts`]); evaluation itself never waits.

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use serde_json::Value as Json;

use super::{
    Request,
    shown::{Shown, described},
};
use crate::{
    apiserver::{
        authz::Authorizer,
        expressions::{Declared, Returns, compile, environment},
        objects::Lookup,
        registry::kinds::value::{items, text},
        request::{Attributes, Target, User},
        status::Status,
    },
    cel::{
        self, Activation, Budget, Environment, EvalError, LibraryValue, Origin, Program,
        ResourceCheck, Subject, Value,
    },
};

pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// What an expression or a webhook that fails means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    Refuse,
    GoOn,
}

impl OnFailure {
    /// `owner`: what has a `failurePolicy`.
    pub fn of(owner: &Json) -> Self {
        match text(owner, "failurePolicy") {
            "Ignore" => Self::GoOn,
            _ => Self::Refuse,
        }
    }
}

/// The cluster's authorizer, known from the server's start on.
#[derive(Default)]
pub struct Authority(OnceLock<Arc<Authorizer>>);

impl Authority {
    pub fn set(&self, authorizer: &Arc<Authorizer>) {
        let _ = self.0.set(authorizer.clone());
    }

    pub fn get(&self) -> Option<&Arc<Authorizer>> {
        self.0.get()
    }
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Failed(String),
    #[error("{OUT_OF_BUDGET}")]
    OutOfBudget,
}

/// An expression, compiled; what does not compile fails when it is evaluated.
#[derive(Debug)]
pub struct Expression {
    pub text: String,
    pub program: Result<Program, String>,
}

impl Expression {
    pub fn new(environment: &Environment, text: &str, returns: Returns) -> Self {
        Self {
            text: text.to_owned(),
            program: compile(environment, text, returns).map_err(|refusal| refusal.to_string()),
        }
    }

    pub fn evaluate<'v>(
        &'v self,
        activation: &Activation<'v>,
        budget: &mut Budget,
    ) -> Result<Value<'v>, Failure> {
        let program = match &self.program {
            Ok(program) => program,
            Err(why) => return Err(Failure::Failed(format!("compilation error: {why}"))),
        };
        program
            .evaluate(activation, budget)
            .map_err(|error| match error {
                EvalError::Budget => Failure::OutOfBudget,
                other => Failure::Failed(format!(
                    "expression '{}' resulted in error: {other}",
                    self.text
                )),
            })
    }
}

/// What expressions are told of a request besides its objects.
pub struct Facts {
    request: Json,
    namespace: Option<Arc<Json>>,
    asker: Asker,
    check: ResourceCheck,
}

/// Decides for a request's user, or a service account, what expressions ask.
struct Asker {
    authorizer: Option<Arc<Authorizer>>,
    user: User,
}

impl Facts {
    pub async fn new(
        request: &Request<'_>,
        shown: &Shown<'_>,
        authority: &Authority,
        lookup: &dyn Lookup,
    ) -> Result<Self, Status> {
        let row = request.resource;
        let own = row.plural == "namespaces" && row.group.is_empty();
        let namespace = match request.namespace {
            "" => None,
            _ if own => None,
            name => match lookup.get("namespaces", "", name).await {
                Some(namespace) => Some(namespace),
                None => return Err(Status::not_found("", "namespaces", name)),
            },
        };
        let authorizer = authority.get().cloned();
        if let Some(authorizer) = &authorizer {
            authorizer.ready().await;
        }
        let check = ResourceCheck {
            group: row.group.to_owned(),
            resource: row.plural.to_owned(),
            subresource: request.subresource.unwrap_or_default().to_owned(),
            namespace: request.namespace.to_owned(),
            name: request.name.to_owned(),
            ..ResourceCheck::default()
        };
        let user = request.user.clone();
        Ok(Self {
            request: described(request, shown),
            namespace,
            asker: Asker { authorizer, user },
            check,
        })
    }

    /// The values of all variables but a policy's own.
    pub fn activation<'v>(
        &'v self,
        environment: &Environment,
        shown: &Shown<'v>,
        params: Option<&'v Json>,
    ) -> Activation<'v> {
        let value = |json: Option<&'v Json>| json.map_or(Value::Null, Value::from_json);
        let asker: &'v dyn cel::Authorizer = &self.asker;
        let mut activation = Activation::new(environment);
        activation
            .bind("object", value(shown.object))
            .bind("oldObject", value(shown.old))
            .bind("request", Value::from_json(&self.request))
            .bind("namespaceObject", value(self.namespace.as_deref()))
            .bind("params", value(params))
            .bind(
                "authorizer",
                Value::library(LibraryValue::Authorizer(asker, Subject::Requester)),
            )
            .bind(
                "authorizer.requestResource",
                Value::library(LibraryValue::ResourceCheck(asker, self.check.clone())),
            );
        activation
    }
}

impl Asker {
    fn decide(&self, subject: &Subject, attributes: &Attributes) -> cel::Decision {
        let account;
        let user = match subject {
            Subject::Requester => &self.user,
            Subject::ServiceAccount { namespace, name } => {
                account = User::service_account(namespace, name);
                &account
            }
        };
        let decided = self
            .authorizer
            .as_ref()
            .and_then(|authorizer| authorizer.authorize_at_once(user, attributes));
        match decided {
            Some(decision) => cel::Decision {
                allowed: decision.is_allowed(),
                reason: decision.reason().to_owned(),
                error: None,
            },
            None => cel::Decision {
                error: Some("roles and bindings are being read, try again".to_owned()),
                ..cel::Decision::default()
            },
        }
    }
}

impl cel::Authorizer for Asker {
    fn resource(&self, check: &ResourceCheck, verb: &str) -> cel::Decision {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let attributes = Attributes {
            verb: verb.to_owned(),
            target: Target::Resource {
                group: check.group.clone(),
                version: "*".to_owned(),
                resource: check.resource.clone(),
                subresource: some(&check.subresource),
                namespace: some(&check.namespace),
                name: some(&check.name),
            },
            fields: Vec::new(),
        };
        self.decide(&check.subject, &attributes)
    }

    fn path(&self, subject: &Subject, path: &str, verb: &str) -> cel::Decision {
        let attributes = Attributes {
            verb: verb.to_owned(),
            target: Target::Path(path.to_owned()),
            fields: Vec::new(),
        };
        self.decide(subject, &attributes)
    }
}

/// `matchConditions`, compiled.
#[derive(Debug)]
pub struct Conditions {
    environment: Environment,
    all: Vec<Expression>,
}

impl Conditions {
    /// `None`: there are none.
    pub fn new(owner: &Json, params: bool) -> Option<Self> {
        let all = items(owner, "matchConditions");
        if all.is_empty() {
            return None;
        }
        let declared = Declared {
            params,
            authorizer: true,
            ..Declared::default()
        };
        let environment = environment(declared, Origin::Stored);
        let all = all
            .iter()
            .map(|one| Expression::new(&environment, text(one, "expression"), Returns::Bool))
            .collect();
        Some(Self { environment, all })
    }

    /// Whether all are true. One that is false decides, whatever else fails.
    pub fn hold(
        &self,
        facts: &Facts,
        shown: &Shown<'_>,
        params: Option<&Json>,
        on_failure: OnFailure,
    ) -> Result<bool, String> {
        let activation = facts.activation(&self.environment, shown, params);
        let mut budget = Budget::for_match_conditions();
        let mut failures: Vec<String> = Vec::new();
        for one in &self.all {
            match one.evaluate(&activation, &mut budget) {
                Ok(Value::Bool(false)) => return Ok(false),
                Ok(_) => {}
                Err(Failure::OutOfBudget) => {
                    failures = vec![Failure::OutOfBudget.to_string()];
                    break;
                }
                Err(Failure::Failed(why)) if failures.contains(&why) => {}
                Err(Failure::Failed(why)) => failures.push(why),
            }
        }
        match (failures.as_slice(), on_failure) {
            ([], _) => Ok(true),
            (_, OnFailure::GoOn) => Ok(false),
            ([one], OnFailure::Refuse) => Err(one.clone()),
            (several, OnFailure::Refuse) => Err(format!("[{}]", several.join(", "))),
        }
    }
}
