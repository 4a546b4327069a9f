//! What tells elements of sets, and of lists with keys, apart.

use std::collections::BTreeMap;

use super::{EvalError, Key, Value};
use crate::cel::schema::ListKind;

/// What an element is known by: itself in a set, the values of its key properties in a list with
/// keys. Ordered, so that comparing lists takes `n log n`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity<'a>(Vec<Option<Key<'a>>>);

impl<'a> Identity<'a> {
    /// `None` for elements that are no scalars, or have keys that are none: nothing tells those
    /// apart but comparing them.
    fn of(kind: &ListKind, value: &Value<'a>) -> Result<Option<Self>, EvalError> {
        let keys = match (kind, value) {
            (ListKind::Atomic, _) => return Ok(None),
            (ListKind::Set, value) => match Key::of(value) {
                Some(key) => return Ok(Some(Self(vec![Some(key)]))),
                None => return Ok(None),
            },
            (ListKind::Map(keys), Value::Map(map)) => keys.iter().map(|key| map.get_text(key)),
            (ListKind::Map(_), _) => return Ok(None),
        };
        let mut parts = Vec::new();
        for found in keys {
            let part = match found {
                None => None,
                Some(value) => match Key::of(&value?) {
                    Some(key) => Some(key),
                    None => return Ok(None),
                },
            };
            parts.push(part);
        }
        Ok(Some(Self(parts)))
    }
}

/// Places of elements by what they are known by. `None` if one of them is known by nothing.
pub(crate) fn places<'a>(
    kind: &ListKind,
    items: &[Value<'a>],
) -> Result<Option<BTreeMap<Identity<'a>, usize>>, EvalError> {
    let mut places = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        match Identity::of(kind, item)? {
            Some(identity) => {
                places.insert(identity, index);
            }
            None => return Ok(None),
        }
    }
    Ok(Some(places))
}

/// The place of an element in a list whose places are known.
pub(crate) fn place<'a>(
    kind: &ListKind,
    places: &BTreeMap<Identity<'a>, usize>,
    item: &Value<'a>,
) -> Result<Option<usize>, EvalError> {
    let identity = Identity::of(kind, item)?;
    Ok(identity.and_then(|identity| places.get(&identity).copied()))
}
