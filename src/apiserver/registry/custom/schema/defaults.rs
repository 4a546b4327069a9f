//! What an object leaves out and its schema knows.

use serde_json::Value;

use super::{Tree, is};

/// Memory that defaults may add to one object: much more than can be stored.
pub(super) const MAX_DEFAULTED: usize = 16 << 20;

/// Defaults would make an object too large.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its defaults add more than {MAX_DEFAULTED} bytes to it")]
pub struct TooLarge;

/// Fills in what is absent, also a `null` that may not be there; one without a default goes. Idempotent. On error the object has some of its defaults.
pub fn default(schema: &Tree, value: &mut Value) -> Result<(), TooLarge> {
    let mut left = MAX_DEFAULTED;
    drop_nulls(schema, value);
    fill(schema, value, &mut left)
}

/// Takes away each `null` that may not be there and has no default, as the original does before it
/// fills in defaults.
fn drop_nulls(schema: &Tree, value: &mut Value) {
    match value {
        Value::Object(map) => map.retain(|name, member| {
            let own = &schema["properties"][name.as_str()];
            let inner = match own.is_object() {
                true => own,
                false => &schema["additionalProperties"],
            };
            if !inner.is_object() {
                return true;
            }
            drop_nulls(inner, member);
            !member.is_null() || is(inner, "nullable") || !inner["default"].is_null()
        }),
        Value::Array(list) => {
            for item in list {
                drop_nulls(&schema["items"], item);
            }
        }
        _ => {}
    }
}

fn fill(schema: &Tree, value: &mut Value, left: &mut usize) -> Result<(), TooLarge> {
    match value {
        Value::Object(map) => {
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                let absent = match map.get(&**name) {
                    None => true,
                    Some(Value::Null) => !is(inner, "nullable"),
                    Some(_) => false,
                };
                if absent && let Some(default) = inner.get("default").filter(|one| !one.is_null()) {
                    let default = default.to_value();
                    let weight = proto::weight(&default) + name.len();
                    *left = left.checked_sub(weight).ok_or(TooLarge)?;
                    map.insert(name.to_string(), default);
                }
                if let Some(member) = map.get_mut(&**name) {
                    fill(inner, member, left)?;
                }
            }
            let others = &schema["additionalProperties"];
            if others.is_object() {
                let properties = &schema["properties"];
                let declared = |name: &str| properties.get(name).is_some();
                for (name, member) in map.iter_mut() {
                    if !declared(name) {
                        replace_null(others, member, left)?;
                        fill(others, member, left)?;
                    }
                }
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            for item in list {
                replace_null(&schema["items"], item, left)?;
                fill(&schema["items"], item, left)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A null that may not be there becomes the default, if there is one.
fn replace_null(schema: &Tree, value: &mut Value, left: &mut usize) -> Result<(), TooLarge> {
    if value.is_null()
        && !is(schema, "nullable")
        && let Some(default) = schema.get("default").filter(|one| !one.is_null())
    {
        let default = default.to_value();
        *left = left.checked_sub(proto::weight(&default)).ok_or(TooLarge)?;
        *value = default;
    }
    Ok(())
}
