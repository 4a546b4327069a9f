//! What is below a field: its steps in order, each with a value. Pure.

use std::collections::BTreeMap;

/// More than this are kept in a tree, whose smallest piece takes as much memory as this many.
const FEW: usize = 12;

/// A map for sets of fields. An object has thousands of items with two or three steps each, and lists have
/// thousands of items: both take little memory and time.
#[derive(Clone, Debug)]
pub enum Steps<T> {
    /// Sorted.
    Few(Vec<(Box<str>, T)>),
    Many(BTreeMap<Box<str>, T>),
}

impl<T> Default for Steps<T> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

/// However they are kept.
impl<T: PartialEq> PartialEq for Steps<T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T: Eq> Eq for Steps<T> {}

fn place<T>(few: &[(Box<str>, T)], step: &str) -> Result<usize, usize> {
    few.binary_search_by(|(known, _)| (**known).cmp(step))
}

impl<T> Steps<T> {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Few(few) => few.is_empty(),
            Self::Many(many) => many.is_empty(),
        }
    }

    pub fn get(&self, step: &str) -> Option<&T> {
        match self {
            Self::Few(few) => place(few, step).ok().map(|at| &few[at].1),
            Self::Many(many) => many.get(step),
        }
    }

    pub fn get_mut(&mut self, step: &str) -> Option<&mut T> {
        match self {
            Self::Few(few) => place(few, step).ok().map(|at| &mut few[at].1),
            Self::Many(many) => many.get_mut(step),
        }
    }

    pub fn contains_key(&self, step: &str) -> bool {
        self.get(step).is_some()
    }

    /// One that is there is replaced.
    pub fn insert(&mut self, step: Box<str>, value: T) {
        match self {
            Self::Few(few) => match place(few, &step) {
                Ok(at) => few[at].1 = value,
                Err(at) if few.len() < FEW => {
                    // Room for no more than there are: most stay at two or three.
                    few.reserve_exact(1);
                    few.insert(at, (step, value));
                }
                Err(_) => {
                    let mut many: BTreeMap<_, _> = std::mem::take(few).into_iter().collect();
                    many.insert(step, value);
                    *self = Self::Many(many);
                }
            },
            Self::Many(many) => {
                many.insert(step, value);
            }
        }
    }

    pub fn remove(&mut self, step: &str) {
        match self {
            Self::Few(few) => {
                if let Ok(at) = place(few, step) {
                    few.remove(at);
                }
            }
            Self::Many(many) => {
                many.remove(step);
            }
        }
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        match self {
            Self::Few(few) => few.retain(|(step, _)| keep(step)),
            Self::Many(many) => many.retain(|step, _| keep(step)),
        }
    }

    /// In the order of their text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        let (few, many) = match self {
            Self::Few(few) => (Some(few), None),
            Self::Many(many) => (None, Some(many)),
        };
        let few = few
            .into_iter()
            .flatten()
            .map(|(step, value)| (&**step, value));
        let many = many
            .into_iter()
            .flatten()
            .map(|(step, value)| (&**step, value));
        few.chain(many)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_behave_the_same() {
        for count in [0, 1, FEW, FEW + 1, 100] {
            let mut steps = Steps::default();
            let mut tree = BTreeMap::new();
            // In an order of no meaning, some of them twice.
            for at in (0..count).chain(0..count / 2) {
                let step = format!("f:{}", at * 7919 % 101);
                steps.insert(step.clone().into(), at);
                tree.insert(step, at);
            }
            let same = |steps: &Steps<usize>, tree: &BTreeMap<String, usize>| {
                let tree: Vec<(&str, &usize)> =
                    tree.iter().map(|(step, at)| (&**step, at)).collect();
                assert_eq!(steps.iter().collect::<Vec<_>>(), tree);
                assert_eq!(steps.is_empty(), tree.is_empty());
            };
            same(&steps, &tree);
            for step in ["f:0", "f:63", "f:none"] {
                assert_eq!(steps.get(step), tree.get(step));
                assert_eq!(steps.get_mut(step).copied(), tree.get(step).copied());
                steps.remove(step);
                tree.remove(step);
                same(&steps, &tree);
            }
            let again = tree.iter().map(|(step, at)| (step.as_str(), *at));
            let mut other = Steps::default();
            again.for_each(|(step, at)| other.insert(step.into(), at));
            assert_eq!(steps, other);
            steps.retain(|step| step.ends_with('1'));
            tree.retain(|step, _| step.ends_with('1'));
            same(&steps, &tree);
        }
    }
}
