//! Brings the kernel to the picture of it: one nf_tables transaction each, then forgets stale UDP
//! flows. Blocking.
//!
//! The picture is changed first. What the kernel has of it is known or not: after a failure, or when
//! somebody else has changed the table, all of it is written, until it works.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use netns::{
    monitor::Changes,
    nft,
    route::{Change, Prefix, Socket},
};

use super::{
    Config, Error, blocking,
    model::{Plan, Protocol},
    render::{Notice, State, Step},
    routes::Routes,
    table,
};
use crate::{
    informer::Key,
    repair::{
        HostState,
        flows::{self, Front, Served},
        programmer::{Outcome, Programmer},
    },
};

/// With more chains than this, and more than twice of what was used last, those that nothing points to
/// any more are taken away.
pub(super) const FEW_CHAINS: usize = 512;

/// The table in the kernel and the picture of it.
pub struct Writer {
    config: Config,
    socket: nft::Socket,
    table: Programmer,
    state: State,
    most_chains: usize,
    /// Fronts whose tracked flows may be older than the rules.
    stale: BTreeSet<Front>,
    /// The link of the routes to the services, when it was there last.
    link: Option<u32>,
    routes: Routes,
}

impl Writer {
    /// Knows these plans; nothing is written yet.
    pub fn open(config: Config, plans: Vec<(Key, Plan)>) -> Result<(Self, Vec<Notice>), Error> {
        let mut state = State::default();
        let mut step = Step::default();
        for (key, plan) in plans {
            state.update(&key, plan, &mut step);
        }
        let writer = Self {
            socket: nft::Socket::open().map_err(Error::Start)?,
            table: Programmer::new(table::table(&config)),
            stale: state.udp_fronts(),
            config,
            state,
            most_chains: FEW_CHAINS,
            link: None,
            routes: Routes::default(),
        };
        Ok((writer, step.notices))
    }

    /// Services have addresses of these ranges. Those that they had before go with the next
    /// [`Writer::settle`], and so do what a daemon before this one has left.
    pub fn set_ranges(&mut self, ranges: BTreeSet<IpNet>) {
        self.routes.set(ranges);
    }

    /// The port of the socket by which the table is written.
    pub fn own_port(&self) -> Result<u32, Error> {
        self.socket.port().map_err(Error::Start)
    }

    /// Takes the new plans over and brings the kernel there. What fails is for [`Writer::settle`].
    pub fn apply(&mut self, plans: Vec<(Key, Plan)>) -> (Vec<Notice>, Result<(), Error>) {
        let mut step = Step::default();
        for (key, plan) in plans {
            self.state.update(&key, plan, &mut step);
        }
        let notices = std::mem::take(&mut step.notices);
        let moved = std::mem::take(&mut step.moved).into_iter();
        let udp = moved.filter(|front| front.protocol == Protocol::Udp);
        self.stale
            .extend(udp.map(|front| (front.address.map(Into::into), front.port)));
        if step.is_empty() {
            return (notices, Ok(()));
        }
        let written = match self.state.chains() > self.most_chains {
            true => {
                self.state.forget_chains();
                self.most_chains = FEW_CHAINS.max(2 * self.state.chains());
                self.rebuild()
            }
            false => self.write(step),
        };
        (notices, written.and_then(|_| self.forget_flows()))
    }

    fn write(&mut self, step: Step) -> Result<Outcome, Error> {
        let (config, state) = (&self.config, &self.state);
        let change = || table::change(config, step);
        let whole = || table::rebuild(config, state.whole());
        let written = self.table.commit(&mut self.socket, change, whole);
        written.map_err(Error::Commit)
    }

    fn rebuild(&mut self) -> Result<Outcome, Error> {
        let whole = table::rebuild(&self.config, self.state.whole());
        let written = self.table.replace(&mut self.socket, whole);
        let outcome = written.map_err(Error::Commit)?;
        if outcome.is_restored() {
            self.stale = self.state.udp_fronts();
        }
        Ok(outcome)
    }

    /// Compares what there is with the picture and restores what differs. Returns what others had
    /// undone.
    pub fn settle(&mut self) -> Result<Vec<String>, Error> {
        let mut restored = Vec::new();
        self.table.verify(&mut self.socket).map_err(Error::Commit)?;
        if self.table.doubt().is_some() && self.rebuild()?.is_restored() {
            restored.push(format!("the nf_tables table {}", self.table.table()));
        }
        let first = self.link.is_none();
        let made = self.route()?;
        if !first {
            restored.extend(made.iter().map(|to| format!("the route to {to}")));
        }
        self.forget_flows()?;
        Ok(restored)
    }

    /// The node itself reaches services even if it has no route to anywhere else. Which routes were there
    /// before and had to be made again; without the link that is for later.
    fn route(&mut self) -> Result<Vec<Prefix>, Error> {
        let Some((ranges, device)) = &self.config.service_routes else {
            return Ok(Vec::new());
        };
        let mut socket = Socket::open().map_err(Error::Start)?;
        let link = match socket.link(device) {
            Ok(link) if link.up => link.index,
            Ok(_) => return Ok(Vec::new()),
            Err(error) if error.is_absent() => return Ok(Vec::new()),
            Err(error) => return Err(Error::Route(error)),
        };
        let made = self.routes.settle(&mut socket, link, *ranges.primary());
        self.link = Some(link);
        made.map_err(Error::Route)
    }

    /// Flows to a backend that went, or begun before there was one. What fails is tried again.
    fn forget_flows(&mut self) -> Result<(), Error> {
        let front = |front: &Front| (*front, self.state.served(*front));
        let served: Served = self.stale.iter().map(front).collect();
        flows::forget_stale(&served).map_err(Error::Conntrack)?;
        self.stale.clear();
        Ok(())
    }

    /// Takes in what has changed on this host; whether that may have undone something of ours.
    fn notice(&mut self, changes: &Changes) -> bool {
        let device = self
            .config
            .service_routes
            .as_ref()
            .map(|(_, device)| device);
        let is_up = |device| {
            let link = changes.links.get(device);
            link.is_some_and(|link| link.as_ref().is_some_and(|link| link.up))
        };
        let lost_route = self.link.is_some_and(|link| {
            changes.lost_routes.contains(&link)
                || changes.lost_addresses.iter().any(|(lost, _)| *lost == link)
        });
        // With a link its routes go, which the kernel does not tell.
        self.table.notice(changes) || lost_route || changes.overrun || device.is_some_and(is_up)
    }
}

/// The writer, shared between who changes services and who repairs.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Writer>>);

impl Shared {
    pub fn new(writer: Writer) -> Self {
        Self(Arc::new(Mutex::new(writer)))
    }

    /// A panic in between leaves a table that is not known, which the next change makes anew.
    pub fn lock(&self) -> MutexGuard<'_, Writer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostState for Shared {
    type Error = Error;

    fn notice(&self, changes: &Changes) -> bool {
        self.lock().notice(changes)
    }

    async fn repair(&self) -> Result<Vec<String>, Error> {
        let shared = self.clone();
        blocking(move || shared.lock().settle()).await
    }
}

/// Takes table and routes away; both may be gone already.
pub fn remove(config: &Config) -> Result<(), Error> {
    let mut batch = nft::Batch::new();
    batch.remove_table(&table::table(config));
    nft::Socket::open()
        .and_then(|mut socket| socket.commit(batch))
        .map_err(Error::Commit)?;
    let Some((ranges, device)) = &config.service_routes else {
        return Ok(());
    };
    let range = ranges.primary();
    let own = Prefix::new(range.network(), range.prefix_len());
    let removed = Socket::open().and_then(|mut socket| {
        let link = socket.link(device)?.index;
        let others = socket.static_routes(link)?.into_iter();
        let others = others.filter(|to| *to != own);
        let all = std::iter::once(own).chain(others);
        socket.apply(all.map(|to| Change::delete_route(link, to)).collect())
    });
    match removed {
        Err(error) if !error.is_absent() => Err(Error::Route(error)),
        _ => Ok(()),
    }
}
