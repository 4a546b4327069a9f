//! One nf_tables table of ours, and whether the kernel is known to hold what it should.
//!
//! Its owner has the desired state and changes it first, then calls [`Programmer::commit`] with the
//! change and with a way to make all of it. Blocking.
//! Always true:
//! - After a transaction that failed, or a change by others, what the kernel has is unknown: the next
//!   commit makes the whole table anew, in one transaction.
//! - What is known was acknowledged by the kernel.

use netns::{
    monitor::Changes,
    nft::{Batch, Socket, Table},
};

/// Why what the kernel has is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// This process has not written it yet.
    New,
    /// Our own last transaction failed.
    Failed,
    /// Somebody else has changed it.
    Others,
}

/// How a commit went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The change alone.
    Changed,
    /// All of it, because of a doubt if there was one.
    Rebuilt(Option<Doubt>),
}

impl Outcome {
    /// Others had undone what was there.
    pub fn is_restored(self) -> bool {
        self == Self::Rebuilt(Some(Doubt::Others))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    /// As wanted; the handle is the kernel's name for this very table, none if it shall not be there.
    Known {
        handle: Option<u64>,
    },
    Unknown(Doubt),
}

#[derive(Debug)]
pub struct Programmer {
    table: Table,
    kernel: Kernel,
}

impl Programmer {
    pub fn new(table: Table) -> Self {
        Self {
            table,
            kernel: Kernel::Unknown(Doubt::New),
        }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Why the kernel may have something else than was committed last.
    pub fn doubt(&self) -> Option<Doubt> {
        match self.kernel {
            Kernel::Known { .. } => None,
            Kernel::Unknown(doubt) => Some(doubt),
        }
    }

    /// Brings the kernel to the desired state: by `change`, if what it has is known, or else, or if that
    /// does not fit, by `whole`.
    pub fn commit(
        &mut self,
        socket: &mut Socket,
        change: impl FnOnce() -> Batch,
        whole: impl FnOnce() -> Batch,
    ) -> Result<Outcome, netns::Error> {
        if let Kernel::Known { .. } = self.kernel {
            let known = std::mem::replace(&mut self.kernel, Kernel::Unknown(Doubt::Failed));
            match socket.commit(change()) {
                Ok(()) => {
                    self.kernel = known;
                    return Ok(Outcome::Changed);
                }
                Err(error) => {
                    let table = self.table.to_string();
                    tracing::warn!(%error, table, "change refused, making the table anew");
                }
            }
        }
        self.replace(socket, whole())
    }

    /// Brings the kernel to the desired state by making the whole table anew.
    pub fn replace(&mut self, socket: &mut Socket, whole: Batch) -> Result<Outcome, netns::Error> {
        let doubt = self.doubt();
        // Until it is done; what others have done stays theirs.
        if doubt != Some(Doubt::Others) {
            self.kernel = Kernel::Unknown(Doubt::Failed);
        }
        socket.commit(whole)?;
        let handle = socket.table_handle(&self.table)?;
        self.kernel = Kernel::Known { handle };
        Ok(Outcome::Rebuilt(doubt))
    }

    /// Takes in what has changed; true if that puts this table in doubt.
    pub fn notice(&mut self, changes: &Changes) -> bool {
        let touched = changes.overrun || changes.tables.contains(&self.table.key());
        // Before the first commit there is nothing of ours to undo.
        let ours = !matches!(self.kernel, Kernel::Unknown(Doubt::New));
        if touched && ours {
            self.kernel = Kernel::Unknown(Doubt::Others);
        }
        touched && ours
    }

    /// Compares the table that is there with the one that was made.
    pub fn verify(&mut self, socket: &mut Socket) -> Result<(), netns::Error> {
        if let Kernel::Known { handle } = self.kernel
            && socket.table_handle(&self.table)? != handle
        {
            self.kernel = Kernel::Unknown(Doubt::Others);
        }
        Ok(())
    }
}
