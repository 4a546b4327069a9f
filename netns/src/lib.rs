//! Network namespaces, links, addresses, routes, bridges and nf_tables over netlink.
