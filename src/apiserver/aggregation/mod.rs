//! Aggregated APIs: groups that other servers serve under this one's address.
//!
//! [`Aggregator`] follows the APIServices and looks whether their servers answer; `remotes.rs` says
//! which requests are theirs and what discovery says of them, `forward.rs` passes requests on.
//! Started by [`super::start::Handle::start`].
//! Always true:
//! - A request goes past authentication and authorization here before it goes to another server,
//!   which learns from the front proxy's certificate and headers who asks, and nothing else.
//! - Discovery tells of every group, and calls stale what servers serve that did not answer when they
//!   were last asked.

mod forward;
mod remote;
mod remotes;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use self::remote::Remote;
pub use self::{forward::send, remotes::Remotes};
use super::{
    metadata::now,
    objects::{Lookup, Named, Objects},
    registry::kinds::value::{items, set, text},
    server::ApiServer,
    start::own_user,
    status::Reason,
};
use crate::{
    pki::Live,
    store::Revision,
    supervision::{Parts, Policy},
};

/// The check of what asks the servers, as the original names it.
const PART: &str = "poststarthook/apiservice-status-remote-available-controller";
const PLURAL: &str = "apiservices.apiregistration.k8s.io";
/// What the availability of an API depends on, by storage.
const FOLLOWED: [&str; 3] = ["apiservices", "services", "endpointslices"];
/// A server that answered is asked again after so long: that it stops is told by nobody.
const RECHECK: Duration = Duration::from_secs(30);
/// One that did not answer is starting, most likely; each time it is left alone for longer.
const RETRY: Duration = Duration::from_secs(1);

pub struct Aggregator {
    server: Weak<ApiServer>,
    /// Shown to the other servers.
    front: Arc<Live>,
}

/// Whether an API can be used, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    available: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn new(available: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            available,
            reason,
            message: message.into(),
        }
    }
}

/// What was found when an API's server was last asked.
struct Looked {
    /// Of which APIService, Service and endpoints: when they change, it is asked anew.
    state: String,
    at: Instant,
    /// How often it has not answered since.
    failures: u32,
    resources: Option<Value>,
    verdict: Verdict,
}

impl Looked {
    /// When to ask again though nothing has changed.
    fn due(&self) -> Instant {
        let wait = match self.failures {
            0 => RECHECK,
            times => (RETRY * 2_u32.pow((times - 1).min(10))).min(RECHECK),
        };
        self.at + wait
    }
}

/// By the APIService's name.
type Findings = HashMap<String, Looked>;

impl Aggregator {
    /// Follows until the server is gone.
    pub fn start(server: &Arc<ApiServer>, front: Arc<Live>, parts: &Parts) {
        let aggregator = Arc::new(Self {
            server: Arc::downgrade(server),
            front,
        });
        let changes = FOLLOWED.map(|storage| server.cache.kind(storage).changes());
        parts.start_endless(PART, Policy::Restart, move || {
            let (aggregator, changes) = (aggregator.clone(), changes.clone());
            async move {
                aggregator.follow(changes).await;
                std::future::pending().await // there is no server
            }
        });
    }

    async fn follow(&self, changes: [watch::Receiver<Revision>; 3]) {
        let [mut services, mut targets, mut endpoints] = changes;
        let mut findings = Findings::new();
        loop {
            services.borrow_and_update();
            targets.borrow_and_update();
            endpoints.borrow_and_update();
            let Some(server) = self.server.upgrade() else {
                return;
            };
            self.refresh(&server, &mut findings).await;
            drop(server);
            let due = findings.values().map(Looked::due).min();
            let lively = due.is_some();
            let again = due.unwrap_or_else(Instant::now);
            let changed = tokio::select! {
                changed = services.changed() => changed,
                changed = targets.changed(), if lively => changed,
                changed = endpoints.changed(), if lively => changed,
                () = tokio::time::sleep_until(again), if lively => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Looks at every APIService, and asks the servers whose turn it is.
    async fn refresh(&self, server: &Arc<ApiServer>, findings: &mut Findings) {
        let services = server.list(PLURAL, "").await;
        let before = server.remotes.all();
        let known = &before;
        let past = &*findings;
        let checks = services.iter().map(|service| async move {
            let same = known.iter().find(|one| one.spec == service["spec"]);
            let remote = match same {
                Some(known) => Some(known.clone()),
                None => Remote::new(service, &self.front).map(Arc::new),
            };
            let Some(remote) = remote else {
                return (service, None);
            };
            let looked = past.get(text(service, "metadata.name"));
            let looked = self.look(server, &remote, looked).await;
            let same = remote.resources == looked.resources;
            let openapi = match (&looked.resources, &remote.openapi) {
                (None, _) => None,
                (Some(_), Some(known)) if same => Some(known.clone()),
                (Some(_), _) => forward::openapi(&**server, &remote).await,
            };
            let remote = match same && remote.openapi == openapi {
                true => remote,
                false => Arc::new(remote.serving(looked.resources.clone(), openapi)),
            };
            (service, Some((remote, looked)))
        });
        let checked = futures::future::join_all(checks).await;
        let remotes = checked.iter().filter_map(|(_, found)| found.as_ref());
        server
            .remotes
            .set(remotes.map(|(remote, _)| remote.clone()).collect());
        let after = server.remotes.all();
        let same = before.len() == after.len()
            && before
                .iter()
                .zip(after.iter())
                .all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            server.rows.touch();
        }
        let local = Verdict::new(true, "Local", "Local APIServices are always available");
        let mut next = Findings::new();
        for (service, found) in checked {
            let name = text(service, "metadata.name");
            let verdict = found.as_ref().map_or(&local, |(_, looked)| &looked.verdict);
            self.tell(server, name, verdict).await;
            next.extend(found.map(|(_, looked)| (name.to_owned(), looked)));
        }
        *findings = next;
    }

    /// What was found before, if it holds still; else what is found now.
    async fn look(&self, server: &ApiServer, remote: &Remote, before: Option<&Looked>) -> Looked {
        let state = state(server, remote).await;
        let now = Instant::now();
        let unchanged = before.filter(|before| before.state == state);
        if let Some(before) = unchanged.filter(|before| now < before.due()) {
            return Looked {
                state,
                at: before.at,
                failures: before.failures,
                resources: before.resources.clone(),
                verdict: before.verdict.clone(),
            };
        }
        let (resources, verdict) = self.check(server, remote).await;
        let failures = match verdict.available {
            true => 0,
            false => unchanged.map_or(0, |before| before.failures) + 1,
        };
        Looked {
            state,
            at: now,
            failures,
            resources,
            verdict,
        }
    }

    /// What an API serves, if it can be reached.
    async fn check(&self, server: &ApiServer, remote: &Remote) -> (Option<Value>, Verdict) {
        let no = |reason, message: String| (None, Verdict::new(false, reason, message));
        let (namespace, name) = (&remote.namespace, &remote.service);
        let Some(service) = server.get("services", namespace, name).await else {
            let what = format!("service/{name} in {namespace:?} is not present");
            return no("ServiceNotFound", what);
        };
        let listens = items(&service, "spec.ports")
            .iter()
            .any(|port| port["port"] == remote.port);
        if !listens && text(&service, "spec.type") != "ExternalName" {
            let what = format!(
                "service/{name} in {namespace:?} is not listening on port {}",
                remote.port
            );
            return no("ServicePortError", what);
        }
        match forward::discover(server, remote).await {
            Ok(resources) => {
                let all = Verdict::new(true, "Passed", "all checks passed");
                (Some(resources), all)
            }
            Err(status) if status.message.starts_with("no endpoints") => {
                let what =
                    format!("endpoints for service/{name} in {namespace:?} have no addresses");
                no("MissingEndpoints", what)
            }
            Err(status) => no("FailedDiscoveryCheck", status.message),
        }
    }

    async fn tell(&self, server: &ApiServer, name: &str, verdict: &Verdict) {
        let change = |service: &mut Value| {
            put(service, verdict);
            Ok(())
        };
        let named = Named {
            plural: PLURAL,
            subresource: "status",
            namespace: "",
            name,
        };
        match server.update(&own_user(), named, true, &change).await {
            Err(status) if status.reason != Reason::NotFound => {
                tracing::warn!(%status, name, "the APIService's status is not written");
            }
            _ => {}
        }
    }
}

/// The revisions of all that an API's reachability depends on.
async fn state(server: &ApiServer, remote: &Remote) -> String {
    let (namespace, name) = (&remote.namespace, &remote.service);
    let revision = |object: &Value| text(object, "metadata.resourceVersion").to_owned();
    let service = server.get("services", namespace, name).await;
    let mut state = vec![
        remote.spec.to_string(),
        service.map_or(String::new(), |service| revision(&service)),
    ];
    let slices = server
        .list("endpointslices.discovery.k8s.io", namespace)
        .await;
    let of_service = slices
        .iter()
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == **name);
    state.extend(of_service.map(|slice| revision(slice)));
    state.join(" ")
}

/// Writes a verdict into an APIService's status. Changes nothing the second time.
fn put(service: &mut Value, verdict: &Verdict) {
    let state = if verdict.available { "True" } else { "False" };
    let conditions = items(service, "status.conditions");
    let old = conditions
        .iter()
        .find(|one| text(one, "type") == "Available");
    let since = match old {
        Some(old) if text(old, "status") == state => {
            if text(old, "reason") == verdict.reason && text(old, "message") == verdict.message {
                return;
            }
            old["lastTransitionTime"].clone()
        }
        _ => json!(now()),
    };
    let mut all = conditions.to_vec();
    all.retain(|one| text(one, "type") != "Available");
    all.push(
        json!({"type": "Available", "status": state, "reason": verdict.reason,
        "message": verdict.message, "lastTransitionTime": since}),
    );
    set(service, "status.conditions", all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_answer_is_left_alone_for_longer() {
        let at = Instant::now();
        for (failures, seconds) in [(0, 30), (1, 1), (2, 2), (5, 16), (6, 30), (99, 30)] {
            let looked = Looked {
                state: String::new(),
                at,
                failures,
                resources: None,
                verdict: Verdict::new(failures == 0, "", ""),
            };
            assert_eq!(
                looked.due(),
                at + Duration::from_secs(seconds),
                "{failures}"
            );
        }
    }

    #[test]
    fn a_verdict_is_written_once() {
        let mut service = json!({});
        put(&mut service, &Verdict::new(false, "ServiceNotFound", "x"));
        let first = service.clone();
        put(&mut service, &Verdict::new(false, "ServiceNotFound", "x"));
        assert_eq!(service, first);
        put(&mut service, &Verdict::new(true, "Passed", "y"));
        let conditions = items(&service, "status.conditions");
        assert_eq!(
            (conditions.len(), text(&conditions[0], "status")),
            (1, "True")
        );
    }
}
