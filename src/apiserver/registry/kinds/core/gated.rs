//! How a pod with scheduling gates may be steered before it is scheduled: to fewer nodes only.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::value::{at, items, pairs},
};

const TERMS: &str =
    "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";

pub fn validate(new: &Value, old: &Value, causes: &mut Causes) {
    let selector = at(new, "spec.nodeSelector");
    let kept = pairs(old, "spec.nodeSelector").all(|(key, value)| {
        let now = selector.and_then(|selector| selector.get(key));
        now.and_then(Value::as_str) == Some(value)
    });
    if !kept {
        causes.invalid(
            "spec.nodeSelector",
            selector,
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    let (now, before) = (items(&new["spec"], TERMS), items(&old["spec"], TERMS));
    let path = format!("spec.{TERMS}");
    if before.is_empty() {
        return;
    }
    if now.len() != before.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return causes.invalid(path, now, detail);
    }
    for (index, (now, before)) in now.iter().zip(before).enumerate() {
        if causes.is_full() {
            return;
        }
        if !only_added(now, before) {
            let detail = "only additions are allowed (no mutations or deletions)";
            causes.invalid(format!("{path}[{index}]"), now, detail);
        }
    }
}

fn only_added(now: &Value, before: &Value) -> bool {
    let lists = ["matchExpressions", "matchFields"];
    let empty = |term: &Value| lists.iter().all(|list| items(term, list).is_empty());
    // A term that matches nothing does not begin to match.
    let begins = empty(before) && !empty(now);
    let starts = |list: &&str| items(now, list).starts_with(items(before, list));
    !begins && lists.iter().all(starts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_narrower() {
        let with = |selector: Value, terms: Value| {
            json!({"spec": {"nodeSelector": selector, "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}})
        };
        let rule = |key: &str| json!({"key": key, "operator": "Exists"});
        let one = json!([{"matchExpressions": [rule("a")]}]);
        let old = with(json!({"a": "1"}), one.clone());
        for (selector, terms, want) in [
            (json!({"a": "1", "b": "2"}), one.clone(), ""),
            (
                json!({"a": "1"}),
                json!([{"matchExpressions": [rule("a"), rule("b")]}]),
                "",
            ),
            (
                json!({"a": "2"}),
                one.clone(),
                "only additions to spec.nodeSelector are allowed",
            ),
            (
                json!({"a": "1"}),
                json!([{"matchExpressions": [rule("b")]}]),
                "only additions are allowed",
            ),
            (json!({"a": "1"}), json!([]), "no additions/deletions"),
        ] {
            let mut causes = Causes::default();
            validate(&with(selector, terms), &old, &mut causes);
            let said: Vec<&str> = causes.0.iter().map(|cause| &*cause.message).collect();
            assert_eq!(said.is_empty(), want.is_empty(), "{said:?}");
            assert!(said.join("; ").contains(want), "{said:?}");
        }
    }
}
