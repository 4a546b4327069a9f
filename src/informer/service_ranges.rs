//! The ranges that are addresses of Services now, and when they change: what the ServiceCIDRs say.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::{Changes, Informer, Informers};

#[derive(Debug)]
pub struct ServiceRanges {
    cidrs: Informer<ServiceCIDR>,
    changes: Changes<ServiceCIDR>,
    told: BTreeSet<IpNet>,
}

impl ServiceRanges {
    /// Waits until they have been listed.
    pub async fn start(informers: &Informers) -> Self {
        let cidrs: Informer<ServiceCIDR> = informers.get();
        let changes = cidrs.changes();
        cidrs.synced().await;
        Self {
            told: ranges(&cidrs),
            changes,
            cidrs,
        }
    }

    /// As they were told last.
    pub fn told(&self) -> &BTreeSet<IpNet> {
        &self.told
    }

    /// Waits until they are others. One that is being deleted is one until it is gone. `None` when the
    /// informer has ended.
    pub async fn changed(&mut self) -> Option<&BTreeSet<IpNet>> {
        loop {
            self.changes.next().await?;
            let now = ranges(&self.cidrs);
            if now != self.told {
                self.told = now;
                return Some(&self.told);
            }
        }
    }
}

fn ranges(cidrs: &Informer<ServiceCIDR>) -> BTreeSet<IpNet> {
    let specs = cidrs.list().into_iter();
    let texts = specs.flat_map(|cidr| {
        let spec = cidr.spec.as_ref();
        spec.and_then(|spec| spec.cidrs.clone()).unwrap_or_default()
    });
    texts
        .filter_map(|text| text.parse::<IpNet>().ok())
        .map(|range| range.trunc())
        .collect()
}
