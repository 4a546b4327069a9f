//! Pods' lives, volumes, images and static manifests on a node.
