//! An applied configuration that nobody owns: what a mutating policy makes of an object.

use serde_json::Value;

use super::{
    content,
    node::{atomics, merge},
    root,
};
use crate::apiserver::registry::Resource;

/// `live` with `configuration` merged into it. `fit` makes the configuration fit its schema, and says
/// what of it is unknown there.
pub fn configured(
    row: &Resource,
    live: &Value,
    mut configuration: Value,
    fit: impl FnOnce(&mut Value) -> Result<Vec<String>, String>,
) -> Result<Value, String> {
    const TYPED: &str = "failed to convert patch object to typed object";
    let unknown = fit(&mut configuration).map_err(|why| format!("{TYPED}: {why}"))?;
    if let Some(path) = unknown.first() {
        return Err(format!("{TYPED}: .{path}: field not declared in schema"));
    }
    let content = content(row);
    let node = root(row, content.as_deref());
    let mut whole = Vec::new();
    atomics(node, &configuration, "", &mut whole);
    if !whole.is_empty() {
        let all = whole.join(", ");
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {all}"
        ));
    }
    Ok(merge(node, live, &configuration))
}
