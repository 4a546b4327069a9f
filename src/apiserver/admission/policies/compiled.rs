//! Policies and bindings, ready to be used.

use std::{collections::HashMap, sync::Arc};

use serde_json::Value;

use super::params::{ParamKind, ParamRef};
use crate::{
    apiserver::{
        admission::{
            evaluation::{Conditions, Expression, Facts, OnFailure},
            matching::Matching,
            shown::Shown,
        },
        expressions::{Declared, Returns, environment},
        registry::kinds::value::{has, items, number, text},
    },
    cel::{Activation, Environment, Origin, Type},
};

/// The part that validating and mutating policies do not share.
pub trait Compile: Sized {
    /// Whether expressions make patches.
    const PATCHES: bool;

    fn compile(spec: &Value, environment: &Environment) -> Self;
}

/// One generation of one policy.
#[derive(Debug)]
pub struct Policy<P> {
    uid: String,
    generation: i64,
    pub name: String,
    pub matching: Matching,
    pub conditions: Option<Conditions>,
    pub on_failure: OnFailure,
    pub params: Option<ParamKind>,
    environment: Environment,
    variables: Vec<(String, Expression)>,
    pub own: P,
}

impl<P: Compile> Policy<P> {
    fn new(policy: &Value) -> Self {
        let spec = &policy["spec"];
        let params = has(spec, "paramKind").then(|| ParamKind::new(&spec["paramKind"]));
        let variables = items(spec, "variables");
        let declared = Declared {
            params: params.is_some(),
            authorizer: true,
            patches: P::PATCHES,
            variables: !variables.is_empty(),
        };
        let mut environment = environment(declared, Origin::Stored);
        let variables = variables
            .iter()
            .map(|one| {
                let name = text(one, "name");
                let expression =
                    Expression::new(&environment, text(one, "expression"), Returns::Anything);
                let ty = expression.program.as_ref();
                let ty = ty.map_or(Type::Dyn, |program| program.output_type().clone());
                environment.compose(name, &ty);
                (name.to_owned(), expression)
            })
            .collect();
        Self {
            uid: text(policy, "metadata.uid").to_owned(),
            generation: number(policy, "metadata.generation").unwrap_or(0),
            name: text(policy, "metadata.name").to_owned(),
            matching: Matching::of_policy(&spec["matchConstraints"]),
            conditions: Conditions::new(spec, params.is_some()),
            on_failure: OnFailure::of(spec),
            params,
            own: P::compile(spec, &environment),
            environment,
            variables,
        }
    }

    /// The values of all variables.
    pub fn activation<'v>(
        &'v self,
        facts: &'v Facts,
        shown: &Shown<'v>,
        params: Option<&'v Value>,
    ) -> Activation<'v> {
        let mut activation = facts.activation(&self.environment, shown, params);
        for (name, expression) in &self.variables {
            let program = expression.program.as_ref().map_err(Clone::clone);
            activation.define(name, program);
        }
        activation
    }
}

#[derive(Debug)]
pub struct Binding {
    pub name: String,
    pub matching: Matching,
    pub params: Option<ParamRef>,
    pub actions: Vec<String>,
}

impl Binding {
    fn new(binding: &Value) -> Self {
        let spec = &binding["spec"];
        Self {
            name: text(binding, "metadata.name").to_owned(),
            matching: Matching::of_policy(&spec["matchResources"]),
            params: has(spec, "paramRef").then(|| ParamRef::new(&spec["paramRef"])),
            actions: items(spec, "validationActions")
                .iter()
                .filter_map(|action| action.as_str().map(str::to_owned))
                .collect(),
        }
    }
}

/// A policy that some binding has put into force.
pub struct Hook<P> {
    pub policy: Arc<Policy<P>>,
    pub bindings: Vec<Binding>,
}

pub struct Hooks<P> {
    /// The last changes of policies and bindings when this was made.
    pub of: (u64, u64),
    pub all: Vec<Hook<P>>,
}

impl<P> Default for Hooks<P> {
    fn default() -> Self {
        Self {
            of: (0, 0),
            all: Vec::new(),
        }
    }
}

impl<P: Compile> Hooks<P> {
    /// What has not changed since `before` is taken from there.
    pub fn new(
        of: (u64, u64),
        policies: &[Arc<Value>],
        bindings: &[Arc<Value>],
        before: &Self,
    ) -> Self {
        let mut bound: HashMap<&str, Vec<Binding>> = HashMap::new();
        for binding in bindings {
            let policy = text(binding, "spec.policyName");
            bound.entry(policy).or_default().push(Binding::new(binding));
        }
        let known: HashMap<(&str, i64), &Arc<Policy<P>>> = before
            .all
            .iter()
            .map(|hook| {
                let policy = &hook.policy;
                ((policy.uid.as_str(), policy.generation), policy)
            })
            .collect();
        let mut all: Vec<Hook<P>> = policies
            .iter()
            .filter_map(|policy| {
                let mut bindings = bound.remove(text(policy, "metadata.name"))?;
                bindings.sort_by(|one, two| one.name.cmp(&two.name));
                let uid = text(policy, "metadata.uid");
                let generation = number(policy, "metadata.generation").unwrap_or(0);
                let policy = match known.get(&(uid, generation)) {
                    Some(known) => Arc::clone(known),
                    None => Arc::new(Policy::new(policy)),
                };
                Some(Hook { policy, bindings })
            })
            .collect();
        all.sort_by(|one, two| one.policy.name.cmp(&two.policy.name));
        Self { of, all }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Nothing;

    impl Compile for Nothing {
        const PATCHES: bool = false;

        fn compile(_: &Value, _: &Environment) -> Self {
            Self
        }
    }

    #[test]
    fn a_generation_is_compiled_once() {
        let policy = |generation: i64| {
            Arc::new(
                json!({"metadata": {"name": "p", "uid": "u", "generation": generation}, "spec": {}}),
            )
        };
        let binding = |policy: &str| {
            Arc::new(json!({"metadata": {"name": "b"}, "spec": {"policyName": policy}}))
        };
        let first = Hooks::<Nothing>::new(
            (1, 1),
            &[policy(1)],
            &[binding("p"), binding("other")],
            &Hooks::default(),
        );
        assert_eq!(first.all.len(), 1);
        let same = Hooks::new((1, 2), &[policy(1)], &[binding("p")], &first);
        assert!(Arc::ptr_eq(&first.all[0].policy, &same.all[0].policy));
        let changed = Hooks::new((2, 2), &[policy(2)], &[binding("p")], &same);
        assert!(!Arc::ptr_eq(&same.all[0].policy, &changed.all[0].policy));
        drop((first, same));
        assert_eq!(Arc::strong_count(&changed.all[0].policy), 1);
        let unbound = Hooks::new((3, 3), &[policy(2)], &[binding("other")], &changed);
        assert!(unbound.all.is_empty());
    }
}
