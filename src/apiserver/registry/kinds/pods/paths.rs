//! Paths inside of volumes and containers.

use crate::apiserver::registry::Causes;

/// Without `..` in it.
pub fn no_backsteps(target: &str, field: &str, causes: &mut Causes) {
    if target.split('/').any(|part| part == "..") {
        causes.invalid(field, target, "must not contain '..'");
    }
}

/// A relative path that leads down only.
pub fn descending(target: &str, field: &str, causes: &mut Causes) {
    if target.starts_with('/') {
        causes.invalid(field, target, "must be a relative path");
    }
    no_backsteps(target, field, causes);
}

/// As [`descending`], and its first name is not one that the node uses for itself.
pub fn local(target: &str, field: &str, causes: &mut Causes) {
    descending(target, field, causes);
    if target.starts_with("..") && target != ".." && !target.starts_with("../") {
        causes.invalid(field, target, "must not start with '..'");
    }
}
