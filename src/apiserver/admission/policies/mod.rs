//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: rules of users, as expressions, that
//! change or refuse what is written.
//!
//! `compiled.rs` holds policies ready to be used, `params.rs` finds their parameters,
//! `validating.rs` and `mutating.rs` apply them, `patch.rs` makes objects of what expressions
//! return, `checking.rs` holds expressions against schemas and writes what it finds into a policy's status.
//! Always true:
//! - Policies and bindings themselves are never judged: nobody can lock himself in.
//! - A policy is compiled once for each of its generations, and dropped with it.
//! - Policies apply in the order of their names, each with its bindings in the order of theirs.

mod author;
mod checking;
mod compiled;
mod mutating;
mod params;
mod patch;
mod validating;

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

pub use self::mutating::Rounds;
use self::{checking::Checker, compiled::Hooks};
use super::{Authority, Late, Operation, Plugin, Request};
use crate::{
    apiserver::{
        authz::Authorizer,
        objects::Lookup,
        registry::{
            Resource,
            kinds::groups::admissionregistration::{
                MUTATING_BINDING, MUTATING_POLICY, VALIDATING_BINDING, VALIDATING_POLICY, is_policy,
            },
        },
        status::{Status, qualified},
    },
    supervision::Parts,
};

/// Requests that only ask, of which nothing is stored.
const EXCLUDED: [(&str, &str); 6] = [
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];

/// `plural.group` of policies and of their bindings.
struct Kinds {
    policies: String,
    bindings: String,
}

impl Kinds {
    fn of(policy: &Resource, binding: &Resource) -> Self {
        Self {
            policies: qualified(policy.group, policy.plural),
            bindings: qualified(binding.group, binding.plural),
        }
    }
}

/// Policies of one kind, as they were compiled last.
struct Known<P> {
    kinds: Kinds,
    hooks: RwLock<Arc<Hooks<P>>>,
}

impl<P: compiled::Compile> Known<P> {
    fn new(policy: &Resource, binding: &Resource) -> Self {
        Self {
            kinds: Kinds::of(policy, binding),
            hooks: RwLock::default(),
        }
    }

    /// The policies of now. Without a change this is two counters read.
    async fn now(&self, lookup: &dyn Lookup) -> Arc<Hooks<P>> {
        let Kinds { policies, bindings } = &self.kinds;
        let of = (lookup.changed(policies), lookup.changed(bindings));
        let held = self
            .hooks
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if held.of == of {
            return held;
        }
        let hooks = Arc::new(Hooks::new(
            of,
            &lookup.list(policies, "").await,
            &lookup.list(bindings, "").await,
            &held,
        ));
        *self.hooks.write().unwrap_or_else(PoisonError::into_inner) = hooks.clone();
        hooks
    }
}

pub struct Policies {
    authority: Authority,
    validating: Known<validating::Validating>,
    mutating: Known<mutating::Mutating>,
    checker: Arc<Checker>,
}

impl Policies {
    pub fn new(objects: Arc<Late>) -> Self {
        Self {
            authority: Authority::default(),
            validating: Known::new(&VALIDATING_POLICY, &VALIDATING_BINDING),
            mutating: Known::new(&MUTATING_POLICY, &MUTATING_BINDING),
            checker: Arc::new(Checker::new(objects)),
        }
    }
}

fn is_judged(request: &Request<'_>) -> bool {
    let row = request.resource;
    !is_policy(row) && !EXCLUDED.contains(&(row.group, row.plural))
}

#[async_trait::async_trait]
impl Plugin for Policies {
    fn name(&self) -> &'static str {
        "AdmissionPolicy"
    }

    fn is_policy(&self) -> bool {
        true
    }

    fn authorizer(&self, authorizer: &Arc<Authorizer>) {
        self.authority.set(authorizer);
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        object: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if !is_judged(request) {
            return Ok(());
        }
        let hooks = self.mutating.now(lookup).await;
        if hooks.all.is_empty() {
            return Ok(());
        }
        mutating::apply(&hooks, request, object, &self.authority, lookup).await
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if !is_judged(request) {
            let writes = matches!(request.operation, Operation::Create | Operation::Update);
            return match object {
                Some(object) if writes && is_policy(request.resource) => {
                    author::check(request, object, &self.authority, lookup).await
                }
                _ => Ok(()),
            };
        }
        let hooks = self.validating.now(lookup).await;
        if hooks.all.is_empty() {
            return Ok(());
        }
        validating::apply(&hooks, request, object, &self.authority, lookup).await
    }

    fn started(&self, parts: &Parts) {
        self.checker.start(parts);
    }

    async fn created(&self, resource: &Resource, _object: &Value) {
        if resource.plural == VALIDATING_POLICY.plural {
            self.checker.look();
        }
    }

    async fn replaced(&self, resource: &Resource, _old: &Value, _new: &Value) {
        if resource.plural == VALIDATING_POLICY.plural {
            self.checker.look();
        }
    }
}
