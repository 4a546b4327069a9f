//! Calls: which function a name is, and which of its overloads fit.

use std::sync::Arc;

use super::{CallReference, Checker, Reference, unify};
use crate::cel::{
    ast::{Call, Expr, Id, Kind, Literal, operator},
    functions::{Function, Overload},
    types::Type,
};

impl Checker<'_> {
    pub(super) fn call(&mut self, id: Id, call: &Call) {
        if call.function == operator::OPTIONAL_SELECT {
            return self.optional_select(id, call);
        }
        for arg in &call.args {
            self.check(arg);
        }
        let Some(target) = &call.target else {
            let name = call.function.strip_prefix('.').unwrap_or(&call.function);
            return match self.environment.function(name) {
                Some(function) => self.resolve(id, function, None, &call.args, false),
                None => self.undeclared(id, &call.function),
            };
        };
        // `sets.contains(..)`: the target is part of the name.
        if let Some(prefix) = dotted(target)
            && let Some(function) = self
                .environment
                .function(&format!("{prefix}.{}", call.function))
        {
            return self.resolve(id, function, None, &call.args, true);
        }
        self.check(target);
        match self.environment.function(&call.function) {
            Some(function) => self.resolve(id, function, Some(target), &call.args, false),
            None => self.undeclared(id, &call.function),
        }
    }

    fn optional_select(&mut self, id: Id, call: &Call) {
        let [operand, field] = &call.args[..] else {
            self.report(
                id,
                "unsupported optional field selection: incorrect signature.",
            );
            return;
        };
        let Kind::Literal(Literal::String(name)) = &field.kind else {
            self.report(field.id, "unsupported optional field selection");
            return;
        };
        let name = name.clone();
        let ty = self.field(id, operand, &name, true);
        let ty = self.substitution.apply(&ty);
        self.set_type(id, ty);
        self.set_type(field.id, Type::String);
        if let Some(function) = self.environment.function(operator::OPTIONAL_SELECT) {
            let overloads = function.overloads.iter().collect();
            self.set_call(id, function, overloads, false);
        }
    }

    fn set_call(
        &mut self,
        id: Id,
        function: &'static Function,
        overloads: Vec<&'static Overload>,
        namespaced: bool,
    ) {
        let call = CallReference {
            function,
            overloads,
            namespaced,
        };
        self.set_reference(id, Reference::Call(Arc::new(call)));
    }

    fn resolve(
        &mut self,
        id: Id,
        function: &'static Function,
        target: Option<&Expr>,
        args: &[Expr],
        namespaced: bool,
    ) {
        let types: Vec<Type> = target
            .into_iter()
            .chain(args)
            .map(|one| self.type_of(one))
            .collect();
        if matches!(function.name, operator::AND | operator::OR) {
            return self.logic(id, function, args, &types);
        }
        let mut overloads = Vec::new();
        let mut result: Option<Type> = None;
        for overload in &function.overloads {
            let here = self.environment.has(overload.feature);
            if !here || overload.member != target.is_some() {
                continue;
            }
            let Some(found) = self.fits(overload, &types) else {
                continue;
            };
            overloads.push(overload);
            result = Some(match result {
                None => found,
                Some(known) if known.is_dyn() || known == found => known,
                Some(_) => Type::Dyn,
            });
        }
        let Some(result) = result else {
            return self.no_overload(id, function, target.is_some(), &types);
        };
        self.set_type(id, result);
        self.set_call(id, function, overloads, namespaced);
    }

    /// The result of a call with these types, if the overload fits.
    fn fits(&mut self, overload: &Overload, types: &[Type]) -> Option<Type> {
        if overload.parameters.len() != types.len() {
            return None;
        }
        let generic = overload.parameters.iter().chain([&overload.result]);
        let count = generic.map(unify::parameters_of).max().unwrap_or(0);
        if count == 0 {
            let fits = self
                .substitution
                .all_assignable(types, &overload.parameters);
            return fits.then(|| overload.result.clone());
        }
        let variables: Vec<Type> = (0..count).map(|_| self.substitution.variable()).collect();
        let parameters: Vec<Type> = overload
            .parameters
            .iter()
            .map(|one| unify::instantiate(one, &variables))
            .collect();
        let fits = self.substitution.all_assignable(types, &parameters);
        fits.then(|| {
            let result = unify::instantiate(&overload.result, &variables);
            self.substitution.apply(&result)
        })
    }

    fn logic(&mut self, id: Id, function: &'static Function, args: &[Expr], types: &[Type]) {
        let mut fine = true;
        for (arg, ty) in args.iter().zip(types) {
            if !self.substitution.assignable(ty, &Type::Bool) {
                self.mismatch(arg.id, &Type::Bool, ty);
                fine = false;
            }
        }
        self.set_type(id, if fine { Type::Bool } else { Type::Error });
        let overloads = function.overloads.iter().collect();
        self.set_call(id, function, overloads, false);
    }

    fn no_overload(&mut self, id: Id, function: &Function, member: bool, types: &[Type]) {
        let shown: Vec<String> = types
            .iter()
            .map(|ty| self.substitution.apply_finally(ty).to_string())
            .collect();
        let signature = match shown.split_first() {
            Some((target, args)) if member => format!("{target}.({})", args.join(", ")),
            _ => format!("({})", shown.join(", ")),
        };
        let name = function.name;
        self.report(
            id,
            format!("found no matching overload for '{name}' applied to '{signature}'"),
        );
        self.set_type(id, Type::Error);
    }
}

/// `a.b` as text, if the expression is nothing but names.
fn dotted(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.strip_prefix('.').unwrap_or(name).to_owned()),
        Kind::Select(select) if !select.test => {
            let prefix = dotted(&select.operand)?;
            Some(format!("{prefix}.{}", select.field))
        }
        _ => None,
    }
}
