//! Strategic merge patch: JSON merge with lists merged by key where the schema says so.
//!
//! Source: apimachinery, pkg/util/strategicpatch, with parallel lists merged and unmatched nulls
//! ignored, as the API server applies patches.
//!
//! Always true: the work grows with the sizes of object and patch, never with their product. What
//! elements are told apart by is looked up as text.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{Error, Field, PatchFault, Shape, Type, prune::shortened, wire::MAX_DEPTH};

mod order;

use order::Places;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Applies `patch` to `original`, an object of type `ty`. The result is not pruned.
pub fn strategic_merge(ty: &Type, original: &Value, patch: Value) -> Result<Value, Error> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(format_error(
            "strategic merge patch format is not supported",
        ));
    };
    let merged = merge_map(original.clone(), patch, Node::Object(ty), 0)?;
    Ok(Value::Object(merged))
}

fn format_error(why: impl Into<String>) -> Error {
    Error::Patch {
        fault: PatchFault::Format,
        reason: why.into(),
    }
}

fn content_error(why: impl Into<String>) -> Error {
    Error::Patch {
        fault: PatchFault::Content,
        reason: why.into(),
    }
}

/// What is known of the map being merged.
#[derive(Clone, Copy)]
enum Node<'a> {
    Object(&'a Type),
    /// A map from names to values of one shape.
    Map(&'a Shape),
    /// Merged like plain JSON.
    Opaque,
}

/// How one member is merged.
#[derive(Clone, Copy)]
struct Meta<'a> {
    /// For lists: of their elements.
    inner: Node<'a>,
    merge: bool,
    /// Empty: none.
    key: &'a str,
}

impl<'a> Node<'a> {
    fn of(shape: &'a Shape) -> Self {
        match shape {
            Shape::Message(_) => shape.message().map_or(Self::Opaque, Self::Object),
            Shape::Map(element) => Self::Map(element),
            Shape::List(element) | Shape::NamedList(element) => Self::of(element),
            _ => Self::Opaque,
        }
    }

    fn meta(self, name: &str) -> Meta<'a> {
        let plain = |inner| Meta {
            inner,
            merge: false,
            key: "",
        };
        match self {
            Self::Object(ty) => ty.field(name).map_or(plain(Self::Opaque), Meta::of),
            Self::Map(element) => plain(Self::of(element)),
            Self::Opaque => plain(Self::Opaque),
        }
    }
}

impl<'a> Meta<'a> {
    fn of(field: &'a Field) -> Self {
        Self {
            inner: Node::of(&field.shape),
            merge: field.merge,
            key: field.merge_key,
        }
    }
}

type Object = Map<String, Value>;

fn merge_map(
    mut original: Object,
    mut patch: Object,
    node: Node<'_>,
    depth: usize,
) -> Result<Object, Error> {
    if depth > MAX_DEPTH {
        return Err(content_error("nested too deep"));
    }
    if let Some(directive) = patch.remove(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => return clean_map(patch, depth),
            Some("delete") => return Ok(Object::new()),
            Some("merge") => {}
            _ => return Err(content_error(format!("unknown patch type: {directive}"))),
        }
    }
    retain_keys(&mut original, &mut patch)?;
    order::apply(&mut original, &mut patch, node, depth)?;
    for (name, patched) in patch {
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            delete_scalars(&mut original, list, &patched)?;
            continue;
        }
        if patched.is_null() {
            original.remove(&name);
            continue;
        }
        let merged = match (original.remove(&name), patched) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                Value::Object(merge_map(old, new, node.meta(&name).inner, depth + 1)?)
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                Value::Array(merge_list(old, new, node.meta(&name), depth)?)
            }
            (_, new) => clean(new, depth)?,
        };
        original.insert(name, merged);
    }
    Ok(original)
}

/// `$retainKeys`: the members to keep. Each member of the patch must be among them.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Error> {
    let Some(listed) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || format_error("invalid patch format of retainKeys");
    let listed = listed.as_array().ok_or_else(bad)?;
    let keep: HashSet<&str> = listed.iter().filter_map(Value::as_str).collect();
    let stray = patch.iter().any(|(name, value)| {
        !value.is_null()
            && !name.starts_with(DELETE_FROM)
            && !name.starts_with(SET_ORDER)
            && !keep.contains(name.as_str())
    });
    if stray {
        return Err(bad());
    }
    original.retain(|name, _| keep.contains(name.as_str()));
    Ok(())
}

fn delete_scalars(original: &mut Object, name: &str, listed: &Value) -> Result<(), Error> {
    let listed = listed
        .as_array()
        .ok_or_else(|| format_error("invalid patch format of primitive list"))?;
    if let Some(Value::Array(list)) = original.get_mut(name) {
        let listed: HashSet<String> = listed.iter().map(lookup).collect();
        list.retain(|item| !listed.contains(&lookup(item)));
    }
    Ok(())
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    meta: Meta<'_>,
    depth: usize,
) -> Result<Vec<Value>, Error> {
    if !meta.merge {
        return clean_list(patch, depth);
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let objects = same_kind(&original, &patch)?;
    if !objects {
        let order = Places::of(&patch, "")?;
        let server = Places::of(&original, "")?;
        return order::arrange(union(original, patch), &order, &server, "");
    }
    if meta.key.is_empty() {
        return Err(content_error("cannot merge lists without merge key"));
    }
    let (mut merged, patch) = special_elements(original, patch, meta.key, depth)?;
    let server = Places::of(&merged, meta.key)?;
    let order = Places::of(&patch, meta.key)?;
    let mut places = HashMap::new();
    for (at, old) in merged.iter().enumerate() {
        if let Some(value) = old.get(meta.key) {
            places.entry(lookup(value)).or_insert(at);
        }
    }
    for item in patch {
        let Value::Object(item) = item else {
            return Err(content_error("lists of lists are not supported"));
        };
        let key = item
            .get(meta.key)
            .ok_or_else(|| no_merge_key(&item, meta.key))?;
        let (key, end) = (lookup(key), merged.len());
        let place = *places.entry(key).or_insert(end);
        match merged.get_mut(place) {
            Some(slot) => {
                let Value::Object(old) = slot.take() else {
                    return Err(content_error(format!(
                        "value for key {} is not a map",
                        meta.key
                    )));
                };
                *slot = Value::Object(merge_map(old, item, meta.inner, depth + 1)?);
            }
            None => merged.push(Value::Object(clean_map(item, depth)?)),
        }
    }
    order::arrange(merged, &order, &server, meta.key)
}

fn no_merge_key(item: &Object, key: &str) -> Error {
    let item = serde_json::to_string(item).unwrap_or_default();
    content_error(format!(
        "map: {} does not contain declared merge key: {key}",
        shortened(&item)
    ))
}

/// Whether all elements are objects; an error if they differ in kind or are lists.
fn same_kind(original: &[Value], patch: &[Value]) -> Result<bool, Error> {
    let mut kind = None;
    for item in original.iter().chain(patch) {
        if item.is_array() {
            return Err(content_error("lists of lists are not supported"));
        }
        let this = std::mem::discriminant(item);
        if *kind.get_or_insert(this) != this {
            return Err(content_error("list element types are not identical"));
        }
    }
    Ok(original.iter().chain(patch).any(Value::is_object))
}

fn union(mut all: Vec<Value>, more: Vec<Value>) -> Vec<Value> {
    let mut known: HashSet<String> = all.iter().map(lookup).collect();
    for item in more {
        if known.insert(lookup(&item)) {
            all.push(item);
        }
    }
    all
}

/// A value in a form that can be looked up: equal values, and no others, have the same.
fn lookup(value: &Value) -> String {
    value.to_string()
}

/// Carries out `$patch: delete` and `$patch: replace` elements; returns what is left of both.
fn special_elements(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
    depth: usize,
) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    let mut deleted = HashSet::new();
    for item in patch {
        let Value::Object(object) = &item else {
            return Err(content_error("list element types are not identical"));
        };
        let Some(directive) = object.get(DIRECTIVE) else {
            plain.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let value = object.get(key).ok_or_else(|| no_merge_key(object, key))?;
                deleted.insert(lookup(value));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(content_error(
                    "merging lists cannot yet be specified in the patch",
                ));
            }
            _ => return Err(content_error(format!("unknown patch type: {directive}"))),
        }
    }
    if replace {
        // As it is, also where two elements have one key: a Node has addresses of the same type.
        return Ok((clean_list(plain, depth)?, Vec::new()));
    }
    if !deleted.is_empty() {
        let named = |old: &Value| old.get(key).map(lookup);
        original.retain(|old| named(old).is_none_or(|value| !deleted.contains(&value)));
    }
    Ok((original, plain))
}

/// A new value: without nulls in maps and without directives.
fn clean(value: Value, depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(content_error("nested too deep"));
    }
    Ok(match value {
        Value::Object(map) => Value::Object(clean_map(map, depth + 1)?),
        Value::Array(list) => Value::Array(clean_list(list, depth + 1)?),
        other => other,
    })
}

fn clean_map(map: Object, depth: usize) -> Result<Object, Error> {
    if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
        return Ok(Object::new());
    }
    map.into_iter()
        .filter(|(name, value)| {
            !value.is_null()
                && name != DIRECTIVE
                && name != RETAIN_KEYS
                && !name.starts_with(SET_ORDER)
                && !name.starts_with(DELETE_FROM)
        })
        .map(|(name, value)| Ok((name, clean(value, depth)?)))
        .collect()
}

fn clean_list(list: Vec<Value>, depth: usize) -> Result<Vec<Value>, Error> {
    let is_directive = |item: &Value| {
        let directive = item.get(DIRECTIVE).and_then(Value::as_str);
        directive == Some("delete")
            || directive == Some("replace") && item.as_object().is_some_and(|item| item.len() == 1)
    };
    list.into_iter()
        .filter(|item| !is_directive(item))
        .map(|item| clean(item, depth))
        .collect()
}

#[cfg(test)]
mod tests;
