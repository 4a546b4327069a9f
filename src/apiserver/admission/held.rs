//! What a write takes for itself while it is admitted, and what it was judged by.
//!
//! Plugins fill it, the write settles it once it knows whether the object is stored.
//! Always true: what was taken is kept or given back, also when the write ends in an error or in the
//! middle because nobody waits for it any more.

use crate::store::{Expect, Guard};
use std::sync::Arc;

/// Something taken for an object before it is stored: an address, ports, a share of a quota.
#[async_trait::async_trait]
pub trait Reservation: Send + Sync {
    /// The object is stored, and what was taken is its own.
    async fn keep(self: Box<Self>) {}

    /// Nothing was stored.
    async fn give_back(self: Box<Self>);
}

#[derive(Default)]
pub struct Held {
    guards: Vec<Guard>,
    taken: Vec<Box<dyn Reservation>>,
}

impl Held {
    /// The write depends on this key of the store being as it was judged.
    pub fn depend(&mut self, key: Arc<str>, expect: Expect) {
        self.guards.push(Guard { key, expect });
    }

    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    pub fn depends_on(&self, key: &str) -> bool {
        self.guards.iter().any(|guard| &*guard.key == key)
    }

    pub fn take(&mut self, reservation: impl Reservation + 'static) {
        self.taken.push(Box::new(reservation));
    }

    /// `stored`: whether the write came to its end.
    pub async fn settle(mut self, stored: bool) {
        // One by one out of the list, so that the rest is given back if this is dropped as well.
        while let Some(reservation) = self.taken.pop() {
            match stored {
                true => reservation.keep().await,
                false => reservation.give_back().await,
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if taken.is_empty() {
            return;
        }
        // Without a runtime the process ends, and what is left is found by those who tidy.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                for reservation in taken {
                    reservation.give_back().await;
                }
            });
        }
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("guards", &self.guards)
            .field("taken", &self.taken.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    struct Noted(&'static str, mpsc::UnboundedSender<String>);

    #[async_trait::async_trait]
    impl Reservation for Noted {
        async fn keep(self: Box<Self>) {
            let _ = self.1.send(format!("{} kept", self.0));
        }

        async fn give_back(self: Box<Self>) {
            let _ = self.1.send(format!("{} given back", self.0));
        }
    }

    #[tokio::test]
    async fn what_was_taken_is_kept_or_given_back() {
        let (notes, mut noted) = mpsc::unbounded_channel();
        let held = || {
            let mut held = Held::default();
            held.take(Noted("address", notes.clone()));
            held.take(Noted("port", notes.clone()));
            held
        };
        held().settle(true).await;
        held().settle(false).await;
        drop(held());
        for want in [
            "port kept",
            "address kept",
            "port given back",
            "address given back",
            "address given back",
            "port given back",
        ] {
            assert_eq!(noted.recv().await.as_deref(), Some(want));
        }
    }
}
