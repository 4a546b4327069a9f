//! Exec, attach, port-forward and the proxies.
