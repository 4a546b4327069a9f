//! Scratch folders that live as long as the pod, on disk or in memory.

use std::{io, path::Path};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use nix::{errno::Errno, mount::MsFlags};

use super::{atomic, mountinfo};
use crate::kubelet::container::{self, Facts};

/// What a folder for everybody is made with.
const MODE: u32 = 0o777;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmptyDir {
    pub medium: Medium,
    pub mode: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    Disk,
    Memory { bytes: u64 },
}

impl EmptyDir {
    /// Memory is bounded by the volume's own limit, the pod's and the node's, whichever is least.
    pub fn new(wanted: &EmptyDirVolumeSource, pod: &Pod, facts: &Facts) -> Result<Self, String> {
        let medium = match wanted.medium.as_deref().unwrap_or_default() {
            "" => Medium::Disk,
            "Memory" => {
                let limit = wanted.size_limit.as_ref().map(container::bytes);
                let all = [
                    limit,
                    container::pod_memory_limit(pod),
                    Some(facts.memory_bytes),
                ];
                let least = all.into_iter().flatten().filter(|bytes| *bytes > 0).min();
                Medium::Memory {
                    bytes: least.ok_or("it is not known how much memory the node has")?,
                }
            }
            other => {
                return Err(format!(
                    "storage medium {other:?} is not supported by this version"
                ));
            }
        };
        let mode = wanted.mode.map(|mode| mode.unsigned_abs() & 0o7777);
        Ok(Self {
            medium,
            mode: mode.unwrap_or(MODE),
        })
    }

    /// Makes the folder, unless it is there: what its users changed since stays.
    pub fn make(&self, folder: &Path, group: Option<u32>) -> Result<(), String> {
        let made = atomic::make_folder(folder, self.mode)?;
        let fresh = match self.medium {
            Medium::Disk => made,
            Medium::Memory { bytes } => mount_tmpfs(folder, bytes)?,
        };
        if fresh {
            let setgid = if group.is_some() { 0o2070 } else { 0 };
            atomic::own(folder, None, group)?;
            atomic::set_mode(folder, self.mode | setgid)?;
        }
        Ok(())
    }
}

/// Mounts memory there, unless it is mounted; true if it was not. It is never swapped out where
/// the kernel can promise that (6.4).
pub fn mount_tmpfs(folder: &Path, bytes: u64) -> Result<bool, String> {
    let failed = |source: io::Error| format!("mount tmpfs on {}: {source}", folder.display());
    if mountinfo::is_mount_point(folder).map_err(failed)? {
        return Ok(false);
    }
    let mount = |options: String| {
        nix::mount::mount(
            Some("tmpfs"),
            folder,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
    };
    match mount(format!("size={bytes},noswap")) {
        Err(Errno::EINVAL) => mount(format!("size={bytes}")),
        done => done,
    }
    .map_err(|error| failed(error.into()))?;
    Ok(true)
}
