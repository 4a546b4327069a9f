//! Variables of loops.

use crate::cel::types::Type;

/// Names and types, the innermost last. A later one hides an earlier one of the same name.
#[derive(Default)]
pub(super) struct Scope {
    variables: Vec<(String, Type)>,
}

impl Scope {
    pub fn declare(&mut self, name: &str, ty: Type) {
        self.variables.push((name.to_owned(), ty));
    }

    pub fn mark(&self) -> usize {
        self.variables.len()
    }

    /// Forgets what was declared after the mark.
    pub fn leave(&mut self, mark: usize) {
        self.variables.truncate(mark);
    }

    pub fn find(&self, name: &str) -> Option<Type> {
        let found = self.variables.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, ty)| ty.clone())
    }
}
