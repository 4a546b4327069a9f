//! The Kubernetes schema table and its codecs.
//!
//! One table of types drives protobuf<->JSON, pruning, strict validation and strategic merge.
//! Does no I/O; knows no other crate of ours.
//! Always true: the table is static, so a program that uses it parses nothing at start.
//!
//! Start at [`schema`]; `wire.rs`, `decode.rs` and `encode.rs` are protobuf, `prune.rs` takes
//! unknown fields away, `strategic.rs` merges, `weigh.rs` says what a document costs in memory, `quantity.rs` is the arithmetic of `500m` and `2Gi`.

pub mod calendar;
mod check;
mod crd_schema;
mod decode;
mod encode;
mod envelope;
mod fill;
mod kinds;
mod normalize;
mod parse;
mod prune;
pub mod quantity;
mod strategic;
mod weigh;
mod wire;
pub use wire::put_bytes;

#[cfg(test)]
mod roundtrip_tests;

pub use check::type_errors;
pub use decode::decode;
pub use encode::encode;
pub use envelope::{Envelope, MAGIC, unwrap_envelope, watch_frame, wrap_envelope};
pub use fill::fill_zeroes;
pub use normalize::normalize;
pub use parse::parse_json;
pub use prune::prune;
pub use strategic::strategic_merge;
pub use weigh::{MAX_WEIGHT, count_items, json_size, json_weight, weight};

/// One declared type.
#[derive(Debug)]
pub struct Type {
    /// The OpenAPI name, `io.k8s.api.core.v1.Container`.
    pub name: &'static str,
    /// What a named list or map stands for.
    pub alias: Option<Shape>,
    /// The values that a closed enumeration may take; empty: any.
    pub values: &'static [&'static str],
    /// Owned as one unit in server-side apply.
    pub atomic: bool,
    pub fields: &'static [Field],
}

/// One member of a type. Inlined members are already spread, except where they are a message of
/// their own on the wire ([`Field::inline`]).
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    /// Protobuf field number; 0: not on the wire.
    pub number: u32,
    pub shape: Shape,
    pub pointer: bool,
    /// A message on the wire whose members stand in this object itself in JSON.
    pub inline: bool,
    pub omit_empty: bool,
    pub optional: bool,
    pub required: bool,
    pub list: ListType,
    pub list_keys: &'static [&'static str],
    /// Strategic merge: merge lists by key instead of replacing them.
    pub merge: bool,
    pub retain_keys: bool,
    pub merge_key: &'static str,
    /// The declared default as JSON text; empty: none.
    pub default: &'static str,
}

impl Field {
    const NONE: Self = Self {
        name: "",
        number: 0,
        shape: Shape::Any,
        pointer: false,
        inline: false,
        omit_empty: false,
        optional: false,
        required: false,
        list: ListType::Unset,
        list_keys: &[],
        merge: false,
        retain_keys: false,
        merge_key: "",
        default: "",
    };
}

/// How server-side apply sees a list or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Unset,
    Atomic,
    Set,
    Map,
}

/// What a value looks like in JSON and on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    String,
    /// A string of an enumeration, by index of its type.
    Enum(usize),
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON.
    Bytes,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// An object of any kind.
    Raw,
    FieldsV1,
    /// Any JSON; bytes of JSON on the wire.
    Any,
    /// A schema of a custom resource, or a list of them.
    SchemaOrArray,
    /// A schema of a custom resource, or true or false.
    SchemaOrBool,
    /// A schema of a custom resource, or a list of strings.
    SchemaOrStrings,
    List(&'static Shape),
    /// A list with a name is a message around the list on the wire.
    NamedList(&'static Shape),
    /// String keys.
    Map(&'static Shape),
    /// By index of its type.
    Message(usize),
}

impl Shape {
    /// The type of a message shape.
    pub fn message(&self) -> Option<&'static Type> {
        match self {
            Self::Message(index) => TYPES.get(*index),
            _ => None,
        }
    }

    /// Whether its bytes hold messages of the table.
    fn is_message_on_the_wire(&self) -> bool {
        matches!(
            self,
            Self::Message(_)
                | Self::NamedList(_)
                | Self::SchemaOrArray
                | Self::SchemaOrBool
                | Self::SchemaOrStrings
        )
    }

    /// The values of an enumeration; empty for other shapes.
    pub fn values(&self) -> &'static [&'static str] {
        match self {
            Self::Enum(index) => TYPES.get(*index).map_or(&[], |ty| ty.values),
            _ => &[],
        }
    }
}

impl Type {
    /// The member called `name` in JSON, also of an inlined message.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        for field in self.fields {
            if field.inline {
                if let Some(found) = field.shape.message().and_then(|inner| inner.field(name)) {
                    return Some(found);
                }
            } else if field.name == name {
                return Some(field);
            }
        }
        None
    }

    /// Every member as JSON has them: inlined messages are spread.
    pub fn members(&self) -> Vec<&'static Field> {
        let mut members = Vec::new();
        for field in self.fields {
            match field.shape.message() {
                Some(inner) if field.inline => members.extend(inner.members()),
                _ => members.push(field),
            }
        }
        members
    }

    /// `v1.Container`, as Go's error messages call it.
    pub fn go_name(&self) -> &'static str {
        let second = self.name.rmatch_indices('.').nth(1);
        second.map_or(self.name, |(at, _)| &self.name[at + 1..])
    }

    /// The last part of the name: `Container`.
    pub fn short_name(&self) -> &'static str {
        self.name
            .rsplit_once('.')
            .map_or(self.name, |(_, short)| short)
    }
}

/// The table of all types.
#[derive(Debug)]
pub struct Schema;

impl Schema {
    pub fn get(&self, type_name: &str) -> Option<&'static Type> {
        TYPES
            .binary_search_by(|ty| ty.name.cmp(type_name))
            .ok()
            .and_then(|index| TYPES.get(index))
    }

    pub fn types(&self) -> &'static [Type] {
        TYPES
    }
}

pub fn schema() -> &'static Schema {
    &Schema
}

/// Why bytes or a document could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("protobuf: {0}")]
    Wire(&'static str),
    #[error("protobuf: field {field}: {reason}")]
    Field { field: String, reason: &'static str },
    #[error("{reason}")]
    Patch { fault: PatchFault, reason: String },
    #[error("{0}")]
    Json(String),
    /// Small on the wire, but not in memory.
    #[error("it would take more than {MAX_WEIGHT} bytes of memory")]
    TooHeavy,
}

/// Whose fault a refused strategic merge patch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchFault {
    /// The patch itself is malformed (400).
    Format,
    /// It is well-formed but cannot be merged into this object (422).
    Content,
}

include!(concat!(env!("OUT_DIR"), "/types.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_knows_what_clients_use() {
        let pod_spec = schema().get("io.k8s.api.core.v1.PodSpec").unwrap();
        let containers = pod_spec.field("containers").unwrap();
        assert_eq!(
            (containers.number, containers.merge, containers.merge_key),
            (2, true, "name")
        );
        assert_eq!(containers.list_keys, ["name"]);
        let volume = schema().get("io.k8s.api.core.v1.Volume").unwrap();
        assert!(
            volume.field("emptyDir").is_some(),
            "an inlined message's member"
        );
        assert!(
            schema()
                .get("io.k8s.api.core.v1.Pod")
                .unwrap()
                .field("kind")
                .is_some()
        );
        assert!(
            schema()
                .types()
                .windows(2)
                .all(|pair| pair[0].name < pair[1].name)
        );
    }
}
