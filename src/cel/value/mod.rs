//! Values of expressions.
//!
//! Always true:
//! - JSON of the caller is read in place; nothing is copied until an expression makes something new.
//! - What expressions make is shared, never changed, and nested at most [`MAX_DEPTH`] levels deep.

mod compare;
mod convert;
mod display;
mod duration;
mod equal;
pub(crate) mod identity;
mod json;
mod kubernetes;
mod list;
mod map;
#[cfg(test)]
mod tests;
mod text;
mod timestamp;

pub(crate) use compare::{compare, compare_numbers};
pub(crate) use convert::{double_to_int, double_to_uint, is_zero};
pub(crate) use display::{double_text, escape_of, escaped, plain};
pub(crate) use duration::{parse_duration, seconds_text};
pub(crate) use equal::equal;
pub use kubernetes::ResourceCheck;
pub use kubernetes::{Cidr, Ip, LibraryValue, Url};
pub use list::List;
pub use map::{Key, Map};
pub use text::{Blob, Text};
pub use timestamp::Timestamp;

use std::sync::Arc;

use super::types::{LibraryType, Type};

/// Levels that lists and maps made by expressions may be nested.
pub(crate) const MAX_DEPTH: u16 = 300;

/// A value. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Blob<'a>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    Type(Type),
    /// Something of Kubernetes' libraries.
    Library(Arc<LibraryValue<'a>>),
    /// An object made by an expression: `Object{..}`, `JSONPatch{..}`.
    Object(Arc<Object<'a>>),
    /// The composed variables of a policy; its fields are evaluated when asked for.
    Variables,
}

/// An object made by an expression.
#[derive(Debug)]
pub struct Object<'a> {
    pub(crate) ty: Type,
    /// By name, each name once.
    pub(crate) fields: Vec<(String, Value<'a>)>,
    pub(crate) depth: u16,
}

impl<'a> Object<'a> {
    pub fn type_name(&self) -> &str {
        self.ty.name()
    }

    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.fields
            .iter()
            .map(|(name, value)| (name.as_str(), value))
    }

    pub(crate) fn field(&self, name: &str) -> Option<&Value<'a>> {
        let found = self.fields.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value)
    }
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The expression itself fails; `&&` and `||` may absorb it.
    #[error("{0}")]
    Failed(Box<str>),
    /// It cost more than one evaluation may.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostLimit,
    /// It cost more than was left of the caller's budget.
    #[error("cost budget exceeded")]
    Budget,
}

pub(crate) type Evaluated<'a> = Result<Value<'a>, EvalError>;

impl EvalError {
    pub(crate) fn new(message: impl Into<Box<str>>) -> Self {
        Self::Failed(message.into())
    }

    pub(crate) fn no_such_overload() -> Self {
        Self::new("no such overload")
    }

    /// As evaluation reports arguments that no overload of a function takes.
    pub(crate) fn no_overload_for(function: &str, args: &[Value<'_>]) -> Self {
        let names: Vec<String> = args.iter().map(|arg| arg.type_name().to_owned()).collect();
        Self::new(format!(
            "no such overload: {function}({})",
            names.join(", ")
        ))
    }

    /// Whether evaluation as a whole ends, absorbing or not.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}

impl<'a> Value<'a> {
    pub(crate) fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Shared(text.into()))
    }

    pub(crate) fn some(value: Value<'a>) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    pub(crate) fn library(value: LibraryValue<'a>) -> Self {
        Self::Library(Arc::new(value))
    }

    pub(crate) fn strings(texts: impl IntoIterator<Item = String>) -> Evaluated<'a> {
        List::new(texts.into_iter().map(Value::text).collect()).map(Self::List)
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The type as `type(x)` gives it.
    pub(crate) fn type_value(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::Duration(_) => Type::Duration,
            Self::Timestamp(_) => Type::Timestamp,
            Self::List(_) => Type::list(Type::Dyn),
            Self::Map(_) | Self::Variables => Type::map(Type::Dyn, Type::Dyn),
            Self::Optional(_) => Type::optional(Type::Dyn),
            Self::Type(_) => Type::type_of(Type::Dyn),
            Self::Library(value) => Type::Library(value.library_type()),
            Self::Object(object) => object.ty.clone(),
        }
    }

    pub(crate) fn type_name(&self) -> String {
        self.type_value().name().to_owned()
    }

    /// Levels of nesting below and with this value.
    pub(crate) fn depth(&self) -> u16 {
        match self {
            Self::List(list) => list.depth(),
            Self::Map(map) => map.depth(),
            Self::Object(object) => object.depth,
            Self::Optional(Some(inner)) => inner.depth().saturating_add(1),
            _ => 0,
        }
    }

    /// The number that costs are computed with: characters, bytes, elements or entries; 1 for
    /// everything else.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.characters(),
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.len() as u64,
            Self::Map(map) => map.len() as u64,
            Self::Optional(Some(inner)) => inner.size(),
            Self::Library(value) => value.size(),
            _ => 1,
        }
    }

    pub(crate) fn is_library(&self, ty: LibraryType) -> bool {
        matches!(self, Self::Library(value) if value.library_type() == ty)
    }
}

/// Fails where a made value would be nested too deep.
pub(crate) fn check_depth(depth: u16) -> Result<u16, EvalError> {
    if depth > MAX_DEPTH {
        return Err(EvalError::new("value is nested too deep"));
    }
    Ok(depth)
}
