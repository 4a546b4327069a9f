//! The tree of an expression, after macros are expanded.

use std::sync::Arc;

/// Number of a node: index into the tables of positions, types and references.
pub(crate) type Id = u32;

#[derive(Clone, Debug)]
pub(crate) struct Expr {
    pub id: Id,
    /// Levels of nodes below this one, itself included; bounded by the builder.
    pub depth: u16,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Literal(Literal),
    Ident(String),
    Select(Box<Select>),
    Call(Call),
    List(List),
    Map(Vec<Entry>),
    Struct(Struct),
    Comprehension(Box<Comprehension>),
    /// Stands where something could not be parsed; an issue was reported.
    Invalid,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub(crate) struct Select {
    pub operand: Expr,
    pub field: String,
    /// `has(operand.field)`: only whether it is there.
    pub test: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub function: String,
    pub target: Option<Box<Expr>>,
    pub args: Vec<Expr>,
}

#[derive(Clone, Debug)]
pub(crate) struct List {
    pub elements: Vec<Expr>,
    /// Whether each element was written `?element`; empty when none was.
    pub optional: Vec<bool>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Struct {
    pub name: String,
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// Has a position of its own: faults of a field are shown at its colon.
    pub id: Id,
    pub name: String,
    pub value: Expr,
    pub optional: bool,
}

/// What every macro over a list or map becomes: a loop with an accumulator.
#[derive(Clone, Debug)]
pub(crate) struct Comprehension {
    pub range: Expr,
    pub variable: String,
    /// Second variable: value beside key or index.
    pub variable2: Option<String>,
    pub accumulator: String,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

impl List {
    pub fn is_optional(&self, index: usize) -> bool {
        self.optional.get(index).copied().unwrap_or(false)
    }
}

impl Comprehension {
    /// A loop over nothing, which only gives a value a name (`optMap`, `sortBy`).
    pub fn is_binding(&self) -> bool {
        matches!(&self.range.kind, Kind::List(list) if list.elements.is_empty())
            && matches!(self.condition.kind, Kind::Literal(Literal::Bool(false)))
            && self.accumulator != ACCUMULATOR
    }
}

/// Name of the accumulator of macros; no source text can spell it.
pub(crate) const ACCUMULATOR: &str = "@result";
/// Its name in older versions of the language, which a loop variable must not take either.
pub(crate) const FORMER_ACCUMULATOR: &str = "__result__";
/// Variable of a loop that only binds a name.
pub(crate) const UNUSED: &str = "#unused";

/// A parsed expression with the positions of its nodes.
#[derive(Clone, Debug)]
pub(crate) struct Ast {
    pub root: Expr,
    /// Byte offset of each node, by its id.
    pub offsets: Vec<u32>,
}

impl Ast {
    pub fn offset(&self, id: Id) -> u32 {
        self.offsets.get(id as usize).copied().unwrap_or(0)
    }
}

/// Names of operators as functions.
pub(crate) mod operator {
    pub const CONDITIONAL: &str = "_?_:_";
    pub const AND: &str = "_&&_";
    pub const OR: &str = "_||_";
    pub const NOT: &str = "!_";
    pub const NEGATE: &str = "-_";
    pub const EQUALS: &str = "_==_";
    pub const NOT_EQUALS: &str = "_!=_";
    pub const LESS: &str = "_<_";
    pub const LESS_EQUALS: &str = "_<=_";
    pub const GREATER: &str = "_>_";
    pub const GREATER_EQUALS: &str = "_>=_";
    pub const ADD: &str = "_+_";
    pub const SUBTRACT: &str = "_-_";
    pub const MULTIPLY: &str = "_*_";
    pub const DIVIDE: &str = "_/_";
    pub const MODULO: &str = "_%_";
    pub const IN: &str = "@in";
    pub const INDEX: &str = "_[_]";
    pub const OPTIONAL_INDEX: &str = "_[?_]";
    pub const OPTIONAL_SELECT: &str = "_?._";
    pub const NOT_STRICTLY_FALSE: &str = "@not_strictly_false";
}

/// Functions that only macros call.
pub(crate) mod hidden {
    pub const MAP_INSERT: &str = "cel.@mapInsert";
    pub const SORT_BY_KEYS: &str = "@sortByAssociatedKeys";
}
