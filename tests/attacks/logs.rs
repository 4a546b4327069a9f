//! Output without end.
