//! Stopping all processes of a group where they are, and letting them go on.

use std::time::{Duration, Instant};

use crate::{Error, Group, Layout, group::failed, wait};

/// How long the kernel may take to stop every task.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

impl Group {
    /// Stops every process of the group and below; returns once all stand still. If they do not in
    /// time, they are let go again and the error says so.
    pub fn freeze(&self) -> Result<(), Error> {
        let began = Instant::now();
        let frozen = match self.layout() {
            Layout::V1 => self.freeze_v1(began + PATIENCE),
            Layout::V2 => self.freeze_v2(began + PATIENCE),
        };
        match frozen {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.thaw()?;
                Err(Error::NotFrozen {
                    path: self.name().into(),
                    waited: began.elapsed(),
                })
            }
            Err(error) => {
                if let Err(error) = self.thaw() {
                    tracing::warn!(%error, "thaw after a failed freeze");
                }
                Err(error)
            }
        }
    }

    /// Lets a frozen group go on; one that runs is left as it is.
    pub fn thaw(&self) -> Result<(), Error> {
        match self.layout() {
            Layout::V1 => self.write("freezer.state", "THAWED"),
            Layout::V2 => self.write("cgroup.freeze", "0"),
        }
    }

    fn freeze_v2(&self, deadline: Instant) -> Result<bool, Error> {
        self.write("cgroup.freeze", "1")?;
        let dir = self.unified()?;
        wait::for_event(&dir, "frozen 1", deadline)
            .map_err(|source| failed("wait for the freezing of", &dir, source))
    }

    /// v1 gives no notice. Writing again takes in tasks that were born meanwhile.
    fn freeze_v1(&self, deadline: Instant) -> Result<bool, Error> {
        loop {
            self.write("freezer.state", "FROZEN")?;
            if self.text("freezer.state")?.trim() == "FROZEN" {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
    }
}
