//! What an object leaves out and its schema knows.

use serde_json::Value;

use super::is;

/// Memory that defaults may add to one object: much more than can be stored.
pub(super) const MAX_DEFAULTED: usize = 16 << 20;

/// Defaults would make an object too large.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its defaults add more than {MAX_DEFAULTED} bytes to it")]
pub struct TooLarge;

/// Fills in what is absent, also a `null` that may not be there. Idempotent. On error the object
/// has some of its defaults.
pub fn default(schema: &Value, value: &mut Value) -> Result<(), TooLarge> {
    let mut left = MAX_DEFAULTED;
    fill(schema, value, &mut left)
}

fn fill(schema: &Value, value: &mut Value, left: &mut usize) -> Result<(), TooLarge> {
    match value {
        Value::Object(map) => {
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                let absent = match map.get(name) {
                    None => true,
                    Some(Value::Null) => !is(inner, "nullable"),
                    Some(_) => false,
                };
                if absent && let Some(default) = inner.get("default").filter(|one| !one.is_null()) {
                    let weight = proto::weight(default) + name.len();
                    *left = left.checked_sub(weight).ok_or(TooLarge)?;
                    map.insert(name.clone(), default.clone());
                }
                if let Some(member) = map.get_mut(name) {
                    fill(inner, member, left)?;
                }
            }
            if schema["additionalProperties"].is_object() {
                for (name, member) in map.iter_mut() {
                    if schema["properties"].get(name).is_none() {
                        fill(&schema["additionalProperties"], member, left)?;
                    }
                }
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            for item in list {
                fill(&schema["items"], item, left)?;
            }
        }
        _ => {}
    }
    Ok(())
}
