//! The paths of printer columns: `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`.
//! Pure.

use serde_json::Value;

/// What stands at `path`; of several, all as one text with commas. `None` for a path that cannot
/// be read.
pub fn find(object: &Value, path: &str) -> Option<Value> {
    let mut here = vec![object];
    let mut rest = path.trim();
    rest = rest
        .strip_prefix('{')
        .and_then(|inner| inner.strip_suffix('}'))
        .unwrap_or(rest);
    rest = rest.strip_prefix('$').unwrap_or(rest);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (name, next) = after.split_at(end);
            if !name.is_empty() {
                here = here
                    .into_iter()
                    .filter_map(|value| value.get(name))
                    .collect();
            }
            rest = next;
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after)?;
            here = step(here, after.get(..end)?)?;
            rest = after.get(end + 1..)?;
        } else {
            return None;
        }
    }
    match here.as_slice() {
        [] => None,
        [one] => Some((*one).clone()),
        many => {
            let texts: Vec<String> = many
                .iter()
                .map(|value| {
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned)
                })
                .collect();
            Some(texts.join(",").into())
        }
    }
}

/// Where the bracket ends: one in quotes does not count.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (None, ']') => return Some(at),
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), _) if open == letter => quote = None,
            _ => {}
        }
    }
    None
}

fn step<'a>(here: Vec<&'a Value>, inner: &str) -> Option<Vec<&'a Value>> {
    let inner = inner.trim();
    if inner == "*" {
        let all = here.into_iter().flat_map(|value| match value {
            Value::Array(list) => list.iter().collect::<Vec<_>>(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        });
        return Some(all.collect());
    }
    if let Ok(index) = inner.parse::<i64>() {
        let at = |list: &'a Vec<Value>| {
            let length = i64::try_from(list.len()).ok()?;
            let index = if index < 0 { length + index } else { index };
            list.get(usize::try_from(index).ok()?)
        };
        return Some(
            here.into_iter()
                .filter_map(|value| at(value.as_array()?))
                .collect(),
        );
    }
    if let Some(name) = quoted(inner) {
        return Some(
            here.into_iter()
                .filter_map(|value| value.get(name))
                .collect(),
        );
    }
    let filter = inner.strip_prefix("?(")?.strip_suffix(')')?;
    let (left, equal, right) = match (filter.split_once("=="), filter.split_once("!=")) {
        (Some((left, right)), _) => (left, true, right),
        (None, Some((left, right))) => (left, false, right),
        _ => return None,
    };
    let left = left.trim().strip_prefix('@')?;
    let right: Value = match quoted(right.trim()) {
        Some(text) => text.into(),
        None => serde_json::from_str(right.trim()).ok()?,
    };
    let items = here.into_iter().filter_map(Value::as_array).flatten();
    Some(
        items
            .filter(|item| (find(item, left).as_ref() == Some(&right)) == equal)
            .collect(),
    )
}

fn quoted(text: &str) -> Option<&str> {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths() {
        let object = json!({"spec": {"n": 3, "a.b": "dot", "list": [{"k": "x"}, {"k": "y"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        for (path, want) in [
            (".spec.n", Some(json!(3))),
            ("{.spec.n}", Some(json!(3))),
            (".spec['a.b']", Some(json!("dot"))),
            (".spec.list[1].k", Some(json!("y"))),
            (".spec.list[-1].k", Some(json!("y"))),
            (".spec.list[*].k", Some(json!("x,y"))),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                Some(json!("True")),
            ),
            (".status.conditions[?(@.type=='None')].status", None),
            (".gone.deeper", None),
            (".spec.list[", None),
        ] {
            assert_eq!(find(&object, path), want, "{path}");
        }
    }
}
