//! Certificates and keys of a cluster.
