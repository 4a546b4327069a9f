//! The node: makes this machine's pods what the API says they are.

pub mod network;
