//! What a role or binding of the policy lacks: a cluster that was made by an older version gets what
//! newer ones allow. Pure.
//!
//! Always true: nothing is taken away, and who annotates an object with
//! `rbac.authorization.kubernetes.io/autoupdate: "false"` keeps it as it is.

use serde_json::{Value, json};

use super::super::rules::{missing, rules_of};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Whether `wanted` has more than `held`.
pub fn lacks(held: &Value, wanted: &Value) -> bool {
    // Nearly always, and told much faster than what a rule lacks.
    let is_whole = held["rules"] == wanted["rules"] && held["subjects"] == wanted["subjects"];
    !is_whole && !more(held, wanted).is_empty()
}

/// Adds to `held` what `wanted` has more.
pub fn complete(held: &mut Value, wanted: &Value) {
    let More { rules, subjects } = more(held, wanted);
    append(held, "rules", rules);
    append(held, "subjects", subjects);
}

#[derive(Default)]
struct More {
    rules: Vec<Value>,
    subjects: Vec<Value>,
}

impl More {
    fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.subjects.is_empty()
    }
}

fn more(held: &Value, wanted: &Value) -> More {
    if held["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return More::default();
    }
    // The rules of an aggregated role are its controller's.
    let rules = match wanted["aggregationRule"].is_object() {
        true => Vec::new(),
        false => missing(&rules_of(held), &rules_of(wanted)),
    };
    let subjects = items(wanted, "subjects").iter();
    let subjects =
        subjects.filter(|subject| !items(held, "subjects").iter().any(|one| same(one, subject)));
    More {
        rules: rules.iter().map(|rule| json!(rule)).collect(),
        subjects: subjects.cloned().collect(),
    }
}

fn same(one: &Value, other: &Value) -> bool {
    ["kind", "namespace", "name"].iter().all(|field| {
        one[field].as_str().unwrap_or_default() == other[field].as_str().unwrap_or_default()
    })
}

fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

fn append(object: &mut Value, field: &str, more: Vec<Value>) {
    if !more.is_empty() {
        let mut all = items(object, field).to_vec();
        all.extend(more);
        object[field] = json!(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_added_and_nothing_goes() {
        let role = |autoupdate: &str, rules: Value| {
            json!({"kind": "ClusterRole", "rules": rules,
                "metadata": {"name": "r", "annotations": {AUTOUPDATE: autoupdate}}})
        };
        let rule =
            |verbs: &[&str]| json!({"verbs": verbs, "apiGroups": [""], "resources": ["pods"]});
        let wanted = role("true", json!([rule(&["get", "list"])]));
        for (held, want) in [
            (role("true", json!([rule(&["get", "list"])])), None),
            (role("true", json!([rule(&["*"])])), None),
            (role("false", json!([])), None),
            (
                role("true", json!([rule(&["get", "delete"])])),
                Some(json!([rule(&["get", "delete"]), rule(&["list"])])),
            ),
        ] {
            assert_eq!(lacks(&held, &wanted), want.is_some(), "{held}");
            let mut object = held.clone();
            complete(&mut object, &wanted);
            assert_eq!(
                object["rules"],
                want.unwrap_or_else(|| held["rules"].clone())
            );
        }
        let binding = |names: &[&str]| {
            let subject = |name: &&str| json!({"kind": "ServiceAccount", "namespace": "kube-system", "name": name});
            let subjects: Vec<Value> = names.iter().map(subject).collect();
            json!({"kind": "ClusterRoleBinding", "subjects": subjects})
        };
        let mut held = binding(&["own"]);
        assert!(lacks(&held, &binding(&["a"])));
        complete(&mut held, &binding(&["a"]));
        assert_eq!(held, binding(&["own", "a"]));
        assert!(!lacks(&held, &binding(&["a"])));
    }
}
