//! What can be seen to be wrong with literals: durations, timestamps, patterns, and lists and maps
//! of mixed types.

use super::Checked;
use crate::cel::{
    ast::{Call, Entry, Expr, Kind, List, Literal},
    issue::Issues,
    library::pattern,
    types::Type,
    value::{Timestamp, parse_duration},
};

pub(super) fn validate(checked: &Checked, issues: &mut Issues) {
    let mut validator = Validator {
        checked,
        issues,
        pattern_states: 0,
    };
    validator.visit(&checked.ast.root, false);
}

/// Calls `visit` with every direct child.
pub(super) fn children<'e>(expr: &'e Expr, mut visit: impl FnMut(&'e Expr)) {
    match &expr.kind {
        Kind::Literal(_) | Kind::Ident(_) | Kind::Invalid => {}
        Kind::Select(select) => visit(&select.operand),
        Kind::Call(call) => {
            call.target.iter().for_each(|target| visit(target));
            call.args.iter().for_each(visit);
        }
        Kind::List(list) => list.elements.iter().for_each(visit),
        Kind::Map(entries) => entries.iter().for_each(|entry| {
            visit(&entry.key);
            visit(&entry.value);
        }),
        Kind::Struct(one) => one.fields.iter().for_each(|field| visit(&field.value)),
        Kind::Comprehension(one) => {
            [
                &one.range,
                &one.init,
                &one.condition,
                &one.step,
                &one.result,
            ]
            .into_iter()
            .for_each(visit);
        }
    }
}

struct Validator<'c> {
    checked: &'c Checked,
    issues: &'c mut Issues,
    /// How large all patterns are together. Past the limit the plan fails, and none is tried here.
    pattern_states: u64,
}

impl Validator<'_> {
    /// `mixed`: somewhere inside of a call of `format`, whose arguments may be of several types.
    fn visit(&mut self, expr: &Expr, mixed: bool) {
        let mut mixed = mixed;
        match &expr.kind {
            Kind::Call(call) => {
                mixed = mixed || call.function == "format";
                self.call(call);
            }
            Kind::List(list) if !mixed => self.list(list),
            Kind::Map(entries) if !mixed => self.map(entries),
            _ => {}
        }
        let mut all = Vec::new();
        children(expr, |child| all.push(child));
        for child in all {
            self.visit(child, mixed);
        }
    }

    fn call(&mut self, call: &Call) {
        let Some(first) = call.args.first() else {
            return;
        };
        let Kind::Literal(literal) = &first.kind else {
            return;
        };
        let valid = match (call.function.as_str(), literal) {
            ("duration", Literal::String(text)) => parse_duration(text).is_some(),
            ("timestamp", Literal::String(text)) => {
                Timestamp::parse(text).is_ok_and(|time| time.is_some())
            }
            ("timestamp", Literal::Int(seconds)) => Timestamp::new(*seconds, 0).is_some(),
            ("matches", Literal::String(text)) if call.target.is_some() => {
                if self.pattern_states > pattern::MAX_STATES {
                    return;
                }
                let compiled = pattern::compile(text);
                self.pattern_states += compiled.as_ref().map_or(0, |one| one.states());
                compiled.is_ok()
            }
            _ => true,
        };
        if !valid {
            let message = format!("invalid {} argument", call.function);
            self.issues
                .report(self.checked.ast.offset(first.id), message);
        }
    }

    fn same(&mut self, expr: &Expr, optional: bool, expected: &mut Option<Type>) -> bool {
        let ty = self.checked.type_of(expr.id);
        let ty = if optional {
            ty.parameter(0)
        } else {
            ty.clone()
        };
        match expected {
            None => *expected = Some(ty),
            Some(expected) if *expected != ty => {
                let message = format!("expected type '{expected}' but found '{ty}'");
                self.issues
                    .report(self.checked.ast.offset(expr.id), message);
                return false;
            }
            Some(_) => {}
        }
        true
    }

    fn list(&mut self, list: &List) {
        let mut expected = None;
        for (index, element) in list.elements.iter().enumerate() {
            if !self.same(element, list.is_optional(index), &mut expected) {
                break;
            }
        }
    }

    fn map(&mut self, entries: &[Entry]) {
        let (mut key, mut value) = (None, None);
        for entry in entries {
            self.same(&entry.key, false, &mut key);
            self.same(&entry.value, entry.optional, &mut value);
        }
    }
}
