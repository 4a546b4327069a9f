//! Maps and objects: JSON as it is, and maps that expressions make.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use serde_json::{Map as JsonMap, Value as Json};

use super::{EvalError, Evaluated, Text, Value, check_depth, json};
use crate::cel::schema::{Schema, Shape, unescape};

#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// A JSON object, and its schema.
    Json(&'a JsonMap<String, Json>, Option<&'a Schema>),
    Made(Arc<Entries<'a>>),
}

#[derive(Clone, Debug)]
pub struct Entries<'a> {
    entries: BTreeMap<Key<'a>, Value<'a>>,
    depth: u16,
}

/// A map's key. Numbers are equal across `int` and `uint`.
#[derive(Clone, Debug)]
pub enum Key<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Text<'a>),
}

impl<'a> Key<'a> {
    /// The key that a value is, if it can be one. A whole double is an integer.
    pub(crate) fn of(value: &Value<'a>) -> Option<Self> {
        Some(match value {
            Value::Bool(one) => Self::Bool(*one),
            Value::Int(one) => Self::Int(*one),
            Value::Uint(one) => Self::Uint(*one),
            Value::String(one) => Self::String(one.clone()),
            Value::Double(one) => super::double_to_int(*one)
                .filter(|int| *int as f64 == *one)
                .map(Self::Int)?,
            _ => return None,
        })
    }

    pub(crate) fn to_value(&self) -> Value<'a> {
        match self {
            Self::Bool(one) => Value::Bool(*one),
            Self::Int(one) => Value::Int(*one),
            Self::Uint(one) => Value::Uint(*one),
            Self::String(one) => Value::String(one.clone()),
        }
    }

    fn number(&self) -> Option<i128> {
        match self {
            Self::Int(one) => Some(i128::from(*one)),
            Self::Uint(one) => Some(i128::from(*one)),
            _ => None,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Bool(_) => 0,
            Self::Int(_) | Self::Uint(_) => 1,
            Self::String(_) => 2,
        }
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(one), Self::Bool(two)) => one.cmp(two),
            (Self::String(one), Self::String(two)) => (**one).cmp(&**two),
            _ => (self.rank(), self.number()).cmp(&(other.rank(), other.number())),
        }
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key<'_> {}

impl<'a> Map<'a> {
    pub(crate) fn new(entries: BTreeMap<Key<'a>, Value<'a>>) -> Result<Self, EvalError> {
        let below = entries.values().map(Value::depth).max().unwrap_or(0);
        let depth = check_depth(below.saturating_add(1))?;
        Ok(Self::Made(Arc::new(Entries { entries, depth })))
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Json(object, _) => object.len(),
            Self::Made(entries) => entries.entries.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn depth(&self) -> u16 {
        match self {
            Self::Json(..) => 1, // JSON has a bound of its own
            Self::Made(entries) => entries.depth,
        }
    }

    /// The value of a string key, or the field of an object by the name expressions use.
    pub fn get_text(&self, name: &str) -> Option<Evaluated<'a>> {
        match self {
            Self::Json(object, None) => object.get(name).map(|one| json::value(one, None)),
            Self::Json(object, Some(schema)) => typed_field(object, schema, name),
            Self::Made(entries) => {
                let key = Key::String(Text::Borrowed(name));
                entries.entries.get(&key).cloned().map(Ok)
            }
        }
    }

    /// The value of a key. A key of a type that no key can have is an error in JSON objects, whose
    /// keys are strings, and absent elsewhere.
    pub fn get(&self, key: &Value<'a>) -> Option<Evaluated<'a>> {
        if let Value::String(text) = key {
            return self.get_text(text);
        }
        match self {
            Self::Json(_, Some(_)) => Some(Err(EvalError::no_such_overload())),
            Self::Json(_, None) => None,
            Self::Made(entries) => entries.entries.get(&Key::of(key)?).cloned().map(Ok),
        }
    }

    /// Keys in order. Of an object with a schema, only the fields that expressions see.
    pub fn keys(&self) -> Vec<Key<'a>> {
        match self {
            Self::Json(object, schema) => {
                let visible = object.keys().filter_map(|key| visible(key, *schema));
                visible.map(Key::String).collect()
            }
            Self::Made(entries) => entries.entries.keys().cloned().collect(),
        }
    }

    /// Entries in the order of keys.
    pub fn entries(&self) -> Result<Vec<(Key<'a>, Value<'a>)>, EvalError> {
        match self {
            Self::Made(entries) => {
                let all = entries.entries.iter();
                Ok(all
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect())
            }
            Self::Json(..) => {
                let mut all = Vec::with_capacity(self.len());
                for key in self.keys() {
                    if let Some(value) = self.get(&key.to_value()) {
                        all.push((key, value?));
                    }
                }
                Ok(all)
            }
        }
    }

    /// The same map with one entry more; in place where nobody else holds it.
    pub(crate) fn insert(self, key: Key<'a>, value: Value<'a>) -> Result<Self, EvalError> {
        let mut entries = match self {
            Self::Made(entries) => entries,
            json @ Self::Json(..) => match Self::new(json.entries()?.into_iter().collect())? {
                Self::Made(entries) => entries,
                Self::Json(..) => return Err(EvalError::no_such_overload()), // never: it was made
            },
        };
        let depth = check_depth(value.depth().saturating_add(1))?;
        let own = Arc::make_mut(&mut entries);
        own.depth = own.depth.max(depth);
        if own.entries.contains_key(&key) {
            let key = super::display::plain(&key.to_value());
            return Err(EvalError::new(format!(
                "insert failed: key {key} already exists"
            )));
        }
        own.entries.insert(key, value);
        Ok(Self::Made(entries))
    }
}

/// The name under which expressions see a key of a JSON object.
fn visible<'a>(key: &'a str, schema: Option<&'a Schema>) -> Option<Text<'a>> {
    let Some(schema) = schema else {
        return Some(Text::Borrowed(key));
    };
    match &schema.shape {
        Shape::Object(object) => {
            let name = crate::cel::schema::escape(key)?;
            object.property(&name)?;
            Some(match name {
                std::borrow::Cow::Borrowed(name) => Text::Borrowed(name),
                std::borrow::Cow::Owned(name) => Text::Shared(name.into()),
            })
        }
        _ => Some(Text::Borrowed(key)),
    }
}

fn typed_field<'a>(
    object: &'a JsonMap<String, Json>,
    schema: &'a Schema,
    name: &str,
) -> Option<Evaluated<'a>> {
    match &schema.shape {
        Shape::Object(fields) => {
            let property = fields.property(name).or_else(|| {
                // A reserved word, written as it is behind a dot.
                fields.property(&crate::cel::schema::escape(name)?)
            });
            let Some(property) = property else {
                // Declared nowhere: there only if the schema's fields are not known at all.
                unescape(name)?;
                return None;
            };
            // A null is the same as nothing.
            let value = object.get(&*property.json).filter(|one| !one.is_null())?;
            Some(json::value(value, Some(&property.schema)))
        }
        Shape::Map(values) => object.get(name).map(|one| json::value(one, Some(values))),
        _ => object.get(name).map(|one| json::value(one, None)),
    }
}
