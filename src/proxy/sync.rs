//! Brings the kernel to what Services ask for: the table of each family, and the routes. Blocking.
//!
//! What fails of one family keeps nothing from the other.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use netns::{
    monitor::{Changes, Subject},
    nft,
    route::{Change, Prefix, Socket},
};

use super::{
    Config, Error, blocking,
    family_table::FamilyTable,
    model::Plan,
    routes::{self, Routes},
    step::Notice,
    table,
};
use crate::{
    addresses::family::{Family, OfFamily},
    informer::Key,
    repair::HostState,
};

/// The tables and routes in the kernel and the picture of them.
pub struct Writer {
    socket: nft::Socket,
    /// Of each family that the cluster has.
    tables: Vec<FamilyTable>,
    /// The link of the routes to the services, and its index when it was there last.
    device: Option<String>,
    link: Option<u32>,
    routes: Vec<Routes>,
}

impl Writer {
    /// Knows these plans; nothing is written yet. `loopback`: who passes on connections to node ports of the
    /// loopback address.
    pub fn open(
        config: &Config,
        loopback: &[(Family, u16)],
        plans: Vec<(Key, Plan)>,
    ) -> Result<(Self, Vec<Notice>), Error> {
        let table = |pods: &IpNet| {
            let mut ports = loopback.iter();
            let port = ports.find(|(family, _)| *family == pods.family());
            FamilyTable::new(config, *pods, port.map(|(_, port)| *port))
        };
        let mut writer = Self {
            socket: nft::Socket::open().map_err(Error::Start)?,
            tables: config.cluster_cidrs.iter().map(table).collect(),
            device: config.service_link.clone(),
            link: None,
            routes: config.services.iter().copied().map(Routes::new).collect(),
        };
        let notices = writer.take(plans);
        writer.tables.iter_mut().for_each(FamilyTable::begin);
        Ok((writer, notices))
    }

    /// Services have addresses of these ranges. Those that they had before go with the next
    /// [`Writer::settle`], and so do what a daemon before this one has left.
    pub fn set_ranges(&mut self, ranges: &BTreeSet<IpNet>) {
        for routes in &mut self.routes {
            routes.set(ranges);
        }
    }

    /// The port of the socket by which the tables are written.
    pub fn own_port(&self) -> Result<u32, Error> {
        self.socket.port().map_err(Error::Start)
    }

    /// Takes the new plans over and brings the kernel there. What fails is for [`Writer::settle`].
    pub fn apply(&mut self, plans: Vec<(Key, Plan)>) -> (Vec<Notice>, Result<(), Error>) {
        let notices = self.take(plans);
        let socket = &mut self.socket;
        let tables = self.tables.iter_mut();
        (notices, all(tables.map(|table| table.write(socket))))
    }

    fn take(&mut self, plans: Vec<(Key, Plan)>) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (key, plan) in plans {
            let mut tables = self.tables.iter_mut();
            if let Some(table) = tables.find(|table| table.family() == plan.family) {
                notices.extend(table.take(&key, plan));
            }
        }
        notices
    }

    /// Compares what there is with the picture and restores what differs. Returns what others had
    /// undone.
    pub fn settle(&mut self) -> Result<Vec<String>, Error> {
        let mut restored = Vec::new();
        let socket = &mut self.socket;
        let tables = self.tables.iter_mut().map(|table| {
            restored.extend(table.settle(socket)?);
            Ok(())
        });
        all(tables)?;
        let first = self.link.is_none();
        let made = self.route()?;
        if !first {
            restored.extend(made.iter().map(|to| format!("the route to {to}")));
        }
        Ok(restored)
    }

    /// The node itself reaches services even if it has no route to anywhere else. Which routes were there
    /// before and had to be made again; without the link that is for later.
    fn route(&mut self) -> Result<Vec<Prefix>, Error> {
        let Some(device) = &self.device else {
            return Ok(Vec::new());
        };
        let mut socket = Socket::open().map_err(Error::Start)?;
        let link = match socket.link(device) {
            Ok(link) if link.up => link.index,
            Ok(_) => return Ok(Vec::new()),
            Err(error) if error.is_absent() => return Ok(Vec::new()),
            Err(error) => return Err(Error::Route(error)),
        };
        let mut made = Vec::new();
        let routes = self.routes.iter_mut().map(|routes| {
            made.extend(routes.settle(&mut socket, link)?);
            Ok(())
        });
        let routed = all(routes);
        self.link = Some(link);
        routed.map_err(Error::Route)?;
        Ok(made)
    }

    /// Takes in what has changed on this host; whether that may have undone something of ours.
    fn notice(&mut self, changes: &Changes) -> bool {
        let is_up = |device: &String| {
            let link = changes.links.get(device);
            link.is_some_and(|link| link.as_ref().is_some_and(|link| link.up))
        };
        let lost_route = self.link.is_some_and(|link| {
            changes.lost_routes.contains(&link)
                || changes.lost_addresses.iter().any(|(lost, _)| *lost == link)
        });
        // Every table takes it in.
        let tables = self.tables.iter_mut();
        let noticed = tables.filter_map(|table| table.notice(changes).then_some(()));
        // With a link its routes go, which the kernel does not tell.
        noticed.count() > 0
            || lost_route
            || changes.overrun
            || self.device.as_ref().is_some_and(is_up)
    }
}

/// Does all of them, and tells the first failure.
fn all<E>(steps: impl Iterator<Item = Result<(), E>>) -> Result<(), E> {
    let mut first = Ok(());
    for step in steps {
        first = first.and(step);
    }
    first
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

    fn subject(&self) -> Subject {
        let writer = self.lock();
        let mut families = writer.tables.iter().map(FamilyTable::family);
        Subject {
            ipv6: families.any(|family| family == Family::V6),
            ..Subject::default()
        }
    }

    fn notice(&self, changes: &Changes) -> bool {
        self.lock().notice(changes)
    }

    async fn repair(&self) -> Result<Vec<String>, Error> {
        let shared = self.clone();
        blocking(move || shared.lock().settle()).await
    }
}

/// Takes the tables and routes of both families away; all may be gone already.
pub fn remove(config: &Config) -> Result<(), Error> {
    let removed = nft::Socket::open().and_then(|mut socket| {
        let mut batch = nft::Batch::new();
        for table in Family::ALL.map(|family| table::table(&config.table, family)) {
            // A kernel may not have the other family's.
            if socket.table_handle(&table)?.is_some() {
                batch.remove_table(&table);
            }
        }
        socket.commit(batch)
    });
    removed.map_err(Error::Commit)?;
    let (ranges, Some(device)) = (&config.services, &config.service_link) else {
        return Ok(());
    };
    let removed = Socket::open().and_then(|mut socket| {
        let link = socket.link(device)?.index;
        let own = |range: &IpNet| Prefix::new(range.network(), range.prefix_len());
        let mut all: Vec<Prefix> = ranges.iter().map(own).collect();
        for family in Family::ALL {
            let others = routes::static_routes(&mut socket, link, family)?.into_iter();
            let others: Vec<Prefix> = others.filter(|to| !all.contains(to)).collect();
            all.extend(others);
        }
        let delete = |to| Change::delete_route(link, to);
        socket.apply(all.into_iter().map(delete).collect())
    });
    match removed {
        Err(error) if !error.is_absent() => Err(Error::Route(error)),
        _ => Ok(()),
    }
}
