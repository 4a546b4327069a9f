//! JSON patch (RFC 6902), as the original's library understands it.
//!
//! That library is more lenient than the RFC, and clients rely on it: a member that is absent is
//! null to `test` and `copy`, `replace` may make one, and a negative index counts from the end.

use serde_json::{Map, Value};

use super::{depth, malformed, unprocessable};
use crate::apiserver::status::{Reason, Status};

/// Operations in one patch.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes (as JSON) that all `copy` operations of one patch may make.
const MAX_COPIED: usize = 3 * 1024 * 1024;
/// List items that operations may shift: an insertion in front of a long list moves all of it.
const MAX_SHIFTED: usize = 50_000_000;
/// Nesting that operations may reach in between; the result is bounded more tightly.
const MAX_NESTING: usize = 256;
/// Bytes of a path that an answer quotes.
const MAX_QUOTED: usize = 1024;

/// The patched object, and complaints about members that stand twice in the patch.
pub(super) fn apply(current: &Value, body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    let (operations, duplicates) = proto::parse_json(body).map_err(|error| match error {
        proto::Error::TooHeavy => Status::too_heavy(),
        error => malformed(&error),
    })?;
    let Value::Array(operations) = operations else {
        return Err(malformed("the patch is not a list of operations"));
    };
    let is_operation = |operation: &Value| operation.is_object() || operation.is_null();
    if !operations.iter().all(is_operation) {
        return Err(malformed("an operation is not an object"));
    }
    if operations.len() > MAX_OPERATIONS {
        return Err(Status::new(
            Reason::RequestEntityTooLarge,
            format!(
                "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                operations.len()
            ),
        ));
    }
    let mut patched = Patched {
        document: current.clone(),
        growth: Growth {
            copied: 0,
            shifted: 0,
            nesting: depth(current),
        },
    };
    for operation in operations {
        patched.carry_out(operation).map_err(unprocessable)?;
    }
    let duplicates = duplicates.iter();
    let complaints = duplicates.map(|path| format!("json patch duplicate field {path:?}"));
    Ok((patched.document, complaints.collect()))
}

struct Patched {
    document: Value,
    growth: Growth,
}

/// An object or a list, and what of it is meant.
enum Place<'a> {
    Member(&'a mut Map<String, Value>, String),
    Item(&'a mut Vec<Value>, String),
}

impl Patched {
    fn carry_out(&mut self, operation: Value) -> Result<(), String> {
        let Value::Object(mut operation) = operation else {
            return Err("Unexpected kind: unknown".to_owned());
        };
        let kind = match operation.get("op").and_then(Value::as_str) {
            Some(kind) => kind.to_owned(),
            None => "unknown".to_owned(),
        };
        let mut text = |name: &str| match operation.remove(name) {
            Some(Value::String(text)) => Ok(text),
            Some(Value::Null) | None => Err(format!(
                "{kind} operation failed to decode {name}: operation missing {name} field: missing value"
            )),
            Some(_) => Err(format!(
                "{kind} operation failed to decode {name}: it is not a string"
            )),
        };
        match kind.as_str() {
            "add" => {
                let path = text("path")?;
                self.add(&path, value_of(&mut operation))
            }
            "remove" => {
                let path = text("path")?;
                let place = self.place(&path).ok_or_else(|| {
                    let path = quoted(&path);
                    format!("remove operation does not apply: doc is missing path: \"{path}\": missing value")
                })?;
                let shifted = place.remove();
                let (_, shifted) = shifted.map_err(|why| {
                    format!("error in remove for path: '{}': {why}", quoted(&path))
                })?;
                self.growth.shift(shifted)
            }
            "replace" => {
                let path = text("path")?;
                self.replace(&path, value_of(&mut operation))
            }
            "move" => {
                let (from, path) = (text("from")?, text("path")?);
                let place = self.place(&from).ok_or_else(|| {
                    let from = quoted(&from);
                    format!("move operation does not apply: doc is missing from path: {from}: missing value")
                })?;
                let moved = place.remove();
                let (moved, shifted) = moved
                    .map_err(|why| format!("error in move for path: '{}': {why}", quoted(&from)))?;
                self.growth.shift(shifted)?;
                self.growth.moved(&from, &path)?;
                self.put("move", &path, moved)
            }
            "copy" => {
                let (from, path) = (text("from")?, text("path")?);
                let place = self.place(&from).ok_or_else(|| {
                    let from = quoted(&from);
                    format!("copy operation does not apply: doc is missing from path: {from}: missing value")
                })?;
                let copied = place.get();
                let copied = copied
                    .map_err(|why| format!("error in copy for from: '{}': {why}", quoted(&from)))?
                    .clone();
                self.growth.copy(&copied)?;
                self.growth.nest(&path, &copied)?;
                self.put("copy", &path, copied)
            }
            "test" => {
                let path = text("path")?;
                self.test(&path, &value_of(&mut operation))
            }
            other => Err(format!("Unexpected kind: {}", quoted(other))),
        }
    }

    fn add(&mut self, path: &str, value: Value) -> Result<(), String> {
        self.growth.nest(path, &value)?;
        let place = self.place(path).ok_or_else(|| {
            let path = quoted(path);
            format!("add operation does not apply: doc is missing path: \"{path}\": missing value")
        })?;
        let shifted = place.add(value);
        let shifted =
            shifted.map_err(|why| format!("error in add for path: '{}': {why}", quoted(path)))?;
        self.growth.shift(shifted)
    }

    /// The end of a move or a copy.
    fn put(&mut self, kind: &str, path: &str, value: Value) -> Result<(), String> {
        let place = self.place(path).ok_or_else(|| {
            let path = quoted(path);
            format!("{kind} operation does not apply: doc is missing destination path: {path}: missing value")
        })?;
        let shifted = place.add(value);
        let shifted = shifted
            .map_err(|why| format!("error in {kind} for path: '{}': {why}", quoted(path)))?;
        self.growth.shift(shifted)
    }

    fn replace(&mut self, path: &str, value: Value) -> Result<(), String> {
        if path.is_empty() {
            if !(value.is_object() || value.is_array()) {
                return Err("replace operation value must be object or array".to_owned());
            }
            self.growth.nest(path, &value)?;
            self.document = value;
            return Ok(());
        }
        self.growth.nest(path, &value)?;
        let place = self.place(path).ok_or_else(|| {
            let path = quoted(path);
            format!("replace operation does not apply: doc is missing path: {path}: missing value")
        })?;
        place.set(value).map_err(|_| {
            let path = quoted(path);
            format!("replace operation does not apply: doc is missing key: {path}: missing value")
        })
    }

    fn test(&mut self, path: &str, value: &Value) -> Result<(), String> {
        let failed = || format!("testing value {} failed: test failed", quoted(path));
        if path.is_empty() {
            return match self.document == *value {
                true => Ok(()),
                false => Err(failed()),
            };
        }
        let place = self.place(path).ok_or_else(|| {
            let path = quoted(path);
            format!("test operation does not apply: is missing path: {path}: missing value")
        })?;
        let found = place.get();
        let found =
            found.map_err(|why| format!("error in test for path: '{}': {why}", quoted(path)))?;
        match found == value {
            true => Ok(()),
            false => Err(failed()),
        }
    }

    /// What a path means; none if there is nothing on the way to it.
    fn place(&mut self, path: &str) -> Option<Place<'_>> {
        // What stands before the first slash counts for nothing.
        let (_, path) = path.split_once('/')?;
        let mut steps = path.split('/').map(unescaped);
        let mut step = steps.next()?;
        let mut holder = &mut self.document;
        for next in steps {
            holder = match holder {
                Value::Object(map) => map.get_mut(&step)?,
                Value::Array(list) => {
                    let at = index(&step, list.len()).ok()?;
                    list.get_mut(at)?
                }
                _ => return None,
            };
            step = next;
        }
        match holder {
            Value::Object(map) => Some(Place::Member(map, step)),
            Value::Array(list) => Some(Place::Item(list, step)),
            _ => None,
        }
    }
}

impl Place<'_> {
    fn get(&self) -> Result<&Value, String> {
        match self {
            Self::Member(map, name) => Ok(map.get(name).unwrap_or(&Value::Null)),
            Self::Item(list, step) => {
                let at = index(step, list.len())?;
                list.get(at).ok_or_else(|| no_index(step))
            }
        }
    }

    fn set(self, value: Value) -> Result<(), String> {
        match self {
            Self::Member(map, name) => {
                map.insert(name, value);
            }
            Self::Item(list, step) => {
                let at = index(&step, list.len())?;
                *list.get_mut(at).ok_or_else(|| no_index(&step))? = value;
            }
        }
        Ok(())
    }

    /// How many items had to make room.
    fn add(self, value: Value) -> Result<usize, String> {
        match self {
            Self::Member(map, name) => {
                map.insert(name, value);
                Ok(0)
            }
            Self::Item(list, step) if step == "-" => {
                list.push(value);
                Ok(0)
            }
            Self::Item(list, step) => {
                let at = index(&step, list.len() + 1)?;
                if at > list.len() {
                    return Err(no_index(&step));
                }
                list.insert(at, value);
                Ok(list.len() - at)
            }
        }
    }

    /// What was there, and how many items moved up.
    fn remove(self) -> Result<(Value, usize), String> {
        match self {
            Self::Member(map, name) => {
                let removed = map.remove(&name).ok_or_else(|| {
                    let name = quoted(&name);
                    format!("Unable to remove nonexistent key: {name}: missing value")
                })?;
                Ok((removed, 0))
            }
            Self::Item(list, step) => {
                let at = index(&step, list.len())?;
                if at >= list.len() {
                    return Err(no_index(&step));
                }
                let removed = list.remove(at);
                Ok((removed, list.len() - at))
            }
        }
    }
}

/// An index; a negative one counts from the end.
fn index(step: &str, length: usize) -> Result<usize, String> {
    let at: i64 = step
        .parse()
        .map_err(|_| format!("value was not a proper array index: '{}'", quoted(step)))?;
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let at = if at < 0 { at + length } else { at };
    usize::try_from(at).map_err(|_| no_index(step))
}

fn no_index(step: &str) -> String {
    let step = quoted(step);
    format!("Unable to access invalid index: {step}: invalid index referenced")
}

fn value_of(operation: &mut Map<String, Value>) -> Value {
    operation.remove("value").unwrap_or(Value::Null)
}

fn unescaped(step: &str) -> String {
    if !step.contains('~') {
        return step.to_owned();
    }
    let mut plain = String::with_capacity(step.len());
    let mut rest = step;
    while let Some((before, after)) = rest.split_once('~') {
        plain.push_str(before);
        let (character, used) = match after.as_bytes().first() {
            Some(b'1') => ('/', 1),
            Some(b'0') => ('~', 1),
            _ => ('~', 0),
        };
        plain.push(character);
        rest = after.get(used..).unwrap_or_default();
    }
    plain.push_str(rest);
    plain
}

fn quoted(text: &str) -> &str {
    let mut end = text.len().min(MAX_QUOTED);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Keeps a small patch from making a huge object, or from taking long.
struct Growth {
    copied: usize,
    shifted: usize,
    /// Never less than the real nesting.
    nesting: usize,
}

impl Growth {
    fn copy(&mut self, value: &Value) -> Result<(), String> {
        self.copied += proto::json_size(value);
        match self.copied > MAX_COPIED {
            true => Err(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {}, exceeding the limit {MAX_COPIED}",
                self.copied
            )),
            false => Ok(()),
        }
    }

    fn shift(&mut self, items: usize) -> Result<(), String> {
        self.shifted += items;
        match self.shifted > MAX_SHIFTED {
            true => Err(format!(
                "the operations move more than {MAX_SHIFTED} list items"
            )),
            false => Ok(()),
        }
    }

    fn nest(&mut self, path: &str, value: &Value) -> Result<(), String> {
        self.reach(path.split('/').count() + depth(value))
    }

    /// As deep as what is moved may be: it is not walked.
    fn moved(&mut self, from: &str, path: &str) -> Result<(), String> {
        let height = self.nesting.saturating_sub(from.split('/').count() - 1);
        self.reach(path.split('/').count() + height)
    }

    fn reach(&mut self, reached: usize) -> Result<(), String> {
        self.nesting = self.nesting.max(reached);
        match self.nesting > MAX_NESTING {
            true => Err("the operations nest the object too deep".to_owned()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(operations: Value) -> Result<Value, String> {
        let current = json!({"a": {"b": 1, "n": null, "x/y": 2, "~": 3}, "l": [1, 2, 3]});
        let result = apply(&current, operations.to_string().as_bytes());
        result.map(|(value, _)| value).map_err(|status| {
            assert_eq!(status.code, 422, "{status}");
            let head = "the server rejected our request due to an error in our request: ";
            status.message.trim_start_matches(head).to_owned()
        })
    }

    #[test]
    fn operations_that_hold() {
        for (operation, pointer, want) in [
            // Absent is null: what kube's finalizer() asks first.
            (
                json!({"op": "test", "path": "/a/gone", "value": null}),
                "",
                None,
            ),
            (json!({"op": "test", "path": "/a/gone"}), "", None),
            (
                json!({"op": "test", "path": "/a/n", "value": null}),
                "",
                None,
            ),
            (json!({"op": "test", "path": "/a/b", "value": 1}), "", None),
            (
                json!({"op": "test", "path": "/a/x~1y", "value": 2}),
                "",
                None,
            ),
            (json!({"op": "test", "path": "/a/~0", "value": 3}), "", None),
            (json!({"op": "test", "path": "/l/-1", "value": 3}), "", None),
            (
                json!({"op": "replace", "path": "/a/new", "value": 5}),
                "/a/new",
                Some(json!(5)),
            ),
            (
                json!({"op": "replace", "path": "/l/-1", "value": 5}),
                "/l",
                Some(json!([1, 2, 5])),
            ),
            (
                json!({"op": "add", "path": "/l/-", "value": 4}),
                "/l",
                Some(json!([1, 2, 3, 4])),
            ),
            (
                json!({"op": "add", "path": "/l/3", "value": 4}),
                "/l",
                Some(json!([1, 2, 3, 4])),
            ),
            (
                json!({"op": "add", "path": "/l/0", "value": 0}),
                "/l",
                Some(json!([0, 1, 2, 3])),
            ),
            (
                json!({"op": "add", "path": "/l/-1", "value": 4}),
                "/l",
                Some(json!([1, 2, 3, 4])),
            ),
            (
                json!({"op": "add", "path": "/a/b", "value": {"c": []}}),
                "/a/b",
                Some(json!({"c": []})),
            ),
            (
                json!({"op": "add", "path": "/a/v"}),
                "/a/v",
                Some(json!(null)),
            ),
            (
                json!({"op": "remove", "path": "/l/1"}),
                "/l",
                Some(json!([1, 3])),
            ),
            (
                json!({"op": "remove", "path": "/l/-3"}),
                "/l",
                Some(json!([2, 3])),
            ),
            (
                json!({"op": "move", "from": "/a/b", "path": "/l/0"}),
                "/l",
                Some(json!([1, 1, 2, 3])),
            ),
            (
                json!({"op": "copy", "from": "/l", "path": "/a/b"}),
                "/a/b",
                Some(json!([1, 2, 3])),
            ),
            (
                json!({"op": "copy", "from": "/a/gone", "path": "/a/b"}),
                "/a/b",
                Some(json!(null)),
            ),
            (
                json!({"op": "replace", "path": "", "value": {"z": 1}}),
                "",
                Some(json!({"z": 1})),
            ),
        ] {
            let got = patched(json!([operation]));
            let got = got.unwrap_or_else(|why| panic!("{operation}: {why}"));
            if let Some(want) = want {
                assert_eq!(got.pointer(pointer), Some(&want), "{operation}");
            }
        }
    }

    #[test]
    fn operations_that_do_not() {
        for (operation, want) in [
            (
                json!({"op": "test", "path": "/a/b", "value": null}),
                "testing value /a/b failed: test failed",
            ),
            (
                json!({"op": "test", "path": "/a/gone", "value": 0}),
                "testing value /a/gone failed: test failed",
            ),
            (
                json!({"op": "test", "path": "/gone/b", "value": null}),
                "test operation does not apply: is missing path: /gone/b: missing value",
            ),
            (
                json!({"op": "test", "path": "/l/3", "value": null}),
                "error in test for path: '/l/3': Unable to access invalid index: 3: invalid index referenced",
            ),
            (
                json!({"op": "add", "path": "/gone/b", "value": 1}),
                "add operation does not apply: doc is missing path: \"/gone/b\": missing value",
            ),
            (
                json!({"op": "add", "path": "/a/b/c", "value": 1}),
                "add operation does not apply: doc is missing path: \"/a/b/c\": missing value",
            ),
            (
                json!({"op": "add", "path": "", "value": 1}),
                "add operation does not apply: doc is missing path: \"\": missing value",
            ),
            (
                json!({"op": "add", "path": "/l/5", "value": 1}),
                "error in add for path: '/l/5': Unable to access invalid index: 5: invalid index referenced",
            ),
            (
                json!({"op": "add", "path": "/l/x", "value": 1}),
                "error in add for path: '/l/x': value was not a proper array index: 'x'",
            ),
            (
                json!({"op": "remove", "path": "/a/gone"}),
                "error in remove for path: '/a/gone': Unable to remove nonexistent key: gone: missing value",
            ),
            (
                json!({"op": "remove", "path": "/l/3"}),
                "error in remove for path: '/l/3': Unable to access invalid index: 3: invalid index referenced",
            ),
            (
                json!({"op": "remove", "path": "/l/-4"}),
                "error in remove for path: '/l/-4': Unable to access invalid index: -4: invalid index referenced",
            ),
            (
                json!({"op": "replace", "path": "/gone/x", "value": 1}),
                "replace operation does not apply: doc is missing path: /gone/x: missing value",
            ),
            (
                json!({"op": "replace", "path": "/l/3", "value": 1}),
                "replace operation does not apply: doc is missing key: /l/3: missing value",
            ),
            (
                json!({"op": "replace", "path": "", "value": 1}),
                "replace operation value must be object or array",
            ),
            (
                json!({"op": "move", "from": "/a/gone", "path": "/a/b"}),
                "error in move for path: '/a/gone': Unable to remove nonexistent key: gone: missing value",
            ),
            (
                json!({"op": "move", "from": "/gone/x", "path": "/a/b"}),
                "move operation does not apply: doc is missing from path: /gone/x: missing value",
            ),
            (
                json!({"op": "copy", "from": "/a/b", "path": "/gone/b"}),
                "copy operation does not apply: doc is missing destination path: /gone/b: missing value",
            ),
            (
                json!({"op": "add", "value": 1}),
                "add operation failed to decode path: operation missing path field: missing value",
            ),
            (
                json!({"op": "bogus", "path": "/x"}),
                "Unexpected kind: bogus",
            ),
            (json!({"path": "/x"}), "Unexpected kind: unknown"),
            (json!(null), "Unexpected kind: unknown"),
        ] {
            assert_eq!(
                patched(json!([operation])),
                Err(want.to_owned()),
                "{operation}"
            );
        }
    }

    #[test]
    fn operations_follow_one_another() {
        let got = patched(json!([
            {"op": "add", "path": "/m", "value": {}},
            {"op": "add", "path": "/m/k", "value": null},
            {"op": "test", "path": "/m/k", "value": null},
            {"op": "move", "from": "/m", "path": "/n"},
            {"op": "test", "path": "/m", "value": null},
        ]));
        assert_eq!(got.expect("all hold")["n"], json!({"k": null}));
    }

    #[test]
    fn what_stands_twice_is_told() {
        let body = br#"[{"op":"add","op":"add","path":"/x","value":{"a":1,"a":2}}]"#;
        let (_, complaints) = apply(&json!({}), body).expect("applied");
        assert_eq!(
            complaints,
            [
                "json patch duplicate field \"[0].op\"",
                "json patch duplicate field \"[0].value.a\""
            ]
        );
    }
}
