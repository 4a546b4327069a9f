//! Sets of fields, as `managedFields` writes them. Pure.

use serde_json::{Map, Value, json};

use super::steps::Steps;

/// Fields of an object: a tree whose steps are written as in `fieldsV1` (`f:name`,
/// `k:{"name":"a"}`, `v:1`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The field itself is in the set.
    pub here: bool,
    pub inner: Steps<Set>,
}

impl Set {
    pub fn leaf() -> Self {
        Self {
            here: true,
            inner: Steps::default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.here && self.inner.is_empty()
    }

    /// From `fieldsV1`: an empty object is a field, `.` in a filled one is that object's own.
    pub fn parse(value: &Value) -> Self {
        let mut root = Self::members(value);
        root.here = value.get(".").is_some();
        root
    }

    fn members(value: &Value) -> Self {
        let mut set = Self::default();
        for (step, inner) in value.as_object().into_iter().flatten() {
            if step == "." {
                set.here = true;
                continue;
            }
            let mut child = Self::members(inner);
            if inner.as_object().is_some_and(Map::is_empty) {
                child.here = true;
            }
            set.inner.insert(step.as_str().into(), child);
        }
        set
    }

    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.here && !self.inner.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        for (step, inner) in self.inner.iter() {
            map.insert(step.to_owned(), inner.to_json());
        }
        Value::Object(map)
    }

    /// Whether a value is a set as `fieldsV1` writes it.
    pub fn is_written(value: &Value) -> bool {
        let Value::Object(map) = value else {
            return false;
        };
        let is_step = |step: &str| match step.split_once(':') {
            Some(("f", _)) => true,
            Some(("k", key)) => serde_json::from_str::<Map<String, Value>>(key).is_ok(),
            Some(("v", value)) => serde_json::from_str::<Value>(value).is_ok(),
            Some(("i", index)) => index.parse::<u64>().is_ok(),
            _ => step == ".",
        };
        map.iter()
            .all(|(step, inner)| is_step(step) && Self::is_written(inner))
    }

    pub fn put(&mut self, step: impl Into<Box<str>>, inner: Self) {
        if !inner.is_empty() {
            self.inner.insert(step.into(), inner);
        }
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.add(other);
        all
    }

    /// [`Set::union`] in place: what is not in `other` is not touched.
    pub fn add(&mut self, other: &Self) {
        self.here |= other.here;
        for (step, inner) in other.inner.iter() {
            match self.inner.get_mut(step) {
                Some(own) => own.add(inner),
                None => {
                    self.inner.insert(step.into(), inner.clone());
                }
            }
        }
    }

    pub fn minus(&self, other: &Self) -> Self {
        let mut left = Self {
            here: self.here && !other.here,
            inner: Steps::default(),
        };
        for (step, inner) in self.inner.iter() {
            let rest = match other.inner.get(step) {
                Some(theirs) => inner.minus(theirs),
                None => inner.clone(),
            };
            left.put(step, rest);
        }
        left
    }

    pub fn common(&self, other: &Self) -> Self {
        let mut both = Self {
            here: self.here && other.here,
            inner: Steps::default(),
        };
        for (step, inner) in self.inner.iter() {
            if let Some(theirs) = other.inner.get(step) {
                both.put(step, inner.common(theirs));
            }
        }
        both
    }

    /// Takes a field away with all below it: `["f:metadata", "f:name"]`.
    pub fn cut(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        if rest.is_empty() {
            self.inner.remove(first);
        } else if let Some(inner) = self.inner.get_mut(first) {
            inner.cut(rest);
            if inner.is_empty() {
                self.inner.remove(first);
            }
        }
    }

    /// The first `limit` fields as people read them: `.spec.containers[name="a"].image`.
    pub fn paths(&self, limit: usize) -> Vec<String> {
        let mut all = Vec::new();
        self.collect("", limit, &mut all);
        all
    }

    /// How many fields are in the set.
    pub fn count(&self) -> usize {
        usize::from(self.here)
            + self
                .inner
                .iter()
                .map(|(_, inner)| inner.count())
                .sum::<usize>()
    }

    fn collect(&self, path: &str, limit: usize, all: &mut Vec<String>) {
        if all.len() >= limit {
            return;
        }
        if self.here {
            all.push(path.to_owned());
        }
        for (step, inner) in self.inner.iter() {
            if all.len() >= limit {
                return;
            }
            inner.collect(&format!("{path}{}", readable(step)), limit, all);
        }
    }
}

/// A step as people read it: `.name`, `[name="a"]`, `[="v"]`.
pub fn readable(step: &str) -> String {
    match step.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            format!("[{}]", keys.join(","))
        }
        Some(("i", index)) => format!("[{index}]"),
        Some((_, value)) => format!("[={value}]"),
        None => String::new(),
    }
}

/// Whether a set, as written, has a field in common with another.
pub fn meets(written: &Value, set: &Set) -> bool {
    let Value::Object(map) = written else {
        return false;
    };
    if set.here && (map.is_empty() || map.contains_key(".")) {
        return true;
    }
    let mut inner = set.inner.iter();
    inner.any(|(step, inner)| map.get(step).is_some_and(|written| meets(written, inner)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let json = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}}});
        let set = Set::parse(&json);
        assert_eq!(set.to_json(), json);
        assert_eq!(
            set.paths(100),
            [
                ".metadata.labels",
                ".metadata.labels.a",
                ".spec.containers[name=\"c\"]",
                ".spec.containers[name=\"c\"].image"
            ]
        );
        let labels = Set::parse(&json!({"f:metadata": {"f:labels": {"f:a": {}}}}));
        assert_eq!(set.common(&labels), labels);
        assert_eq!(set.minus(&labels).union(&labels), set);
        for (fields, met) in [
            (json!({"f:metadata": {"f:labels": {"f:a": {}}}}), true),
            (json!({"f:metadata": {"f:labels": {}}}), true),
            (json!({"f:metadata": {"f:labels": {"f:b": {}}}}), false),
            (json!({"f:metadata": {}}), false),
            (
                json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {}}}}),
                true,
            ),
        ] {
            assert_eq!(meets(&json, &Set::parse(&fields)), met, "{fields}");
            assert!(Set::is_written(&fields));
        }
        let mut cut = set.clone();
        cut.cut(&["f:spec", "f:containers"]);
        assert_eq!(
            cut.to_json(),
            json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}})
        );
    }
}
