//! Brings addresses and node ports back to what the Services say.
//!
//! What a crash, or a give-back that failed, left behind would stay taken until somebody needs it, and
//! a claim that somebody deleted would leave its Service without one. A part of the daemon; as
//! upstream, looks every few minutes, and only if something has changed since.

use std::{sync::Weak, time::Duration};

use ipnet::IpNet;
use serde_json::Value;

use super::{Owner, Shared, addresses};
use crate::apiserver::{objects::Objects, registry::kinds::value::text};

/// As upstream's repair controllers.
const EVERY: Duration = Duration::from_secs(180);

pub async fn run(shared: Weak<Shared>) {
    let mut seen = None;
    loop {
        tokio::time::sleep(EVERY).await;
        let objects = shared.upgrade();
        let objects = objects.and_then(|shared| Some((shared.objects.get().ok()?, shared)));
        let Some((objects, shared)) = objects else {
            // The server has ended; so will the parts of the daemon.
            return std::future::pending().await;
        };
        let now = (
            objects.changed("services"),
            objects.changed(addresses::PLURAL),
        );
        if seen != Some(now) {
            let settled = pass(&shared, &*objects).await;
            // What is too young to judge is looked at again.
            seen = settled.then_some(now);
        }
    }
}

/// Whether nothing is left that a later pass could find stale.
pub async fn pass(shared: &Shared, objects: &dyn Objects) -> bool {
    let services = objects.list("services", "").await;
    for service in &services {
        for ip in addresses::held(service) {
            if is_ours(&shared.config.cidrs, &ip) {
                let pool = shared.addresses(objects, Owner::of(service), false);
                pool.restore(&ip).await;
            }
        }
    }
    let mut settled = true;
    for claim in objects.list(addresses::PLURAL, "").await {
        let ip = text(&claim, "metadata.name");
        let pool = shared.addresses(objects, owner(&claim), false);
        if pool.is_stale(ip, &claim).await {
            settled &= pool.remove(ip, &claim).await;
        } else {
            settled &= pool.is_used(ip, &claim).await;
        }
    }
    shared.ports(objects, nobody(), false).tidy().await;
    settled
}

fn is_ours(cidrs: &[IpNet], ip: &str) -> bool {
    ip.parse()
        .is_ok_and(|ip: std::net::IpAddr| cidrs.iter().any(|cidr| cidr.contains(&ip)))
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
