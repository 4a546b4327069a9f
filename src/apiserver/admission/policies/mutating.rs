//! MutatingAdmissionPolicy: changes objects.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use super::{
    compiled::{Binding, Compile, Hooks, Policy},
    params::collect,
    patch::{self, Mutation},
};
use crate::{
    apiserver::{
        admission::{
            Authority, Operation, Request,
            evaluation::{Facts, OnFailure},
            shown::{Shown, View, taken_back},
        },
        objects::Lookup,
        registry::{
            Resource,
            kinds::value::{items, text},
        },
        status::{Cause, CauseType, Reason, Status},
    },
    cel::{Budget, Environment},
};

#[derive(Debug)]
pub struct Mutating {
    mutations: Vec<Mutation>,
    /// Applied again when others have changed the object after it.
    again: bool,
}

impl Compile for Mutating {
    const PATCHES: bool = true;

    fn compile(spec: &Value, environment: &Environment) -> Self {
        let mutations = items(spec, "mutations").iter();
        Self {
            mutations: mutations
                .map(|one| Mutation::new(one, environment))
                .collect(),
            again: text(spec, "reinvocationPolicy") == "IfNeeded",
        }
    }
}

/// Which policies are to be applied in the second round of one request.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Were applied, and want to be again if something changes after them.
    eligible: BTreeSet<Key>,
    due: BTreeSet<Key>,
    /// What the first round left.
    left: Option<Value>,
}

impl Rounds {
    fn changed(&mut self) {
        self.due.append(&mut self.eligible);
    }
}

/// Policy, binding, and the parameter's namespace and name.
type Key = (String, String, String, String);

/// One application of a policy.
struct Invocation<'h> {
    policy: &'h Policy<Mutating>,
    binding: &'h Binding,
    row: &'h Resource,
    param: Option<Arc<Value>>,
}

impl Invocation<'_> {
    fn key(&self) -> Key {
        let of = |path: &str| {
            let param = self.param.as_ref();
            param.map_or(String::new(), |param| text(param, path).to_owned())
        };
        (
            self.policy.name.clone(),
            self.binding.name.clone(),
            of("metadata.namespace"),
            of("metadata.name"),
        )
    }
}

/// Failures that refuse the request.
#[derive(Default)]
struct Failures(Vec<(String, Option<Reason>)>);

impl Failures {
    fn add(
        &mut self,
        policy: &Policy<Mutating>,
        binding: &Binding,
        why: &str,
        reason: Option<Reason>,
    ) {
        if policy.on_failure == OnFailure::Refuse {
            let message = format!(
                "policy '{}' with binding '{}' denied request: {why}",
                policy.name, binding.name
            );
            self.0.push((message, reason));
        }
    }

    /// The first is what is told, all are the causes.
    fn end(self, request: &Request<'_>) -> Result<(), Status> {
        let Some((message, reason)) = self.0.first().cloned() else {
            return Ok(());
        };
        let mut status = request.forbidden("");
        status.message = message;
        status.reason = reason.unwrap_or(status.reason);
        let causes = self.0.into_iter().map(|(message, _)| Cause {
            reason: CauseType::None,
            message,
            field: String::new(),
        });
        status.details.get_or_insert_default().causes.extend(causes);
        Err(status)
    }
}

/// Applies every policy that is for the request, one after the other.
pub async fn apply(
    hooks: &Hooks<Mutating>,
    request: &mut Request<'_>,
    object: &mut Value,
    authority: &Authority,
    lookup: &dyn Lookup,
) -> Result<(), Status> {
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let second = request.round.second;
    if second && request.round.policies.left.as_ref() != Some(&*object) {
        request.round.policies.changed();
    }
    let mut failures = Failures::default();
    let invocations = invocations(hooks, request, object, &mut failures, lookup).await;
    for invocation in invocations {
        let key = invocation.key();
        if second && !request.round.policies.due.contains(&key) {
            continue;
        }
        let Some(new) = mutated(
            &invocation,
            request,
            object,
            &mut failures,
            authority,
            lookup,
        )
        .await?
        else {
            continue;
        };
        if new != *object {
            *object = new;
            request.round.changed = true;
            request.round.policies.changed();
        }
        if invocation.policy.own.again {
            request.round.policies.eligible.insert(key);
        }
    }
    if !second {
        request.round.policies.left = Some(object.clone());
    }
    failures.end(request)
}

/// What is to be applied, found before anything is.
async fn invocations<'h>(
    hooks: &'h Hooks<Mutating>,
    request: &Request<'h>,
    object: &Value,
    failures: &mut Failures,
    lookup: &dyn Lookup,
) -> Vec<Invocation<'h>> {
    let mut found = Vec::new();
    for hook in &hooks.all {
        let policy = &*hook.policy;
        let Some(row) = policy.matching.row(request, Some(object), lookup).await else {
            continue;
        };
        for binding in &hook.bindings {
            let matches = binding.matching.row(request, Some(object), lookup).await;
            if matches.is_none() {
                continue;
            }
            let reference = binding.params.as_ref();
            let params = collect(policy.params.as_ref(), reference, request.namespace, lookup);
            match params.await {
                Ok(params) => found.extend(params.into_iter().map(|param| Invocation {
                    policy,
                    binding,
                    row,
                    param,
                })),
                Err(why) => {
                    let why = format!("failed to configure binding: {why}");
                    failures.add(policy, binding, &why, None);
                }
            }
        }
    }
    found
}

/// The object after all mutations of one policy; `None`: it does not want this one.
async fn mutated(
    invocation: &Invocation<'_>,
    request: &Request<'_>,
    object: &Value,
    failures: &mut Failures,
    authority: &Authority,
    lookup: &dyn Lookup,
) -> Result<Option<Value>, Status> {
    let &Invocation {
        policy,
        binding,
        row,
        ref param,
    } = invocation;
    let invalid = Some(Reason::Invalid);
    let mut new = object.clone();
    for (index, mutation) in policy.own.mutations.iter().enumerate() {
        let view = View::new(request, row, Some(&new), lookup).await?;
        let shown = View::shown(view.as_ref(), row, Some(&new), request.old);
        let facts = Facts::new(request, &shown, authority, lookup).await?;
        let param = param.as_deref();
        if let (0, Some(conditions)) = (index, &policy.conditions) {
            match conditions.hold(&facts, &shown, param, policy.on_failure) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(why) => {
                    failures.add(policy, binding, &why, invalid);
                    return Ok(None);
                }
            }
        }
        let after = match patched(policy, mutation, &facts, &shown, param) {
            Ok(after) => taken_back(request, row, Some(&new), after, lookup)
                .await
                .map_err(|status| status.message),
            Err(why) => Err(why),
        };
        match after {
            Ok(after) => new = after,
            Err(why) => failures.add(policy, binding, &why, invalid),
        }
    }
    Ok(Some(new))
}

fn patched(
    policy: &Policy<Mutating>,
    mutation: &Mutation,
    facts: &Facts,
    shown: &Shown<'_>,
    param: Option<&Value>,
) -> Result<Value, String> {
    let Some(before) = shown.object else {
        return Ok(Value::Null);
    };
    let activation = policy.activation(facts, shown, param);
    let value = mutation
        .expression
        .evaluate(&activation, &mut Budget::for_rules())
        .map_err(|failure| failure.to_string())?;
    patch::patched(mutation.kind, shown.row, before, &value)
}
