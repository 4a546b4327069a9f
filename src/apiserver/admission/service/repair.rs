//! Brings addresses and node ports back to what the Services say.
//!
//! What a crash, or a give-back that failed, left behind would stay taken until somebody needs it, and
//! a claim that somebody deleted would leave its Service without one. A part of the daemon; as
//! upstream, looks every few minutes, and only if something has changed since. What it finds it tells as
//! Events, with the original's reasons.

use std::{net::IpAddr, sync::Weak, time::Duration};

use serde_json::Value;

use super::{
    Owner, Shared,
    addresses::{self, PLURAL, Pool},
    claims::{UID, is_for_a_service, is_labelled, is_managed, is_settled, uses},
    families, ranges,
};
use crate::apiserver::{
    events::{self, About, Said},
    objects::Objects,
    registry::kinds::value::text,
};

use crate::ticks;

/// As upstream's repair controllers.
const EVERY: Duration = Duration::from_secs(180);

pub async fn run(shared: Weak<Shared>) {
    let mut seen = None;
    loop {
        ticks::sleep(EVERY).await;
        let objects = shared.upgrade();
        let objects = objects.and_then(|shared| Some((shared.objects.get().ok()?, shared)));
        let Some((objects, shared)) = objects else {
            // The server has ended; so will the parts of the daemon.
            return std::future::pending().await;
        };
        let now = ["services", PLURAL, ranges::PLURAL].map(|plural| objects.changed(plural));
        if seen != Some(now) {
            let settled = pass(&shared, &*objects).await;
            // What is too young to judge is looked at again.
            seen = settled.then_some(now);
        }
    }
}

/// Whether nothing is left that a later pass could find stale.
pub async fn pass(shared: &Shared, objects: &dyn Objects) -> bool {
    let ranges = ranges::now(objects).await;
    if ranges.is_empty() {
        // That of the configuration comes back soon.
        return false;
    }
    for service in &objects.list("services", "").await {
        let pool = shared.addresses(objects, &ranges, Owner::of(service), false);
        for ip in addresses::held(service) {
            if let Some((reason, message)) = restored(&pool, service, &ip).await {
                tell(
                    objects,
                    About::service(service),
                    "ClusterIPAllocation",
                    reason,
                    &message,
                )
                .await;
            }
        }
    }
    let mut settled = true;
    for claim in &objects.list(PLURAL, "").await {
        if is_managed(claim) {
            let pool = shared.addresses(objects, &ranges, owner(claim), false);
            settled &= tidied(&pool, claim).await;
        }
    }
    shared.ports(objects, nobody(), false).tidy().await;
    settled
}

/// Sees to it that the Service has a claim on its address; what was wrong, if its owner should know.
async fn restored(pool: &Pool<'_>, service: &Value, ip: &str) -> Option<(&'static str, String)> {
    const NOT_ALLOCATED: &str = "ClusterIPNotAllocated";
    let Ok(address) = ip.parse::<IpAddr>() else {
        let message = format!("Cluster IP {ip} is not a valid IP; please recreate Service");
        return Some(("ClusterIPNotValid", message));
    };
    let family = families::family(&address);
    if !pool.is_in_range(address) {
        let message = format!(
            "Cluster IP [{family}]: {ip} is not within any configured Service CIDR; please recreate service"
        );
        return Some(("ClusterIPOutOfRange", message));
    }
    let name = address.to_string();
    let Some(claim) = pool.objects.get(PLURAL, "", &name).await else {
        let message = format!("Cluster IP [{family}]: {ip} is not allocated; repairing");
        return match pool.restore(&name).await {
            true => Some((NOT_ALLOCATED, message)),
            false => None,
        };
    };
    let holder = pool.service_of(&claim).await;
    let is_own = text(&claim, "spec.parentRef.namespace") == pool.owner.namespace
        && text(&claim, "spec.parentRef.name") == pool.owner.name
        && claim["metadata"]["annotations"][UID]
            .as_str()
            .is_none_or(|uid| uid == pool.owner.uid);
    if is_for_a_service(&claim) && !is_own && uses(holder.as_deref(), ip, &claim) {
        let message = format!(
            "Cluster IP [{family}]:{ip} was assigned to multiple services; please recreate service"
        );
        return Some(("ClusterIPAlreadyAllocated", message));
    }
    if is_for_a_service(&claim) && is_own && is_labelled(&name, &claim) {
        return None;
    }
    // One just made may belong to a write under way, and is looked at again.
    if !is_own && !is_settled(&claim) {
        return None;
    }
    // What another Service might take up at this very moment goes only while it does not.
    let removed = match is_for_a_service(&claim) && !is_own {
        true => pool.remove(&name, &claim).await,
        false => pool.delete(&name, &claim).await,
    };
    let recreated = removed && pool.restore(&name).await;
    (recreated && !is_own).then(|| {
        let (namespace, name) = (text(service, "metadata.namespace"), text(service, "metadata.name"));
        let message = format!(
            "the ClusterIP [{family}]: {ip} for Service {namespace}/{name} has a wrong reference; repairing"
        );
        (NOT_ALLOCATED, message)
    })
}

/// Whether the claim needs no later look: its Service has the address, or it has been removed.
async fn tidied(pool: &Pool<'_>, claim: &Value) -> bool {
    let ip = text(claim, "metadata.name");
    let parent = &claim["spec"]["parentRef"];
    let (reason, message) = if is_for_a_service(claim) {
        let service = pool.service_of(claim).await;
        if uses(service.as_deref(), ip, claim) {
            return true;
        }
        if !is_settled(claim) {
            return false;
        }
        let (namespace, name) = (text(parent, "namespace"), text(parent, "name"));
        match service {
            None => (
                "IPAddressNotAllocated",
                format!(
                    "IPAddress: {ip} for Service {namespace}/{name} appears to have leaked: cleaning up"
                ),
            ),
            Some(_) => (
                "IPAddressWrongReference",
                format!(
                    "IPAddress: {ip} for Service {namespace}/{name} has a wrong reference; cleaning up"
                ),
            ),
        }
    } else {
        (
            "IPAddressNotAllocated",
            format!(
                "IPAddress {ip} appears to have been modified, not referencing a Service {parent}: cleaning up"
            ),
        )
    };
    let removed = match is_for_a_service(claim) {
        true => pool.remove(ip, claim).await,
        false => pool.delete(ip, claim).await,
    };
    if removed {
        tell(
            pool.objects,
            About::claim(claim),
            "IPAddressAllocation",
            reason,
            &message,
        )
        .await;
    }
    removed
}

async fn tell(
    objects: &dyn Objects,
    about: About<'_>,
    action: &'static str,
    reason: &'static str,
    message: &str,
) {
    let said = Said {
        component: "ipallocator-repair-controller",
        action,
        reason,
        message,
    };
    events::warn(objects, about, said).await;
}

fn owner(claim: &Value) -> Owner {
    let parent = &claim["spec"]["parentRef"];
    Owner {
        namespace: text(parent, "namespace").to_owned(),
        name: text(parent, "name").to_owned(),
        uid: String::new(),
    }
}

fn nobody() -> Owner {
    Owner {
        namespace: String::new(),
        name: String::new(),
        uid: String::new(),
    }
}
