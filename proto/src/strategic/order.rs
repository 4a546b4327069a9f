//! `$setElementOrder`, and the order of merged lists in general.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    DIRECTIVE, Node, Object, SET_ORDER, clean_list, content_error, format_error, lookup,
    merge_list, no_merge_key,
};
use crate::Error;

/// Carries out every `$setElementOrder/<list>` of `patch`: merges that list, brings it into the
/// asked order and takes both from the patch.
pub(super) fn apply(
    original: &mut Object,
    patch: &mut Object,
    node: Node<'_>,
    depth: usize,
) -> Result<(), Error> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|name| name.starts_with(SET_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let order = patch.remove(&directive);
        let Some(Value::Array(order)) = order else {
            return Err(format_error("invalid patch format of setElementOrder list"));
        };
        let name = &directive[SET_ORDER.len()..];
        let meta = node.meta(name);
        // A null in the patch still deletes the list.
        if patch.get(name).is_some_and(Value::is_null) {
            continue;
        }
        let old = take_list(original, name)?;
        let new = take_list(patch, name)?;
        validate(new.as_deref().unwrap_or_default(), &order, meta.key)?;
        let server = Places::of(old.as_deref().unwrap_or_default(), meta.key)?;
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => clean_list(new, depth)?,
            (Some(old), Some(new)) => merge_list(old, new, meta, depth)?,
        };
        let order = Places::of(&order, meta.key)?;
        let merged = arrange(merged, &order, &server, meta.key)?;
        original.insert(name.to_owned(), Value::Array(merged));
    }
    Ok(())
}

fn take_list(object: &mut Object, name: &str) -> Result<Option<Vec<Value>>, Error> {
    match object.remove(name) {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(_) => Err(content_error(format!("expected a list in {name}"))),
    }
}

/// The patch's elements (but for deletions) must come in the asked order and all be in it.
fn validate(patch: &[Value], order: &[Value], key: &str) -> Result<(), Error> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let value = identity(item, key)?;
        loop {
            let Some(next) = wanted.next() else {
                return Err(format_error(
                    "The order in patch list doesn't match $setElementOrder list",
                ));
            };
            if identity(next, key)? == value {
                break;
            }
        }
    }
    Ok(())
}

/// What an element is compared by: itself, or the value of its merge key.
fn identity<'v>(item: &'v Value, key: &str) -> Result<&'v Value, Error> {
    match (key, item) {
        ("", item) => Ok(item),
        (key, Value::Object(object)) => object.get(key).ok_or_else(|| no_merge_key(object, key)),
        _ => Err(content_error("expected a map in a list with a merge key")),
    }
}

/// Where each element of a list first stands, by what it is told apart by.
pub(super) struct Places(HashMap<String, usize>);

impl Places {
    pub(super) fn of(list: &[Value], key: &str) -> Result<Self, Error> {
        let mut places = HashMap::with_capacity(list.len());
        for (at, item) in list.iter().enumerate() {
            places.entry(lookup(identity(item, key)?)).or_insert(at);
        }
        Ok(Self(places))
    }
}

/// Orders `merged`: elements named in `order` come in that order; the others keep the server's
/// order; the two are interleaved by the places they had on the server.
pub(super) fn arrange(
    merged: Vec<Value>,
    order: &Places,
    server: &Places,
    key: &str,
) -> Result<Vec<Value>, Error> {
    let mut named = Vec::new();
    let mut others = Vec::new();
    for item in merged {
        let value = lookup(identity(&item, key)?);
        let on_server = server.0.get(&value).copied();
        match order.0.get(&value).copied() {
            Some(at) => named.push((at, on_server, item)),
            None => others.push((on_server.unwrap_or(usize::MAX), on_server, item)),
        }
    }
    named.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(at, ..)| *at);
    let mut all = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().peekable();
    let mut others = others.into_iter().peekable();
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return Ok(all),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((_, other, _)), Some((_, named, _))) => {
                matches!((other, named), (Some(other), Some(named)) if other < named)
            }
        };
        let next = if other_first {
            others.next()
        } else {
            named.next()
        };
        all.extend(next.map(|(_, _, item)| item));
    }
}
