//! What nodes and tenants may create and change.
