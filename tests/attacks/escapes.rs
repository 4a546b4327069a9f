//! The classes of container escapes.
