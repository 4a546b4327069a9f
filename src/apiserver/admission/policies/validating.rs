//! ValidatingAdmissionPolicy: refuses, warns or logs.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::Value;

use super::{
    compiled::{Binding, Compile, Hook, Hooks, Policy},
    params::collect,
};
use crate::{
    apiserver::{
        admission::{
            Authority, Request,
            evaluation::{Expression, Facts, Failure, OnFailure},
            shown::{Shown, View},
        },
        expressions::Returns,
        objects::Lookup,
        registry::{
            Resource,
            kinds::value::{items, text},
        },
        status::{Cause, CauseType, Reason, Status},
    },
    cel::{self, Budget, Environment},
};

/// A longer message of an expression counts for none (bytes).
const MAX_MESSAGE: usize = 5 * 1024;
/// Values of audit annotations are cut there (bytes).
const MAX_ANNOTATION: usize = 10 * 1024;

#[derive(Debug)]
pub struct Validating {
    validations: Vec<Validation>,
    annotations: Vec<Annotation>,
}

#[derive(Debug)]
struct Validation {
    expression: Expression,
    message: String,
    words: Option<Expression>,
    reason: Reason,
}

#[derive(Debug)]
struct Annotation {
    key: String,
    value: Expression,
}

impl Compile for Validating {
    const PATCHES: bool = false;

    fn compile(spec: &Value, environment: &Environment) -> Self {
        let of = |given: &str, returns| Expression::new(environment, given, returns);
        let validations = items(spec, "validations").iter().map(|one| {
            let words = text(one, "messageExpression");
            Validation {
                expression: of(text(one, "expression"), Returns::Bool),
                message: text(one, "message").trim().to_owned(),
                words: (!words.is_empty()).then(|| of(words, Returns::Text)),
                reason: match text(one, "reason") {
                    "Unauthorized" => Reason::Unauthorized,
                    "Forbidden" => Reason::Forbidden,
                    "RequestEntityTooLarge" => Reason::RequestEntityTooLarge,
                    _ => Reason::Invalid,
                },
            }
        });
        let annotations = items(spec, "auditAnnotations")
            .iter()
            .map(|one| Annotation {
                key: text(one, "key").to_owned(),
                value: of(text(one, "valueExpression"), Returns::TextOrNull),
            });
        Self {
            validations: validations.collect(),
            annotations: annotations.collect(),
        }
    }
}

/// What one evaluation found against the request.
#[derive(Debug, Default, PartialEq)]
struct Judgement {
    denials: Vec<Denial>,
    annotations: Vec<(String, String)>,
    /// Of annotations: they refuse whatever the binding's actions are.
    failures: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Denial {
    /// Which of the validations; of a failure before them, the first.
    index: usize,
    message: String,
    reason: Reason,
}

impl Denial {
    fn failure(index: usize, message: impl Into<String>) -> Self {
        Self {
            index,
            message: message.into(),
            reason: Reason::Invalid,
        }
    }
}

/// Evaluates all of a policy with one parameter.
fn judge(
    policy: &Policy<Validating>,
    facts: &Facts,
    shown: &Shown<'_>,
    params: Option<&Value>,
) -> Judgement {
    let mut found = Judgement::default();
    let refuses = policy.on_failure == OnFailure::Refuse;
    if let Some(conditions) = &policy.conditions {
        match conditions.hold(facts, shown, params, policy.on_failure) {
            Ok(true) => {}
            Ok(false) => return found,
            Err(why) => {
                found.denials.push(Denial::failure(0, why));
                return found;
            }
        }
    }
    let activation = policy.activation(facts, shown, params);
    let mut budget = Budget::for_rules();
    for (index, one) in policy.own.validations.iter().enumerate() {
        match one.expression.evaluate(&activation, &mut budget) {
            Ok(cel::Value::Bool(true)) => {}
            Ok(_) => match one.message(&activation, &mut budget) {
                Ok(message) => found.denials.push(Denial {
                    index,
                    message,
                    reason: one.reason,
                }),
                Err(why) if refuses => found.denials.push(Denial::failure(index, why)),
                Err(_) => {}
            },
            Err(Failure::Failed(why)) if refuses => {
                found.denials.push(Denial::failure(index, why));
            }
            Err(Failure::Failed(_)) => {}
            Err(failure @ Failure::OutOfBudget) => {
                found.denials.clear();
                if refuses {
                    found.denials.push(Denial::failure(0, failure.to_string()));
                }
                return found;
            }
        }
    }
    let mut budget = Budget::for_rules();
    for one in &policy.own.annotations {
        match one.value.evaluate(&activation, &mut budget) {
            Ok(cel::Value::String(value)) => {
                let value = cut(value.trim(), MAX_ANNOTATION);
                if !value.is_empty() {
                    found.annotations.push((one.key.clone(), value.to_owned()));
                }
            }
            Ok(_) => {}
            Err(failure) if refuses => found.failures.push(failure.to_string()),
            Err(_) => {}
        }
    }
    found
}

fn cut(text: &str, most: usize) -> &str {
    let end = text.floor_char_boundary(most);
    &text[..end]
}

impl Validation {
    /// Why the object is refused: as the expression says, else as the policy says.
    fn message<'v>(
        &'v self,
        activation: &cel::Activation<'v>,
        budget: &mut Budget,
    ) -> Result<String, String> {
        let said = match self
            .words
            .as_ref()
            .map(|one| one.evaluate(activation, budget))
        {
            Some(Ok(cel::Value::String(said))) => said.trim().to_owned(),
            Some(Err(failure @ Failure::OutOfBudget)) => {
                return Err(format!("failed messageExpression: {failure}"));
            }
            _ => String::new(),
        };
        Ok(match said.as_str() {
            said if !said.is_empty() && said.len() <= MAX_MESSAGE && !said.contains('\n') => {
                said.to_owned()
            }
            _ if !self.message.is_empty() => self.message.clone(),
            _ => format!("failed expression: {}", self.expression.text.trim()),
        })
    }
}

/// Holds a request against every policy that is for it. The first denial, in order, is told.
pub async fn apply(
    hooks: &Hooks<Validating>,
    request: &mut Request<'_>,
    object: Option<&Value>,
    authority: &Authority,
    lookup: &dyn Lookup,
) -> Result<(), Status> {
    let mut denied: Option<(String, Reason)> = None;
    let mut seen: Option<(&Resource, Option<View>, Facts)> = None;
    for hook in &hooks.all {
        let policy = &*hook.policy;
        let Some(row) = policy.matching.row(request, object, lookup).await else {
            continue;
        };
        let mut bindings = Vec::new();
        for binding in &hook.bindings {
            if binding
                .matching
                .row(request, object, lookup)
                .await
                .is_some()
            {
                bindings.push(binding);
            }
        }
        if bindings.is_empty() {
            continue;
        }
        // Policies mostly want the same version.
        let same = seen.take().filter(|(known, ..)| std::ptr::eq(*known, row));
        let (_, view, facts) = match same {
            Some(same) => seen.insert(same),
            None => {
                let view = match View::new(request, row, object, lookup).await {
                    Ok(view) => view,
                    Err(status) => {
                        if policy.on_failure == OnFailure::Refuse {
                            let name = &policy.name;
                            let message = format!(
                                "ValidatingAdmissionPolicy '{name}' denied request: failed to configure policy: failed to convert object version: {status}"
                            );
                            denied.get_or_insert((message, Reason::Invalid));
                        }
                        continue;
                    }
                };
                let shown = View::shown(view.as_ref(), row, object, request.old);
                let facts = Facts::new(request, &shown, authority, lookup).await?;
                seen.insert((row, view, facts))
            }
        };
        let shown = View::shown(view.as_ref(), row, object, request.old);
        for binding in bindings {
            let reference = binding.params.as_ref();
            let params = collect(policy.params.as_ref(), reference, request.namespace, lookup);
            let params = match params.await {
                Ok(params) => params,
                Err(why) if policy.on_failure == OnFailure::Refuse => {
                    let why = format!("failed to configure binding: {why}");
                    denied.get_or_insert((refused(hook, binding, &why), Reason::Invalid));
                    continue;
                }
                Err(_) => continue,
            };
            let found = judged(policy, facts, &shown, &params).await;
            for judgement in found {
                act(hook, binding, request, judgement, &mut denied);
            }
        }
    }
    let Some((message, reason)) = denied else {
        return Ok(());
    };
    let mut status = request.forbidden(&message);
    status.reason = reason;
    status.code = reason.code();
    let cause = Cause {
        reason: CauseType::None,
        message,
        field: String::new(),
    };
    status.details.get_or_insert_default().causes.push(cause);
    Err(status)
}

async fn judged(
    policy: &Policy<Validating>,
    facts: &Facts,
    shown: &Shown<'_>,
    params: &[Option<Arc<Value>>],
) -> Vec<Judgement> {
    let mut found = Vec::with_capacity(params.len());
    for param in params {
        if !found.is_empty() {
            // Many parameters are work enough that others shall have their turn.
            tokio::task::yield_now().await;
        }
        found.push(judge(policy, facts, shown, param.as_deref()));
    }
    found
}

fn refused(hook: &Hook<Validating>, binding: &Binding, why: &str) -> String {
    format!(
        "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {why}",
        hook.policy.name, binding.name
    )
}

/// Does what the binding wants done about what was found.
fn act(
    hook: &Hook<Validating>,
    binding: &Binding,
    request: &mut Request<'_>,
    found: Judgement,
    denied: &mut Option<(String, Reason)>,
) {
    let (policy, name) = (&hook.policy.name, &binding.name);
    for denial in found.denials {
        for action in &binding.actions {
            match action.as_str() {
                "Deny" => {
                    let message = refused(hook, binding, &denial.message);
                    denied.get_or_insert((message, denial.reason));
                }
                "Warn" => request.warnings.push(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{name}': {}",
                    denial.message
                )),
                "Audit" => tracing::info!(
                    target: "audit",
                    user = request.user.name,
                    resource = request.resource.plural,
                    namespace = request.namespace,
                    object = request.name,
                    policy,
                    binding = name,
                    expression = denial.index,
                    message = denial.message,
                    "validation.policy.admission.k8s.io/validation_failure"
                ),
                _ => {}
            }
        }
    }
    for (key, value) in found.annotations {
        tracing::info!(
            target: "audit",
            user = request.user.name,
            resource = request.resource.plural,
            namespace = request.namespace,
            object = request.name,
            value,
            "{policy}/{key}"
        );
    }
    for why in found.failures {
        denied.get_or_insert((refused(hook, binding, &why), Reason::Invalid));
    }
}
