//! The rows that are served now: the built-in ones, and those of custom resources.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use crate::apiserver::registry::{Resource, kinds, table};

/// Read with every request; written when a definition changes.
#[derive(Debug, Default)]
pub struct Rows {
    custom: RwLock<Arc<Vec<&'static Resource>>>,
    changes: watch::Sender<u64>,
}

impl Rows {
    fn custom(&self) -> Arc<Vec<&'static Resource>> {
        self.custom
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces the rows of all custom resources.
    pub fn set(&self, rows: Vec<&'static Resource>) {
        *self.custom.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rows);
        self.touch();
    }

    /// Something else that documents are made of has changed.
    pub fn touch(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// For waiting until some row may have changed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether a row that was found before still is what its definition says: a definition that is
    /// being deleted is the same until it is gone.
    pub fn holds(&self, row: &Resource) -> bool {
        let Some(custom) = row.custom else {
            return true;
        };
        self.custom().iter().any(|now| {
            let same = now.custom.is_some_and(|now| {
                now.definition == custom.definition && now.made_of == custom.made_of
            });
            same && now.version == row.version
        })
    }

    /// Rises with every change, so that documents are made anew only then.
    pub fn changes(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Every row, the built-in ones first.
    pub fn all(&self) -> Vec<&'static Resource> {
        let built_in = kinds::table().iter();
        built_in.chain(self.custom().iter().copied()).collect()
    }

    /// The row at `/apis/<group>/<version>/<plural>`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        table::find(group, version, plural).or_else(|| {
            let custom = self.custom();
            custom
                .iter()
                .copied()
                .find(|row| row.plural == plural && row.group == group && row.version == version)
        })
    }

    /// The row of `pods` or `deployments.apps`, in the group's first version.
    pub fn by_plural(&self, qualified: &str) -> Option<&'static Resource> {
        table::by_plural(qualified).or_else(|| {
            let (plural, group) = qualified.split_once('.')?;
            let custom = self.custom();
            custom
                .iter()
                .copied()
                .find(|row| row.plural == plural && row.group == group)
        })
    }

    /// Whether a group and version is served at all.
    pub fn serves(&self, group: &str, version: &str) -> bool {
        table::serves(group, version)
            || self
                .custom()
                .iter()
                .any(|row| row.group == group && row.version == version)
    }
}
