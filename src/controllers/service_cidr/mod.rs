//! ServiceCIDRs: each is said to be ready, and stays while it alone has an address that was given.
//!
//! Always true: the finalizer is removed only when no address was found that would be in no range any
//! more, some seconds after allocators have been told to give none of it.
//!
//! IPAddresses are many and are kept in no cache here: while a ServiceCIDR waits for one to go,
//! `waiting.rs` watches them, and else nobody.

mod plan;
mod waiting;

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    api::networking::v1::{IPAddress, ServiceCIDR},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::{
    plan::{Verdict, alone, conditions, depends, is_ending, touched},
    waiting::Waiting,
};
use super::{
    error::{Doing, Error, OrGone},
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// What allocators may still have been giving when it was deleted is in the API after this.
const GRACE: Duration = Duration::from_secs(10);
/// Addresses that are listed at a time.
const PAGE: u32 = 500;
/// Those of the allocators; others may make IPAddresses for their own purposes.
const MANAGED: &str = "ipaddress.kubernetes.io/managed-by=ipallocator.k8s.io";

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let cidrs: Informer<ServiceCIDR> = informers.get();
    let client = informers.client().clone();
    let waiting = Waiting::default();
    let controller = Cidrs {
        events: Recorder::start(client.clone(), Cidrs::NAME),
        client: client.clone(),
        cidrs: cidrs.clone(),
        waiting: waiting.clone(),
    };
    let all = cidrs.clone();
    Loop::new(controller, &cidrs)
        // One that comes or goes may free another one.
        .watch_changes(
            &cidrs,
            |old, new| old.spec == new.spec && is_ending(old) == is_ending(new),
            move |cidr| {
                let names = touched(cidr, &all.list()).into_iter();
                names.map(|name| Key::new("", name)).collect()
            },
        )
        .beside(|queue| waiting::follow(Api::all(client), informers.watch_config(), waiting, queue))
        .run(1, shutdown)
        .await
}

struct Cidrs {
    client: Client,
    events: Recorder,
    cidrs: Informer<ServiceCIDR>,
    waiting: Waiting,
}

impl Controller for Cidrs {
    const NAME: &'static str = "service-cidr-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(cidr) = self.cidrs.get(key) else {
            self.waiting.over(&key.name);
            return Ok(Next::Settled);
        };
        if is_ending(&cidr) {
            return self.end(&cidr).await;
        }
        self.waiting.over(&key.name);
        self.protect(&cidr).await?;
        if let Err(error) = self.tell(&cidr, Verdict::Ready).await {
            self.events.record(
                &*cidr,
                Level::Warning,
                "KubernetesServiceCIDRError",
                "The ServiceCIDR Status can not be set to Ready=True",
            );
            return Err(error);
        }
        Ok(Next::Settled)
    }
}

impl Cidrs {
    /// Lets it go, or says why it stays.
    async fn end(&self, cidr: &ServiceCIDR) -> Result<Next, Error> {
        let name = cidr.name_any();
        if !is_protected(cidr) {
            self.waiting.over(&name);
            return Ok(Next::Settled);
        }
        if let Some(address) = self.dependent(cidr).await? {
            self.waiting.wait(&name, address);
            self.tell(cidr, Verdict::Terminating).await?;
            return Ok(Next::Settled);
        }
        self.waiting.over(&name);
        if let Some(rest) = grace(cidr, Timestamp::now()) {
            return Ok(Next::After(rest));
        }
        self.release(cidr).await?;
        Ok(Next::Settled)
    }

    /// An address that would be in no range without this one.
    async fn dependent(&self, cidr: &ServiceCIDR) -> Result<Option<IpAddr>, Error> {
        let all = self.cidrs.list();
        if alone(cidr, &all).is_empty() {
            return Ok(None);
        }
        let addresses: Api<IPAddress> = Api::all(self.client.clone());
        let mut page = ListParams::default().labels(MANAGED).limit(PAGE);
        loop {
            let list = addresses
                .list_metadata(&page)
                .await
                .doing(|| format!("ask who has an address of ServiceCIDR {}", cidr.name_any()))?;
            let found = list
                .items
                .iter()
                .filter_map(|address| address.name_any().parse::<IpAddr>().ok())
                .find(|address| depends(*address, cidr, &all));
            let next = list.metadata.continue_.filter(|next| !next.is_empty());
            match (found, next) {
                (Some(address), _) => return Ok(Some(address)),
                (None, Some(next)) => page = page.continue_token(&next),
                (None, None) => return Ok(None),
            }
        }
    }

    async fn protect(&self, cidr: &ServiceCIDR) -> Result<(), Error> {
        if is_protected(cidr) {
            return Ok(());
        }
        let patch = json!({"metadata": {"finalizers": [FINALIZER], "uid": cidr.uid()}});
        self.api()
            .patch(
                &cidr.name_any(),
                &PatchParams::default(),
                &Patch::Strategic(patch),
            )
            .await
            .or_gone()
            .doing(|| format!("protect ServiceCIDR {}", cidr.name_any()))?;
        Ok(())
    }

    /// Only as it was judged.
    async fn release(&self, cidr: &ServiceCIDR) -> Result<(), Error> {
        let mut free = cidr.clone();
        free.finalizers_mut().retain(|one| one != FINALIZER);
        self.api()
            .replace(&cidr.name_any(), &PostParams::default(), &free)
            .await
            .or_gone()
            .doing(|| format!("let ServiceCIDR {} go", cidr.name_any()))?;
        Ok(())
    }

    async fn tell(&self, cidr: &ServiceCIDR, verdict: Verdict) -> Result<(), Error> {
        let Some(conditions) = conditions(cidr, verdict) else {
            return Ok(());
        };
        let status = json!({
            "metadata": {"uid": cidr.uid()},
            "status": {"conditions": conditions},
        });
        self.api()
            .patch_status(
                &cidr.name_any(),
                &PatchParams::default(),
                &Patch::Merge(status),
            )
            .await
            .or_gone()
            .doing(|| format!("write the status of ServiceCIDR {}", cidr.name_any()))?;
        Ok(())
    }

    fn api(&self) -> Api<ServiceCIDR> {
        Api::all(self.client.clone())
    }
}

fn is_protected(cidr: &ServiceCIDR) -> bool {
    cidr.finalizers().iter().any(|one| one == FINALIZER)
}

/// What is left of the time in which addresses of it may still be on their way.
fn grace(cidr: &ServiceCIDR, now: Timestamp) -> Option<Duration> {
    let deleted = cidr.metadata.deletion_timestamp.as_ref()?;
    let passed = Duration::try_from(now.duration_since(deleted.0)).unwrap_or_default();
    GRACE.checked_sub(passed).filter(|rest| !rest.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_seconds_pass_before_it_goes() {
        let object =
            json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let cidr: ServiceCIDR = serde_json::from_value(object).unwrap();
        for (now, want) in [
            ("2026-01-01T00:00:00Z", Some(10)),
            ("2026-01-01T00:00:07Z", Some(3)),
            ("2026-01-01T00:00:10Z", None),
            ("2026-01-01T01:00:00Z", None),
            // The clock was set back.
            ("2025-12-31T00:00:00Z", Some(10)),
        ] {
            let rest = grace(&cidr, now.parse().unwrap());
            assert_eq!(rest, want.map(Duration::from_secs), "{now}");
        }
    }
}
