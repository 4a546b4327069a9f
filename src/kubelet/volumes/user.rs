//! Who uses objects and tokens of the API: a pod's volumes, from their first use to their release.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::queue::Queue;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct User {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    uid: String,
    released: CancellationToken,
    /// Something that it uses has changed, and nobody has looked yet.
    changed: AtomicBool,
}

impl User {
    pub fn new(uid: &str) -> Self {
        Self {
            inner: Arc::new(Inner {
                uid: uid.to_owned(),
                released: CancellationToken::new(),
                changed: AtomicBool::new(false),
            }),
        }
    }

    pub fn uid(&self) -> &str {
        &self.inner.uid
    }

    /// Nothing is set up for it from now on.
    pub fn mark_released(&self) {
        self.inner.released.cancel();
    }

    pub fn is_released(&self) -> bool {
        self.inner.released.is_cancelled()
    }

    pub fn released(&self) -> WaitForCancellationFuture<'_> {
        self.inner.released.cancelled()
    }

    /// Whether something has changed since this was asked last.
    pub fn take_changed(&self) -> bool {
        self.inner.changed.swap(false, Ordering::AcqRel)
    }
}

/// The way of a change to whoever brings volumes up to date: UIDs of users, each at most once.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub queue: Arc<Queue<String>>,
}

impl Changes {
    pub fn tell(&self, user: &User) {
        user.inner.changed.store(true, Ordering::Release);
        self.queue.add(user.uid().to_owned());
    }
}
