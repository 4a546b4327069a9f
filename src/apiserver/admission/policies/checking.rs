//! What expressions of validating policies say about the kinds that they are for, held against the
//! schemas of those: `status.typeChecking`.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::params::ParamKind;
use crate::{
    apiserver::{
        admission::Late,
        expressions::{self, kinds::schema_of},
        objects::{Lookup, Named, Objects},
        registry::{
            Resource,
            kinds::{
                groups::admissionregistration::VALIDATING_POLICY,
                value::{has, items, number, text, texts},
            },
        },
        request::User,
        status::{Status, qualified},
    },
    cel::{CompileError, Environment, Origin, Program, Schema, Type},
    supervision::{Parts, Policy},
};

/// Kinds that one policy is held against.
const MAX_KINDS: usize = 10;
/// In case a change was missed.
const LOOK_EVERY: Duration = Duration::from_secs(300);

pub struct Checker {
    objects: Arc<Late>,
    changed: Arc<Notify>,
}

impl Checker {
    pub fn new(objects: Arc<Late>) -> Self {
        Self {
            objects,
            changed: Arc::new(Notify::new()),
        }
    }

    pub fn look(&self) {
        self.changed.notify_one();
    }

    pub fn start(&self, parts: &Parts) {
        let (objects, changed) = (self.objects.clone(), self.changed.clone());
        parts.start_endless(
            "part/validatingadmissionpolicy-status",
            Policy::Restart,
            move || {
                let (objects, changed) = (objects.clone(), changed.clone());
                async move {
                    loop {
                        if let Ok(objects) = objects.get() {
                            check_all(&*objects).await;
                        }
                        let _ = tokio::time::timeout(LOOK_EVERY, changed.notified()).await;
                    }
                }
            },
        );
    }
}

/// Checks those policies whose status is not about what they say now.
async fn check_all(objects: &dyn Objects) {
    let plural = qualified(VALIDATING_POLICY.group, VALIDATING_POLICY.plural);
    for policy in objects.list(&plural, "").await {
        let generation = number(&policy, "metadata.generation").unwrap_or(0);
        let observed = number(&policy, "status.observedGeneration").unwrap_or(0);
        if generation == observed && has(&policy, "status.typeChecking") {
            continue;
        }
        let warnings = warnings(&policy, objects);
        let name = text(&policy, "metadata.name");
        let target = Named {
            plural: &plural,
            subresource: "status",
            namespace: "",
            name,
        };
        let uid = text(&policy, "metadata.uid");
        let user =
            User::service_account("kube-system", "validatingadmissionpolicy-status-controller");
        let written = objects
            .update(
                &user,
                target,
                false,
                &|now: &mut Value| -> Result<(), Status> {
                    // Another one is looked at by itself.
                    if text(now, "metadata.uid") == uid
                        && number(now, "metadata.generation") == Some(generation)
                    {
                        let mut checked = json!({});
                        if !warnings.is_empty() {
                            checked["expressionWarnings"] = json!(warnings);
                        }
                        now["status"]["observedGeneration"] = generation.into();
                        now["status"]["typeChecking"] = checked;
                    }
                    Ok(())
                },
            )
            .await;
        if let Err(status) = written {
            tracing::debug!(policy = name, %status, "the status is not written");
        }
    }
}

/// `expressionWarnings` of a policy.
fn warnings(policy: &Value, lookup: &dyn Lookup) -> Vec<Value> {
    let kinds: Vec<(&Resource, Arc<Schema>)> = kinds_of(policy, lookup)
        .into_iter()
        .filter_map(|row| Some((row, schema_of(row)?)))
        .collect();
    let params = has(policy, "spec.paramKind")
        .then(|| ParamKind::new(&policy["spec"]["paramKind"]))
        .and_then(|kind| schema_of(kind.row(lookup)?));
    let has_params = has(policy, "spec.paramKind");
    let environments: Vec<(&Resource, Environment)> = kinds
        .iter()
        .map(|(row, schema)| (*row, typed(policy, schema, has_params, params.as_ref())))
        .collect();
    let mut found = Vec::new();
    for (index, one) in items(policy, "spec.validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let given = text(one, field);
            if given.is_empty() {
                continue;
            }
            let said: Vec<String> = environments
                .iter()
                .filter_map(
                    |(row, environment)| match Program::compile(environment, given) {
                        Err(CompileError::Issues(issues)) => Some(format!(
                            "{}/{}, Kind={}: {issues}\n",
                            row.group, row.version, row.kind
                        )),
                        _ => None,
                    },
                )
                .collect();
            if !said.is_empty() {
                found.push(json!({
                    "fieldRef": format!("spec.validations[{index}].{field}"),
                    "warning": said.join("\n"),
                }));
            }
        }
    }
    found
}

fn typed(
    policy: &Value,
    schema: &Arc<Schema>,
    has_params: bool,
    params: Option<&Arc<Schema>>,
) -> Environment {
    let mut environment = Environment::new(Origin::Stored)
        .with_schema("object", schema)
        .with_schema("oldObject", schema);
    environment = expressions::with_common(environment).with_composition();
    environment = match (has_params, params) {
        (true, Some(params)) => environment.with_schema("params", params),
        (true, None) => environment.with_variable("params", Type::Dyn),
        (false, _) => environment,
    };
    environment = expressions::with_authorizer(environment);
    for one in items(policy, "spec.variables") {
        let program = Program::compile(&environment, text(one, "expression"));
        let ty = program.map_or(Type::Dyn, |program| program.output_type().clone());
        environment.compose(text(one, "name"), &ty);
    }
    environment
}

/// The kinds that the policy names, without those that it means by an asterisk.
fn kinds_of(policy: &Value, lookup: &dyn Lookup) -> Vec<&'static Resource> {
    let mut found: Vec<&'static Resource> = Vec::new();
    for rule in items(policy, "spec.matchConstraints.resourceRules") {
        let mut lists = ["apiGroups", "apiVersions", "resources"].map(|field| texts(rule, field));
        if lists[..2].iter().flatten().any(|one| one.contains('*')) {
            continue;
        }
        lists[2].retain(|one| !one.contains(['*', '/']));
        lists.iter_mut().for_each(|list| list.sort_unstable());
        let [groups, versions, resources] = &lists;
        for group in groups {
            for version in versions {
                for plural in resources {
                    if found.len() == MAX_KINDS {
                        return sorted(found);
                    }
                    let Some(first) = lookup.row(&qualified(group, plural)) else {
                        continue;
                    };
                    let rows = lookup.rows_of(first.storage);
                    let row = rows.into_iter().find(|row| {
                        row.group == *group && row.version == *version && row.plural == *plural
                    });
                    if let Some(row) =
                        row.filter(|row| !found.iter().any(|one| std::ptr::eq(*one, *row)))
                    {
                        found.push(row);
                    }
                }
            }
        }
    }
    sorted(found)
}

fn sorted(mut rows: Vec<&'static Resource>) -> Vec<&'static Resource> {
    rows.sort_by_key(|row| (row.group, row.version, row.kind));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::testing::Memory;

    fn found(validation: &Value, resources: &Value) -> Vec<(String, String)> {
        let policy = json!({"metadata": {"name": "p"}, "spec": {
            "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["apps"],
                "apiVersions": ["v1"], "resources": resources}]},
            "variables": [{"name": "n", "expression": "object.spec.replicas"}],
            "validations": [validation]}});
        let all = warnings(&policy, &Memory::default());
        let pair = |one: &Value| {
            (
                text(one, "fieldRef").to_owned(),
                text(one, "warning").to_owned(),
            )
        };
        all.iter().map(pair).collect()
    }

    #[test]
    fn types_are_checked() {
        let one = json!(["deployments"]);
        assert_eq!(
            found(
                &json!({"expression": "object.spec.replicas > 1 && variables.n > 1"}),
                &one
            ),
            []
        );
        assert_eq!(
            found(
                &json!({"expression": "object.spec.nothing > 1"}),
                &json!(["*"])
            ),
            []
        );
        let wrong = json!({"expression": "object.spec.replicas > '1'",
            "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas"});
        let said = found(&wrong, &one);
        let [first, second] = said.as_slice() else {
            panic!("two warnings: {said:?}");
        };
        assert_eq!(first.0, "spec.validations[0].expression");
        assert!(first.1.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'"), "{}", first.1);
        assert_eq!(second.0, "spec.validations[0].messageExpression");
        assert!(
            second
                .1
                .contains("found no matching overload for '_+_' applied to '(string, int)'"),
            "{}",
            second.1
        );
        for (text, want) in [
            ("object.spec.nothing == 1", "undefined field 'nothing'"),
            (
                "object.metadata.labels['a'] == 1",
                "found no matching overload for '_==_'",
            ),
            (
                "object.spec.template.spec.containers.all(c, c.image)",
                "expected type 'bool'",
            ),
            (
                "object.spec.template.spec.containers.all(c, c.resources.limits['cpu'] == '1')",
                "",
            ),
            (
                "object.metadata.creationTimestamp > timestamp('2000-01-01T00:00:00Z')",
                "",
            ),
            ("object.spec.strategy.rollingUpdate.maxSurge == 1", ""),
            ("request.nothing == 1", "undefined field 'nothing'"),
        ] {
            let said = found(&json!({"expression": text}), &one);
            let said = said.first().map_or("", |(_, said)| said);
            assert!(
                said.contains(want) && want.is_empty() == said.is_empty(),
                "{text}: {said}"
            );
        }
    }

    #[test]
    fn no_more_kinds_than_ten_are_checked() {
        let all = [
            "configmaps",
            "endpoints",
            "events",
            "limitranges",
            "nodes",
            "pods",
            "secrets",
            "services",
            "serviceaccounts",
            "podtemplates",
            "resourcequotas",
            "namespaces",
        ];
        let policy = |resources: &[&str]| {
            json!({"spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [""],
                "apiVersions": ["v1"], "resources": resources}]}}})
        };
        let memory = Memory::default();
        assert_eq!(kinds_of(&policy(&all), &memory).len(), MAX_KINDS);
        let few = kinds_of(
            &policy(&["secrets", "pods", "pods/status", "nothing"]),
            &memory,
        );
        let names: Vec<&str> = few.iter().map(|row| row.kind).collect();
        assert_eq!(names, ["Pod", "Secret"]);
    }
}
