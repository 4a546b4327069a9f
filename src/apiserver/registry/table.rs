//! Finding a row.

use super::{Resource, kinds};

/// The row at `/apis/<group>/<version>/<plural>`.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    kinds::table()
        .iter()
        .find(|row| row.plural == plural && row.group == group && row.version == version)
}

/// The row of `pods` or `deployments.apps`, in the group's first version.
pub fn by_plural(qualified: &str) -> Option<&'static Resource> {
    let (plural, group) = qualified.split_once('.').unwrap_or((qualified, ""));
    kinds::table()
        .iter()
        .find(|row| row.plural == plural && row.group == group)
}

/// Whether a group and version is served at all.
pub fn serves(group: &str, version: &str) -> bool {
    kinds::table()
        .iter()
        .any(|row| row.group == group && row.version == version)
}
