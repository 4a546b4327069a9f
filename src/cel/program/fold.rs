//! Loops: everything that macros over lists and maps become.

use super::{
    eval::{Evaluator, Slot},
    node::{FoldNode, Node},
};
use crate::cel::{
    cost::{CallCost, LIST, NAME},
    library::standard::entry_key,
    value::{EvalError, Evaluated, List, Map, Value},
};

impl<'v> Evaluator<'_, 'v> {
    pub(super) fn fold(&mut self, fold: &'v FoldNode) -> Evaluated<'v> {
        let range = self.eval(&fold.range)?;
        let count = 2 + usize::from(fold.two_variables);
        let slots = fold.accumulator..fold.accumulator + count;
        // What an outer loop of the same depth left is not kept: slots are used by one loop at a
        // time.
        self.slots[fold.accumulator] = Slot::Value(self.init(fold));
        let done = match range {
            Value::List(list) => self.over_list(fold, &list),
            Value::Map(map) => self.over_map(fold, &map),
            other => Err(EvalError::new(not_iterable(&other, fold.two_variables))),
        };
        let result = match done {
            Ok(()) => self.eval(&fold.result),
            Err(error) => Err(error),
        };
        for slot in &mut self.slots[slots] {
            *slot = Slot::Empty;
        }
        result
    }

    fn init(&mut self, fold: &'v FoldNode) -> Evaluated<'v> {
        match self.eval(&fold.init) {
            // What is added to must not be shared with the constant.
            Ok(Value::List(list)) if list.is_empty() => List::new(Vec::new()).map(Value::List),
            other => other,
        }
    }

    fn over_list(&mut self, fold: &'v FoldNode, list: &List<'v>) -> Result<(), EvalError> {
        for (index, item) in list.iter().enumerate() {
            let variable = fold.accumulator + 1;
            if fold.two_variables {
                let index = i64::try_from(index).unwrap_or(i64::MAX);
                self.slots[variable] = Slot::Value(Ok(Value::Int(index)));
                self.slots[variable + 1] = Slot::Value(item);
            } else {
                self.slots[variable] = Slot::Value(item);
            }
            if !self.turn(fold)? {
                break;
            }
        }
        Ok(())
    }

    fn over_map(&mut self, fold: &'v FoldNode, map: &Map<'v>) -> Result<(), EvalError> {
        for key in map.keys() {
            let variable = fold.accumulator + 1;
            let key = key.to_value();
            if fold.two_variables {
                let value = map.get(&key).unwrap_or(Ok(Value::Null));
                self.slots[variable + 1] = Slot::Value(value);
            }
            self.slots[variable] = Slot::Value(Ok(key));
            if !self.turn(fold)? {
                break;
            }
        }
        Ok(())
    }

    /// One turn of a loop; false where it ends.
    fn turn(&mut self, fold: &'v FoldNode) -> Result<bool, EvalError> {
        self.meter.work(1)?;
        if let Some(condition) = &fold.condition {
            match self.eval(condition) {
                Ok(Value::Bool(false)) => return Ok(false),
                Err(error) if error.is_final() => return Err(error),
                _ => {}
            }
        }
        let value = self.eval(&fold.step);
        if let Err(error) = &value
            && error.is_final()
        {
            return Err(error.clone());
        }
        self.slots[fold.accumulator] = Slot::Value(value);
        Ok(true)
    }

    /// Takes a loop's accumulator out of its slot, so that nobody else holds it.
    fn take(&mut self, slot: usize) -> Evaluated<'v> {
        match std::mem::replace(&mut self.slots[slot], Slot::Empty) {
            Slot::Value(value) => value,
            other => {
                self.slots[slot] = other;
                self.local(slot)
            }
        }
    }

    /// `@result + [element]`: a name, a list of one, and joining it.
    pub(super) fn append(&mut self, slot: usize, element: &'v Node) -> Evaluated<'v> {
        let is_constant = matches!(element, Node::Constant(_));
        let element = self.eval(element);
        if let Err(error) = &element
            && error.is_final()
        {
            return element;
        }
        // A list of a constant is one itself, and free.
        let list = if is_constant { 0 } else { LIST };
        self.meter.charge(NAME + list + 1)?;
        match (self.take(slot), element) {
            (Ok(Value::List(list)), Ok(element)) => list.push(element).map(Value::List),
            (Ok(_), Ok(_)) => Err(EvalError::no_such_overload()),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    }

    pub(super) fn insert(
        &mut self,
        slot: usize,
        parts: &'v [Node],
        cost: CallCost,
    ) -> Evaluated<'v> {
        let mut values = Vec::with_capacity(parts.len());
        let mut failed = None;
        for part in parts {
            match self.eval(part) {
                Ok(value) => values.push(value),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        self.meter.charge(NAME)?;
        self.meter.charge(cost.compute(&[], None))?;
        let map = match (self.take(slot)?, failed) {
            (_, Some(error)) => return Err(error),
            (Value::Map(map), None) => map,
            _ => return Err(EvalError::no_such_overload()),
        };
        match &values[..] {
            [key, value] => map.insert(entry_key(key)?, value.clone()).map(Value::Map),
            [Value::Map(more)] => {
                let mut map = map;
                for (key, value) in more.entries()? {
                    map = map.insert(key, value)?;
                }
                Ok(Value::Map(map))
            }
            _ => Err(EvalError::no_such_overload()),
        }
    }
}

/// The original names the type as Go does.
fn not_iterable(value: &Value<'_>, two_variables: bool) -> String {
    let name = match value {
        Value::Null => "types.Null",
        Value::Bool(_) => "types.Bool",
        Value::Int(_) => "types.Int",
        Value::Uint(_) => "types.Uint",
        Value::Double(_) => "types.Double",
        Value::String(_) => "types.String",
        Value::Bytes(_) => "types.Bytes",
        Value::Duration(_) => "types.Duration",
        Value::Timestamp(_) => "types.Timestamp",
        Value::Optional(_) => "*types.Optional",
        Value::Type(_) => "*types.Type",
        _ => "ref.Val",
    };
    if two_variables {
        return format!("unsupported comprehension range type: {name}");
    }
    format!("got '{name}', expected iterable type")
}
