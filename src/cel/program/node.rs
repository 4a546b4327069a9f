//! The tree that is evaluated: names resolved to places, constants made, costs looked up.

use std::collections::BTreeSet;

use crate::cel::{
    cost::CallCost,
    functions::{Call, Overload},
    types::Type,
    value::{Key, Value},
};

#[derive(Debug)]
pub(super) enum Node {
    /// Costs nothing.
    Constant(Value<'static>),
    Attribute(Box<Attribute>),
    And(Box<[Node]>),
    Or(Box<[Node]>),
    Conditional(Box<[Node; 3]>),
    Equal(Box<[Node; 2]>),
    NotEqual(Box<[Node; 2]>),
    /// Whether a value is one of constants.
    InConstants(Box<InConstants>),
    NotStrictlyFalse(Box<Node>),
    /// `a.or(b)` and `a.orValue(b)`: the second is evaluated only if needed.
    OptionalOr {
        parts: Box<[Node; 2]>,
        value: bool,
    },
    Call(Box<CallNode>),
    List(Box<ListNode>),
    Map(Box<[MapEntry]>),
    Object(Box<ObjectNode>),
    Fold(Box<FoldNode>),
    /// A value with a name.
    Bind(Box<BindNode>),
    /// Adds an element to a loop's accumulator, in place.
    Append {
        slot: usize,
        element: Box<Node>,
    },
    /// Adds an entry, or all of a map, to a loop's accumulator, in place.
    Insert {
        slot: usize,
        parts: Box<[Node]>,
        cost: CallCost,
    },
}

/// A value and what is selected from it: `root.a[b].?c`.
#[derive(Debug)]
pub(super) struct Attribute {
    pub root: Root,
    pub qualifiers: Vec<Qualifier>,
    /// Whether naming the root costs; each qualifier does in any case.
    pub charged: bool,
    /// `has(..)`: whether the last qualifier finds something.
    pub test: bool,
}

#[derive(Debug)]
pub(super) enum Root {
    Variable(usize),
    Local(usize),
    Node(Node),
}

#[derive(Debug)]
pub(super) struct Qualifier {
    pub by: By,
    pub optional: bool,
}

#[derive(Debug)]
pub(super) enum By {
    Field(Box<str>),
    Constant(Value<'static>),
    Computed(Node),
}

#[derive(Debug)]
pub(super) struct InConstants {
    pub value: Node,
    pub keys: BTreeSet<Key<'static>>,
    /// Doubles that are no whole numbers.
    pub doubles: Vec<f64>,
}

pub(super) struct CallNode {
    pub function: &'static str,
    pub dispatch: Dispatch,
    pub args: Box<[Node]>,
    pub cost: CallCost,
}

/// Which implementation a call goes to.
pub(super) enum Dispatch {
    One(Call),
    /// The first overload that takes the values.
    First(Box<[&'static Overload]>),
}

#[derive(Debug)]
pub(super) struct ListNode {
    pub elements: Box<[Node]>,
    pub optional: Box<[bool]>,
}

#[derive(Debug)]
pub(super) struct MapEntry {
    pub key: Node,
    pub value: Node,
    pub optional: bool,
}

#[derive(Debug)]
pub(super) struct ObjectNode {
    pub ty: Type,
    pub fields: Box<[(String, Node, bool)]>,
}

#[derive(Debug)]
pub(super) struct FoldNode {
    pub range: Node,
    /// Slots of the accumulator, and of the variables behind it.
    pub accumulator: usize,
    pub two_variables: bool,
    pub init: Node,
    /// `None` where the loop always goes on.
    pub condition: Option<Node>,
    pub step: Node,
    pub result: Node,
}

#[derive(Debug)]
pub(super) struct BindNode {
    pub slot: usize,
    pub value: Node,
    pub result: Node,
}

impl std::fmt::Debug for CallNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.function, self.args)
    }
}
