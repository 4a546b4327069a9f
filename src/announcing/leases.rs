//! Who of the nodes is there: each writes a Lease of its own, and sees those of others.
//!
//! Times are this machine's own. A node counts as there for some time after its Lease has changed, and as long after
//! it was first looked for: who begins later waits before it takes what may be somebody else's.

use std::{collections::HashMap, time::Duration};

use futures::Stream;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use serde_json::json;
use tokio::time::Instant;

use super::{LASTS, SETTLES, Seen};
use crate::addresses::balancing::{LEASES, lease_of};

/// By which the Leases of announcers are found among others.
const LABEL: &str = "vetch.io/announces";
const WHAT: &str = "load-balancers";
const LEASE_SECONDS: u32 = 3;

/// The Leases in the API.
pub struct Leases {
    api: Api<Lease>,
    node: String,
    own: String,
}

impl Leases {
    pub fn new(client: Client, node: &str) -> Self {
        Self {
            api: Api::namespaced(client, LEASES),
            node: node.to_owned(),
            own: lease_of(node),
        }
    }

    /// What there is and what changes; it never ends.
    pub fn watch(&self) -> impl Stream<Item = Result<Seen, watcher::Error>> + use<> {
        let chosen = watcher::Config::default().labels(&format!("{LABEL}={WHAT}"));
        watcher(self.api.clone(), chosen).default_backoff()
    }

    /// Renews this node's Lease, or makes it. It goes with the Node.
    pub async fn renew(&self, node: Option<&Node>) -> Result<(), kube::Error> {
        let spec = json!({
            "holderIdentity": self.node,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        });
        let patch = Patch::Merge(json!({ "spec": spec }));
        let parameters = PatchParams::default();
        match self.api.patch(&self.own, &parameters, &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let owners = node.map(|node| {
                    json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": node.uid()})
                });
                let owners: Vec<_> = owners.into_iter().collect();
                let object = json!({
                    "metadata": {"name": self.own, "labels": {LABEL: WHAT}, "ownerReferences": owners},
                    "spec": spec,
                });
                let lease = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
                let made = self.api.create(&PostParams::default(), &lease).await;
                made.map(drop)
            }
            result => result.map(drop),
        }
    }

    /// Others need not wait for its end.
    pub async fn give_up(&self) -> Result<(), kube::Error> {
        match self.api.delete(&self.own, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result.map(drop),
        }
    }
}

/// Which nodes are there, by their Leases.
#[derive(Debug, Default)]
pub struct Sights(HashMap<String, Sight>);

#[derive(Debug)]
struct Sight {
    /// What its Lease said last.
    version: Option<String>,
    /// When it said something new; `None`: it has given its Lease up.
    at: Option<Instant>,
}

impl Sights {
    /// Takes in what the watch tells.
    pub fn take(&mut self, event: &Seen, now: Instant) {
        match event {
            Seen::Apply(lease) | Seen::InitApply(lease) => {
                let spec = lease.spec.as_ref();
                let holder = spec.and_then(|spec| spec.holder_identity.clone());
                // Who writes another one's name into its own Lease is nobody.
                let holder = holder.filter(|holder| lease.name_any() == lease_of(holder));
                if let Some(holder) = holder {
                    self.renewed(&holder, lease.resource_version(), now);
                }
            }
            Seen::Delete(lease) => {
                let name = lease.name_any();
                let gone = self.0.iter_mut();
                for (_, sight) in gone.filter(|(node, _)| lease_of(node) == name) {
                    sight.at = None;
                }
            }
            Seen::Init | Seen::InitDone => {}
        }
    }

    fn renewed(&mut self, node: &str, version: Option<String>, now: Instant) {
        let at = Some(now);
        match self.0.get_mut(node) {
            Some(sight) if sight.version == version => {}
            Some(sight) => *sight = Sight { version, at },
            None => drop(self.0.insert(node.to_owned(), Sight { version, at })),
        }
    }

    /// These may be there though nothing was seen of them yet.
    pub fn consider<'a>(&mut self, nodes: impl Iterator<Item = &'a String>, now: Instant) {
        for node in nodes {
            if !self.0.contains_key(node) {
                let (version, at) = (None, Some(now));
                self.0.insert(node.clone(), Sight { version, at });
            }
        }
    }

    pub fn is_alive(&self, node: &str, now: Instant) -> bool {
        let at = self.0.get(node).and_then(|sight| sight.at);
        at.is_some_and(|at| now < at + LASTS)
    }

    /// When the next one that is there is not there any more, if nothing more is seen of it.
    pub fn next_end(&self, now: Instant) -> Option<Instant> {
        let ends = self.0.values().filter_map(|sight| Some(sight.at? + LASTS));
        ends.filter(|end| *end > now).min()
    }
}

/// This node's own Lease.
#[derive(Debug, Default)]
pub struct Tenure {
    /// When the last renewal was begun that worked.
    renewed: Option<Instant>,
    /// Since when it counts without a break.
    since: Option<Instant>,
}

impl Tenure {
    pub fn renewed(&mut self, begun: Instant) {
        self.renewed = Some(begun);
    }

    /// `is_seen`: the watch that tells of others tells of this one too.
    pub fn look(&mut self, is_seen: bool, now: Instant) {
        let lasts = self.renewed.is_some_and(|begun| now < begun + LASTS);
        self.since = match lasts && is_seen {
            true => self.since.or(Some(now)),
            false => None,
        };
    }

    /// Whether this node may have addresses.
    pub fn is_settled(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now >= since + SETTLES)
    }

    /// When that changes, if nothing else happens.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let next: [Option<Duration>; 2] = [
            self.renewed
                .map(|begun| (begun + LASTS).saturating_duration_since(now)),
            self.since
                .map(|since| (since + SETTLES).saturating_duration_since(now)),
        ];
        let next = next.into_iter().flatten();
        next.filter(|wait| !wait.is_zero())
            .min()
            .map(|wait| now + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(node: &str, holder: &str, version: &str) -> Lease {
        let lease = json!({
            "metadata": {"name": lease_of(node), "resourceVersion": version},
            "spec": {"holderIdentity": holder},
        });
        serde_json::from_value(lease).unwrap()
    }

    #[test]
    fn who_is_there() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut sights = Sights::default();
        sights.consider(["a".to_owned(), "b".to_owned()].iter(), at(0));
        // Nothing was seen of them, and they may be there.
        assert!(sights.is_alive("a", at(2499)) && !sights.is_alive("a", at(2500)));
        assert!(!sights.is_alive("c", at(0)));
        sights.take(&Seen::Apply(lease("a", "a", "1")), at(1000));
        sights.take(&Seen::Apply(lease("b", "b", "2")), at(1000));
        assert!(sights.is_alive("a", at(3499)) && !sights.is_alive("a", at(3500)));
        assert_eq!(sights.next_end(at(1000)), Some(at(3500)));
        // A list that tells the same again is no sign of life.
        sights.take(&Seen::InitApply(lease("a", "a", "1")), at(3000));
        assert!(!sights.is_alive("a", at(3500)));
        sights.take(&Seen::Apply(lease("a", "a", "3")), at(4000));
        assert!(sights.is_alive("a", at(4000)));
        // Who gives its Lease up is gone at once, and is not waited for when it is looked for again.
        sights.take(&Seen::Delete(lease("a", "a", "3")), at(4100));
        sights.consider(["a".to_owned()].iter(), at(4200));
        assert!(!sights.is_alive("a", at(4200)) && sights.is_alive("b", at(3499)));
        sights.take(&Seen::Apply(lease("a", "a", "5")), at(4300));
        assert!(sights.is_alive("a", at(4300)));
        // Nobody speaks for others.
        sights.take(&Seen::Apply(lease("b", "a", "6")), at(6700));
        assert!(!sights.is_alive("a", at(6800)) && !sights.is_alive("b", at(6800)));
        assert_eq!(sights.next_end(at(9000)), None);
    }

    #[test]
    fn when_this_node_may_have_addresses() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut own = Tenure::default();
        own.look(true, at(0));
        assert!(!own.is_settled(at(1000)) && own.next(at(0)).is_none());
        own.renewed(at(0));
        // The answer was there before the watch.
        own.look(false, at(10));
        assert!(!own.is_settled(at(1000)));
        own.look(true, at(20));
        assert!(!own.is_settled(at(319)) && own.is_settled(at(320)));
        assert_eq!(own.next(at(20)), Some(at(320)));
        assert_eq!(own.next(at(320)), Some(at(2500)));
        // A renewal without a break takes no time to settle.
        own.renewed(at(1000));
        own.look(true, at(3499));
        assert!(own.is_settled(at(3499)));
        own.look(true, at(3500));
        assert!(!own.is_settled(at(3500)));
        // Nor does it count what it does not see itself.
        own.renewed(at(4000));
        own.look(false, at(4010));
        assert!(!own.is_settled(at(4400)));
    }
}
