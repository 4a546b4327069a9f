//! Pods that fill disks and memory.
