//! What expressions cost: estimated before they run, counted while they do.
//!
//! Units and formulas are those of cel-go and of Kubernetes, so that the same rules are refused:
//! 1 for a name, a field or a simple call, a tenth for each character that is read.

mod actual;
mod calls;
mod estimate;
mod range;
#[cfg(test)]
mod tests;

pub(crate) use actual::CallCost;
pub(crate) use estimate::estimate;
pub use range::CostEstimate;

/// Cost of a name, and of a field.
pub(crate) const NAME: u64 = 1;
pub(crate) const LIST: u64 = 10;
pub(crate) const MAP: u64 = 30;
pub(crate) const STRUCT: u64 = 40;
/// For each character read.
const CHARACTER: f64 = 0.1;
/// For each character of a pattern.
const PATTERN: f64 = 0.25;
/// An authorization check.
const CHECK: u64 = 350_000;

/// Whether a call reads both of what it compares.
fn compares(overload: &str) -> bool {
    matches!(
        overload,
        "less_string"
            | "greater_string"
            | "less_equals_string"
            | "greater_equals_string"
            | "less_bytes"
            | "greater_bytes"
            | "less_equals_bytes"
            | "greater_equals_bytes"
            | "equals"
            | "not_equals"
    )
}

/// A number times a factor, rounded up, held at the end of the range.
fn scaled(number: u64, factor: f64) -> u64 {
    let product = (number as f64 * factor).ceil();
    if product >= 18_446_744_073_709_551_616.0 {
        return u64::MAX;
    }
    product as u64
}
