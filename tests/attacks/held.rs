//! What was tried and held before: it must go on holding.
