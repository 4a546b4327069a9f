//! Compiled expressions.

mod activation;
mod attribute;
mod eval;
mod fold;
#[cfg(test)]
mod hostile;
mod meter;
mod node;
mod plan;
#[cfg(test)]
mod tests;

pub use activation::Activation;
pub use meter::{Budget, PER_CALL_LIMIT};
pub(crate) use meter::{Meter, Patterns};

use self::{eval::Evaluator, node::Node};
use super::{
    check,
    cost::{self, CostEstimate},
    environment::Environment,
    issue::Issues,
    source::Source,
    syntax,
    types::Type,
    value::{EvalError, Value},
};

/// A compiled expression: immutable, cheap to evaluate, shared between threads.
#[derive(Debug)]
pub struct Program {
    root: Node,
    patterns: Patterns,
    /// Variables of loops that are alive at the same time.
    slots: usize,
    output: Type,
    estimate: CostEstimate,
    /// By number of the environment's variable.
    uses: Box<[bool]>,
    names: Box<[String]>,
}

/// Why an expression cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It does not parse or does not check. Kubernetes prefixes this with `compilation failed: `.
    #[error("{0}")]
    Issues(Issues),
    /// A constant part of it fails. Kubernetes prefixes this with `program instantiation failed: `.
    #[error("{0}")]
    Constant(Box<str>),
}

impl Program {
    /// Parses, checks and compiles `text`.
    ///
    /// Takes time in proportion to the text, which may have 100,000 characters; what macros and
    /// types could make of it is bounded too.
    pub fn compile(environment: &Environment, text: &str) -> Result<Self, CompileError> {
        let source = Source::new(text);
        let ast = syntax::parse(&source).map_err(CompileError::Issues)?;
        let checked = check::check(environment, &source, ast).map_err(CompileError::Issues)?;
        let root = environment.schema("self").map(AsRef::as_ref);
        let estimate = cost::estimate(&checked, root);
        let planned = plan::plan(environment, &checked)
            .map_err(|error| CompileError::Constant(error.to_string().into()))?;
        let names = (0..environment.variable_count())
            .map(|index| environment.variable_name(index).to_owned());
        Ok(Self {
            root: planned.root,
            patterns: planned.patterns,
            slots: planned.slots,
            output: checked.type_of(checked.ast.root.id).clone(),
            estimate,
            uses: planned.uses.into(),
            names: names.collect(),
        })
    }

    /// The type of the value.
    pub fn output_type(&self) -> &Type {
        &self.output
    }

    /// What one evaluation may cost, by the sizes that the schema of `self` allows.
    pub fn estimated_cost(&self) -> CostEstimate {
        self.estimate
    }

    /// Whether the expression names a variable: rules that name `oldSelf` are transition rules.
    pub fn uses(&self, variable: &str) -> bool {
        let mut named = self.names.iter().zip(&self.uses);
        named.any(|(name, used)| *used && name == variable)
    }

    /// Evaluates the expression and takes what it cost from the budget.
    ///
    /// Ends within a tenth of a second or so whatever the expression: [`PER_CALL_LIMIT`] bounds the
    /// cost, and work that the cost does not show is bounded too.
    pub fn evaluate<'v>(
        &'v self,
        activation: &Activation<'v>,
        budget: &mut Budget,
    ) -> Result<Value<'v>, EvalError> {
        let mut evaluator = Evaluator::new(self, activation, *budget);
        let result = evaluator.run(self);
        budget.spend(evaluator.cost());
        result
    }

    /// As [`Self::evaluate`], and what it cost.
    pub fn evaluate_with_cost<'v>(
        &'v self,
        activation: &Activation<'v>,
        budget: &mut Budget,
    ) -> (Result<Value<'v>, EvalError>, u64) {
        let mut evaluator = Evaluator::new(self, activation, *budget);
        let result = evaluator.run(self);
        budget.spend(evaluator.cost());
        (result, evaluator.cost())
    }
}
