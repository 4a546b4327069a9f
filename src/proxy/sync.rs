//! Carries steps out: one nf_tables transaction each, then forgets stale UDP flows. Blocking.

use std::collections::{BTreeSet, HashMap};

use netns::{
    conntrack, nft,
    route::{Change, Prefix, Socket},
};

use super::{
    Config, Error,
    model::{Backend, Front, Plan, Protocol},
    render::{Notice, State, Step},
    table,
};
use crate::informer::Key;

/// With more chains than this, and more than twice of what was used last, those that nothing points to
/// any more are taken away.
const FEW_CHAINS: usize = 512;

/// The table in the kernel and the picture of it.
pub struct Programmer {
    config: Config,
    socket: nft::Socket,
    state: State,
    most_chains: usize,
}

impl Programmer {
    /// Makes the table anew from all services, in one transaction.
    pub fn start(config: Config, plans: Vec<(Key, Plan)>) -> Result<(Self, Vec<Notice>), Error> {
        let mut programmer = Self {
            socket: nft::Socket::open().map_err(Error::Start)?,
            config,
            state: State::default(),
            most_chains: FEW_CHAINS,
        };
        programmer.route()?;
        let mut step = Step::default();
        for (key, plan) in plans {
            programmer.state.update(&key, plan, &mut step);
        }
        programmer.rebuild()?;
        forget(&step.moved)?;
        Ok((programmer, step.notices))
    }

    /// Brings the kernel to the new plans. If the change does not fit what is there, because
    /// somebody else changed the table, all of it is made anew.
    pub fn apply(&mut self, plans: Vec<(Key, Plan)>) -> Result<Vec<Notice>, Error> {
        let mut step = Step::default();
        for (key, plan) in plans {
            self.state.update(&key, plan, &mut step);
        }
        let notices = std::mem::take(&mut step.notices);
        if step.is_empty() {
            return Ok(notices);
        }
        let moved = std::mem::take(&mut step.moved);
        if self.state.chains() > self.most_chains {
            self.state.forget_chains();
            self.most_chains = FEW_CHAINS.max(2 * self.state.chains());
            self.rebuild()?;
        } else if let Err(error) = self.socket.commit(table::change(&self.config, step)) {
            tracing::warn!(%error, "change refused, making the table anew");
            self.rebuild()?;
        }
        forget(&moved)?;
        Ok(notices)
    }

    fn rebuild(&mut self) -> Result<(), Error> {
        let batch = table::rebuild(&self.config, self.state.whole());
        self.socket.commit(batch).map_err(Error::Commit)
    }

    /// The node itself reaches services even if it has no route to anywhere else.
    fn route(&self) -> Result<(), Error> {
        let Some((range, device)) = &self.config.service_route else {
            return Ok(());
        };
        let mut socket = Socket::open().map_err(Error::Start)?;
        let link = socket.link(device).map_err(Error::Route)?;
        let to = Prefix::new(range.network(), range.prefix_len());
        socket
            .apply(vec![Change::add_route(link.index, to, None)])
            .map_err(Error::Route)
    }
}

/// Takes table and route away; both may be gone already.
pub fn remove(config: &Config) -> Result<(), Error> {
    let mut batch = nft::Batch::new();
    batch.remove_table(&table::table(config));
    nft::Socket::open()
        .and_then(|mut socket| socket.commit(batch))
        .map_err(Error::Commit)?;
    let Some((range, device)) = &config.service_route else {
        return Ok(());
    };
    let to = Prefix::new(range.network(), range.prefix_len());
    let removed = Socket::open().and_then(|mut socket| {
        let link = socket.link(device)?;
        socket.apply(vec![Change::delete_route(link.index, to)])
    });
    match removed {
        Err(error) if !error.is_absent() => Err(Error::Route(error)),
        _ => Ok(()),
    }
}

/// UDP senders never begin anew, so flows to a backend that went, or begun before there was one,
/// are forgotten. TCP is left alone: ending backends drain.
fn forget(moved: &[(Front, BTreeSet<Backend>)]) -> Result<(), Error> {
    let fronts: HashMap<_, _> = moved
        .iter()
        .filter(|(front, _)| front.protocol == Protocol::Udp)
        .map(|(front, backends)| ((front.address, front.port), backends))
        .collect();
    if fronts.is_empty() {
        return Ok(());
    }
    let mut stale = conntrack::list(false).map_err(Error::Conntrack)?;
    stale.retain(|entry| {
        let (std::net::IpAddr::V4(address), port) = entry.original.destination else {
            return false;
        };
        let backends = fronts
            .get(&(Some(address), port))
            .or_else(|| fronts.get(&(None, port)));
        let (std::net::IpAddr::V4(source), source_port) = entry.reply.source else {
            return false;
        };
        entry.original.protocol == Protocol::Udp.number()
            && backends.is_some_and(|backends| !backends.contains(&(source, source_port)))
    });
    conntrack::delete(&stale).map_err(Error::Conntrack)
}
