//! The rows: a file per API group or large kind.

use super::Resource;

/// Every built-in row, in discovery order.
pub fn table() -> &'static [Resource] {
    &[]
}
