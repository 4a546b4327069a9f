//! Counts what an evaluation costs, and ends it when it costs too much.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Deref,
    sync::Arc,
};

use crate::cel::{
    library::{automaton::Automaton, pattern},
    value::EvalError,
};

/// Most that one evaluation may cost: what Kubernetes calls the per call limit.
pub const PER_CALL_LIMIT: u64 = 1_000_000;

/// Most work of one evaluation, in units of some thirty nanoseconds.
///
/// Costs are those of the original, which counts some operations as one however much they do:
/// joining and comparing lists, compiling a computed pattern. This limit ends what hides work
/// behind such an operation. Nothing else comes near it: a cost of 1 is at most 5 units elsewhere.
const MAX_WORK: u64 = 2_000_000;

/// What a caller allows a group of evaluations to cost together, such as all rules of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    remaining: u64,
}

impl Budget {
    /// For all rules of a custom resource, or all expressions of a policy's binding.
    pub fn for_rules() -> Self {
        Self::new(10_000_000)
    }

    /// For all match conditions of a webhook or a policy.
    pub fn for_match_conditions() -> Self {
        Self::new(2_500_000)
    }

    pub fn new(cost: u64) -> Self {
        Self { remaining: cost }
    }

    pub fn remaining(self) -> u64 {
        self.remaining
    }

    pub(crate) fn spend(&mut self, cost: u64) {
        self.remaining = self.remaining.saturating_sub(cost);
    }
}

/// Patterns that a program knows before it runs.
pub(crate) type Patterns = BTreeMap<Arc<str>, Automaton>;

/// The cost of one evaluation.
pub(crate) struct Meter<'a> {
    cost: u64,
    limit: u64,
    /// Whether the limit is the rest of the caller's budget, not that of one evaluation.
    is_budget: bool,
    work: u64,
    patterns: &'a Patterns,
    /// Patterns that were computed. Dropped with the evaluation.
    computed: HashMap<String, Arc<Automaton>>,
}

/// A compiled pattern.
pub(crate) enum Pattern<'a> {
    Known(&'a Automaton),
    Computed(Arc<Automaton>),
}

impl Deref for Pattern<'_> {
    type Target = Automaton;

    fn deref(&self) -> &Automaton {
        match self {
            Self::Known(automaton) => automaton,
            Self::Computed(automaton) => automaton,
        }
    }
}

impl<'a> Meter<'a> {
    pub fn new(budget: Budget, patterns: &'a Patterns) -> Self {
        Self {
            cost: 0,
            limit: budget.remaining.min(PER_CALL_LIMIT),
            is_budget: budget.remaining < PER_CALL_LIMIT,
            work: 0,
            patterns,
            computed: HashMap::new(),
        }
    }

    /// What was spent, never more than was allowed by much: a call's cost is known after it.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    fn exceeded(&self) -> EvalError {
        if self.is_budget {
            EvalError::Budget
        } else {
            EvalError::CostLimit
        }
    }

    #[inline]
    pub fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit {
            return Err(self.exceeded());
        }
        Ok(())
    }

    /// Notes work; ends the evaluation where it is too much.
    #[inline]
    pub fn work(&mut self, units: u64) -> Result<(), EvalError> {
        self.add_work(units);
        if self.work > MAX_WORK {
            return Err(EvalError::CostLimit);
        }
        Ok(())
    }

    /// Notes work where it is too late to end: the next `work` does.
    pub fn add_work(&mut self, units: u64) {
        self.work = self.work.saturating_add(units);
    }

    /// The compiled pattern; compiling counts as work.
    pub fn pattern(&mut self, text: &str) -> Result<Pattern<'a>, EvalError> {
        if let Some(known) = self.patterns.get(text) {
            return Ok(Pattern::Known(known));
        }
        if let Some(known) = self.computed.get(text) {
            return Ok(Pattern::Computed(Arc::clone(known)));
        }
        // Compiling takes microseconds for each character, and many for a repetition.
        self.work(5_000 + 100 * text.len() as u64)?;
        let compiled = Arc::new(pattern::compile(text).map_err(EvalError::new)?);
        self.work(10 * compiled.states())?;
        if self.computed.len() < 16 {
            self.computed.insert(text.to_owned(), Arc::clone(&compiled));
        }
        Ok(Pattern::Computed(compiled))
    }

    /// Uses the patterns of another program; gives those used before.
    pub fn swap_patterns(&mut self, patterns: &'a Patterns) -> &'a Patterns {
        std::mem::replace(&mut self.patterns, patterns)
    }

    /// What was spent since `before`, taken out: composed variables have a limit of their own.
    pub fn begin_nested(&mut self) -> u64 {
        std::mem::replace(&mut self.cost, 0)
    }

    /// Adds back what was taken out.
    pub fn end_nested(&mut self, before: u64) {
        self.cost = self.cost.saturating_add(before);
    }
}
