//! kubectl's move from client-side apply: what it wrote down as last applied is its own. Pure.

use serde_json::Value;

use super::{Difference, conflict::Conflict, content, difference, fields, root, set::Set, strip};
use crate::apiserver::{registry::Resource, write::api_version};

/// The one whose annotation counts.
pub const KUBECTL: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Bytes that all annotations together may have.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// The conflicts that stay when what was last applied, and is still as it was then, is the
/// applier's.
pub fn disallowed(row: &Resource, live: &Value, conflicts: Vec<Conflict>) -> Vec<Conflict> {
    let Some(allowed) = allowed(row, live) else {
        return conflicts;
    };
    let left = conflicts.into_iter().map(|conflict| Conflict {
        fields: conflict.fields.minus(&allowed),
        ..conflict
    });
    left.filter(|conflict| !conflict.fields.is_empty())
        .collect()
}

fn allowed(row: &Resource, live: &Value) -> Option<Set> {
    let text = live["metadata"]["annotations"][ANNOTATION].as_str()?;
    let (last, _) = proto::parse_json(text.as_bytes()).ok()?;
    if !last.is_object() || last["apiVersion"] != api_version(row) {
        return None;
    }
    let content = content(row);
    let mut set = fields(root(row, content.as_deref()), &last);
    strip(row, "", &mut set);
    let Difference { changed, removed } = difference(row, "", &last, live);
    Some(set.minus(&changed).minus(&removed))
}

/// Where there is such an annotation, it says what is applied now: who goes back to client-side
/// apply goes on from here.
pub fn follow(merged: &mut Value, config: &Value) {
    let annotations = merged.pointer_mut("/metadata/annotations");
    let Some(annotations) = annotations.and_then(Value::as_object_mut) else {
        return;
    };
    if !annotations.contains_key(ANNOTATION) {
        return;
    }
    let mut last = config.clone();
    let own = last.pointer_mut("/metadata/annotations");
    if let Some(own) = own.and_then(Value::as_object_mut) {
        own.remove(ANNOTATION);
    }
    let text = format!("{last}\n");
    let others: usize = annotations
        .iter()
        .filter(|(name, _)| *name != ANNOTATION)
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum();
    match others + ANNOTATION.len() + text.len() > MAX_ANNOTATIONS {
        true => annotations.remove(ANNOTATION),
        false => annotations.insert(ANNOTATION.to_owned(), text.into()),
    };
}
