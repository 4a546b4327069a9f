//! Macros that give a value a name: `optMap`, `optFlatMap` and `sortBy`.

use super::{
    build::Stop,
    macros::{self, Expanded, Maker, Refusal},
};
use crate::cel::ast::{Comprehension, Expr, Kind, Literal, UNUSED, hidden, operator};

const SORT_INPUT: &str = "@__sortBy_input__";

/// `target.optMap(x, transform)`: nothing stays nothing; `wrap` makes the result an optional.
pub(super) fn opt_map(
    maker: &mut Maker<'_>,
    target: Expr,
    args: Vec<Expr>,
    wrap: bool,
) -> Expanded {
    let [variable, transform]: [Expr; 2] = two(args)?;
    let Kind::Ident(name) = &variable.kind else {
        let function = if wrap { "optMap" } else { "optFlatMap" };
        let message = format!("{function}() variable name must be a simple identifier");
        return Err(maker.refuse(&variable, message));
    };
    let copy = maker.build.copy(&target)?;
    let value = maker
        .build
        .member_call(maker.offset, copy, "value", Vec::new())?;
    let bound = bind(maker, name, value, transform)?;
    let something = match wrap {
        true => maker.call("optional.of", vec![bound])?,
        false => bound,
    };
    let present = maker
        .build
        .member_call(maker.offset, target, "hasValue", Vec::new())?;
    let nothing = maker.call("optional.none", Vec::new())?;
    Ok(maker.call(operator::CONDITIONAL, vec![present, something, nothing])?)
}

/// `list.sortBy(x, key)`: the keys are made first, then the list is sorted by them.
pub(super) fn sort_by(maker: &mut Maker<'_>, target: Expr, args: Vec<Expr>) -> Expanded {
    if matches!(
        target.kind,
        Kind::Literal(_) | Kind::Map(_) | Kind::Struct(_) | Kind::Invalid
    ) {
        let message = "sortBy can only be applied to a list, identifier, comprehension, call or \
                       select expression";
        return Err(maker.refuse(&target, message));
    }
    let input = maker.ident(SORT_INPUT)?;
    let keys = macros::map(maker, input, args)?;
    let input = maker.ident(SORT_INPUT)?;
    let offset = maker.offset;
    let sorted = maker
        .build
        .member_call(offset, input, hidden::SORT_BY_KEYS, vec![keys])?;
    bind(maker, SORT_INPUT, target, sorted)
}

/// `result` with `value` named: a loop over nothing whose accumulator is the name.
fn bind(maker: &mut Maker<'_>, name: &str, value: Expr, result: Expr) -> Expanded {
    let comprehension = Comprehension {
        range: maker.list(Vec::new())?,
        variable: UNUSED.to_owned(),
        variable2: None,
        accumulator: name.to_owned(),
        init: value,
        condition: maker.literal(Literal::Bool(false))?,
        step: maker.ident(name)?,
        result,
    };
    Ok(maker.build.comprehension(maker.offset, comprehension)?)
}

fn two(args: Vec<Expr>) -> Result<[Expr; 2], Refusal> {
    // Only calls with two arguments come here.
    args.try_into().map_err(|_| Stop.into())
}
