//! Cluster addresses: one IPAddress object each, whose creation is the claim.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Owner, ReservedAddress, SETTLED_SECONDS, families, user};
use crate::apiserver::{
    objects::{Named, Objects},
    registry::{
        Causes,
        kinds::value::{text, texts},
    },
    status::{Reason, Status},
};

const PLURAL: &str = "ipaddresses.networking.k8s.io";
/// Names the service by uid: a recreated service of the same name is another one.
const UID: &str = "vetch/service-uid";
/// Of a large range only so many addresses are used.
const MOST: u128 = 1 << 20;
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

impl Pool<'_> {
    /// The service's complete `clusterIPs`, and which of them were claimed just now.
    pub async fn give(
        &self,
        service: &Value,
        old: Option<&Value>,
    ) -> Result<(Vec<String>, Vec<String>), Status> {
        let asked = texts(service, "spec.clusterIPs")
            .first()
            .copied()
            .unwrap_or_default();
        if text(service, "spec.clusterIP") == "None" || asked == "None" {
            return Ok((vec!["None".to_owned()], Vec::new()));
        }
        let kept = old.map(held).unwrap_or_default();
        let asked = held(service);
        let mut ips = Vec::new();
        let mut claimed = Vec::new();
        for (index, family) in texts(service, "spec.ipFamilies").into_iter().enumerate() {
            let one = match asked.get(index) {
                Some(ip) if kept.contains(ip) => Ok(ip.clone()),
                // What is no address at all is refused by validation, with its path.
                Some(ip) if ip.parse::<IpAddr>().is_err() => {
                    ips.push(ip.clone());
                    continue;
                }
                Some(ip) => self.requested(service, ip).await,
                None => self.any(family).await,
            };
            match one {
                Ok(ip) => {
                    if !kept.contains(&ip) {
                        claimed.push(ip.clone());
                    }
                    ips.push(ip);
                }
                Err(status) => {
                    self.take_back(&claimed).await;
                    return Err(status);
                }
            }
        }
        Ok((ips, claimed))
    }

    /// Gives addresses back that this very service holds.
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

    async fn requested(&self, service: &Value, ip: &str) -> Result<String, Status> {
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
        match self.claim(ip).await? {
            true => Ok(address.to_string()),
            false => Err(refuse("provided IP is already allocated")),
        }
    }

    async fn any(&self, family: &str) -> Result<String, Status> {
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
            if self.claim(&name).await? {
                return Ok(name);
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
            if self.is_stale(name, claim).await && self.claim(name).await? {
                return Ok(name.to_owned());
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

    /// Whether the address is this service's now.
    async fn claim(&self, ip: &str) -> Result<bool, Status> {
        if self.dry_run {
            return Ok(match self.objects.get(PLURAL, "", ip).await {
                None => true,
                Some(claim) => self.is_stale(ip, &claim).await,
            });
        }
        for _ in 0..2 {
            match self
                .objects
                .create(&user(), PLURAL, "", self.object(ip))
                .await
            {
                Ok(_) => return Ok(true),
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
            }
            let Some(claim) = self.objects.get(PLURAL, "", ip).await else {
                continue;
            };
            let own = claim["metadata"]["annotations"][UID].as_str() == Some(&self.owner.uid);
            if own && !self.owner.uid.is_empty() {
                return Ok(true);
            }
            if !self.is_stale(ip, &claim).await || !self.remove(ip, &claim).await {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Whether the claim's service is gone or uses another address, and it is no claim just made.
    async fn is_stale(&self, ip: &str, claim: &Value) -> bool {
        let created = text(claim, "metadata.creationTimestamp").parse::<jiff::Timestamp>();
        let age = created.map(|created| jiff::Timestamp::now().as_second() - created.as_second());
        if age.is_ok_and(|age| age < SETTLED_SECONDS) {
            return false;
        }
        let parent = &claim["spec"]["parentRef"];
        if text(parent, "resource") != "services" {
            return false;
        }
        let service = self
            .objects
            .get("services", text(parent, "namespace"), text(parent, "name"))
            .await;
        service.is_none_or(|service| !held(&service).iter().any(|own| own == ip))
    }

    async fn remove(&self, ip: &str, claim: &Value) -> bool {
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
        match self.objects.delete(&user(), target, options).await {
            Ok(_) => true,
            Err(status) => {
                tracing::debug!(ip, %status, "address not given back");
                false
            }
        }
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
