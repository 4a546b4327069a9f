//! What changes from one state of the table to the next, however often in between. Pure.

use std::collections::{BTreeMap, HashMap};

use netns::nft::{Element, Value};

use super::{
    chains::Numbered,
    elements::{Place, SetName},
    model::Front,
};
use crate::informer::Key;

/// What the owner of a Service should hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub service: Key,
    pub uid: String,
    pub message: String,
}

/// What is to be sent to the kernel, and told.
#[derive(Debug, Default)]
pub struct Step {
    elements: HashMap<Place, Change>,
    pub chains: Numbered,
    /// Fronts whose backends changed.
    pub moved: Vec<Front>,
    pub notices: Vec<Notice>,
}

/// An element's value; `None`: it is not there.
#[derive(Debug)]
struct Change {
    in_kernel: Option<Value>,
    wanted: Option<Value>,
}

impl Change {
    fn is_none(&self) -> bool {
        self.in_kernel == self.wanted
    }
}

impl Step {
    /// The element is to be there. It is not, or [`Step::remove`] was told of it before.
    pub fn add(&mut self, place: Place, value: Value) {
        let change = self.elements.entry(place).or_insert(Change {
            in_kernel: None,
            wanted: None,
        });
        change.wanted = Some(value);
    }

    /// The element with this value is not to be there.
    pub fn remove(&mut self, place: Place, value: Value) {
        let change = self.elements.entry(place).or_insert(Change {
            in_kernel: Some(value),
            wanted: None,
        });
        change.wanted = None;
    }

    /// Whether the kernel has nothing to do.
    pub fn is_empty(&self) -> bool {
        self.elements.values().all(Change::is_none)
    }

    pub fn into_delta(self) -> Delta {
        let mut delta = Delta {
            chains: self.chains,
            ..Delta::default()
        };
        for (place, change) in self.elements {
            if change.is_none() {
                continue;
            }
            if let Some(value) = change.in_kernel {
                put(&mut delta.delete, place.clone(), value);
            }
            if let Some(value) = change.wanted {
                put(&mut delta.add, place, value);
            }
        }
        delta
    }
}

pub type BySet = BTreeMap<SetName, Vec<Element>>;

/// What one transaction changes: it deletes, then makes chains, then adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    pub delete: BySet,
    pub chains: Numbered,
    pub add: BySet,
}

pub fn put(elements: &mut BySet, (set, key): Place, value: Value) {
    let of_set = elements.entry(set).or_default();
    of_set.push(Element { key, value });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Do {
        Add(u8),
        Remove(u8),
    }
    use Do::{Add, Remove};

    #[test]
    fn only_what_is_other_than_before_is_sent() {
        for (done, deleted, added) in [
            (&[Add(1)][..], None, Some(1)),
            (&[Remove(1)], Some(1), None),
            (&[Remove(1), Add(2)], Some(1), Some(2)),
            (&[Remove(1), Add(1)], None, None),
            (&[Add(1), Remove(1)], None, None), // nothing of it has reached the kernel
            (&[Remove(1), Add(2), Remove(2), Add(3)], Some(1), Some(3)),
        ] {
            let (place, value) = ((SetName::ClusterIps, vec![9]), |data| {
                Value::Data(vec![data])
            });
            let mut step = Step::default();
            for one in done {
                match one {
                    Add(data) => step.add(place.clone(), value(*data)),
                    Remove(data) => step.remove(place.clone(), value(*data)),
                }
            }
            let of = |data: Option<u8>| -> BySet {
                let element = |data| Element {
                    key: vec![9],
                    value: value(data),
                };
                let elements = data.map(|data| (SetName::ClusterIps, vec![element(data)]));
                elements.into_iter().collect()
            };
            assert_eq!(step.is_empty(), deleted.is_none() && added.is_none());
            let delta = step.into_delta();
            assert_eq!(
                (delta.delete, delta.add),
                (of(deleted), of(added)),
                "{done:?}"
            );
        }
    }
}
