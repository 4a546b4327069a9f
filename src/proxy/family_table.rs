//! The table of one family and the picture of it: one nf_tables transaction each, then stale UDP flows are
//! forgotten. Blocking.
//!
//! The picture is changed first. What the kernel has of it is known or not: after a failure, or when
//! somebody else has changed the table, all of it is written, until it works. The other family's table is
//! not looked at.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netns::{monitor::Changes, nft::Socket};

use super::{
    Config, Error,
    model::{Plan, Protocol},
    render::State,
    step::{Notice, Step},
    table::ServiceTable,
};
use crate::{
    addresses::family::{Family, OfFamily},
    informer::Key,
    repair::{
        flows::{self, Front, Served},
        programmer::{Outcome, Programmer},
    },
};

/// With more chains than this, and more than twice of what was used last, those that nothing points to
/// any more are taken away.
pub(super) const FEW_CHAINS: usize = 512;

pub struct FamilyTable {
    table: ServiceTable,
    /// What is known of the table that the kernel has.
    kernel: Programmer,
    /// The picture.
    state: State,
    /// What has changed in the picture and was not sent yet.
    step: Step,
    most_chains: usize,
    /// Fronts whose tracked flows may be older than the rules.
    stale: BTreeSet<Front>,
}

impl OfFamily for FamilyTable {
    fn family(&self) -> Family {
        self.state.family()
    }
}

impl FamilyTable {
    /// For Services in the family of `pods`, a range of clients inside. `loopback`: see [`ServiceTable::new`].
    pub fn new(config: &Config, pods: IpNet, loopback: Option<u16>) -> Self {
        let table = ServiceTable::new(config, pods, loopback);
        Self {
            kernel: Programmer::new(table.table().clone()),
            state: State::new(pods.family()),
            table,
            step: Step::default(),
            most_chains: FEW_CHAINS,
            stale: BTreeSet::new(),
        }
    }

    /// Takes a Service's new plan over; nothing is written yet. What owners of Services should hear.
    pub fn take(&mut self, key: &Key, plan: Plan) -> Vec<Notice> {
        self.state.update(key, plan, &mut self.step);
        let moved = std::mem::take(&mut self.step.moved).into_iter();
        let udp = moved.filter(|front| front.protocol == Protocol::Udp);
        self.stale
            .extend(udp.map(|front| (front.address, front.port)));
        std::mem::take(&mut self.step.notices)
    }

    /// After the first plans were taken over: whatever is tracked may be older than the rules, which are all
    /// still to be written.
    pub fn begin(&mut self) {
        self.step = Step::default();
        self.stale = self.state.udp_fronts();
    }

    /// Brings the kernel to what was taken over, if that changed anything. What fails is for
    /// [`FamilyTable::settle`].
    pub fn write(&mut self, socket: &mut Socket) -> Result<(), Error> {
        let step = std::mem::take(&mut self.step);
        if step.is_empty() {
            return Ok(());
        }
        match self.state.chains() > self.most_chains {
            true => {
                self.state.forget_chains();
                self.most_chains = FEW_CHAINS.max(2 * self.state.chains());
                self.rebuild(socket)?;
            }
            false => {
                let (table, state) = (&self.table, &self.state);
                let change = || table.change(step.into_delta());
                let whole = || table.rebuild(state.whole());
                let written = self.kernel.commit(socket, change, whole);
                written.map_err(Error::Commit)?;
            }
        }
        self.forget_flows()
    }

    fn rebuild(&mut self, socket: &mut Socket) -> Result<Outcome, Error> {
        self.step = Step::default(); // part of the picture, all of which goes out now
        let whole = self.table.rebuild(self.state.whole());
        let written = self.kernel.replace(socket, whole);
        let outcome = written.map_err(Error::Commit)?;
        if outcome.is_restored() {
            self.stale = self.state.udp_fronts();
        }
        Ok(outcome)
    }

    /// Compares what there is with the picture and restores what differs. Returns what others had
    /// undone.
    pub fn settle(&mut self, socket: &mut Socket) -> Result<Option<String>, Error> {
        self.kernel.verify(socket).map_err(Error::Commit)?;
        let is_restored = self.kernel.doubt().is_some() && self.rebuild(socket)?.is_restored();
        self.forget_flows()?;
        Ok(is_restored.then(|| format!("the nf_tables table {}", self.kernel.table())))
    }

    /// Flows to a backend that went, or begun before there was one. What fails is tried again.
    fn forget_flows(&mut self) -> Result<(), Error> {
        let front = |front: &Front| (*front, self.state.served(*front));
        let served: Served = self.stale.iter().map(front).collect();
        flows::forget_stale_of(self.family(), &served).map_err(Error::Conntrack)?;
        self.stale.clear();
        Ok(())
    }

    /// Takes in what has changed on this host; whether that may have undone something of ours.
    pub fn notice(&mut self, changes: &Changes) -> bool {
        self.kernel.notice(changes)
    }
}
