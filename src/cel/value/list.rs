//! Lists: JSON arrays as they are, and lists that expressions make.

use std::sync::Arc;

use serde_json::Value as Json;

use super::{EvalError, Evaluated, Value, check_depth, json};
use crate::cel::schema::{ListKind, Schema, Shape};

#[derive(Clone, Debug)]
pub enum List<'a> {
    /// An array, and the schema of the array itself.
    Json(&'a Vec<Json>, Option<&'a Schema>),
    Made(Arc<Items<'a>>),
}

#[derive(Clone, Debug)]
pub struct Items<'a> {
    items: Vec<Value<'a>>,
    depth: u16,
    kind: &'a ListKind,
}

impl<'a> List<'a> {
    pub(crate) fn new(items: Vec<Value<'a>>) -> Result<Self, EvalError> {
        Self::of_kind(&ListKind::Atomic, items)
    }

    /// A list whose elements are told apart as the schema of another one says.
    pub(crate) fn of_kind(kind: &'a ListKind, items: Vec<Value<'a>>) -> Result<Self, EvalError> {
        let below = items.iter().map(Value::depth).max().unwrap_or(0);
        let depth = check_depth(below.saturating_add(1))?;
        Ok(Self::Made(Arc::new(Items { items, depth, kind })))
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Json(array, _) => array.len(),
            Self::Made(items) => items.items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn depth(&self) -> u16 {
        match self {
            Self::Json(..) => 1, // JSON has a bound of its own
            Self::Made(items) => items.depth,
        }
    }

    /// The element at `index`; `None` past the end.
    pub fn get(&self, index: usize) -> Option<Evaluated<'a>> {
        match self {
            Self::Json(array, schema) => {
                let element = array.get(index)?;
                Some(json::value(element, schema.and_then(items_schema)))
            }
            Self::Made(items) => items.items.get(index).cloned().map(Ok),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Evaluated<'a>> + '_ {
        (0..self.len()).map_while(|index| self.get(index))
    }

    /// How the schema says that elements are told apart.
    pub(crate) fn kind(&self) -> &'a ListKind {
        match self {
            Self::Json(_, Some(schema)) => match &schema.shape {
                Shape::List { kind, .. } => kind,
                _ => &ListKind::Atomic,
            },
            Self::Json(_, None) => &ListKind::Atomic,
            Self::Made(items) => items.kind,
        }
    }

    /// The same list with one element more; in place where nobody else holds it.
    pub(crate) fn push(self, value: Value<'a>) -> Result<Self, EvalError> {
        match self {
            Self::Made(mut items) => {
                let depth = check_depth(value.depth().saturating_add(1))?;
                let own = Arc::make_mut(&mut items);
                own.depth = own.depth.max(depth);
                own.items.push(value);
                Ok(Self::Made(items))
            }
            json @ Self::Json(..) => {
                let mut items = json.iter().collect::<Result<Vec<_>, _>>()?;
                items.push(value);
                Self::new(items)
            }
        }
    }
}

fn items_schema(schema: &Schema) -> Option<&Schema> {
    match &schema.shape {
        Shape::List { items, .. } => Some(items),
        _ => None,
    }
}
