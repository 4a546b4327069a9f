//! Gives Services their addresses and node ports, and takes them back.
//!
//! A cluster address is claimed by creating the IPAddress object named after it, a node port by an
//! entry in one ConfigMap changed by compare-and-swap: both hold with several API servers.
//! See docs/decisions/service-allocation.md. Always true:
//! - Nothing is claimed on a dry run.
//! - Only the claim of the same service (by uid) is given back.
//! - A claim that its service does not use, left by a crash or a refused update, may be taken over
//!   once it is a minute old.

mod addresses;
mod carry;
mod external;
mod families;
mod ports;

use std::{net::IpAddr, ops::RangeInclusive, sync::Arc};

use ipnet::IpNet;
use serde_json::Value;

use super::{Late, Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::{
        Resource,
        kinds::value::{set, text},
    },
    request::User,
    status::{Cause, Status},
};

/// A claim younger than this may belong to a write under way.
const SETTLED_SECONDS: i64 = 60;

/// What addresses and ports there are to give.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The first range is that of the default family; a second one is of the other family.
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
    objects: Arc<Late>,
    config: ServiceConfig,
}

impl Allocator {
    pub fn new(objects: Arc<Late>, config: ServiceConfig) -> Self {
        Self { objects, config }
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
        if text(service, "spec.type") == "ExternalName" {
            return Ok(());
        }
        let name = text(service, "metadata.name").to_owned();
        let refuse = |cause: Cause| Status::invalid("", "Service", &name, vec![cause]);
        families::complete(service, &self.config.cidrs).map_err(refuse)?;
        let objects = self.objects.get()?;
        let addresses = addresses::Pool {
            objects: &*objects,
            cidrs: &self.config.cidrs,
            reserved: &self.config.reserved_addresses,
            owner: Owner::of(service),
            dry_run: request.dry_run,
        };
        let (ips, claimed) = addresses.give(service, request.old).await?;
        if let Some(first) = ips.first() {
            set(service, "spec.clusterIP", first.clone());
            set(service, "spec.clusterIPs", ips);
        }
        let pool = ports::Pool {
            objects: &*objects,
            range: &self.config.node_ports,
            reserved: &self.config.reserved_ports,
            owner: Owner::of(service),
            dry_run: request.dry_run,
        };
        let given = pool.give(service, request.old).await;
        if given.is_err() {
            addresses.take_back(&claimed).await;
        }
        given
    }

    async fn release(&self, resource: &Resource, service: &Value) {
        if !resource.group.is_empty() || resource.plural != "services" {
            return;
        }
        let Ok(objects) = self.objects.get() else {
            return;
        };
        let owner = Owner::of(service);
        let addresses = addresses::Pool {
            objects: &*objects,
            cidrs: &self.config.cidrs,
            reserved: &self.config.reserved_addresses,
            owner: owner.clone(),
            dry_run: false,
        };
        addresses.take_back(&addresses::held(service)).await;
        let ports = ports::Pool {
            objects: &*objects,
            range: &self.config.node_ports,
            reserved: &self.config.reserved_ports,
            owner,
            dry_run: false,
        };
        ports.take_back(&ports::held(service)).await;
    }

    async fn replaced(&self, resource: &Resource, old: &Value, new: &Value) {
        if !resource.group.is_empty() || resource.plural != "services" {
            return;
        }
        let mut ips = addresses::held(old);
        let kept = addresses::held(new);
        ips.retain(|ip| !kept.contains(ip));
        let mut given = ports::held(old);
        let kept = ports::held(new);
        given.retain(|port| !kept.contains(port));
        let (Ok(objects), false) = (self.objects.get(), ips.is_empty() && given.is_empty()) else {
            return;
        };
        let owner = Owner::of(old);
        let addresses = addresses::Pool {
            objects: &*objects,
            cidrs: &self.config.cidrs,
            reserved: &self.config.reserved_addresses,
            owner: owner.clone(),
            dry_run: false,
        };
        addresses.take_back(&ips).await;
        let ports = ports::Pool {
            objects: &*objects,
            range: &self.config.node_ports,
            reserved: &self.config.reserved_ports,
            owner,
            dry_run: false,
        };
        ports.take_back(&given).await;
    }
}

fn user() -> User {
    User::internal("system:apiserver", &["system:masters"])
}

#[cfg(test)]
mod tests;
