//! Schemas in memory: as little as they can be, and read like JSON.
//!
//! A definition is served for as long as it exists, and its schema is looked at with every request;
//! as [`Value`] it would take ten times its text. Equal parts are stored once.

use std::{
    collections::{HashMap, HashSet},
    ops::Index,
    sync::Arc,
};

use serde_json::{Map, Number, Value};

/// JSON that does not change. Members are in the order of their names.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    Null,
    Bool(bool),
    Number(Number),
    Text(Arc<str>),
    List(Arc<[Tree]>),
    Map(Arc<[(Arc<str>, Tree)]>),
}

static NULL: Tree = Tree::Null;

/// What says nothing about values: left to the text that documents are made of.
const PROSE: [&str; 5] = [
    "description",
    "title",
    "example",
    "externalDocs",
    "x-kubernetes-validations",
];

impl Tree {
    /// A schema with all that values are held against.
    pub fn schema(schema: &Value) -> Self {
        Builder::default().schema(schema)
    }

    pub fn get(&self, name: &str) -> Option<&Self> {
        let members = self.as_object()?;
        let at = members.binary_search_by(|(known, _)| (**known).cmp(name));
        Some(&members.get(at.ok()?)?.1)
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    pub fn is_object(&self) -> bool {
        matches!(self, Self::Map(_))
    }

    pub fn as_object(&self) -> Option<&[(Arc<str>, Self)]> {
        match self {
            Self::Map(members) => Some(members),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(number) => number.as_u64(),
            _ => None,
        }
    }

    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(number) => number.as_f64(),
            _ => None,
        }
    }

    /// A member that is a list of texts.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        let items = self[name].as_array().into_iter().flatten();
        items.filter_map(Self::as_str)
    }

    pub fn to_value(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Number(number) => Value::Number(number.clone()),
            Self::Text(text) => Value::from(&**text),
            Self::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Self::Map(members) => {
                let members = members.iter();
                let pairs = members.map(|(name, inner)| (name.to_string(), inner.to_value()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// What tells interned trees apart: their content is the same if this is.
    fn identity(&self) -> (u8, usize, Option<String>) {
        match self {
            Self::Null => (0, 0, None),
            Self::Bool(value) => (1, usize::from(*value), None),
            Self::Number(number) => (2, 0, Some(number.to_string())),
            Self::Text(text) => (3, text.as_ptr().addr(), None),
            Self::List(items) => (4, items.as_ptr().addr(), None),
            Self::Map(members) => (5, members.as_ptr().addr(), None),
        }
    }
}

impl Index<&str> for Tree {
    type Output = Self;

    fn index(&self, name: &str) -> &Self {
        self.get(name).unwrap_or(&NULL)
    }
}

impl PartialEq<bool> for Tree {
    fn eq(&self, other: &bool) -> bool {
        matches!(self, Self::Bool(value) if value == other)
    }
}

impl PartialEq<&str> for Tree {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == Some(other)
    }
}

impl PartialEq<Value> for Tree {
    fn eq(&self, other: &Value) -> bool {
        match (self, other) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(a), Value::Bool(b)) => a == b,
            (Self::Number(a), Value::Number(b)) => a == b,
            (Self::Text(a), Value::String(b)) => **a == **b,
            (Self::List(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b)
            }
            (Self::Map(a), Value::Object(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .all(|(name, a)| b.get(&**name).is_some_and(|b| a == b))
            }
            _ => false,
        }
    }
}

type Identity = (u8, usize, Option<String>);

/// Makes trees in which equal parts are one.
#[derive(Default)]
struct Builder {
    texts: HashSet<Arc<str>>,
    lists: HashMap<Vec<Identity>, Tree>,
    maps: HashMap<Vec<(usize, Identity)>, Tree>,
}

impl Builder {
    fn schema(&mut self, schema: &Value) -> Tree {
        let Value::Object(map) = schema else {
            return self.raw(schema);
        };
        let told = map.iter().filter(|(name, inner)| {
            !PROSE.contains(&name.as_str()) && (!inner.is_null() || *name == "default")
        });
        let members = told
            .map(|(name, inner)| {
                let made = match (name.as_str(), inner) {
                    ("properties", Value::Object(all)) => {
                        let all = all.iter();
                        let each = all.map(|(name, inner)| (name, self.schema(inner)));
                        let each: Vec<_> = each.collect();
                        self.map(each)
                    }
                    ("items" | "additionalProperties" | "not", inner) => self.schema(inner),
                    ("allOf" | "anyOf" | "oneOf", Value::Array(all)) => {
                        let all = all.iter().map(|inner| self.schema(inner)).collect();
                        self.list(all)
                    }
                    (_, inner) => self.raw(inner),
                };
                (name, made)
            })
            .collect();
        self.map(members)
    }

    fn raw(&mut self, value: &Value) -> Tree {
        match value {
            Value::Null => Tree::Null,
            Value::Bool(value) => Tree::Bool(*value),
            Value::Number(number) => Tree::Number(number.clone()),
            Value::String(text) => Tree::Text(self.text(text)),
            Value::Array(items) => {
                let items = items.iter().map(|item| self.raw(item)).collect();
                self.list(items)
            }
            Value::Object(map) => {
                let members = map.iter();
                let members = members.map(|(name, inner)| (name, self.raw(inner)));
                let members = members.collect();
                self.map(members)
            }
        }
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let made: Arc<str> = text.into();
        self.texts.insert(made.clone());
        made
    }

    fn list(&mut self, items: Vec<Tree>) -> Tree {
        let key = items.iter().map(Tree::identity).collect();
        let known = self.lists.entry(key);
        known.or_insert_with(|| Tree::List(items.into())).clone()
    }

    fn map(&mut self, members: Vec<(&String, Tree)>) -> Tree {
        let members = members.into_iter();
        let mut members: Vec<(Arc<str>, Tree)> = members
            .map(|(name, inner)| (self.text(name), inner))
            .collect();
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        let key = members
            .iter()
            .map(|(name, inner)| (name.as_ptr().addr(), inner.identity()));
        let known = self.maps.entry(key.collect());
        known.or_insert_with(|| Tree::Map(members.into())).clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_without_its_prose() {
        let schema = json!({"type": "object", "description": "long", "properties": {
            "description": {"type": "string", "title": "x"},
            "other": {"type": "string", "default": {"description": "kept", "n": [1, null]}},
        }, "x-kubernetes-validations": [{"rule": "true"}]});
        let tree = Tree::schema(&schema);
        let want = json!({"type": "object", "properties": {"description": {"type": "string"},
            "other": {"type": "string", "default": {"description": "kept", "n": [1, null]}}}});
        assert_eq!(tree.to_value(), want);
        assert!(tree == want);
        assert_eq!(tree["properties"]["other"]["type"], "string");
        assert!(tree["properties"]["none"]["type"].is_null());
    }

    #[test]
    fn equal_parts_are_stored_once() {
        let part = json!({"type": "object", "properties": {"a": {"type": "string"}}});
        let tree = Tree::schema(&json!({"properties": {"x": part, "y": part}}));
        let (Tree::Map(x), Tree::Map(y)) = (&tree["properties"]["x"], &tree["properties"]["y"])
        else {
            panic!("schemas are maps")
        };
        assert!(Arc::ptr_eq(x, y));
    }
}
