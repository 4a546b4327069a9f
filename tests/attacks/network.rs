//! Frames, addresses and ports that are not the pod's own.
