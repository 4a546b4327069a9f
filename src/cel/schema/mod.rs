//! What is known of an object's shape: types for the checker, sizes for the estimator, and how JSON
//! becomes values.
//!
//! Always true:
//! - A field whose schema says nothing that expressions could use is not seen by them.
//! - Sizes are upper bounds for what fits in one request of 3 MiB.

mod escape;
mod from_json;
mod object;
#[cfg(test)]
mod tests;

pub use escape::{escape, unescape};
pub use object::ObjectType;

use std::sync::Arc;

use super::types::Type;

/// Largest request the estimates reckon with (bytes).
pub const MAX_REQUEST_BYTES: u64 = 3 * 1024 * 1024;
/// Sizes that are not bounded.
const UNBOUNDED: u64 = u64::MAX;

/// A schema, ready for expressions. Made once per definition and shared.
#[derive(Debug)]
pub struct Schema {
    pub(crate) ty: Type,
    pub(crate) shape: Shape,
    /// Most elements of a list or map, most bytes of a string.
    pub(crate) max_elements: u64,
    /// Fewest bytes a value takes as JSON.
    pub(crate) min_size: u64,
    pub(crate) nullable: bool,
}

/// How a JSON value of a schema is read.
#[derive(Debug)]
pub(crate) enum Shape {
    String,
    /// `format: byte`, base64.
    Bytes,
    Duration,
    Date,
    DateTime,
    Int,
    Double,
    Bool,
    /// `x-kubernetes-int-or-string`: a string or an integer.
    IntOrString,
    /// Whatever the JSON is.
    Dyn,
    List {
        items: Arc<Schema>,
        kind: ListKind,
    },
    /// `additionalProperties`.
    Map(Arc<Schema>),
    Object(Arc<ObjectType>),
    /// Preserved without a schema: not seen by expressions, compared as JSON.
    Unseen,
}

/// `x-kubernetes-list-type`: what equality and `+` do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListKind {
    Atomic,
    Set,
    /// Names, as expressions have them, of the properties that tell elements apart.
    Map(Box<[String]>),
}

impl Schema {
    /// The type of its values in expressions.
    pub fn to_type(&self) -> Type {
        self.ty.clone()
    }

    /// Reads a structural OpenAPI v3 schema. `name` becomes the type's name in messages. `None` if
    /// expressions cannot use its values.
    ///
    /// `root` marks the schema of a whole resource: its `apiVersion`, `kind` and `metadata` are
    /// there even if not declared.
    pub fn from_json(json: &serde_json::Value, name: &str, root: bool) -> Option<Arc<Self>> {
        from_json::schema(json, name, root)
    }

    /// Most objects of this schema that one request can hold: how often a rule may be called.
    pub fn max_cardinality(&self) -> u64 {
        MAX_REQUEST_BYTES / (self.min_size + 1)
    }

    /// Most elements of a list or map, most bytes of a string: what a repeated rule multiplies with.
    pub fn max_elements(&self) -> u64 {
        self.max_elements
    }

    /// A type without limits on size, for variables that are no resource of a user's.
    pub fn scalar(ty: Type) -> Arc<Self> {
        let (shape, min_size) = match ty {
            Type::String => (Shape::String, 2),
            Type::Bytes => (Shape::Bytes, 2),
            Type::Bool => (Shape::Bool, 4),
            Type::Int => (Shape::Int, 1),
            Type::Double => (Shape::Double, 1),
            Type::Timestamp => (Shape::DateTime, 12),
            Type::Duration => (Shape::Duration, 3),
            _ => (Shape::Dyn, 1),
        };
        Arc::new(Self {
            ty,
            shape,
            max_elements: 0,
            min_size,
            nullable: false,
        })
    }

    /// A list without a bound on its size.
    pub fn list(items: Arc<Schema>) -> Arc<Self> {
        Arc::new(Self {
            ty: Type::list(items.to_type()),
            shape: Shape::List {
                items,
                kind: ListKind::Atomic,
            },
            max_elements: UNBOUNDED,
            min_size: 2,
            nullable: false,
        })
    }

    /// A map from strings without a bound on its size.
    pub fn map(values: Arc<Schema>) -> Arc<Self> {
        Arc::new(Self {
            ty: Type::map(Type::String, values.to_type()),
            shape: Shape::Map(values),
            max_elements: UNBOUNDED,
            min_size: 2,
            nullable: false,
        })
    }

    /// An object with these fields, for variables such as `request`.
    pub fn object(
        name: &str,
        fields: impl IntoIterator<Item = (String, Arc<Schema>)>,
    ) -> Arc<Self> {
        let object = Arc::new(ObjectType::new(name, fields));
        Arc::new(Self {
            ty: Type::Object(Arc::clone(&object)),
            shape: Shape::Object(object),
            max_elements: 0,
            min_size: 2,
            nullable: false,
        })
    }

    /// The schema of the items of a list, or of the values of a map.
    pub fn elements(&self) -> Option<&Arc<Schema>> {
        match &self.shape {
            Shape::List { items, .. } => Some(items),
            Shape::Map(values) => Some(values),
            _ => None,
        }
    }

    /// The schema of a property by its name in JSON. `None`: expressions have no name for it;
    /// `Some(None)`: they do not see it.
    pub fn member(&self, json: &str) -> Option<Option<&Arc<Schema>>> {
        let name = escape(json)?;
        let Shape::Object(object) = &self.shape else {
            return Some(None);
        };
        let property = object.property(&name);
        let schema = property.map(|property| &property.schema);
        Some(schema.filter(|schema| !matches!(schema.shape, Shape::Unseen)))
    }

    /// The schema behind one step of a path: a field, `@items`, `@values` or `@keys`.
    pub(crate) fn step(&self, name: &str) -> Option<Step<'_>> {
        match (&self.shape, name) {
            (Shape::List { items, .. }, "@items") => Some(Step::Schema(items)),
            (Shape::Map(values), "@values" | "@items") => Some(Step::Schema(values)),
            (Shape::Map(_), "@keys") => Some(Step::Key),
            (Shape::Object(object), name) => object
                .property(name)
                .filter(|property| !matches!(property.schema.shape, Shape::Unseen))
                .map(|property| Step::Schema(&property.schema)),
            _ => None,
        }
    }
}

/// Where a step of a path leads.
pub(crate) enum Step<'s> {
    Schema(&'s Schema),
    /// The keys of a map: strings of which no size is known.
    Key,
}
