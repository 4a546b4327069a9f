//! Trees and files that pods and images make.
