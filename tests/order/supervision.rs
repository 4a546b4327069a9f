//! Parts of the daemon that fail or end.
