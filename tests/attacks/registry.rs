//! Registries that send too much, or lead elsewhere.
