//! Types of expressions, as the checker sees them.

use std::{fmt, sync::Arc};

use super::schema::ObjectType;

/// A type. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Type {
    /// Anything: checked when evaluated.
    Dyn,
    /// The type of what did not check; fits everywhere, so that one fault is reported once.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    /// The type of types, of one parameter.
    Type(Arc<Nested>),
    List(Arc<Nested>),
    /// Two parameters: key and value.
    Map(Arc<Nested>),
    Optional(Arc<Nested>),
    /// A type of Kubernetes' libraries.
    Library(LibraryType),
    /// An object with fields, from a schema or made by an expression.
    Object(Arc<ObjectType>),
    /// A parameter of a function's declaration.
    Parameter(u8),
    /// A type that the checker has yet to find out.
    Variable(u32),
}

/// Parameters of a type, and how many types it is made of.
#[derive(Debug)]
pub struct Nested {
    parameters: Box<[Type]>,
    weight: u32,
}

/// Types without fields that Kubernetes' libraries add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryType {
    Url,
    Ip,
    Cidr,
    Quantity,
    Semver,
    Format,
    Authorizer,
    PathCheck,
    GroupCheck,
    ResourceCheck,
    Decision,
}

impl LibraryType {
    pub fn name(self) -> &'static str {
        match self {
            Self::Url => "kubernetes.URL",
            Self::Ip => "net.IP",
            Self::Cidr => "net.CIDR",
            Self::Quantity => "kubernetes.Quantity",
            Self::Semver => "kubernetes.Semver",
            Self::Format => "kubernetes.NamedFormat",
            Self::Authorizer => "kubernetes.authorization.Authorizer",
            Self::PathCheck => "kubernetes.authorization.PathCheck",
            Self::GroupCheck => "kubernetes.authorization.GroupCheck",
            Self::ResourceCheck => "kubernetes.authorization.ResourceCheck",
            Self::Decision => "kubernetes.authorization.Decision",
        }
    }

    /// Declared opaque upstream; the others count as objects without fields.
    pub(crate) fn is_opaque(self) -> bool {
        matches!(self, Self::Ip | Self::Cidr)
    }
}

impl Type {
    pub fn list(element: Type) -> Self {
        Self::List(Nested::new([element]))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Nested::new([key, value]))
    }

    pub fn optional(inner: Type) -> Self {
        Self::Optional(Nested::new([inner]))
    }

    /// The type of the type `described`.
    pub fn type_of(described: Type) -> Self {
        Self::Type(Nested::new([described]))
    }

    pub fn parameters(&self) -> &[Type] {
        match self {
            Self::Type(nested)
            | Self::List(nested)
            | Self::Map(nested)
            | Self::Optional(nested) => &nested.parameters,
            _ => &[],
        }
    }

    /// The parameter at `index`; anything if there is none.
    pub(crate) fn parameter(&self, index: usize) -> Type {
        self.parameters().get(index).cloned().unwrap_or(Self::Dyn)
    }

    /// How many types this one is made of. Shared parts count each time, so that what walks a type
    /// takes this long.
    pub(crate) fn weight(&self) -> u32 {
        match self {
            Self::Type(nested)
            | Self::List(nested)
            | Self::Map(nested)
            | Self::Optional(nested) => nested.weight,
            _ => 1,
        }
    }

    /// The same kind of type with other parameters.
    pub(crate) fn with(&self, parameters: impl Into<Box<[Type]>>) -> Self {
        let nested = Nested::new(parameters);
        match self {
            Self::Type(_) => Self::Type(nested),
            Self::List(_) => Self::List(nested),
            Self::Map(_) => Self::Map(nested),
            Self::Optional(_) => Self::Optional(nested),
            other => other.clone(),
        }
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }

    pub(crate) fn is_error(&self) -> bool {
        matches!(self, Self::Error)
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        self.is_dyn() || self.is_error()
    }

    /// Types of the same shape, whatever is inside of it.
    pub(crate) fn same_kind(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Whether values have one fixed size.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Self::Bool
            | Self::Double
            | Self::Duration
            | Self::Int
            | Self::Timestamp
            | Self::Uint => true,
            Self::Optional(nested) => nested.parameters.first().is_some_and(Self::is_scalar),
            _ => false,
        }
    }

    /// What fits in the parameters of a value of this type is not known.
    pub(crate) fn is_parameter(&self) -> bool {
        matches!(self, Self::Parameter(_) | Self::Variable(_))
    }

    /// The type's name at run time, without parameters: `type(x)` prints it, and so do conversions.
    pub fn name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Duration => "google.protobuf.Duration",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::Error => "error",
            Self::Type(_) => "type",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Library(library) => library.name(),
            Self::Object(object) => object.name(),
            Self::Dyn => "dyn",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Parameter(_) | Self::Variable(_) => "type_param",
        }
    }

    /// The type with its parameters and run-time names, as messages about what an expression must
    /// evaluate to show it.
    pub fn declared(&self) -> String {
        match self.parameters() {
            [] => self.name().to_owned(),
            parameters => {
                let inner: Vec<String> = parameters.iter().map(Self::declared).collect();
                format!("{}({})", self.name(), inner.join(", "))
            }
        }
    }
}

impl Nested {
    fn new(parameters: impl Into<Box<[Type]>>) -> Arc<Self> {
        let parameters = parameters.into();
        let weight = parameters
            .iter()
            .fold(1_u32, |sum, one| sum.saturating_add(one.weight()));
        Arc::new(Self { parameters, weight })
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Library(one), Self::Library(two)) => one == two,
            (Self::Object(one), Self::Object(two)) => one.name() == two.name(),
            (Self::Parameter(one), Self::Parameter(two)) => one == two,
            (Self::Variable(one), Self::Variable(two)) => one == two,
            _ => self.same_kind(other) && self.parameters() == other.parameters(),
        }
    }
}

impl Eq for Type {}

/// As the checker's messages show types.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => return f.write_str("null"),
            Self::Duration => return f.write_str("duration"),
            Self::Timestamp => return f.write_str("timestamp"),
            Self::Error => return f.write_str("!error!"),
            Self::Parameter(index) => return write!(f, "{}", char::from(b'A' + index % 26)),
            Self::Variable(index) => return write!(f, "_var{index}"),
            _ => f.write_str(self.name())?,
        }
        let parameters = self.parameters();
        for (index, parameter) in parameters.iter().enumerate() {
            write!(f, "{}{parameter}", if index == 0 { "(" } else { ", " })?;
        }
        f.write_str(if parameters.is_empty() { "" } else { ")" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown() {
        let map = Type::map(Type::String, Type::list(Type::Timestamp));
        for (one, checked, declared) in [
            (Type::Null, "null", "null_type"),
            (
                map.clone(),
                "map(string, list(timestamp))",
                "map(string, list(google.protobuf.Timestamp))",
            ),
            (
                Type::optional(Type::Dyn),
                "optional_type(dyn)",
                "optional_type(dyn)",
            ),
            (Type::type_of(Type::Int), "type(int)", "type(int)"),
            (Type::Library(LibraryType::Ip), "net.IP", "net.IP"),
        ] {
            assert_eq!(one.to_string(), checked);
            assert_eq!(one.declared(), declared);
        }
        assert_eq!(map.weight(), 4);
        assert_ne!(map, Type::map(Type::String, Type::Dyn));
    }
}
