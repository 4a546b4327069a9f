//! Walking an object along its schema: which fields it has, what differs, merging, removing.
//! Pure. Always true: parts are looked up by their step, so that the work grows with the size of
//! the objects and not with its square.

use std::collections::{BTreeSet, HashMap, HashSet};

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

fn step_of_item(keys: &[String], node: Node<'_>, item: &Value) -> String {
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

fn step_of_value(value: &Value) -> String {
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

/// The fields that `value` sets.
pub fn fields(node: Node<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    match parts(node, value) {
        Parts::Whole => set.here = true,
        Parts::Members(inner, map) => {
            set.here = map.is_empty();
            for (name, member) in map {
                set.put(step_of_member(name), fields(inner.member(name), member));
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

/// Fields that are new or have another value in `new`, and fields that only `old` has.
pub fn compare(node: Node<'_>, old: &Value, new: &Value) -> (Set, Set) {
    if old == new {
        return (Set::default(), Set::default());
    }
    let (mut changed, mut removed) = (Set::default(), Set::default());
    let (before, after) = (steps(node, old), steps(node, new));
    let (Some(before), Some(after)) = (before, after) else {
        return (fields(node, new), Set::default());
    };
    // Of a step that stands twice the first counts.
    let mut held_by = HashMap::with_capacity(before.len());
    for (step, _, value) in &before {
        held_by.entry(step.as_str()).or_insert(*value);
    }
    let kept: HashSet<&str> = after.iter().map(|(step, ..)| step.as_str()).collect();
    for (step, inner, value) in &after {
        match held_by.get(step.as_str()) {
            Some(held) => {
                let (more, less) = compare(*inner, held, value);
                changed.put(step.clone(), more);
                removed.put(step.clone(), less);
            }
            None => {
                let mut added = fields(*inner, value);
                added.here |= step.starts_with("k:");
                changed.put(step.clone(), added);
            }
        }
    }
    for (step, inner, value) in &before {
        if !kept.contains(step.as_str()) {
            let mut gone = fields(*inner, value);
            gone.here = true;
            removed.put(step.clone(), gone);
        }
    }
    (changed, removed)
}

/// The parts of a value with the steps to them; `None` if it is owned as one.
fn steps<'a, 'v>(node: Node<'a>, value: &'v Value) -> Option<Vec<(String, Node<'a>, &'v Value)>> {
    Some(match parts(node, value) {
        Parts::Whole => return None,
        Parts::Members(inner, map) => map
            .iter()
            .map(|(name, value)| (step_of_member(name), inner.member(name), value))
            .collect(),
        Parts::Items(keys, inner, list) => list
            .iter()
            .map(|item| (step_of_item(&keys, inner, item), inner, item))
            .collect(),
        Parts::Values(list) => list
            .iter()
            .map(|item| (step_of_value(item), Node::Unknown, item))
            .collect(),
    })
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
    let drop_steps: BTreeSet<String> = gone
        .inner
        .iter()
        .filter(|(step, inner)| inner.here && !kept.inner.contains_key(*step))
        .map(|(step, _)| step.clone())
        .collect();
    let none = Set::default();
    let inside = |step: &str| {
        let gone = gone.inner.get(step)?;
        Some((gone, kept.inner.get(step).unwrap_or(&none)))
    };
    match (node.kind(), value) {
        (Kind::Members(inner), Value::Object(map)) => {
            map.retain(|name, _| !drop_steps.contains(&step_of_member(name)));
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
            list.retain(|item| !drop_steps.contains(&step_of_item(&keys, inner, item)));
            for item in list.iter_mut() {
                if let Some((gone, kept)) = inside(&step_of_item(&keys, inner, item)) {
                    remove(inner, item, gone, kept);
                }
            }
        }
        (Kind::Values, Value::Array(list)) => {
            list.retain(|item| !drop_steps.contains(&step_of_value(item)));
        }
        _ => {}
    }
}
