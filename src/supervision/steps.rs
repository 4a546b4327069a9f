//! How far a pod's start and end have come, as far as anything lies behind each step that a daemon
//! which is killed there would leave.
//!
//! Always true: whatever the step, the next daemon brings the pod to where it shall be, and nothing is
//! left over. Test builds are killed at each of them in turn (`tests/order/steps.rs`).

#[cfg(feature = "test-hooks")]
use super::hooks;

/// In the order in which a pod comes to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    // The start.
    FolderMade,
    PodRecorded,
    SupervisorForked,
    PodGroupsMade,
    SandboxMade,
    VolumesMounted,
    AddressClaimed,
    NetworkWired,
    PortsOpened,
    ImageHeld,
    ContainerRecorded,
    ContainerPrepared,
    ContainerStarted,
    LogLinked,
    StatusWritten,
    // The end.
    StopAsked,
    StopSignalled,
    ContainerGone,
    SupervisorEnded,
    PodGroupsRemoved,
    FolderRemoved,
    PortsClosed,
    NetworkUnwired,
    AddressReleased,
    VolumesUnmounted,
    VolumesRemoved,
    EndWritten,
    ObjectDeleted,
    LogsRemoved,
}

impl Step {
    pub const START: [Self; 15] = [
        Self::FolderMade,
        Self::PodRecorded,
        Self::SupervisorForked,
        Self::PodGroupsMade,
        Self::SandboxMade,
        Self::VolumesMounted,
        Self::AddressClaimed,
        Self::NetworkWired,
        Self::PortsOpened,
        Self::ImageHeld,
        Self::ContainerRecorded,
        Self::ContainerPrepared,
        Self::ContainerStarted,
        Self::LogLinked,
        Self::StatusWritten,
    ];
    pub const END: [Self; 14] = [
        Self::StopAsked,
        Self::StopSignalled,
        Self::ContainerGone,
        Self::SupervisorEnded,
        Self::PodGroupsRemoved,
        Self::FolderRemoved,
        Self::PortsClosed,
        Self::NetworkUnwired,
        Self::AddressReleased,
        Self::VolumesUnmounted,
        Self::VolumesRemoved,
        Self::EndWritten,
        Self::ObjectDeleted,
        Self::LogsRemoved,
    ];

    /// By which a failure is ordered.
    pub fn name(self) -> String {
        format!("step/{self:?}")
    }
}

/// A pod has come so far: here the daemon is killed, if that was ordered.
#[cfg(feature = "test-hooks")]
pub fn reached(step: Step) {
    hooks::provoked_here(&step.name());
}

/// A pod has come so far.
#[cfg(not(feature = "test-hooks"))]
#[inline]
pub fn reached(_step: Step) {}
