//! Host state that somebody else changes: nf_tables, addresses, routes, sysctls.
