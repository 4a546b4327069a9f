//! Types of expressions: what every node's value is, and what every name means.
//!
//! Follows cel-go's checker: the same order of overloads, the same messages. Types that grow out of
//! all proportion (a loop in a loop that pairs its variable with itself, a few dozen times) are
//! refused.

mod calls;
mod format;
mod literals;
mod scope;
#[cfg(test)]
mod tests;
mod unify;

use std::sync::Arc;

use self::{scope::Scope, unify::Substitution};
use super::{
    ast::{Ast, Comprehension, Expr, Id, Kind, List, Literal, Select, Struct},
    environment::Environment,
    functions::{Function, Overload},
    issue::Issues,
    source::Source,
    types::Type,
};

/// Most types that one type may be made of.
const MAX_WEIGHT: u32 = 1000;

/// A checked expression.
#[derive(Debug)]
pub(crate) struct Checked {
    pub ast: Ast,
    /// By node.
    types: Vec<Type>,
    references: Vec<Option<Reference>>,
}

/// What a name means.
#[derive(Clone)]
pub(crate) enum Reference {
    /// A variable of the environment, by its number.
    Variable(usize),
    /// A variable of a loop around.
    Local,
    Type(Type),
    Call(Arc<CallReference>),
}

/// What a call may be.
pub(crate) struct CallReference {
    pub function: &'static Function,
    /// Overloads that fit; one unless types are not known.
    pub overloads: Vec<&'static Overload>,
    /// What looks like the call's target is part of the function's name.
    pub namespaced: bool,
}

impl std::fmt::Debug for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Variable(index) => write!(f, "variable {index}"),
            Self::Local => f.write_str("local"),
            Self::Type(ty) => write!(f, "type {ty}"),
            Self::Call(call) => f.write_str(call.function.name),
        }
    }
}

impl Checked {
    pub fn type_of(&self, id: Id) -> &Type {
        self.types.get(id as usize).unwrap_or(&Type::Dyn)
    }

    pub fn reference(&self, id: Id) -> Option<&Reference> {
        self.references.get(id as usize)?.as_ref()
    }

    pub fn call(&self, id: Id) -> Option<&CallReference> {
        match self.reference(id) {
            Some(Reference::Call(call)) => Some(call),
            _ => None,
        }
    }
}

/// Finds types and meanings of all nodes.
pub(crate) fn check(
    environment: &Environment,
    source: &Source,
    ast: Ast,
) -> Result<Checked, Issues> {
    let nodes = ast.offsets.len();
    let mut checker = Checker {
        environment,
        offsets: &ast.offsets,
        issues: Issues::new(source),
        scope: Scope::default(),
        substitution: Substitution::default(),
        types: vec![Type::Error; nodes],
        references: vec![None; nodes],
    };
    checker.check(&ast.root);
    let Checker {
        issues,
        substitution,
        types,
        references,
        ..
    } = checker;
    if !issues.is_empty() {
        return Err(issues);
    }
    let types = types.iter().map(|ty| substitution.apply_finally(ty));
    let checked = Checked {
        types: types.collect(),
        references,
        ast,
    };
    let mut issues = issues;
    literals::validate(&checked, &mut issues);
    format::validate(&checked, &mut issues);
    if issues.is_empty() {
        Ok(checked)
    } else {
        Err(issues)
    }
}

struct Checker<'c> {
    environment: &'c Environment,
    offsets: &'c [u32],
    issues: Issues,
    scope: Scope,
    substitution: Substitution,
    types: Vec<Type>,
    references: Vec<Option<Reference>>,
}

impl Checker<'_> {
    fn report(&mut self, id: Id, message: impl Into<String>) {
        let offset = self.offsets.get(id as usize).copied().unwrap_or(0);
        self.issues.report(offset, message);
    }

    fn set_type(&mut self, id: Id, ty: Type) {
        let ty = if ty.weight() > MAX_WEIGHT {
            self.report(id, "type of the expression is too complex");
            Type::Error
        } else {
            ty
        };
        if let Some(place) = self.types.get_mut(id as usize) {
            *place = ty;
        }
    }

    fn type_of(&self, expr: &Expr) -> Type {
        self.types
            .get(expr.id as usize)
            .cloned()
            .unwrap_or(Type::Dyn)
    }

    fn set_reference(&mut self, id: Id, reference: Reference) {
        if let Some(place) = self.references.get_mut(id as usize) {
            *place = Some(reference);
        }
    }

    fn mismatch(&mut self, id: Id, expected: &Type, found: &Type) {
        self.report(
            id,
            format!("expected type '{expected}' but found '{found}'"),
        );
    }

    fn undeclared(&mut self, id: Id, name: &str) {
        self.report(
            id,
            format!("undeclared reference to '{name}' (in container '')"),
        );
        self.set_type(id, Type::Error);
    }

    /// Recursion is as deep as the tree, which is bounded.
    fn check(&mut self, expr: &Expr) {
        match &expr.kind {
            Kind::Literal(literal) => self.set_type(expr.id, type_of_literal(literal)),
            Kind::Ident(name) => self.ident(expr.id, name),
            Kind::Select(select) => self.select(expr, select),
            Kind::Call(call) => self.call(expr.id, call),
            Kind::List(list) => self.list(expr.id, list),
            Kind::Map(entries) => self.map(expr.id, entries),
            Kind::Struct(one) => self.structure(expr.id, one),
            Kind::Comprehension(one) => self.comprehension(expr.id, one),
            Kind::Invalid => self.set_type(expr.id, Type::Error),
        }
    }

    fn ident(&mut self, id: Id, name: &str) {
        if let Some(ty) = self.scope.find(name) {
            self.set_type(id, ty);
            self.set_reference(id, Reference::Local);
            return;
        }
        if !self.global(id, name.strip_prefix('.').unwrap_or(name)) {
            self.undeclared(id, name);
        }
    }

    /// Resolves a whole name to a variable or a type, if it is one.
    fn global(&mut self, id: Id, name: &str) -> bool {
        if let Some((index, ty)) = self.environment.variable(name) {
            self.set_type(id, ty);
            self.set_reference(id, Reference::Variable(index));
            return true;
        }
        if let Some(ty) = self.environment.type_named(name) {
            self.set_type(id, Type::type_of(ty.clone()));
            self.set_reference(id, Reference::Type(ty));
            return true;
        }
        false
    }

    fn select(&mut self, expr: &Expr, select: &Select) {
        if let Some(name) = self.qualified_name(expr)
            && self.global(expr.id, &name)
        {
            return;
        }
        let ty = self.field(expr.id, &select.operand, &select.field, false);
        let ty = if select.test { Type::Bool } else { ty };
        let ty = self.substitution.apply(&ty);
        self.set_type(expr.id, ty);
    }

    /// `a.b.c` as one name, unless `a` is a variable of a loop.
    fn qualified_name(&self, expr: &Expr) -> Option<String> {
        let mut parts = Vec::new();
        let mut at = expr;
        let first = loop {
            match &at.kind {
                Kind::Select(select) if !select.test => {
                    parts.push(select.field.as_str());
                    at = &select.operand;
                }
                Kind::Ident(name) => break name.as_str(),
                _ => return None,
            }
        };
        if self.scope.find(first).is_some() {
            return None;
        }
        parts.push(first.strip_prefix('.').unwrap_or(first));
        parts.reverse();
        Some(parts.join("."))
    }

    /// The type of a field of `operand`.
    fn field(&mut self, id: Id, operand: &Expr, field: &str, optional: bool) -> Type {
        self.check(operand);
        let operand_type = self.substitution.apply(&self.type_of(operand));
        let (target, was_optional) = unwrap_optional(&operand_type);
        let found = match &target {
            Type::Map(_) => target.parameter(1),
            Type::Object(object) => match self.environment.field_type(object, field) {
                Some(ty) => ty,
                None => {
                    self.report(id, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Library(library) if !library.is_opaque() => {
                self.report(id, format!("undefined field '{field}'"));
                Type::Error
            }
            Type::Variable(_) => {
                self.substitution.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            other => {
                if !other.is_dyn_or_error() {
                    let message = format!("type '{other}' does not support field selection");
                    self.report(id, message);
                }
                Type::Dyn
            }
        };
        if was_optional || optional {
            Type::optional(found)
        } else {
            found
        }
    }

    fn list(&mut self, id: Id, list: &List) {
        let mut joined: Option<Type> = None;
        for (index, element) in list.elements.iter().enumerate() {
            self.check(element);
            let ty = self.type_of(element);
            let ty = if list.is_optional(index) {
                self.unwrap_or_report(element, &ty)
            } else {
                ty
            };
            joined = Some(self.join(joined, ty));
        }
        let element = joined.unwrap_or_else(|| self.substitution.variable());
        self.set_type(id, Type::list(element));
    }

    fn unwrap_or_report(&mut self, expr: &Expr, ty: &Type) -> Type {
        let (inner, is_optional) = unwrap_optional(ty);
        if !is_optional && !ty.is_dyn() {
            self.mismatch(expr.id, &Type::optional(ty.clone()), ty);
        }
        inner
    }

    /// The type of what was before and of one element more: anything, if they do not fit. Whether
    /// types may be mixed is looked at when all are known.
    fn join(&mut self, before: Option<Type>, ty: Type) -> Type {
        match before {
            None => ty,
            Some(before) if self.substitution.assignable(&before, &ty) => {
                unify::most_general(&before, &ty)
            }
            Some(_) => Type::Dyn,
        }
    }

    fn map(&mut self, id: Id, entries: &[super::ast::Entry]) {
        let mut joined: Option<(Type, Type)> = None;
        for entry in entries {
            let (key, value) = joined.take().unzip();
            self.check(&entry.key);
            let key_type = self.type_of(&entry.key);
            let key = self.join(key, key_type);
            self.check(&entry.value);
            let value_type = self.type_of(&entry.value);
            let value_type = if entry.optional {
                self.unwrap_or_report(&entry.value, &value_type)
            } else {
                value_type
            };
            let value = self.join(value, value_type);
            joined = Some((key, value));
        }
        let (key, value) = joined.unwrap_or_else(|| {
            let key = self.substitution.variable();
            (key, self.substitution.variable())
        });
        self.set_type(id, Type::map(key, value));
    }

    fn structure(&mut self, id: Id, one: &Struct) {
        let name = one.name.strip_prefix('.').unwrap_or(&one.name);
        let Some(ty) = self.environment.type_named(name) else {
            return self.undeclared(id, &one.name);
        };
        let object = match &ty {
            Type::Object(object) => Some(Arc::clone(object)),
            _ => {
                self.report(id, format!("'{}' is not a message type", ty.name()));
                None
            }
        };
        for field in &one.fields {
            self.check(&field.value);
            let Some(object) = &object else { continue };
            let Some(wanted) = object.field_type(&field.name) else {
                self.report(field.id, format!("undefined field '{}'", field.name));
                continue;
            };
            let found = self.type_of(&field.value);
            let found = if field.optional {
                self.unwrap_or_report(&field.value, &found)
            } else {
                found
            };
            if !self.substitution.assignable(&wanted, &found) {
                let name = &field.name;
                let message = format!(
                    "expected type of field '{name}' is '{wanted}' but provided type is '{found}'"
                );
                self.report(field.id, message);
            }
        }
        let result = if object.is_some() {
            ty.clone()
        } else {
            Type::Error
        };
        self.set_reference(id, Reference::Type(ty));
        self.set_type(id, result);
    }

    fn comprehension(&mut self, id: Id, one: &Comprehension) {
        self.check(&one.range);
        self.check(&one.init);
        let range = self.substitution.apply(&self.type_of(&one.range));
        let accumulator = self.type_of(&one.init);
        let (first, second) = self.loop_types(one, &range);
        let scopes = self.scope.mark();
        self.scope.declare(&one.accumulator, accumulator.clone());
        let inner = self.scope.mark();
        self.scope.declare(&one.variable, first);
        if let Some(variable) = &one.variable2 {
            self.scope.declare(variable, second);
        }
        self.check(&one.condition);
        self.require(&one.condition, &Type::Bool);
        self.check(&one.step);
        self.require(&one.step, &accumulator);
        self.scope.leave(inner);
        self.check(&one.result);
        self.scope.leave(scopes);
        let result = self.substitution.apply(&self.type_of(&one.result));
        self.set_type(id, result);
    }

    /// Types of a loop's variables.
    fn loop_types(&mut self, one: &Comprehension, range: &Type) -> (Type, Type) {
        match range {
            Type::List(_) if one.variable2.is_some() => (Type::Int, range.parameter(0)),
            Type::List(_) => (range.parameter(0), Type::Dyn),
            Type::Map(_) => (range.parameter(0), range.parameter(1)),
            Type::Dyn | Type::Error | Type::Variable(_) => {
                self.substitution.assignable(&Type::Dyn, range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be \
                     list, map, or dynamic)"
                );
                self.report(one.range.id, message);
                (Type::Error, Type::Error)
            }
        }
    }

    fn require(&mut self, expr: &Expr, wanted: &Type) {
        let found = self.type_of(expr);
        if !self.substitution.assignable(wanted, &found) {
            self.mismatch(expr.id, wanted, &found);
        }
    }
}

fn type_of_literal(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

fn unwrap_optional(ty: &Type) -> (Type, bool) {
    match ty {
        Type::Optional(_) => (ty.parameter(0), true),
        other => (other.clone(), false),
    }
}
