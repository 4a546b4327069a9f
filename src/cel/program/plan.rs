//! Checked trees to trees that are evaluated.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    meter::{Budget, Meter, Patterns},
    node::{
        Attribute, BindNode, By, CallNode, Dispatch, FoldNode, InConstants, ListNode, MapEntry,
        Node, ObjectNode, Qualifier, Root,
    },
};
use crate::cel::{
    ast::{
        Call, Comprehension, Entry, Expr, Id, Kind, List, Literal, Select, Struct, hidden, operator,
    },
    check::{CallReference, Checked, Reference},
    cost::CallCost,
    environment::Environment,
    functions::Call as CelCall,
    library::{conversion, pattern},
    types::Type,
    value::{Blob, EvalError, Key, List as CelList, Map, Text, Value},
};

pub(super) struct Planned {
    pub root: Node,
    pub patterns: Patterns,
    pub slots: usize,
    pub uses: Vec<bool>,
}

/// Makes the tree that is evaluated. Fails where a constant part of the expression does.
pub(super) fn plan(environment: &Environment, checked: &Checked) -> Result<Planned, EvalError> {
    let mut planner = Planner {
        checked,
        locals: Vec::new(),
        slots: 0,
        patterns: Patterns::new(),
        pattern_states: 0,
        uses: vec![false; environment.variable_count()],
    };
    let root = planner.node(&checked.ast.root)?;
    Ok(Planned {
        root,
        patterns: planner.patterns,
        slots: planner.slots,
        uses: planner.uses,
    })
}

struct Planner<'c> {
    checked: &'c Checked,
    /// Names of loops' variables by slot.
    locals: Vec<&'c str>,
    slots: usize,
    patterns: Patterns,
    /// How large they are together.
    pattern_states: u64,
    uses: Vec<bool>,
}

type PlannedNode = Result<Node, EvalError>;

impl<'c> Planner<'c> {
    fn node(&mut self, expr: &'c Expr) -> PlannedNode {
        match &expr.kind {
            Kind::Literal(literal) => Ok(Node::Constant(constant(literal))),
            Kind::Ident(name) => self.ident(expr.id, name),
            Kind::Select(select) => self.select(expr.id, select),
            Kind::Call(call) => self.call(expr.id, call),
            Kind::List(list) => self.list(list),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct(one) => self.structure(expr.id, one),
            Kind::Comprehension(one) if one.is_binding() => self.binding(one),
            Kind::Comprehension(one) => self.comprehension(one),
            Kind::Invalid => Err(EvalError::no_such_overload()),
        }
    }

    fn nodes(&mut self, all: &'c [Expr]) -> Result<Vec<Node>, EvalError> {
        all.iter().map(|one| self.node(one)).collect()
    }

    // --- Names and what is selected ---

    fn resolved(&mut self, id: Id) -> Option<Node> {
        match self.checked.reference(id)? {
            Reference::Variable(index) => {
                if let Some(used) = self.uses.get_mut(*index) {
                    *used = true;
                }
                Some(attribute(Root::Variable(*index)))
            }
            Reference::Type(ty) => Some(Node::Constant(Value::Type(ty.clone()))),
            Reference::Local | Reference::Call(_) => None,
        }
    }

    fn slot(&self, name: &str) -> Option<usize> {
        self.locals.iter().rposition(|known| *known == name)
    }

    fn ident(&mut self, id: Id, name: &str) -> PlannedNode {
        if let Some(node) = self.resolved(id) {
            return Ok(node);
        }
        match self.slot(name) {
            Some(slot) => Ok(attribute(Root::Local(slot))),
            None => Err(EvalError::new(format!("no such attribute(s): {name}"))),
        }
    }

    fn select(&mut self, id: Id, select: &'c Select) -> PlannedNode {
        if let Some(node) = self.resolved(id) {
            return Ok(node);
        }
        let operand = self.node(&select.operand)?;
        let by = By::Field(select.field.as_str().into());
        Ok(qualified(operand, by, false, select.test))
    }

    fn index(&mut self, call: &'c Call, optional: bool) -> PlannedNode {
        let [operand, index] = &call.args[..] else {
            return Err(EvalError::no_such_overload());
        };
        let operand = self.node(operand)?;
        let by = match self.node(index)? {
            Node::Constant(Value::String(text)) => By::Field((&*text).into()),
            Node::Constant(value) => By::Constant(value),
            Node::Attribute(mut attribute) => {
                attribute.charged = false;
                By::Computed(Node::Attribute(attribute))
            }
            other => By::Computed(other),
        };
        Ok(qualified(operand, by, optional, false))
    }

    // --- Calls ---

    fn call(&mut self, id: Id, call: &'c Call) -> PlannedNode {
        let checked = self.checked;
        let Some(reference) = checked.call(id) else {
            return Err(EvalError::no_such_overload());
        };
        match reference.function.name {
            operator::INDEX => return self.index(call, false),
            operator::OPTIONAL_INDEX | operator::OPTIONAL_SELECT => return self.index(call, true),
            operator::AND => return Ok(Node::And(self.terms(call)?.into())),
            operator::OR => return Ok(Node::Or(self.terms(call)?.into())),
            _ => {}
        }
        if let Some(node) = self.accumulation(reference, call)? {
            return Ok(node);
        }
        let mut args = Vec::with_capacity(call.args.len() + 1);
        if let Some(target) = call.target.as_deref().filter(|_| !reference.namespaced) {
            args.push(self.node(target)?);
        }
        args.extend(self.nodes(&call.args)?);
        match reference.function.name {
            operator::CONDITIONAL => three(args),
            operator::EQUALS => two(args).map(Node::Equal),
            operator::NOT_EQUALS => two(args).map(Node::NotEqual),
            operator::NOT_STRICTLY_FALSE => match args.pop() {
                Some(arg) => Ok(Node::NotStrictlyFalse(Box::new(arg))),
                None => Err(EvalError::no_such_overload()),
            },
            name @ ("or" | "orValue") if call.target.is_some() => {
                let value = name == "orValue";
                two(args).map(|parts| Node::OptionalOr { parts, value })
            }
            _ => self.function(reference, args),
        }
    }

    /// Terms of a chain of one operator, in order.
    fn terms(&mut self, call: &'c Call) -> Result<Vec<Node>, EvalError> {
        let mut terms = Vec::new();
        for arg in &call.args {
            match &arg.kind {
                Kind::Call(inner) if inner.function == call.function && inner.target.is_none() => {
                    terms.extend(self.terms(inner)?);
                }
                _ => terms.push(self.node(arg)?),
            }
        }
        Ok(terms)
    }

    fn function(&mut self, reference: &CallReference, args: Vec<Node>) -> PlannedNode {
        let overload = match reference.overloads[..] {
            [one] => Some(one),
            _ => None,
        };
        let name = reference.function.name;
        if overload.is_some_and(|one| one.id == "in_list")
            && let Some(Node::Constant(Value::List(_))) = args.get(1)
        {
            return in_constants(args);
        }
        self.known_pattern(name, &args)?;
        let cost = CallCost::of(name, overload.map(|one| one.id));
        let dispatch = match (overload, reference.overloads.first()) {
            (Some(one), _) => Dispatch::One(one.call),
            (None, Some(first)) if reference.function.is_operator() => Dispatch::One(first.call),
            _ => Dispatch::First(reference.overloads.clone().into()),
        };
        if let ([Node::Constant(constant)], Dispatch::One(call)) = (&args[..], &dispatch)
            && conversion::is_conversion(name)
        {
            return converted(*call, constant.clone());
        }
        Ok(Node::Call(Box::new(CallNode {
            function: name,
            dispatch,
            args: args.into(),
            cost,
        })))
    }

    /// Compiles a pattern that is a constant.
    fn known_pattern(&mut self, function: &str, args: &[Node]) -> Result<(), EvalError> {
        if !matches!(function, "matches" | "find" | "findAll") {
            return Ok(());
        }
        if let Some(Node::Constant(Value::String(text))) = args.get(1)
            && !self.patterns.contains_key(&**text)
        {
            let compiled = pattern::compile(text).map_err(EvalError::new)?;
            self.pattern_states += compiled.states();
            if self.pattern_states > pattern::MAX_STATES {
                return Err(EvalError::new("regular expressions are too large"));
            }
            self.patterns.insert((&**text).into(), compiled);
        }
        Ok(())
    }

    /// `@result + [element]` and `cel.@mapInsert(@result, ..)`, which change the accumulator.
    fn accumulation(
        &mut self,
        reference: &CallReference,
        call: &'c Call,
    ) -> Result<Option<Node>, EvalError> {
        let Some(first) = call.args.first() else {
            return Ok(None);
        };
        let Kind::Ident(name) = &first.kind else {
            return Ok(None);
        };
        if name != crate::cel::ast::ACCUMULATOR {
            return Ok(None);
        }
        let Some(slot) = self.slot(name) else {
            return Ok(None);
        };
        match (reference.function.name, &call.args[1..]) {
            (operator::ADD, [list]) => {
                let Kind::List(list) = &list.kind else {
                    return Ok(None);
                };
                let [element] = &list.elements[..] else {
                    return Ok(None);
                };
                let element = Box::new(self.node(element)?);
                Ok(Some(Node::Append { slot, element }))
            }
            (hidden::MAP_INSERT, rest) => {
                let parts = self.nodes(rest)?.into();
                let overload = match reference.overloads[..] {
                    [one] => Some(one.id),
                    _ => None,
                };
                let cost = CallCost::of(hidden::MAP_INSERT, overload);
                Ok(Some(Node::Insert { slot, parts, cost }))
            }
            _ => Ok(None),
        }
    }

    // --- Aggregates ---

    fn list(&mut self, list: &'c List) -> PlannedNode {
        let elements = self.nodes(&list.elements)?;
        if list.optional.is_empty()
            && let Some(values) = elements.iter().map(constant_value).collect()
        {
            return CelList::new(values).map(|list| Node::Constant(Value::List(list)));
        }
        Ok(Node::List(Box::new(ListNode {
            elements: elements.into(),
            optional: list.optional.clone().into(),
        })))
    }

    fn map(&mut self, entries: &'c [Entry]) -> PlannedNode {
        let mut planned = Vec::with_capacity(entries.len());
        for entry in entries {
            planned.push(MapEntry {
                key: self.node(&entry.key)?,
                value: self.node(&entry.value)?,
                optional: entry.optional,
            });
        }
        match constant_map(&planned) {
            Some(map) => Map::new(map).map(|map| Node::Constant(Value::Map(map))),
            None => Ok(Node::Map(planned.into())),
        }
    }

    fn structure(&mut self, id: Id, one: &'c Struct) -> PlannedNode {
        let ty = match self.checked.reference(id) {
            Some(Reference::Type(ty @ Type::Object(_))) => ty.clone(),
            _ => return Err(EvalError::new(format!("unknown type: {}", one.name))),
        };
        let mut fields = Vec::with_capacity(one.fields.len());
        for field in &one.fields {
            let value = self.node(&field.value)?;
            fields.push((field.name.clone(), value, field.optional));
        }
        let fields = fields.into();
        Ok(Node::Object(Box::new(ObjectNode { ty, fields })))
    }

    // --- Loops ---

    fn enter(&mut self, name: &'c str) -> usize {
        self.locals.push(name);
        self.slots = self.slots.max(self.locals.len());
        self.locals.len() - 1
    }

    fn binding(&mut self, one: &'c Comprehension) -> PlannedNode {
        let value = self.node(&one.init)?;
        let slot = self.enter(&one.accumulator);
        let result = self.node(&one.result)?;
        self.locals.truncate(slot);
        Ok(Node::Bind(Box::new(BindNode {
            slot,
            value,
            result,
        })))
    }

    fn comprehension(&mut self, one: &'c Comprehension) -> PlannedNode {
        let range = self.node(&one.range)?;
        let init = self.node(&one.init)?;
        let accumulator = self.enter(&one.accumulator);
        self.enter(&one.variable);
        if let Some(variable) = &one.variable2 {
            self.enter(variable);
        }
        let condition = match self.node(&one.condition)? {
            Node::Constant(Value::Bool(true)) => None,
            other => Some(other),
        };
        let step = self.node(&one.step)?;
        self.locals.truncate(accumulator + 1);
        let result = self.node(&one.result)?;
        self.locals.truncate(accumulator);
        Ok(Node::Fold(Box::new(FoldNode {
            range,
            accumulator,
            two_variables: one.variable2.is_some(),
            init,
            condition,
            step,
            result,
        })))
    }
}

fn constant(literal: &Literal) -> Value<'static> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::String(text) => Value::String(Text::Shared(text.clone())),
        Literal::Bytes(bytes) => Value::Bytes(Blob::Shared(bytes.clone())),
    }
}

fn constant_value(node: &Node) -> Option<Value<'static>> {
    match node {
        Node::Constant(value) => Some(value.clone()),
        _ => None,
    }
}

fn constant_map(entries: &[MapEntry]) -> Option<BTreeMap<Key<'static>, Value<'static>>> {
    let mut map = BTreeMap::new();
    for entry in entries {
        if entry.optional {
            return None;
        }
        let key = Key::of(&constant_value(&entry.key)?)?;
        map.insert(key, constant_value(&entry.value)?);
    }
    Some(map)
}

fn attribute(root: Root) -> Node {
    Node::Attribute(Box::new(Attribute {
        root,
        qualifiers: Vec::new(),
        charged: true,
        test: false,
    }))
}

/// One qualifier more on an attribute, or on what becomes one.
fn qualified(operand: Node, by: By, optional: bool, test: bool) -> Node {
    let mut attribute = match operand {
        Node::Attribute(attribute) if !attribute.test => attribute,
        other => {
            // A choice is none itself: the names in its branches are.
            let charged = !matches!(other, Node::Conditional(_));
            Box::new(Attribute {
                root: Root::Node(other),
                qualifiers: Vec::new(),
                charged,
                test: false,
            })
        }
    };
    attribute.qualifiers.push(Qualifier { by, optional });
    attribute.test = test;
    Node::Attribute(attribute)
}

fn two(args: Vec<Node>) -> Result<Box<[Node; 2]>, EvalError> {
    let array: [Node; 2] = args.try_into().map_err(|_| EvalError::no_such_overload())?;
    Ok(Box::new(array))
}

fn three(args: Vec<Node>) -> PlannedNode {
    let mut parts: [Node; 3] = args.try_into().map_err(|_| EvalError::no_such_overload())?;
    for branch in &mut parts[1..] {
        // As in the original, naming a variable in a branch is free.
        if let Node::Attribute(attribute) = branch {
            attribute.charged = false;
        }
    }
    Ok(Node::Conditional(Box::new(parts)))
}

/// A conversion of a constant, made once.
fn converted(call: CelCall, constant: Value<'static>) -> PlannedNode {
    static NO_PATTERNS: Patterns = Patterns::new();
    let mut meter = Meter::new(Budget::for_rules(), &NO_PATTERNS);
    call(&mut meter, &[constant]).map(Node::Constant)
}

/// A test against constants, by their keys.
fn in_constants(args: Vec<Node>) -> PlannedNode {
    let [value, list]: [Node; 2] = args.try_into().map_err(|_| EvalError::no_such_overload())?;
    let Node::Constant(Value::List(constants)) = &list else {
        return Err(EvalError::no_such_overload());
    };
    if constants.is_empty() {
        return Ok(Node::Constant(Value::Bool(false)));
    }
    let mut keys = BTreeSet::new();
    let mut doubles = Vec::new();
    for constant in constants.iter() {
        match constant? {
            Value::Double(one) if Key::of(&Value::Double(one)).is_none() => doubles.push(one),
            other => match Key::of(&other) {
                Some(key) => {
                    keys.insert(key);
                }
                None => {
                    let list = Node::Constant(Value::List(constants.clone()));
                    return Ok(search(value, list));
                }
            },
        }
    }
    Ok(Node::InConstants(Box::new(InConstants {
        value,
        keys,
        doubles,
    })))
}

/// A test against values that are no keys, such as bytes and lists.
fn search(value: Node, list: Node) -> Node {
    let call = crate::cel::functions::Functions::known()
        .get(operator::IN)
        .and_then(|function| function.overloads.first())
        .map(|overload| overload.call);
    match call {
        Some(call) => Node::Call(Box::new(CallNode {
            function: operator::IN,
            dispatch: Dispatch::One(call),
            args: [value, list].into(),
            cost: CallCost::of(operator::IN, Some("in_list")),
        })),
        None => list, // never: the function is declared
    }
}
