//! Walking an object along its schema: which fields it has, what differs, merging, removing.
//! Pure. Always true: parts are looked up by their step, so that the work grows with the size of
//! the objects and not with its square.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::LazyLock,
};

use proto::{Field, ListType, Shape, Type};
use serde_json::{Map, Value, json};

use super::set::Set;
use crate::apiserver::registry::custom::schema::Tree;

/// What is known of a place in an object.
#[derive(Clone, Copy)]
pub enum Node<'a> {
    Type(&'static Type),
    Field(&'static Field),
    Element(&'static Shape),
    /// A custom resource's schema.
    Schema(&'a Tree),
    /// The root of a custom resource: its metadata is everyone's.
    Root(&'a Tree),
    Unknown,
}

/// Members that every object with a kind has.
fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

/// How a place is owned.
enum Kind<'a> {
    /// As one.
    Whole,
    /// By member.
    Members(Node<'a>),
    /// By item, told apart by these keys.
    Items(Vec<String>, Node<'a>),
    /// By value.
    Values,
}

impl<'a> Node<'a> {
    fn kind(self) -> Kind<'a> {
        match self {
            Self::Type(ty) if ty.atomic => Kind::Whole,
            Self::Type(_) | Self::Root(_) | Self::Unknown => Kind::Members(self),
            Self::Field(field) => of_shape(&field.shape, field.list, field.list_keys),
            Self::Element(shape) => of_shape(shape, ListType::Unset, &[]),
            Self::Schema(schema) => of_schema(schema),
        }
    }

    /// The node of a member.
    fn member(self, name: &str) -> Self {
        match self {
            Self::Type(ty) => ty.field(name).map_or(Self::Unknown, Self::Field),
            Self::Element(shape) => match shape.message() {
                Some(ty) => Self::Type(ty).member(name),
                None => Self::Element(shape),
            },
            Self::Root(_) if name == "metadata" => {
                let meta = proto::schema().get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
                meta.map_or(Self::Unknown, Self::Type)
            }
            Self::Root(schema) | Self::Schema(schema) => {
                let own = &schema["properties"][name];
                let other = &schema["additionalProperties"];
                match (own.is_object(), other.is_object()) {
                    (true, _) => Self::Schema(own),
                    (false, true) => Self::Schema(other),
                    _ => Self::Unknown,
                }
            }
            Self::Field(_) | Self::Unknown => Self::Unknown,
        }
    }

    /// Whether a member of this name is declared, rather than one of a map.
    fn declares(self, name: &str) -> bool {
        match self {
            Self::Type(ty) => ty.field(name).is_some(),
            Self::Element(shape) => shape.message().is_some_and(|ty| ty.field(name).is_some()),
            Self::Root(_) if is_meta(name) => true,
            Self::Root(schema) | Self::Schema(schema) => schema["properties"].get(name).is_some(),
            Self::Field(_) | Self::Unknown => false,
        }
    }

    /// Whether Go writes the member whatever it is: structs that are no pointers, and objects and
    /// lists that are not left out when empty.
    fn is_always_there(self, name: &str) -> bool {
        let field = match self {
            Self::Type(ty) => ty.field(name),
            Self::Element(shape) => shape.message().and_then(|ty| ty.field(name)),
            // Metadata counts as there, always.
            Self::Root(_) => return name == "metadata",
            _ => None,
        };
        field.is_some_and(|field| match field.shape {
            Shape::Message(_) => {
                !field.pointer && field.shape.message().is_some_and(|ty| !ty.atomic)
            }
            Shape::List(_) | Shape::Map(_) => !field.omit_empty,
            _ => false,
        })
    }

    /// What a key is when an item leaves it out.
    fn default_of(self, key: &str) -> Value {
        match self {
            Self::Element(shape) => shape
                .message()
                .and_then(|ty| ty.field(key))
                .and_then(|field| serde_json::from_str(field.default).ok())
                .unwrap_or(Value::Null),
            Self::Schema(schema) => schema["properties"][key]["default"].to_value(),
            _ => Value::Null,
        }
    }
}

/// A map's member has the node of the map's element, whatever its name.
fn of_shape(shape: &'static Shape, list: ListType, keys: &'static [&'static str]) -> Kind<'static> {
    match shape {
        _ if list == ListType::Atomic => Kind::Whole,
        Shape::Message(_) => match shape.message() {
            Some(ty) if !ty.atomic => Kind::Members(Node::Type(ty)),
            _ => Kind::Whole,
        },
        Shape::Map(element) => Kind::Members(match element.message() {
            // Members by name must not be taken for the type's fields.
            Some(_) => Node::Unknown,
            None => Node::Element(element),
        }),
        Shape::List(element) => match list {
            ListType::Map => Kind::Items(
                keys.iter().map(|key| (*key).to_owned()).collect(),
                Node::Element(element),
            ),
            ListType::Set => Kind::Values,
            _ => Kind::Whole,
        },
        _ => Kind::Whole,
    }
}

fn of_schema(schema: &Tree) -> Kind<'_> {
    if schema["x-kubernetes-map-type"] == "atomic" {
        return Kind::Whole;
    }
    match (
        schema["type"].as_str().unwrap_or_default(),
        schema["x-kubernetes-list-type"]
            .as_str()
            .unwrap_or_default(),
    ) {
        ("object", _) => Kind::Members(Node::Schema(schema)),
        ("array", "map") => {
            let keys = schema.texts("x-kubernetes-list-map-keys");
            Kind::Items(
                keys.map(str::to_owned).collect(),
                Node::Schema(&schema["items"]),
            )
        }
        ("array", "set") => Kind::Values,
        _ => Kind::Whole,
    }
}

pub fn step_of_item(keys: &[String], node: Node<'_>, item: &Value) -> String {
    let key: Map<String, Value> = keys
        .iter()
        .filter_map(|key| {
            let value = match item.get(key) {
                Some(value) => value.clone(),
                None => node.default_of(key),
            };
            (!value.is_null()).then(|| (key.clone(), value))
        })
        .collect();
    format!("k:{}", Value::Object(key))
}

pub fn step_of_value(value: &Value) -> String {
    format!("v:{value}")
}

fn step_of_member(name: &str) -> String {
    format!("f:{name}")
}

/// A value seen as steps to its parts, where it has the shape its schema says.
enum Parts<'a, 'v> {
    Whole,
    Members(Node<'a>, &'v Map<String, Value>),
    Items(Vec<String>, Node<'a>, &'v Vec<Value>),
    Values(&'v Vec<Value>),
}

fn parts<'a, 'v>(node: Node<'a>, value: &'v Value) -> Parts<'a, 'v> {
    match (node.kind(), value) {
        (Kind::Members(inner), Value::Object(map)) => Parts::Members(inner, map),
        (Kind::Items(keys, inner), Value::Array(list)) => Parts::Items(keys, inner, list),
        (Kind::Values, Value::Array(list)) => Parts::Values(list),
        _ => Parts::Whole,
    }
}

/// The fields that `value` sets, as one who applies it owns them.
pub fn fields(node: Node<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    match parts(node, value) {
        Parts::Whole => set.here = true,
        Parts::Members(inner, map) => {
            for (name, member) in map {
                let mut of_member = fields(inner.member(name), member);
                let empty = member.as_object().is_some_and(Map::is_empty);
                of_member.here |= empty || !inner.declares(name);
                set.put(step_of_member(name), of_member);
            }
        }
        Parts::Items(keys, inner, list) => {
            set.here = list.is_empty();
            for item in list {
                let mut of_item = fields(inner, item);
                of_item.here = true;
                set.put(step_of_item(&keys, inner, item), of_item);
            }
        }
        Parts::Values(list) => {
            set.here = list.is_empty();
            for item in list {
                set.put(step_of_value(item), Set::leaf());
            }
        }
    }
    set
}

/// All fields of a value that came or went as a whole: every object and list on the way too.
fn everything(node: Node<'_>, value: &Value) -> Set {
    let mut set = Set::leaf();
    match parts(node, value) {
        Parts::Whole => {}
        Parts::Members(inner, map) => {
            for (name, member) in map {
                set.put(step_of_member(name), everything(inner.member(name), member));
            }
        }
        Parts::Items(keys, inner, list) => {
            for item in list {
                set.put(step_of_item(&keys, inner, item), everything(inner, item));
            }
        }
        Parts::Values(list) => {
            for item in list {
                set.put(step_of_value(item), Set::leaf());
            }
        }
    }
    set
}

/// Fields that are new or have another value, and fields that are gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub changed: Set,
    pub removed: Set,
}

impl Difference {
    fn put(&mut self, step: String, inner: Self) {
        if !inner.removed.is_empty() {
            self.removed.put(step.clone(), inner.removed);
        }
        self.changed.put(step, inner.changed);
    }
}

/// What `new` is besides `old`. What names an object and what the server alone writes counts for
/// nothing.
pub fn compare(node: Node<'_>, old: &Value, new: &Value) -> Difference {
    let (old, new) = (members(old), members(new));
    let mut found = Difference::default();
    for name in names(old, new) {
        match name {
            "apiVersion" | "kind" => {}
            "metadata" => {
                let none = Value::Null;
                let old = members(old.get(name).unwrap_or(&none));
                let new = members(new.get(name).unwrap_or(&none));
                let mut inner = Difference::default();
                for name in names(old, new).filter(|name| !UNOWNED.contains(name)) {
                    compare_member(node.member("metadata"), name, (old, new), &mut inner);
                }
                found.put(step_of_member(name), inner);
            }
            name => compare_member(node, name, (old, new), &mut found),
        }
    }
    found
}

/// Members of metadata that nobody owns.
pub const UNOWNED: [&str; 10] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

fn members(value: &Value) -> &Map<String, Value> {
    static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    value.as_object().unwrap_or(&NONE)
}

/// The names in either, each once.
fn names<'a>(
    old: &'a Map<String, Value>,
    new: &'a Map<String, Value>,
) -> impl Iterator<Item = &'a str> {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    new.keys().chain(gone).map(String::as_str)
}

fn compare_member(
    node: Node<'_>,
    name: &str,
    (old, new): (&Map<String, Value>, &Map<String, Value>),
    found: &mut Difference,
) {
    let (old, new) = (old.get(name), new.get(name));
    if old == new {
        return;
    }
    // What Go writes whether it is empty or not is never new as such.
    let absent = node.is_always_there(name).then_some(&Value::Null);
    let inner = difference(node.member(name), old.or(absent), new.or(absent));
    found.put(step_of_member(name), inner);
}

fn difference(node: Node<'_>, old: Option<&Value>, new: Option<&Value>) -> Difference {
    let mut found = Difference::default();
    match (old, new) {
        (Some(old), Some(new)) if old == new => {}
        (Some(old), Some(new)) => compare_both(node, old, new, &mut found),
        (None, Some(new)) => found.changed = everything(node, new),
        (Some(old), None) => found.removed = everything(node, old),
        (None, None) => {}
    }
    found
}

fn compare_both(node: Node<'_>, old: &Value, new: &Value, found: &mut Difference) {
    let some = if new.is_null() { old } else { new };
    let same_shape = |value: &Value| {
        value.is_null() || std::mem::discriminant(value) == std::mem::discriminant(some)
    };
    let parts = parts(node, some);
    match parts {
        Parts::Members(inner, _) if same_shape(old) && same_shape(new) => {
            let both = (members(old), members(new));
            for name in names(both.0, both.1) {
                compare_member(inner, name, both, found);
            }
        }
        Parts::Items(keys, inner, _) if same_shape(old) && same_shape(new) => {
            let step = |item: &Value| step_of_item(&keys, inner, item);
            compare_items(inner, &step, (old, new), found);
        }
        Parts::Values(_) if same_shape(old) && same_shape(new) => {
            compare_items(Node::Unknown, &step_of_value, (old, new), found);
        }
        _ if new.is_null() => found.removed.here = true,
        _ => found.changed = fields(node, new),
    }
}

/// Of items with the same step the first counts.
fn compare_items(
    inner: Node<'_>,
    step: &dyn Fn(&Value) -> String,
    (old, new): (&Value, &Value),
    found: &mut Difference,
) {
    let list = |value| -> &[Value] { Value::as_array(value).map_or(&[], Vec::as_slice) };
    let (old, new) = (list(old), list(new));
    let mut held_by: HashMap<String, &Value> = HashMap::with_capacity(old.len());
    for item in old {
        held_by.entry(step(item)).or_insert(item);
    }
    let mut kept: HashSet<String> = HashSet::with_capacity(new.len());
    for item in new {
        let step = step(item);
        if kept.insert(step.clone()) {
            let held = held_by.get(&step).copied();
            found.put(step, difference(inner, held, Some(item)));
        }
    }
    for (step, item) in held_by {
        if !kept.contains(&step) {
            found.put(step, difference(inner, Some(item), None));
        }
    }
}

/// What is applied over what is there. Items keep their order; new ones follow.
pub fn merge(node: Node<'_>, live: &Value, applied: &Value) -> Value {
    match (parts(node, live), parts(node, applied)) {
        (Parts::Members(inner, live), Parts::Members(_, applied)) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                let member = inner.member(name);
                let value = match live.get(name) {
                    Some(held) => merge(member, held, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Parts::Items(keys, inner, live), Parts::Items(_, _, applied)) => {
            let step = |item: &Value| step_of_item(&keys, inner, item);
            let mut merged = live.clone();
            let mut places = HashMap::with_capacity(merged.len());
            for (at, held) in merged.iter().enumerate() {
                places.entry(step(held)).or_insert(at);
            }
            for item in applied {
                let end = merged.len();
                let place = *places.entry(step(item)).or_insert(end);
                match merged.get_mut(place) {
                    Some(held) => *held = merge(inner, held, item),
                    None => merged.push(item.clone()),
                }
            }
            Value::Array(merged)
        }
        (Parts::Values(live), Parts::Values(applied)) => {
            let mut merged = live.clone();
            let mut known: HashSet<String> = merged.iter().map(step_of_value).collect();
            for item in applied {
                if known.insert(step_of_value(item)) {
                    merged.push(item.clone());
                }
            }
            Value::Array(merged)
        }
        _ => applied.clone(),
    }
}

/// Takes `gone` out of a value. What `kept` has stays, with all that leads to it.
pub fn remove(node: Node<'_>, value: &mut Value, gone: &Set, kept: &Set) {
    let drop_steps: BTreeSet<&str> = gone
        .inner
        .iter()
        .filter(|(step, inner)| inner.here && !kept.inner.contains_key(step))
        .map(|(step, _)| step)
        .collect();
    let none = Set::default();
    let inside = |step: &str| {
        let gone = gone.inner.get(step)?;
        Some((gone, kept.inner.get(step).unwrap_or(&none)))
    };
    match (node.kind(), value) {
        (Kind::Members(inner), Value::Object(map)) => {
            map.retain(|name, _| !drop_steps.contains(&*step_of_member(name)));
            for (name, member) in map.iter_mut() {
                if let Some((gone, kept)) = inside(&step_of_member(name)) {
                    remove(inner.member(name), member, gone, kept);
                }
            }
            // An object that was only a way to what is gone goes with it.
            map.retain(|name, member| {
                let step = step_of_member(name);
                !(gone.inner.contains_key(&step)
                    && !kept.inner.contains_key(&step)
                    && (*member == json!({}) || *member == json!([])))
            });
        }
        (Kind::Items(keys, inner), Value::Array(list)) => {
            list.retain(|item| !drop_steps.contains(&*step_of_item(&keys, inner, item)));
            for item in list.iter_mut() {
                if let Some((gone, kept)) = inside(&step_of_item(&keys, inner, item)) {
                    remove(inner, item, gone, kept);
                }
            }
        }
        (Kind::Values, Value::Array(list)) => {
            list.retain(|item| !drop_steps.contains(&*step_of_value(item)));
        }
        _ => {}
    }
}

/// Paths of what an applied configuration sets as one, in a list, map or object that is owned as one:
/// members that are left out would be lost.
pub fn atomics(node: Node<'_>, value: &Value, path: &str, found: &mut Vec<String>) {
    match parts(node, value) {
        Parts::Whole if value.is_object() || value.is_array() => {
            found.push(path.to_owned());
        }
        Parts::Whole | Parts::Values(_) => {}
        Parts::Members(inner, map) => {
            for (name, member) in map {
                atomics(inner.member(name), member, &format!("{path}.{name}"), found);
            }
        }
        Parts::Items(_, inner, list) => {
            for (index, item) in list.iter().enumerate() {
                atomics(inner, item, &format!("{path}[{index}]"), found);
            }
        }
    }
}
