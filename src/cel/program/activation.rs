//! Values of an environment's variables for one or more evaluations.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use super::Program;
use crate::cel::{
    environment::{COMPOSED, Environment},
    value::{EvalError, Value},
};

/// What the variables are. Made once per request or object, used for all its expressions, which
/// must have been compiled with the same environment (or one that it was made from by adding fields
/// to `variables`).
pub struct Activation<'v> {
    names: Arc<HashMap<String, usize>>,
    pub(super) values: Vec<Option<Value<'v>>>,
    /// Composed variables, and what was found for those that were asked for.
    composed: HashMap<String, usize>,
    programs: Vec<(String, Result<&'v Program, String>)>,
    pub(super) found: RefCell<Vec<Option<Result<Value<'v>, EvalError>>>>,
}

impl<'v> Activation<'v> {
    pub fn new(environment: &Environment) -> Self {
        let mut activation = Self {
            names: environment.names(),
            values: vec![None; environment.variable_count()],
            composed: HashMap::new(),
            programs: Vec::new(),
            found: RefCell::default(),
        };
        activation.bind(COMPOSED, Value::Variables);
        activation
    }

    /// Gives a variable its value; one that the environment does not have is passed over.
    pub fn bind(&mut self, name: &str, value: Value<'v>) -> &mut Self {
        if let Some(index) = self.names.get(name) {
            self.values[*index] = Some(value);
        }
        self
    }

    /// Defines a composed variable: `variables.name`. It is evaluated when it is first asked for,
    /// and then kept. `Err` is why it does not compile.
    pub fn define(&mut self, name: &str, program: Result<&'v Program, String>) -> &mut Self {
        self.composed.insert(name.to_owned(), self.programs.len());
        self.programs.push((name.to_owned(), program));
        self.found.borrow_mut().push(None);
        self
    }

    pub(super) fn name(&self, index: usize) -> &str {
        let named = self.names.iter().find(|(_, known)| **known == index);
        named.map_or("", |(name, _)| name)
    }

    pub(super) fn composed(&self, name: &str) -> Option<usize> {
        self.composed.get(name).copied()
    }

    pub(super) fn program(&self, index: usize) -> Option<&(String, Result<&'v Program, String>)> {
        self.programs.get(index)
    }
}
