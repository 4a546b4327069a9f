//! Filling the store.
