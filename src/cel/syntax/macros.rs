//! Macros over lists and maps, expanded while parsing: `has`, `all`, `exists`, `map`, `filter` and
//! those with two variables.

use super::{
    build::{Builder, Stop},
    macros_bind,
};
use crate::cel::ast::{
    ACCUMULATOR, Comprehension, Expr, FORMER_ACCUMULATOR, Kind, Literal, hidden, operator,
};

/// A call that may be one of a macro.
pub(super) struct MacroCall {
    /// Where the open parenthesis is: the position of all that a macro adds.
    pub offset: u32,
    pub target: Option<Expr>,
    pub args: Vec<Expr>,
}

/// The expansion, or the call itself if it is none of a macro.
pub(super) type Expansion = Result<Result<Expr, MacroCall>, Stop>;

/// Expands the call of `function` if it is a macro with this number of arguments.
pub(super) fn expand(build: &mut Builder, function: &str, mut call: MacroCall) -> Expansion {
    let Some(target) = call.target.take() else {
        return match (function, call.args.len()) {
            ("has", 1) => has(build, call),
            _ => Ok(Err(call)),
        };
    };
    let Some(expand) = receiver_macro(function, call.args.len()) else {
        call.target = Some(target);
        return Ok(Err(call));
    };
    let mut maker = Maker {
        build,
        offset: call.offset,
    };
    match expand(&mut maker, target, call.args) {
        Ok(expr) => Ok(Ok(expr)),
        Err(Refusal::Stop(stop)) => Err(stop),
        Err(Refusal::Because(offset, message)) => build.invalid(offset, message).map(Ok),
    }
}

/// Why a macro was not expanded.
pub(super) enum Refusal {
    Stop(Stop),
    Because(u32, String),
}

impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

pub(super) type Expanded = Result<Expr, Refusal>;
type Macro = fn(&mut Maker<'_>, Expr, Vec<Expr>) -> Expanded;

fn receiver_macro(function: &str, args: usize) -> Option<Macro> {
    Some(match (function, args) {
        ("all", 2 | 3) => |maker, target, args| quantifier(maker, Quantifier::All, target, args),
        ("exists", 2 | 3) => {
            |maker, target, args| quantifier(maker, Quantifier::Exists, target, args)
        }
        ("exists_one" | "existsOne", 2 | 3) => {
            |maker, target, args| quantifier(maker, Quantifier::ExistsOne, target, args)
        }
        ("map", 2 | 3) => map,
        ("filter", 2) => filter,
        ("transformList", 3 | 4) => transform_list,
        ("transformMap", 3 | 4) => |maker, target, args| transform_map(maker, target, args, true),
        ("transformMapEntry", 3 | 4) => {
            |maker, target, args| transform_map(maker, target, args, false)
        }
        ("optMap", 2) => |maker, target, args| macros_bind::opt_map(maker, target, args, true),
        ("optFlatMap", 2) => |maker, target, args| macros_bind::opt_map(maker, target, args, false),
        ("sortBy", 2) => macros_bind::sort_by,
        _ => return None,
    })
}

/// Makes the nodes that a macro adds.
pub(super) struct Maker<'b> {
    pub build: &'b mut Builder,
    pub offset: u32,
}

impl Maker<'_> {
    pub fn refuse(&self, at: &Expr, message: impl Into<String>) -> Refusal {
        Refusal::Because(self.build.offset(at.id), message.into())
    }

    pub fn literal(&mut self, literal: Literal) -> Result<Expr, Stop> {
        self.build.literal(self.offset, literal)
    }

    pub fn ident(&mut self, name: &str) -> Result<Expr, Stop> {
        self.build.ident(self.offset, name)
    }

    pub fn accumulator(&mut self) -> Result<Expr, Stop> {
        self.ident(ACCUMULATOR)
    }

    pub fn call(&mut self, function: &str, args: Vec<Expr>) -> Result<Expr, Stop> {
        self.build.call(self.offset, function, args)
    }

    pub fn list(&mut self, elements: Vec<Expr>) -> Result<Expr, Stop> {
        self.build.list(self.offset, elements)
    }

    /// `condition ? step : @result` where there is a condition.
    fn filtered(&mut self, condition: Option<Expr>, step: Expr) -> Result<Expr, Stop> {
        let Some(condition) = condition else {
            return Ok(step);
        };
        let unchanged = self.accumulator()?;
        self.call(operator::CONDITIONAL, vec![condition, step, unchanged])
    }

    fn fold(&mut self, range: Expr, variables: Variables, parts: Fold) -> Expanded {
        let comprehension = Comprehension {
            range,
            variable: variables.first,
            variable2: variables.second,
            accumulator: ACCUMULATOR.to_owned(),
            init: parts.init,
            condition: parts.condition,
            step: parts.step,
            result: parts.result,
        };
        Ok(self.build.comprehension(self.offset, comprehension)?)
    }

    /// A loop over all elements whose result is the accumulator.
    fn collect(&mut self, range: Expr, variables: Variables, init: Kind, step: Expr) -> Expanded {
        let parts = Fold {
            init: self.build.node(self.offset, init)?,
            condition: self.literal(Literal::Bool(true))?,
            step,
            result: self.accumulator()?,
        };
        self.fold(range, variables, parts)
    }
}

struct Fold {
    init: Expr,
    condition: Expr,
    step: Expr,
    result: Expr,
}

struct Variables {
    first: String,
    second: Option<String>,
}

fn has(build: &mut Builder, call: MacroCall) -> Expansion {
    let [arg]: [Expr; 1] = match call.args.try_into() {
        Ok(one) => one,
        Err(_) => return Err(Stop), // the caller counted
    };
    let offset = build.offset(arg.id);
    match arg.kind {
        Kind::Select(select) if !select.test => build
            .select(call.offset, select.operand, &select.field, true)
            .map(Ok),
        _ => build
            .invalid(offset, "invalid argument to has() macro")
            .map(Ok),
    }
}

/// The variables that the first `count` arguments name; `word` says what they must be.
fn variables(maker: &Maker<'_>, names: &[Expr], word: &str) -> Result<Variables, Refusal> {
    let mut found: Vec<String> = Vec::new();
    for name in names {
        let Kind::Ident(text) = &name.kind else {
            return Err(maker.refuse(name, word));
        };
        if found.contains(text) {
            return Err(maker.refuse(name, format!("duplicate variable name: {text}")));
        }
        found.push(text.clone());
    }
    for (text, name) in found.iter().zip(names) {
        if text == ACCUMULATOR || text == FORMER_ACCUMULATOR {
            let message = "iteration variable overwrites accumulator variable";
            return Err(maker.refuse(name, message));
        }
    }
    let mut found = found.into_iter();
    Ok(Variables {
        first: found.next().unwrap_or_default(),
        second: found.next(),
    })
}

const SIMPLE_NAME: &str = "argument must be a simple name";
const IDENTIFIER: &str = "argument is not an identifier";

#[derive(Clone, Copy)]
enum Quantifier {
    All,
    Exists,
    ExistsOne,
}

/// `range.all(x, predicate)`, or with an index or key: `range.all(i, x, predicate)`.
fn quantifier(maker: &mut Maker<'_>, which: Quantifier, range: Expr, args: Vec<Expr>) -> Expanded {
    let (predicate, names) = split_last(args)?;
    let variables = variables(maker, &names, SIMPLE_NAME)?;
    let parts = match which {
        Quantifier::All => {
            let so_far = maker.accumulator()?;
            let init = maker.literal(Literal::Bool(true))?;
            let condition = maker.call(operator::NOT_STRICTLY_FALSE, vec![so_far])?;
            let so_far = maker.accumulator()?;
            let step = maker.call(operator::AND, vec![so_far, predicate])?;
            let result = maker.accumulator()?;
            Fold {
                init,
                condition,
                step,
                result,
            }
        }
        Quantifier::Exists => {
            let so_far = maker.accumulator()?;
            let init = maker.literal(Literal::Bool(false))?;
            let not_yet = maker.call(operator::NOT, vec![so_far])?;
            let condition = maker.call(operator::NOT_STRICTLY_FALSE, vec![not_yet])?;
            let so_far = maker.accumulator()?;
            let step = maker.call(operator::OR, vec![so_far, predicate])?;
            let result = maker.accumulator()?;
            Fold {
                init,
                condition,
                step,
                result,
            }
        }
        Quantifier::ExistsOne => exactly_one(maker, predicate)?,
    };
    maker.fold(range, variables, parts)
}

fn exactly_one(maker: &mut Maker<'_>, predicate: Expr) -> Result<Fold, Stop> {
    let init = maker.literal(Literal::Int(0))?;
    let condition = maker.literal(Literal::Bool(true))?;
    let so_far = maker.accumulator()?;
    let one = maker.literal(Literal::Int(1))?;
    let more = maker.call(operator::ADD, vec![so_far, one])?;
    let step = maker.filtered(Some(predicate), more)?;
    let count = maker.accumulator()?;
    let one = maker.literal(Literal::Int(1))?;
    let result = maker.call(operator::EQUALS, vec![count, one])?;
    Ok(Fold {
        init,
        condition,
        step,
        result,
    })
}

/// `@result + [element]`
fn append(maker: &mut Maker<'_>, element: Expr) -> Result<Expr, Stop> {
    let so_far = maker.accumulator()?;
    let element = maker.list(vec![element])?;
    maker.call(operator::ADD, vec![so_far, element])
}

fn empty_list() -> Kind {
    Kind::List(crate::cel::ast::List {
        elements: Vec::new(),
        optional: Vec::new(),
    })
}

/// `range.map(x, transform)` and `range.map(x, condition, transform)`.
pub(super) fn map(maker: &mut Maker<'_>, range: Expr, args: Vec<Expr>) -> Expanded {
    let (transform, mut rest) = split_last(args)?;
    let condition = (rest.len() > 1).then(|| rest.pop()).flatten();
    let variables = variables(maker, &rest, IDENTIFIER)?;
    let step = append(maker, transform)?;
    let step = maker.filtered(condition, step)?;
    maker.collect(range, variables, empty_list(), step)
}

fn filter(maker: &mut Maker<'_>, range: Expr, args: Vec<Expr>) -> Expanded {
    let (condition, mut names) = split_last(args)?;
    let variables = variables(maker, &names, IDENTIFIER)?;
    let Some(element) = names.pop() else {
        return Err(Stop.into()); // the caller counted
    };
    let step = append(maker, element)?;
    let step = maker.filtered(Some(condition), step)?;
    maker.collect(range, variables, empty_list(), step)
}

/// Splits `i, x, condition?, transform`.
fn transform(
    maker: &Maker<'_>,
    args: Vec<Expr>,
) -> Result<(Variables, Option<Expr>, Expr), Refusal> {
    let (transform, mut rest) = split_last(args)?;
    let condition = (rest.len() > 2).then(|| rest.pop()).flatten();
    Ok((variables(maker, &rest, SIMPLE_NAME)?, condition, transform))
}

fn transform_list(maker: &mut Maker<'_>, range: Expr, args: Vec<Expr>) -> Expanded {
    let (variables, condition, element) = transform(maker, args)?;
    let step = append(maker, element)?;
    let step = maker.filtered(condition, step)?;
    maker.collect(range, variables, empty_list(), step)
}

/// `transformMap` keeps keys; `transformMapEntry` makes entries of its own.
fn transform_map(maker: &mut Maker<'_>, range: Expr, args: Vec<Expr>, keyed: bool) -> Expanded {
    let (variables, condition, value) = transform(maker, args)?;
    let mut inserted = vec![maker.accumulator()?];
    if keyed {
        inserted.push(maker.ident(&variables.first)?);
    }
    inserted.push(value);
    let step = maker.call(hidden::MAP_INSERT, inserted)?;
    let step = maker.filtered(condition, step)?;
    maker.collect(range, variables, Kind::Map(Vec::new()), step)
}

/// The last argument, and those before it.
fn split_last(mut args: Vec<Expr>) -> Result<(Expr, Vec<Expr>), Refusal> {
    match args.pop() {
        Some(last) => Ok((last, args)),
        None => Err(Stop.into()), // the caller counted
    }
}
