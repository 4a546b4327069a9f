//! A handle to the verbs for plugins that write, set after both exist.

use std::sync::{Arc, OnceLock, Weak};

use crate::apiserver::{objects::Objects, status::Status};

/// Holds the verbs weakly: they hold the plugins, and a stopped server must go away.
#[derive(Default)]
pub struct Late(OnceLock<Weak<dyn Objects>>);

impl Late {
    /// Only the first call counts.
    pub fn set(&self, objects: &Arc<dyn Objects>) {
        let _ = self.0.set(Arc::downgrade(objects));
    }

    pub fn get(&self) -> Result<Arc<dyn Objects>, Status> {
        self.0
            .get()
            .and_then(Weak::upgrade)
            .ok_or_else(|| Status::internal("the API server is starting or stopping"))
    }
}
