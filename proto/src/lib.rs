//! The Kubernetes schema table and its codecs.
//!
//! One table of types drives protobuf<->JSON, pruning, strict validation and strategic merge.
//! Does no I/O; knows no other crate of ours.
