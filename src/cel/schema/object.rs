//! Objects with fields.

use std::{collections::HashMap, sync::Arc};

use super::{Schema, Shape, escape};
use crate::cel::types::Type;

/// A named type with fields. Two of the same name are the same type.
#[derive(Debug)]
pub struct ObjectType {
    name: String,
    fields: Fields,
}

#[derive(Debug)]
enum Fields {
    /// By the name that expressions use.
    Known(HashMap<Box<str>, Property>),
    /// Any field, of any type: objects that a mutating policy makes.
    Any,
}

/// A field of an object.
#[derive(Debug)]
pub struct Property {
    /// Its name in JSON.
    pub(crate) json: Box<str>,
    pub(crate) schema: Arc<Schema>,
}

impl ObjectType {
    pub(crate) fn new(name: &str, fields: impl IntoIterator<Item = (String, Arc<Schema>)>) -> Self {
        let fields = fields
            .into_iter()
            .filter_map(|(json, schema)| {
                let name = escape(&json)?.into();
                let json = json.into();
                Some((name, Property { json, schema }))
            })
            .collect();
        Self {
            name: name.to_owned(),
            fields: Fields::Known(fields),
        }
    }

    /// An object whose fields are not known.
    pub(crate) fn open(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            fields: Fields::Any,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The field that expressions call `name`.
    pub(crate) fn property(&self, name: &str) -> Option<&Property> {
        match &self.fields {
            Fields::Known(fields) => fields.get(name),
            Fields::Any => None,
        }
    }

    /// The type of a field, if there is such a field for expressions.
    pub(crate) fn field_type(&self, name: &str) -> Option<Type> {
        match &self.fields {
            Fields::Any => Some(Type::Dyn),
            Fields::Known(fields) => {
                // A reserved word may be written as it is behind a dot.
                let property = fields.get(name).or_else(|| {
                    let escaped = escape(name)?;
                    fields.get(escaped.as_ref())
                })?;
                match property.schema.shape {
                    Shape::Unseen => None,
                    _ => Some(property.schema.to_type()),
                }
            }
        }
    }
}
