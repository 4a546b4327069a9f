//! Defaults are values that their schema takes.

use serde_json::Value;

use crate::{
    apiserver::registry::{
        Causes,
        custom::{
            rules::{self, evaluate_with},
            schema::{self, EMBEDDED, Tree, is_meta},
        },
    },
    cel::Budget,
};

pub fn check(json: &Value, path: &str, causes: &mut Causes) {
    let tree = Tree::schema(json);
    let mut budget = Budget::for_rules();
    node(json, &tree, path, false, &mut budget, causes);
}

/// `in_meta`: inside of what every object has, where the schema does not know all members.
fn node(
    json: &Value,
    tree: &Tree,
    path: &str,
    in_meta: bool,
    budget: &mut Budget,
    causes: &mut Causes,
) {
    if causes.is_full() {
        return;
    }
    let embedded = json[EMBEDDED] == true;
    let in_meta = in_meta && !embedded;
    if let Some(default) = json.get("default").filter(|one| !one.is_null()) {
        one(
            json,
            tree,
            default,
            &format!("{path}.default"),
            in_meta,
            budget,
            causes,
        );
    }
    if json["items"].is_object() {
        let path = format!("{path}.items");
        node(
            &json["items"],
            &tree["items"],
            &path,
            in_meta,
            budget,
            causes,
        );
    }
    for (name, inner) in json["properties"].as_object().into_iter().flatten() {
        let in_meta = in_meta || embedded && is_meta(name);
        let tree = &tree["properties"][name.as_str()];
        node(
            inner,
            tree,
            &format!("{path}.properties[{name}]"),
            in_meta,
            budget,
            causes,
        );
    }
}

fn one(
    json: &Value,
    tree: &Tree,
    default: &Value,
    path: &str,
    in_meta: bool,
    budget: &mut Budget,
    causes: &mut Causes,
) {
    if !in_meta {
        let mut pruned = default.clone();
        schema::prune_part(tree, &mut pruned);
        if pruned != *default {
            causes.invalid(path, default, "must not have unknown fields");
        }
    }
    let before = causes.0.len();
    schema::embedded(tree, default, path, causes);
    if causes.0.len() == before {
        schema::check(tree, default, None, path, causes);
    }
    if causes.0.len() != before {
        return;
    }
    let Some(rules) = rules::compile_part(json) else {
        return;
    };
    // As an object that has not changed, and as one that is new.
    for old in [Some(default), None] {
        if causes.0.len() == before {
            evaluate_with(&rules, tree, default, old, path, budget, causes);
        }
    }
}
