//! Cluster addresses: one IPAddress object each, whose creation is the claim.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Owner, ReservedAddress, SETTLED_SECONDS, families, user};
use crate::{
    apiserver::{
        cache,
        objects::{Named, Objects},
        registry::{
            Causes,
            kinds::value::{text, texts},
        },
        status::{Reason, Status},
    },
    store::{Expect, Guard},
};

pub const PLURAL: &str = "ipaddresses.networking.k8s.io";
/// Names the service by uid: a recreated service of the same name is another one.
const UID: &str = "vetch/service-uid";
/// Of a large range only so many addresses are used.
const MOST: u128 = 1 << 20;
/// A claim whose Service changes all the time is left to the repair.
const RETRIES: usize = 16;
/// Collisions with other servers before giving up.
const ATTEMPTS: usize = 64;

pub struct Pool<'a> {
    pub objects: &'a dyn Objects,
    pub cidrs: &'a [IpNet],
    pub reserved: &'a [ReservedAddress],
    pub owner: Owner,
    pub dry_run: bool,
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
    fn new(ip: &str, claim: &Value) -> Self {
        Self {
            ip: ip.to_owned(),
            revision: revision(claim),
        }
    }
}

fn revision(object: &Value) -> Option<u64> {
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

    /// Gives addresses back that this very service holds and does not use.
    pub async fn take_back(&self, ips: &[String]) {
        if self.dry_run {
            return;
        }
        for ip in ips {
            let Some(claim) = self.objects.get(PLURAL, "", ip).await else {
                continue;
            };
            if claim["metadata"]["annotations"][UID].as_str() == Some(&self.owner.uid) {
                self.remove(ip, &claim).await;
            }
        }
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
        let inside = self
            .cidrs
            .iter()
            .any(|cidr| cidr.contains(&address) && cidr.network() != address);
        if !inside {
            let ranges: Vec<String> = self.cidrs.iter().map(IpNet::to_string).collect();
            return Err(refuse(&format!(
                "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                ranges.join(",")
            )));
        }
        if self.is_kept(address) {
            return Err(refuse("provided IP is already allocated"));
        }
        self.claim(&address.to_string())
            .await?
            .ok_or_else(|| refuse("provided IP is already allocated"))
    }

    async fn any(&self, family: &str) -> Result<Claimed, Status> {
        let full = || {
            Status::internal(format!(
                "failed to allocate a serviceIP: no {family} address is free"
            ))
        };
        let range = self
            .cidrs
            .iter()
            .find(|cidr| families::of_range(cidr) == family)
            .ok_or_else(full)?;
        let existing = self.objects.list(PLURAL, "").await;
        let taken: HashSet<&str> = existing
            .iter()
            .map(|claim| text(claim, "metadata.name"))
            .collect();
        let mut attempts = 0;
        for ip in candidates(range, rand::random()) {
            let name = ip.to_string();
            if taken.contains(&*name) || self.is_kept(ip) {
                continue;
            }
            if let Some(claimed) = self.claim(&name).await? {
                return Ok(claimed);
            }
            attempts += 1;
            if attempts == ATTEMPTS {
                break;
            }
        }
        // All are named: perhaps some are named for nothing.
        for claim in existing.iter().filter(|claim| {
            let ip = text(claim, "metadata.name").parse::<IpAddr>();
            ip.is_ok_and(|ip| range.contains(&ip) && !self.is_kept(ip))
        }) {
            let name = text(claim, "metadata.name");
            if self.is_stale(name, claim).await
                && let Some(claimed) = self.claim(name).await?
            {
                return Ok(claimed);
            }
        }
        Err(full())
    }

    /// Whether the address is kept for another service.
    fn is_kept(&self, ip: IpAddr) -> bool {
        self.reserved.iter().any(|kept| {
            kept.address == ip
                && (kept.namespace, kept.name) != (&*self.owner.namespace, &*self.owner.name)
        })
    }

    /// Makes the address this service's, unless it is another's.
    async fn claim(&self, ip: &str) -> Result<Option<Claimed>, Status> {
        if self.dry_run {
            let held = self.objects.get(PLURAL, "", ip).await;
            let free = match &held {
                None => true,
                Some(claim) => self.is_stale(ip, claim).await,
            };
            return Ok(free.then(|| Claimed::new(ip, &Value::Null)));
        }
        for _ in 0..2 {
            match self
                .objects
                .create(&user(), PLURAL, "", self.object(ip))
                .await
            {
                Ok(claim) => return Ok(Some(Claimed::new(ip, &claim))),
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
            }
            let Some(claim) = self.objects.get(PLURAL, "", ip).await else {
                continue;
            };
            let own = claim["metadata"]["annotations"][UID].as_str() == Some(&self.owner.uid);
            if own && !self.owner.uid.is_empty() {
                return Ok(Some(Claimed::new(ip, &claim)));
            }
            if !self.is_stale(ip, &claim).await || !self.remove(ip, &claim).await {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Whether the claim's service is gone or uses another address, and it is no claim just made.
    pub async fn is_stale(&self, ip: &str, claim: &Value) -> bool {
        let created = text(claim, "metadata.creationTimestamp").parse::<jiff::Timestamp>();
        let age = created.map(|created| jiff::Timestamp::now().as_second() - created.as_second());
        if age.is_ok_and(|age| age < SETTLED_SECONDS)
            || text(claim, "spec.parentRef.resource") != "services"
        {
            return false;
        }
        !uses(self.service_of(claim).await.as_deref(), ip, claim)
    }

    /// Whether the claim needs no further look: its Service has the address, or it is not for one.
    pub async fn is_used(&self, ip: &str, claim: &Value) -> bool {
        text(claim, "spec.parentRef.resource") != "services"
            || uses(self.service_of(claim).await.as_deref(), ip, claim)
    }

    /// Makes the claim of an address that this Service has, if there is none.
    pub async fn restore(&self, ip: &str) {
        match self.objects.get(PLURAL, "", ip).await {
            None => {
                let made = self
                    .objects
                    .create(&user(), PLURAL, "", self.object(ip))
                    .await;
                let (namespace, name) = (&self.owner.namespace, &self.owner.name);
                match made {
                    Ok(_) => {
                        tracing::warn!(ip, namespace, name, "a Service's address was not claimed")
                    }
                    Err(status) => tracing::debug!(ip, %status, "address not claimed"),
                }
            }
            Some(claim) => {
                let uid = claim["metadata"]["annotations"][UID].as_str();
                if uid.is_some_and(|uid| uid != self.owner.uid)
                    && uses(self.service_of(&claim).await.as_deref(), ip, &claim)
                {
                    let (namespace, name) = (&self.owner.namespace, &self.owner.name);
                    tracing::warn!(
                        ip,
                        namespace,
                        name,
                        "address assigned to multiple Services; please recreate this one"
                    );
                }
            }
        }
    }

    async fn service_of(&self, claim: &Value) -> Option<Arc<Value>> {
        let parent = &claim["spec"]["parentRef"];
        let (namespace, name) = (text(parent, "namespace"), text(parent, "name"));
        self.objects.get("services", namespace, name).await
    }

    /// Removes a claim, unless its Service uses the address at that very moment.
    pub async fn remove(&self, ip: &str, claim: &Value) -> bool {
        let target = Named {
            plural: PLURAL,
            subresource: "",
            namespace: "",
            name: ip,
        };
        let options = match text(claim, "metadata.uid") {
            "" => json!({}),
            uid => json!({"preconditions": {"uid": uid}}),
        };
        for _ in 0..RETRIES {
            let service = self.service_of(claim).await;
            if uses(service.as_deref(), ip, claim) {
                return false;
            }
            let guards = vec![as_found(claim, service.as_deref())];
            match self
                .objects
                .delete(&user(), target, options.clone(), guards)
                .await
            {
                Ok(_) => return true,
                // The Service was changed: does it use the address now?
                Err(status) if status.reason == Reason::Conflict => {}
                Err(status) => {
                    tracing::debug!(ip, %status, "address not given back");
                    return false;
                }
            }
        }
        false
    }

    fn object(&self, ip: &str) -> Value {
        let family = ip.parse().map_or("IPv4", |ip| families::family(&ip));
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": ip, "annotations": {UID: self.owner.uid},
                "labels": {"ipaddress.kubernetes.io/ip-family": family, "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
            "spec": {"parentRef": {"group": "", "resource": "services",
                "namespace": self.owner.namespace, "name": self.owner.name}}})
    }
}

/// Whether the Service that a claim is for has the address.
fn uses(service: Option<&Value>, ip: &str, claim: &Value) -> bool {
    let uid = claim["metadata"]["annotations"][UID].as_str();
    service.is_some_and(|service| {
        let same = uid.is_none_or(|uid| uid == text(service, "metadata.uid"));
        same && held(service).iter().any(|own| own == ip)
    })
}

/// The Service that a claim is for, as it was found.
fn as_found(claim: &Value, service: Option<&Value>) -> Guard {
    let parent = &claim["spec"]["parentRef"];
    let key = cache::key("services", text(parent, "namespace"), text(parent, "name"));
    let revision = service.map(|service| revision(service).unwrap_or_default());
    Guard {
        key,
        expect: revision.map_or(Expect::Absent, Expect::ModRevision),
    }
}

/// Addresses in the order they are tried: the upper part from a random place on, then the static
/// band below, which is left to those who ask for an address.
fn candidates(range: &IpNet, seed: u64) -> impl Iterator<Item = IpAddr> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let size = 1u128.checked_shl(bits).unwrap_or(MOST).min(MOST);
    // Neither the network's own address nor IPv4's broadcast address.
    let last = size.saturating_sub(if range.max_prefix_len() == 32 { 2 } else { 1 });
    let band = (size / 16).clamp(16, 256);
    let upper = (last + 1).saturating_sub(band);
    let start = if upper == 0 {
        0
    } else {
        u128::from(seed) % upper
    };
    let network = range.network();
    (0..upper)
        .map(move |step| band + (start + step) % upper)
        .chain(1..band.min(last + 1))
        .map(move |offset| plus(network, offset))
}

fn plus(network: IpAddr, offset: u128) -> IpAddr {
    match network {
        IpAddr::V4(ip) => {
            Ipv4Addr::from_bits(ip.to_bits() + u32::try_from(offset).unwrap_or_default()).into()
        }
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() + offset).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_part_first_and_every_address_once() {
        for (range, first_at_least, count) in [
            ("10.0.0.0/24", 16, 254),
            ("10.0.0.0/16", 256, 65534),
            ("10.0.0.0/28", 1, 14),
            ("10.0.0.0/29", 1, 6),
        ] {
            let net: IpNet = range.parse().unwrap();
            let all: Vec<IpAddr> = candidates(&net, 12345).collect();
            let IpAddr::V4(first) = all[0] else {
                panic!("IPv4")
            };
            assert!(
                first.to_bits() - 0x0a00_0000 >= first_at_least,
                "{range}: {first}"
            );
            let distinct: HashSet<&IpAddr> = all.iter().collect();
            assert_eq!((all.len(), distinct.len()), (count, count), "{range}");
            assert!(all.iter().all(|ip| net.contains(ip)));
        }
    }
}
