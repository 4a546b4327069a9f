//! Calls of `format` with a literal format string and a literal list of arguments.

use super::{Checked, literals::children};
use crate::cel::{
    ast::{Call, Expr, Id, Kind, Literal},
    issue::Issues,
    library::{Clause, clauses},
};

pub(super) fn validate(checked: &Checked, issues: &mut Issues) {
    visit(&checked.ast.root, checked, issues);
}

fn visit(expr: &Expr, checked: &Checked, issues: &mut Issues) {
    if let Kind::Call(call) = &expr.kind
        && call.function == "format"
    {
        format_call(expr.id, call, checked, issues);
    }
    let mut all = Vec::new();
    children(expr, |child| all.push(child));
    for child in all {
        visit(child, checked, issues);
    }
}

fn format_call(id: Id, call: &Call, checked: &Checked, issues: &mut Issues) {
    let Some(Kind::Literal(Literal::String(text))) = call.target.as_ref().map(|one| &one.kind)
    else {
        return;
    };
    let [arg] = &call.args[..] else { return };
    let Kind::List(list) = &arg.kind else { return };
    let mut report = |id: Id, message: String| issues.report(checked.ast.offset(id), message);
    let clauses = match clauses(text, list.elements.len()) {
        Ok(clauses) => clauses,
        Err(error) => return report(id, error.0),
    };
    for (clause, arg) in clauses.iter().zip(&list.elements) {
        if let Some(wrong) = refused(*clause, arg, checked) {
            let why = clause.refusal(checked.type_of(wrong).name());
            return report(wrong, format!("error during formatting: {why}"));
        }
    }
    if list.elements.len() > clauses.len() {
        let message = format!(
            "too many arguments supplied to string.format (expected {}, got {})",
            clauses.len(),
            list.elements.len()
        );
        report(id, message);
    }
}

/// The part of an argument that a clause cannot print.
fn refused(clause: Clause, arg: &Expr, checked: &Checked) -> Option<Id> {
    let ty = checked.type_of(arg.id);
    if !ty.is_dyn() && !clause.takes(ty) {
        return Some(arg.id);
    }
    if clause != Clause::String {
        return None;
    }
    match &arg.kind {
        Kind::List(list) => {
            let mut elements = list.elements.iter();
            elements.find_map(|one| refused(clause, one, checked))
        }
        Kind::Map(entries) => entries.iter().find_map(|entry| {
            refused(clause, &entry.key, checked).or_else(|| refused(clause, &entry.value, checked))
        }),
        _ => None,
    }
}
