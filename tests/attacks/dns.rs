//! Clients that hold up cluster DNS.
