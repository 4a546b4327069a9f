//! Patches: an object on the first line, the patch on the second.

use serde_json::Value;
use vetch::apiserver::patch::{
    self, PatchType,
    managed::{self, Manager},
};

use super::{documents, pods};

/// Deepest nesting of what a patch may leave.
const MAX_DEPTH: usize = 120;

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// An object as the API server would hold it, and a patch.
fn object_and_patch(data: &[u8]) -> Option<(Value, &[u8])> {
    let [object, patch] = documents(data)?;
    let (object, _) = proto::parse_json(object).ok()?;
    object.is_object().then_some((object, patch))
}

fn patched(kind: PatchType, data: &[u8]) {
    let Some((object, body)) = object_and_patch(data) else {
        return;
    };
    let ty = proto::schema().get("io.k8s.api.core.v1.Pod");
    if let Ok(patched) = patch::apply(kind, ty, &object, body) {
        assert!(patched.is_object());
        assert!(depth(&patched) <= MAX_DEPTH);
    }
}

pub fn strategic_merge(data: &[u8]) {
    patched(PatchType::Strategic, data);
}

pub fn json_patch(data: &[u8]) {
    patched(PatchType::Json, data);
}

/// Fits the type, as everything does that the API server hands to server-side apply.
fn fitting(value: &mut Value) -> bool {
    let Some(ty) = proto::schema().get("io.k8s.api.core.v1.Pod") else {
        return false;
    };
    proto::prune(ty, value);
    value.is_object() && proto::type_errors(ty, value).is_empty()
}

/// Applying the same configuration twice changes nothing and never conflicts.
pub fn server_side_apply(data: &[u8]) {
    let Some((mut live, config)) = object_and_patch(data) else {
        return;
    };
    let Ok((mut config, _)) = proto::parse_json(config) else {
        return;
    };
    if !fitting(&mut live) || !fitting(&mut config) {
        return;
    }
    let manager = Manager {
        name: "fuzz",
        subresource: "",
        now: "2026-01-01T00:00:00Z",
    };
    let Ok(mut once) = managed::apply(pods(), Some(&live), &config, manager, true) else {
        return;
    };
    let mut twice = match managed::apply(pods(), Some(&once), &config, manager, false) {
        Ok(twice) => twice,
        Err(status) => panic!("the second apply is refused: {status}"),
    };
    // Who owned what before the first apply is found out again while nobody owns anything.
    for object in [&mut once, &mut twice] {
        object["metadata"]["managedFields"].take();
    }
    assert_eq!(once, twice, "an apply that was repeated");
}
