//! What an expression may cost at most, from the sizes that its schema allows.

use std::collections::HashMap;

use super::{
    LIST, MAP, NAME, STRUCT, calls,
    range::{CostEstimate, Size},
};
use crate::cel::{
    ast::{Call, Comprehension, Entry, Expr, Id, Kind, List, Literal, Select},
    check::Checked,
    schema::{Schema, Step},
    types::Type,
};

/// Estimates the cost of an expression. `root` is the schema of the value that it is a rule of.
pub(crate) fn estimate(checked: &Checked, root: Option<&Schema>) -> CostEstimate {
    let nodes = checked.ast.offsets.len();
    let mut estimator = Estimator {
        checked,
        root,
        places: vec![Place::Nowhere; nodes],
        sizes: vec![None; nodes],
        entries: vec![None; nodes],
        locals: HashMap::new(),
    };
    estimator.cost(&checked.ast.root)
}

/// Where in the schema the value of a node comes from.
///
/// As in the original, the first step of a path is always taken for the variable, even if it is a
/// step into something that is no variable.
#[derive(Clone, Copy)]
pub(super) enum Place<'s> {
    Nowhere,
    /// A path that the schema does not know.
    Lost,
    Schema(&'s Schema),
    /// Keys of a map.
    Key,
}

/// Sizes of what is in a list or map.
#[derive(Clone, Copy)]
struct EntrySize {
    is_list: bool,
    key: Size,
    value: Size,
}

impl EntrySize {
    fn or(self, other: Self) -> Self {
        Self {
            is_list: self.is_list,
            key: self.key.or(other.key),
            value: self.value.or(other.value),
        }
    }
}

#[derive(Clone, Copy)]
struct Local<'s> {
    place: Place<'s>,
    size: Option<Size>,
    entry: Option<EntrySize>,
}

/// A node as the rules of calls see it.
pub(super) struct Argument<'e, 's> {
    pub expr: &'e Expr,
    pub ty: &'e Type,
    pub place: Place<'s>,
    pub size: Option<Size>,
}

impl Argument<'_, '_> {
    pub fn size_or_unknown(&self) -> Size {
        self.size.unwrap_or(Size::UNKNOWN)
    }
}

pub(super) struct Estimator<'c> {
    checked: &'c Checked,
    root: Option<&'c Schema>,
    places: Vec<Place<'c>>,
    sizes: Vec<Option<Size>>,
    entries: Vec<Option<EntrySize>>,
    /// By name, the innermost last.
    locals: HashMap<&'c str, Vec<Local<'c>>>,
}

impl<'c> Estimator<'c> {
    fn cost(&mut self, expr: &'c Expr) -> CostEstimate {
        match &expr.kind {
            Kind::Literal(_) | Kind::Invalid => CostEstimate::default(),
            Kind::Ident(name) => self.ident(expr.id, name),
            Kind::Select(select) => self.select(expr.id, select),
            Kind::Call(call) => self.call(expr, call),
            Kind::List(list) => self.list(expr.id, list),
            Kind::Map(entries) => self.map(expr.id, entries),
            Kind::Struct(one) => {
                let fields = one.fields.iter();
                fields.fold(CostEstimate::fixed(STRUCT), |sum, field| {
                    sum.plus(self.cost(&field.value))
                })
            }
            Kind::Comprehension(one) if one.is_binding() => self.binding(expr.id, one),
            Kind::Comprehension(one) => self.comprehension(expr.id, one),
        }
    }

    // --- Places ---

    /// One step further in the schema.
    pub fn step(&self, place: Place<'c>, name: &str) -> Place<'c> {
        match place {
            Place::Nowhere => self.root.map_or(Place::Lost, Place::Schema),
            Place::Lost | Place::Key => Place::Lost,
            Place::Schema(schema) => match schema.step(name) {
                Some(Step::Schema(schema)) => Place::Schema(schema),
                Some(Step::Key) => Place::Key,
                None => Place::Lost,
            },
        }
    }

    fn local(&self, name: &str) -> Option<Local<'c>> {
        self.locals.get(name)?.last().copied()
    }

    fn place(&self, expr: &Expr) -> Place<'c> {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.place;
        }
        self.places[expr.id as usize]
    }

    /// The size that the schema gives a place.
    pub fn schema_size(&self, place: Place<'c>) -> Option<Size> {
        match place {
            Place::Nowhere | Place::Lost => None,
            Place::Key => Some(Size::fixed(0)),
            Place::Schema(schema) => Some(Size::between(0, schema.max_elements)),
        }
    }

    // --- Sizes ---

    fn size(&mut self, expr: &Expr) -> Option<Size> {
        let id = expr.id as usize;
        if let Some(known) = self.sizes[id] {
            return Some(known);
        }
        if let Some(size) = literal_size(expr) {
            return Some(Size::fixed(size));
        }
        if let Some(size) = self.schema_size(self.place(expr)) {
            self.sizes[id] = Some(size);
            return Some(size);
        }
        if self.checked.type_of(expr.id).is_scalar() {
            return Some(Size::fixed(1));
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.size,
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Size {
        self.size(expr).unwrap_or(Size::UNKNOWN)
    }

    fn set_size(&mut self, id: Id, size: Option<Size>) {
        if size.is_some() {
            self.sizes[id as usize] = size;
        }
    }

    fn entry(&self, expr: &Expr) -> Option<EntrySize> {
        if let Some(known) = self.entries[expr.id as usize] {
            return Some(known);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.entry,
            _ => None,
        }
    }

    fn set_entry(&mut self, id: Id, entry: Option<EntrySize>) {
        if entry.is_some() {
            self.entries[id as usize] = entry;
        }
    }

    fn copy_sizes(&mut self, to: Id, from: &Expr) {
        let size = self.size(from);
        self.set_size(to, size);
        self.set_entry(to, self.entry(from));
    }

    // --- Nodes ---

    fn ident(&mut self, id: Id, name: &str) -> CostEstimate {
        self.places[id as usize] = match self.local(name) {
            Some(local) => local.place,
            None => self.step(Place::Nowhere, name),
        };
        CostEstimate::fixed(NAME)
    }

    fn select(&mut self, id: Id, select: &'c Select) -> CostEstimate {
        if self.checked.reference(id).is_some() {
            // The whole is one name.
            self.places[id as usize] = self.step(Place::Nowhere, "");
            return CostEstimate::fixed(NAME);
        }
        let operand = self.cost(&select.operand);
        if select.test {
            return operand;
        }
        let place = self.place(&select.operand);
        self.places[id as usize] = self.step(place, &select.field);
        match self.checked.type_of(select.operand.id) {
            Type::Map(_) | Type::Object(_) | Type::Variable(_) => {
                operand.plus(CostEstimate::fixed(NAME))
            }
            Type::Library(library) if !library.is_opaque() => {
                operand.plus(CostEstimate::fixed(NAME))
            }
            _ => operand,
        }
    }

    fn argument(&mut self, expr: &'c Expr) -> Argument<'c, 'c> {
        Argument {
            expr,
            ty: self.checked.type_of(expr.id),
            place: self.place(expr),
            size: self.size(expr),
        }
    }

    fn call(&mut self, expr: &'c Expr, call: &'c Call) -> CostEstimate {
        if let ("dyn", [arg]) = (call.function.as_str(), &call.args[..]) {
            let cost = self.cost(arg);
            self.copy_sizes(expr.id, arg);
            return cost.plus(CostEstimate::fixed(1));
        }
        let mut costs = Vec::with_capacity(call.args.len());
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            costs.push(self.cost(arg));
            args.push(self.argument(arg));
        }
        let Some(reference) = self.checked.call(expr.id) else {
            return CostEstimate::default();
        };
        let mut sum = CostEstimate::default();
        let mut target = None;
        if let Some(one) = call.target.as_deref().filter(|_| !reference.namespaced) {
            sum = self.cost(one);
            target = Some(self.argument(one));
        }
        let mut cost = CostEstimate {
            min: u64::MAX,
            max: 0,
        };
        let mut result: Option<Size> = None;
        let name = reference.function.name;
        for overload in &reference.overloads {
            let estimated = calls::Estimate {
                estimator: self,
                expr,
                function: name,
                overload: overload.id,
                target: target.as_ref(),
                args: &args,
                costs: &costs,
            }
            .compute();
            cost = cost.or(estimated.cost);
            if let Some(size) = estimated.size {
                result = Some(result.map_or(size, |known| known.or(size)));
            }
            let step = match overload.id {
                "index_list" => Some("@items"),
                "index_map" => Some("@values"),
                _ => None,
            };
            if let (Some(step), Some(first)) = (step, call.args.first()) {
                result = self.entry(first).map(|entry| entry.value);
                let place = self.place(first);
                self.places[expr.id as usize] = self.step(place, step);
            }
            if result.is_none() {
                result = self.size(expr);
            }
        }
        self.set_size(expr.id, result);
        sum.plus(cost)
    }

    /// Sizes of what is in both, if both are known.
    pub fn union_of_entries(&mut self, id: Id, one: &Expr, two: &Expr) {
        let both = self.entry(one).zip(self.entry(two));
        self.set_entry(id, both.map(|(one, two)| one.or(two)));
    }

    fn list(&mut self, id: Id, list: &'c List) -> CostEstimate {
        let mut sum = CostEstimate::default();
        let mut value = no_size_yet(list.elements.is_empty());
        for element in &list.elements {
            sum = sum.plus(self.cost(element));
            value = value.or(self.size_or_unknown(element));
        }
        let entry = EntrySize {
            is_list: true,
            key: Size::fixed(1),
            value,
        };
        self.set_entry(id, Some(entry));
        sum.plus(CostEstimate::fixed(LIST))
    }

    fn map(&mut self, id: Id, entries: &'c [Entry]) -> CostEstimate {
        let mut sum = CostEstimate::default();
        let mut key = no_size_yet(entries.is_empty());
        let mut value = key;
        for entry in entries {
            sum = sum.plus(self.cost(&entry.key));
            sum = sum.plus(self.cost(&entry.value));
            key = key.or(self.size_or_unknown(&entry.key));
            value = value.or(self.size_or_unknown(&entry.value));
        }
        let entry = EntrySize {
            is_list: false,
            key,
            value,
        };
        self.set_entry(id, Some(entry));
        sum.plus(CostEstimate::fixed(MAP))
    }

    fn push(&mut self, name: &'c str, local: Local<'c>) {
        self.locals.entry(name).or_default().push(local);
    }

    fn pop(&mut self, name: &str) {
        if let Some(stack) = self.locals.get_mut(name) {
            stack.pop();
        }
    }

    fn push_value(&mut self, name: &'c str, value: &Expr) {
        let local = Local {
            place: self.place(value),
            size: self.size(value),
            entry: self.entry(value),
        };
        self.push(name, local);
    }

    /// Names a loop's variables.
    fn push_variables(&mut self, one: &'c Comprehension) {
        let entry = self.entry(&one.range);
        let is_list = match entry {
            Some(entry) => entry.is_list,
            None => matches!(self.checked.type_of(one.range.id), Type::List(_)),
        };
        let place = self.place(&one.range);
        let local = |place, size| Local {
            place,
            size,
            entry: None,
        };
        let key_size = entry.map(|entry| entry.key);
        let value_size = entry.map(|entry| entry.value);
        let value_step = if is_list { "@items" } else { "@values" };
        match &one.variable2 {
            Some(second) => {
                let key_step = if is_list { "@indices" } else { "@keys" };
                let key = local(self.step(place, key_step), key_size);
                self.push(&one.variable, key);
                let value = local(self.step(place, value_step), value_size);
                self.push(second, value);
            }
            None if is_list => {
                let element = local(self.step(place, "@items"), value_size);
                self.push(&one.variable, element);
            }
            None => {
                let key = local(self.step(place, "@keys"), key_size);
                self.push(&one.variable, key);
            }
        }
    }

    fn comprehension(&mut self, id: Id, one: &'c Comprehension) -> CostEstimate {
        let mut sum = self.cost(&one.range);
        sum = sum.plus(self.cost(&one.init));
        self.push_value(&one.accumulator, &one.init);
        self.push_variables(one);
        let condition = self.cost(&one.condition);
        let step = self.cost(&one.step);
        self.pop(&one.variable);
        if let Some(variable) = &one.variable2 {
            self.pop(variable);
        }
        sum = sum.plus(self.cost(&one.result));
        self.pop(&one.accumulator);
        let count = self.size_or_unknown(&one.range);
        let size = match &one.init.kind {
            Kind::Literal(_) => self.size(&one.init),
            Kind::List(_) | Kind::Map(_) => {
                self.set_entry(id, self.entry(&one.step));
                Some(count)
            }
            _ => None,
        };
        self.set_size(id, size);
        sum.plus(count.times(step.plus(condition)))
    }

    fn binding(&mut self, id: Id, one: &'c Comprehension) -> CostEstimate {
        let mut sum = self.cost(&one.range);
        sum = sum.plus(self.cost(&one.init));
        self.push_value(&one.accumulator, &one.init);
        sum = sum.plus(self.cost(&one.result));
        self.pop(&one.accumulator);
        self.copy_sizes(id, &one.result);
        sum
    }
}

fn no_size_yet(empty: bool) -> Size {
    Size {
        min: if empty { 0 } else { u64::MAX },
        max: 0,
    }
}

fn literal_size(expr: &Expr) -> Option<u64> {
    Some(match &expr.kind {
        Kind::Literal(Literal::String(text)) => text.chars().count() as u64,
        Kind::Literal(Literal::Bytes(bytes)) => bytes.len() as u64,
        Kind::Literal(_) => 1,
        Kind::List(list) => list.elements.len() as u64,
        Kind::Map(entries) => entries.len() as u64,
        _ => return None,
    })
}
