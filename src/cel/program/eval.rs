//! Evaluates the tree.
//!
//! Errors are values here: `&&`, `||` and loops may absorb them. What ends the evaluation as a whole
//! (costs) is never absorbed.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Program,
    activation::Activation,
    meter::{Budget, Meter},
    node::{BindNode, CallNode, Dispatch, InConstants, ListNode, MapEntry, Node, ObjectNode},
};
use crate::cel::{
    cost::{CallCost, LIST, MAP, STRUCT},
    library::standard::entry_key,
    types::Type,
    value::{EvalError, Evaluated, Key, List, Map, Object, Value, check_depth, equal},
};

/// Deepest recursion of one evaluation, composed variables included: each level takes stack.
const MAX_DEPTH: u32 = 450;

/// A variable of a loop.
#[derive(Clone)]
pub(super) enum Slot<'v> {
    Empty,
    Value(Evaluated<'v>),
    /// The value of a binding, which may not be needed.
    Pending(&'v Node),
}

pub(super) struct Evaluator<'e, 'v> {
    pub meter: Meter<'v>,
    pub activation: &'e Activation<'v>,
    pub slots: Vec<Slot<'v>>,
    depth: u32,
}

impl<'e, 'v> Evaluator<'e, 'v> {
    pub fn new(program: &'v Program, activation: &'e Activation<'v>, budget: Budget) -> Self {
        Self {
            meter: Meter::new(budget, &program.patterns),
            activation,
            slots: vec![Slot::Empty; program.slots],
            depth: 0,
        }
    }

    pub fn run(&mut self, program: &'v Program) -> Evaluated<'v> {
        self.eval(&program.root)
    }

    pub fn cost(&self) -> u64 {
        self.meter.cost()
    }

    /// Evaluates the program of a composed variable. It has a limit of its own; its cost counts for
    /// the whole.
    pub fn nested(&mut self, program: &'v Program) -> Evaluated<'v> {
        let slots = std::mem::replace(&mut self.slots, vec![Slot::Empty; program.slots]);
        let patterns = self.meter.swap_patterns(&program.patterns);
        let before = self.meter.begin_nested();
        let result = self.eval(&program.root);
        self.meter.end_nested(before);
        self.meter.swap_patterns(patterns);
        self.slots = slots;
        result
    }

    pub fn eval(&mut self, node: &'v Node) -> Evaluated<'v> {
        if self.depth >= MAX_DEPTH {
            return Err(EvalError::new("expression recursion limit exceeded"));
        }
        self.depth += 1;
        let result = self.dispatch(node);
        self.depth -= 1;
        result
    }

    fn dispatch(&mut self, node: &'v Node) -> Evaluated<'v> {
        match node {
            Node::Constant(value) => Ok(value.clone()),
            Node::Attribute(attribute) => self.attribute(attribute),
            Node::And(terms) => self.logic(terms, false),
            Node::Or(terms) => self.logic(terms, true),
            Node::Conditional(parts) => {
                let [condition, yes, no] = &**parts;
                match self.eval(condition)? {
                    Value::Bool(true) => self.eval(yes),
                    Value::Bool(false) => self.eval(no),
                    _ => Err(EvalError::no_such_overload()),
                }
            }
            Node::Equal(parts) => self.equality(parts, true),
            Node::NotEqual(parts) => self.equality(parts, false),
            Node::Call(call) => self.call(call),
            Node::InConstants(test) => self.in_constants(test),
            Node::NotStrictlyFalse(part) => {
                let value = self.eval(part);
                self.meter.charge(1)?;
                match value {
                    Ok(Value::Bool(value)) => Ok(Value::Bool(value)),
                    Err(error) if error.is_final() => Err(error),
                    _ => Ok(Value::Bool(true)),
                }
            }
            Node::OptionalOr { parts, value } => self.optional_or(parts, *value),
            Node::List(list) => self.list(list),
            Node::Map(entries) => self.map(entries),
            Node::Object(object) => self.object(object),
            Node::Fold(fold) => self.fold(fold),
            Node::Bind(bind) => self.bind(bind),
            Node::Append { slot, element } => self.append(*slot, element),
            Node::Insert { slot, parts, cost } => self.insert(*slot, parts, *cost),
        }
    }

    /// `&&` and `||`: the value that decides ends them, wherever it stands; else the first error.
    fn logic(&mut self, terms: &'v [Node], decides: bool) -> Evaluated<'v> {
        let mut first_error = None;
        for term in terms {
            match self.eval(term) {
                Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
                Ok(_) => {
                    first_error.get_or_insert_with(EvalError::no_such_overload);
                }
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => Ok(Value::Bool(!decides)),
        }
    }

    /// Both values of an operator; an error of the first counts, but the second is evaluated too.
    fn both(&mut self, parts: &'v [Node; 2]) -> Result<(Value<'v>, Value<'v>), EvalError> {
        let [left, right] = parts;
        let left = self.eval(left);
        if let Err(error) = &left
            && error.is_final()
        {
            return Err(error.clone());
        }
        let right = self.eval(right);
        match (left, right) {
            (Ok(left), Ok(right)) => Ok((left, right)),
            (_, Err(error)) if error.is_final() => Err(error),
            (Err(error), _) | (_, Err(error)) => {
                self.meter.charge(1)?;
                Err(error)
            }
        }
    }

    fn equality(&mut self, parts: &'v [Node; 2], wanted: bool) -> Evaluated<'v> {
        let (left, right) = self.both(parts)?;
        let args = [left, right];
        let cost = if wanted {
            CallCost::Equals
        } else {
            CallCost::Compare
        };
        self.meter.charge(cost.compute(&args, None))?;
        let [left, right] = &args;
        match equal(&mut self.meter, left, right) {
            Ok(equal) => Ok(Value::Bool(equal == wanted)),
            // What cannot be compared is not equal.
            Err(error) if !error.is_final() && !wanted => Ok(Value::Bool(true)),
            Err(error) => Err(error),
        }
    }

    fn call(&mut self, call: &'v CallNode) -> Evaluated<'v> {
        match &call.args[..] {
            [] => self.invoke(call, &[]),
            [one] => match self.eval(one) {
                Ok(arg) => self.invoke(call, &[arg]),
                Err(error) if error.is_final() => Err(error),
                Err(error) => {
                    self.meter.charge(1)?;
                    Err(error)
                }
            },
            [one, two] => {
                // Two arguments are both evaluated, whatever the first is.
                let left = self.eval(one);
                if let Err(error) = &left
                    && error.is_final()
                {
                    return left;
                }
                let right = self.eval(two);
                match (left, right) {
                    (Ok(left), Ok(right)) => self.invoke(call, &[left, right]),
                    (_, Err(error)) if error.is_final() => Err(error),
                    (Err(error), _) | (_, Err(error)) => {
                        self.meter.charge(1)?;
                        Err(error)
                    }
                }
            }
            more => {
                let args: Vec<_> = more
                    .iter()
                    .map(|arg| self.eval(arg))
                    .collect::<Result<_, _>>()?;
                self.invoke(call, &args)
            }
        }
    }

    fn invoke(&mut self, call: &'v CallNode, args: &[Value<'v>]) -> Evaluated<'v> {
        let implementation = match &call.dispatch {
            Dispatch::One(one) => *one,
            Dispatch::First(overloads) => {
                let takes = |one: &&&crate::cel::functions::Overload| {
                    one.parameters
                        .iter()
                        .zip(args)
                        .all(|(ty, arg)| ty.admits(arg))
                };
                match overloads.iter().find(takes) {
                    Some(one) => one.call,
                    None => {
                        self.meter.charge(1)?;
                        return Err(EvalError::no_overload_for(call.function, args));
                    }
                }
            }
        };
        let result = implementation(&mut self.meter, args);
        if let Err(error) = &result
            && error.is_final()
        {
            return result;
        }
        let cost = match call.cost {
            CallCost::Fixed(cost) => cost,
            other => other.compute(args, result.as_ref().ok()),
        };
        self.meter.charge(cost)?;
        result
    }

    fn in_constants(&mut self, test: &'v InConstants) -> Evaluated<'v> {
        let value = self.eval(&test.value)?;
        let found = match (&value, Key::of(&value)) {
            (_, Some(key)) => test.keys.contains(&key),
            (Value::Double(value), None) => test.doubles.contains(value),
            _ => false,
        };
        Ok(Value::Bool(found))
    }

    fn optional_or(&mut self, parts: &'v [Node; 2], value: bool) -> Evaluated<'v> {
        let [first, second] = parts;
        match self.eval(first)? {
            Value::Optional(Some(inner)) if value => Ok((*inner).clone()),
            some @ Value::Optional(Some(_)) => Ok(some),
            Value::Optional(None) => self.eval(second),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    fn list(&mut self, list: &'v ListNode) -> Evaluated<'v> {
        let mut items = Vec::with_capacity(list.elements.len());
        for (index, element) in list.elements.iter().enumerate() {
            let value = self.eval(element)?;
            if !list.optional.get(index).copied().unwrap_or(false) {
                items.push(value);
                continue;
            }
            match value {
                Value::Optional(Some(inner)) => items.push((*inner).clone()),
                Value::Optional(None) => {}
                other => {
                    return Err(EvalError::new(format!(
                        "cannot initialize optional list element from non-optional value {}",
                        other.type_name()
                    )));
                }
            }
        }
        self.meter.charge(LIST)?;
        List::new(items).map(Value::List)
    }

    fn map(&mut self, entries: &'v [MapEntry]) -> Evaluated<'v> {
        let mut made = BTreeMap::new();
        for entry in entries {
            let key = entry_key(&self.eval(&entry.key)?)?;
            let value = self.eval(&entry.value)?;
            if !entry.optional {
                made.insert(key, value);
                continue;
            }
            match value {
                Value::Optional(Some(inner)) => {
                    made.insert(key, (*inner).clone());
                }
                Value::Optional(None) => {
                    made.remove(&key);
                }
                other => return Err(not_optional(&key.to_value(), &other)),
            }
        }
        self.meter.charge(MAP)?;
        Map::new(made).map(Value::Map)
    }

    fn object(&mut self, object: &'v ObjectNode) -> Evaluated<'v> {
        let mut fields: Vec<(String, Value<'v>)> = Vec::with_capacity(object.fields.len());
        let mut depth: u16 = 0;
        for (name, node, optional) in &object.fields {
            let value = match (self.eval(node)?, optional) {
                (Value::Optional(Some(inner)), true) => (*inner).clone(),
                (Value::Optional(None), true) => continue,
                (other, true) => return Err(not_optional(&Value::text(name.as_str()), &other)),
                (other, false) => other,
            };
            depth = depth.max(value.depth());
            fields.retain(|(known, _)| known != name);
            fields.push((name.clone(), value));
        }
        self.meter.charge(STRUCT)?;
        check_patch(&object.ty, &fields)?;
        let depth = check_depth(depth.saturating_add(1))?;
        let ty = object.ty.clone();
        Ok(Value::Object(Arc::new(Object { ty, fields, depth })))
    }

    fn bind(&mut self, bind: &'v BindNode) -> Evaluated<'v> {
        let before = std::mem::replace(&mut self.slots[bind.slot], Slot::Pending(&bind.value));
        let result = self.eval(&bind.result);
        self.slots[bind.slot] = before;
        result
    }

    /// The value of a variable of a loop.
    pub fn local(&mut self, slot: usize) -> Evaluated<'v> {
        match &self.slots[slot] {
            Slot::Value(value) => value.clone(),
            Slot::Empty => Err(EvalError::no_such_overload()), // never: loops fill their slots
            Slot::Pending(node) => {
                let value = self.eval(node);
                self.slots[slot] = Slot::Value(value.clone());
                value
            }
        }
    }
}

fn not_optional(field: &Value<'_>, value: &Value<'_>) -> EvalError {
    let name = match field {
        Value::String(text) => text.to_string(),
        other => other.type_name(),
    };
    EvalError::new(format!(
        "cannot initialize optional entry '{name}' from non-optional value {}",
        value.type_name()
    ))
}

/// Fields of a JSON patch that must be strings.
fn check_patch(ty: &Type, fields: &[(String, Value<'_>)]) -> Result<(), EvalError> {
    if ty.name() != "JSONPatch" {
        return Ok(());
    }
    for (name, value) in fields {
        if name != "value" && !matches!(value, Value::String(_)) {
            let found = value.type_name();
            return Err(EvalError::new(format!(
                "unexpected type {found} for JSONPatchType '{name}' field"
            )));
        }
    }
    Ok(())
}
