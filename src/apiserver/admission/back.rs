//! The way back to the verbs for plugins that write.

use std::sync::{Arc, Weak};

use crate::apiserver::{objects::Objects, status::Status};

/// Holds the verbs weakly: they hold the plugins, and a stopped server must go away.
#[derive(Clone)]
pub struct Back(Weak<dyn Objects>);

impl Back {
    pub fn new(objects: &Arc<dyn Objects>) -> Self {
        Self(Arc::downgrade(objects))
    }

    pub fn get(&self) -> Result<Arc<dyn Objects>, Status> {
        self.0
            .upgrade()
            .ok_or_else(|| Status::internal("the API server is stopping"))
    }
}
