//! Schemas of custom resources: the schema on the first line, an object on the second, what it was
//! before on the third.

use serde_json::Value;
use vetch::apiserver::registry::{
    Causes,
    custom::{
        definition::{self, Before},
        rules,
        schema::{self, Tree},
    },
};

use super::documents;

/// What the API server does to an object before it is validated.
fn prepared(tree: &Tree, object: &mut Value) -> bool {
    schema::prune(tree, object);
    schema::prune_embedded(tree, object);
    schema::default(tree, object).is_ok()
}

pub fn definition(data: &[u8]) {
    let Some([schema, object, old]) = documents(data) else {
        return;
    };
    let parsed = [schema, object, old].map(|text| proto::parse_json(text).map(|(value, _)| value));
    let [Ok(schema), Ok(mut object), Ok(mut old)] = parsed else {
        return;
    };
    let mut causes = Causes::default();
    let before = Before::of(None);
    definition::schema(&schema, "schema", false, &before, false, &mut causes);
    if !causes.0.is_empty() || !object.is_object() || !old.is_object() {
        return;
    }
    let tree = Tree::schema(&schema);
    if !prepared(&tree, &mut object) || !prepared(&tree, &mut old) {
        return;
    }
    let mut again = object.clone();
    assert!(prepared(&tree, &mut again), "it grew when it was read back");
    assert_eq!(object, again, "pruned and defaulted twice");
    let mut causes = Causes::default();
    schema::validate(&tree, &object, None, &mut causes);
    schema::unique(&tree, &object, "", &mut causes);
    schema::embedded(&tree, &object, "", &mut causes);
    let valid = causes.0.is_empty();
    let mut causes = Causes::default();
    schema::validate(&tree, &object, Some(&object), &mut causes);
    assert!(
        causes.0.is_empty(),
        "what is stored is refused: {:?}",
        causes.0
    );
    if let Some(rules) = rules::compile(&schema).filter(|_| valid) {
        let mut causes = Causes::default();
        rules::evaluate(&rules, &tree, &object, None, &mut causes);
        let mut causes = Causes::default();
        rules::evaluate(&rules, &tree, &object, Some(&old), &mut causes);
    }
}
