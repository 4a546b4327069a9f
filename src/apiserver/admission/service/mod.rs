//! Gives Services their addresses and node ports, and takes them back.
//!
//! A cluster address is claimed by creating the IPAddress object named after it, a node port by an
//! entry in one ConfigMap changed by compare-and-swap: both hold with several API servers.
//! See docs/decisions/service-allocation.md. Always true:
//! - Nothing is claimed on a dry run.
//! - New addresses come from the ranges of ServiceCIDRs that are ready; `ranges.rs` knows them.
//! - Only the claim of the same service (by uid) is given back.
//! - A Service is stored only while its claims on addresses are as they were when it got them, and a
//!   claim is removed only while its Service is as it was when it did not use it: so that neither of
//!   two writes at the same moment takes away what the other has.
//! - A claim that its service does not use, left by a crash, may be taken over once it is a minute
//!   old; `repair.rs` tidies those that nobody takes.

mod addresses;
mod candidates;
mod carry;
mod claims;
mod external;
mod families;
mod ports;
mod ranges;
mod repair;

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    sync::{Arc, atomic::AtomicI64},
};

use ipnet::IpNet;
use serde_json::Value;

use self::ranges::Ranges;
use super::{Late, Operation, Plugin, Request, Reservation};
use crate::{
    apiserver::{
        objects::{Lookup, Objects},
        registry::{
            Resource,
            kinds::value::{set, text},
        },
        request::User,
        status::{Cause, Status},
    },
    supervision::{Parts, Policy},
};

/// A claim younger than this may belong to a write under way.
const SETTLED_SECONDS: i64 = 60;

/// What addresses and ports there are to give.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The first range is that of the default family; a second one is of the other family. Which ranges
    /// there are besides, ServiceCIDRs say.
    pub cidrs: Vec<IpNet>,
    /// Kept for the Services that everything in the cluster asks by these addresses, also while
    /// they do not exist.
    pub reserved_addresses: Vec<ReservedAddress>,
    pub node_ports: RangeInclusive<u16>,
    /// Of that range, but taken on the node by somebody else: the daemon itself.
    pub reserved_ports: Vec<u16>,
    pub external_ips: ExternalIps,
}

pub use external::{ExternalIps, ExternalIpsCheck};

/// An address that one Service alone may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedAddress {
    pub address: IpAddr,
    pub namespace: &'static str,
    pub name: &'static str,
}

/// The service a claim is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    namespace: String,
    name: String,
    uid: String,
}

impl Owner {
    fn of(service: &Value) -> Self {
        let text = |name: &str| text(service, &format!("metadata.{name}")).to_owned();
        Self {
            namespace: text("namespace"),
            name: text("name"),
            uid: text("uid"),
        }
    }
}

pub struct Allocator {
    shared: Arc<Shared>,
}

/// What the plugin, the reservations it makes and the repair share.
struct Shared {
    objects: Arc<Late>,
    config: ServiceConfig,
    /// Held while the table of node ports is changed: writers of this process wait here for each
    /// other, instead of meeting in the store.
    table: tokio::sync::Mutex<ports::Known>,
    /// When it was last told that there is no address left, in seconds.
    full_since: AtomicI64,
}

/// For those who only give back.
static NO_RANGES: Ranges = Ranges::none();

impl Allocator {
    pub fn new(objects: Arc<Late>, config: ServiceConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                objects,
                config,
                table: tokio::sync::Mutex::default(),
                full_since: AtomicI64::new(0),
            }),
        }
    }
}

impl Shared {
    fn addresses<'a>(
        &'a self,
        objects: &'a dyn Objects,
        ranges: &'a Ranges,
        owner: Owner,
        dry_run: bool,
    ) -> addresses::Pool<'a> {
        addresses::Pool {
            objects,
            ranges,
            reserved: &self.config.reserved_addresses,
            owner,
            dry_run,
            full_since: &self.full_since,
        }
    }

    fn ports<'a>(
        &'a self,
        objects: &'a dyn Objects,
        owner: Owner,
        dry_run: bool,
    ) -> ports::Pool<'a> {
        ports::Pool {
            objects,
            range: &self.config.node_ports,
            reserved: &self.config.reserved_ports,
            table: &self.table,
            owner,
            dry_run,
        }
    }
}

/// What a write has claimed for its Service, and what will be free when it is stored.
struct Claims {
    shared: Arc<Shared>,
    owner: Owner,
    ips: Vec<String>,
    ports: ports::Entries,
    dropped: ports::Entries,
}

#[async_trait::async_trait]
impl Reservation for Claims {
    async fn keep(self: Box<Self>) {
        if let Ok(objects) = self.shared.objects.get() {
            let ports = self.shared.ports(&*objects, self.owner, false);
            ports.take_back(&self.dropped).await;
        }
    }

    async fn give_back(self: Box<Self>) {
        if let Ok(objects) = self.shared.objects.get() {
            let ports = self.shared.ports(&*objects, self.owner.clone(), false);
            ports.take_back(&self.ports).await;
            let addresses = self
                .shared
                .addresses(&*objects, &NO_RANGES, self.owner, false);
            addresses.take_back(&self.ips).await;
        }
    }
}

#[async_trait::async_trait]
impl Plugin for Allocator {
    fn name(&self) -> &'static str {
        "ServiceAllocator"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        service: &mut Value,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let create = request.is(Operation::Create, "", "services");
        if !create && !request.is(Operation::Update, "", "services") {
            return Ok(());
        }
        if let Some(old) = request.old {
            carry::over(service, old);
        }
        let objects = self.shared.objects.get()?;
        let owner = Owner::of(service);
        let mut claims = Claims {
            shared: self.shared.clone(),
            owner: owner.clone(),
            ips: Vec::new(),
            ports: ports::Entries::new(),
            dropped: ports::Entries::new(),
        };
        let given = self.give(request, service, &*objects, &mut claims).await;
        if given.is_ok()
            && let Some(old) = request.old
            && !request.dry_run
        {
            let ports = self.shared.ports(&*objects, owner, false);
            claims.dropped = ports.dropped(old, service).await;
        }
        // Also after a refusal: what was claimed before it goes back with the write.
        if !request.dry_run {
            request.round.held.take(claims);
        }
        given
    }

    async fn deleted(&self, resource: &Resource, service: &Value) {
        if !resource.group.is_empty() || resource.plural != "services" {
            return;
        }
        let Ok(objects) = self.shared.objects.get() else {
            return;
        };
        let owner = Owner::of(service);
        let ports = self.shared.ports(&*objects, owner.clone(), false);
        ports.take_back_all(&ports::held(service)).await;
        let addresses = self.shared.addresses(&*objects, &NO_RANGES, owner, false);
        addresses.take_back(&addresses::held(service)).await;
    }

    async fn replaced(&self, resource: &Resource, old: &Value, new: &Value) {
        if !resource.group.is_empty() || resource.plural != "services" {
            return;
        }
        let mut ips = addresses::held(old);
        let kept = addresses::held(new);
        ips.retain(|ip| !kept.contains(ip));
        if ips.is_empty() {
            return;
        }
        if let Ok(objects) = self.shared.objects.get() {
            let addresses = self
                .shared
                .addresses(&*objects, &NO_RANGES, Owner::of(old), false);
            addresses.take_back(&ips).await;
        }
    }

    fn started(&self, parts: &Parts) {
        let shared = Arc::downgrade(&self.shared);
        let name = "poststarthook/start-service-ip-repair-controllers";
        parts.start_endless(name, Policy::Restart, move || repair::run(shared.clone()));
    }
}

impl Allocator {
    async fn give(
        &self,
        request: &mut Request<'_>,
        service: &mut Value,
        objects: &dyn Objects,
        claims: &mut Claims,
    ) -> Result<(), Status> {
        if text(service, "spec.type") == "ExternalName" {
            return Ok(());
        }
        let name = text(service, "metadata.name").to_owned();
        let refuse = |cause: Cause| Status::invalid("", "Service", &name, vec![cause]);
        families::complete(service, &self.shared.config.cidrs).map_err(refuse)?;
        let owner = Owner::of(service);
        let ranges = ranges::now(objects).await;
        let addresses = self
            .shared
            .addresses(objects, &ranges, owner.clone(), request.dry_run);
        let mut claimed = Vec::new();
        let ips = addresses.give(service, request.old, &mut claimed).await;
        for claim in claimed {
            // The Service is stored only while the claim is what it was made for.
            if let Some((key, expect)) = addresses.dependency(&claim) {
                request.round.held.depend(key, expect);
            }
            claims.ips.push(claim.ip);
        }
        let ips = ips?;
        if let Some(first) = ips.first() {
            set(service, "spec.clusterIP", first.clone());
            set(service, "spec.clusterIPs", ips);
        }
        let ports = self.shared.ports(objects, owner, request.dry_run);
        claims.ports = ports.give(service, request.old).await?;
        Ok(())
    }
}

fn user() -> User {
    User::internal("system:apiserver", &["system:masters"])
}

#[cfg(test)]
mod tests;
