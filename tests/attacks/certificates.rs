//! Certificate requests and tokens.
