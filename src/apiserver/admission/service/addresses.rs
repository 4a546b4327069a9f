//! Which addresses a Service gets: those it asks for, or free ones of the ranges that there are.
//!
//! Always true: as long as a range is not nearly full, what an address costs does not depend on how many
//! there are: some are tried by name before all are listed.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use serde_json::Value;

use super::{
    Owner, ReservedAddress,
    candidates::Bands,
    ranges::{Range, Ranges},
};
use crate::{
    apiserver::{
        cache,
        events::{self, About, Said},
        objects::Objects,
        registry::{
            Causes,
            kinds::value::{text, texts},
        },
        status::Status,
    },
    store::Expect,
};

pub const PLURAL: &str = "ipaddresses.networking.k8s.io";
/// Addresses of each range that are tried by name before all of them are listed.
const PROBES: usize = 32;
/// Collisions with other servers before giving up.
const ATTEMPTS: usize = 64;
/// Of a range without a free address, claims that are looked at for one that nobody uses: the repair
/// finds the others.
const STALE_LOOKS: usize = 256;
/// Between two Events that ranges are full.
const FULL_SECONDS: i64 = 60;

pub struct Pool<'a> {
    pub objects: &'a dyn Objects,
    pub ranges: &'a Ranges,
    pub reserved: &'a [ReservedAddress],
    pub owner: Owner,
    pub dry_run: bool,
    /// When it was last told that there is no address left, in seconds.
    pub full_since: &'a AtomicI64,
}

/// The addresses a service has, without the word None.
pub fn held(service: &Value) -> Vec<String> {
    let mut ips = texts(service, "spec.clusterIPs");
    if ips.is_empty() {
        ips.push(text(service, "spec.clusterIP"));
    }
    ips.into_iter()
        .filter(|ip| !ip.is_empty() && *ip != "None")
        .map(str::to_owned)
        .collect()
}

/// An address that was claimed, and the revision of the claim, where the store tells it.
pub struct Claimed {
    pub ip: String,
    revision: Option<u64>,
}

impl Claimed {
    pub(super) fn new(ip: &str, claim: &Value) -> Self {
        Self {
            ip: ip.to_owned(),
            revision: revision(claim),
        }
    }
}

pub(super) fn revision(object: &Value) -> Option<u64> {
    text(object, "metadata.resourceVersion").parse().ok()
}

impl Pool<'_> {
    /// The service's complete `clusterIPs`. What is claimed for it is added to `claimed`, also
    /// before an error.
    pub async fn give(
        &self,
        service: &Value,
        old: Option<&Value>,
        claimed: &mut Vec<Claimed>,
    ) -> Result<Vec<String>, Status> {
        let asked = texts(service, "spec.clusterIPs")
            .first()
            .copied()
            .unwrap_or_default();
        if text(service, "spec.clusterIP") == "None" || asked == "None" {
            return Ok(vec!["None".to_owned()]);
        }
        let kept = old.map(held).unwrap_or_default();
        let asked = held(service);
        let mut ips = Vec::new();
        for (index, family) in texts(service, "spec.ipFamilies").into_iter().enumerate() {
            let one = match asked.get(index) {
                Some(ip) if kept.contains(ip) => {
                    ips.push(ip.clone());
                    continue;
                }
                // What is no address at all, or another one than before, is refused by validation,
                // with its path.
                Some(ip) if ip.parse::<IpAddr>().is_err() || kept.get(index).is_some() => {
                    ips.push(ip.clone());
                    continue;
                }
                Some(ip) => self.requested(service, ip).await?,
                None => self.any(family).await?,
            };
            ips.push(one.ip.clone());
            claimed.push(one);
        }
        Ok(ips)
    }

    /// The key of a claim in the store, and what it must be for the Service to be stored.
    pub fn dependency(&self, claimed: &Claimed) -> Option<(Arc<str>, Expect)> {
        let row = self.objects.row(PLURAL)?;
        let key = cache::key(row.storage, "", &claimed.ip);
        Some((key, Expect::ModRevision(claimed.revision?)))
    }

    async fn requested(&self, service: &Value, ip: &str) -> Result<Claimed, Status> {
        let refuse = |why: &str| {
            let mut causes = Causes::default();
            let detail = format!("failed to allocate IP {ip}: {why}");
            causes.invalid("spec.clusterIPs", held(service), &detail);
            Status::invalid("", "Service", &self.owner.name, causes.0)
        };
        let Ok(address) = ip.parse::<IpAddr>() else {
            return Err(refuse("not an IP address"));
        };
        // What is kept for a Service is had by it, whatever the ranges are.
        if !self.is_reserved(address) && !self.ranges.give(address) {
            return Err(refuse(
                "the provided network does not match the current range",
            ));
        }
        if self.is_kept(address) {
            return Err(refuse("provided IP is already allocated"));
        }
        self.claim(&address.to_string())
            .await?
            .ok_or_else(|| refuse("provided IP is already allocated"))
    }

    async fn any(&self, family: &str) -> Result<Claimed, Status> {
        let ranges = self.ranges.ready(family);
        let bands: Vec<Bands> = ranges.iter().map(|range| Bands::of(&range.cidr)).collect();
        for bands in &bands {
            for _ in 0..PROBES {
                let Some(ip) = bands.some(rand::random()) else {
                    break;
                };
                if let Some(claimed) = self.free(ip).await? {
                    return Ok(claimed);
                }
            }
        }
        if let Some(claimed) = self.left(&ranges, &bands).await? {
            return Ok(claimed);
        }
        self.tell_full(&ranges).await;
        Err(Status::internal(
            "failed to allocate a serviceIP: range is full",
        ))
    }

    /// Claims the address unless it is somebody's.
    async fn free(&self, ip: IpAddr) -> Result<Option<Claimed>, Status> {
        match self.is_kept(ip) {
            true => Ok(None),
            false => self.claim(&ip.to_string()).await,
        }
    }

    /// One of the few that may be left of ranges that are nearly full.
    async fn left(&self, ranges: &[&Range], bands: &[Bands]) -> Result<Option<Claimed>, Status> {
        let claims = self.objects.list(PLURAL, "").await;
        let named = |claim: &Arc<Value>| text(claim, "metadata.name").parse::<IpAddr>().ok();
        let taken: HashSet<IpAddr> = claims.iter().filter_map(named).collect();
        let mut attempts = 0;
        for bands in bands {
            let seed = rand::random();
            for ip in bands.all(seed).filter(|ip| !taken.contains(ip)) {
                if let Some(claimed) = self.free(ip).await? {
                    return Ok(Some(claimed));
                }
                attempts += 1;
                if attempts == ATTEMPTS {
                    return Ok(None);
                }
            }
        }
        // All are named: perhaps some are named for nothing.
        let inside = |ip: &IpAddr| ranges.iter().any(|range| range.cidr.contains(ip));
        for ip in claims
            .iter()
            .filter_map(named)
            .filter(inside)
            .take(STALE_LOOKS)
        {
            if let Some(claimed) = self.free(ip).await? {
                return Ok(Some(claimed));
            }
        }
        Ok(None)
    }

    async fn tell_full(&self, ranges: &[&Range]) {
        let now = jiff::Timestamp::now().as_second();
        let last = self.full_since.load(Ordering::Relaxed);
        if self.dry_run || now - last < FULL_SECONDS {
            return;
        }
        self.full_since.store(now, Ordering::Relaxed);
        for range in ranges {
            let message = format!(
                "Service CIDR {} is full; you must widen the CIDR in order to create new services",
                range.cidr
            );
            let said = Said {
                component: "kube-apiserver",
                action: "ClusterIPAllocation",
                reason: "ServiceCIDRFull",
                message: &message,
            };
            events::warn(self.objects, About::range(&range.name, &range.uid), said).await;
        }
    }

    /// Whether this service can have the address.
    pub fn is_in_range(&self, ip: IpAddr) -> bool {
        self.is_reserved(ip) || self.ranges.have(ip)
    }

    /// Whether the address is kept for this very service.
    fn is_reserved(&self, ip: IpAddr) -> bool {
        let mut reserved = self.reserved.iter();
        reserved.any(|kept| kept.address == ip && self.is_owner(kept))
    }

    fn is_owner(&self, kept: &ReservedAddress) -> bool {
        (kept.namespace, kept.name) == (&*self.owner.namespace, &*self.owner.name)
    }

    /// Whether the address is kept for another service.
    fn is_kept(&self, ip: IpAddr) -> bool {
        let mut reserved = self.reserved.iter();
        reserved.any(|kept| kept.address == ip && !self.is_owner(kept))
    }
}
