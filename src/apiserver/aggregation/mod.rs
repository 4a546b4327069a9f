//! Aggregated APIs: groups that other servers serve under this one's address.
//!
//! [`Aggregator`] follows the APIServices and looks whether their servers answer; `remotes.rs` says
//! which requests are theirs and what discovery says of them, `forward.rs` passes requests on.
//! Started by [`super::start::Handle::start`].
//! Always true:
//! - A request goes past authentication and authorization here before it goes to another server,
//!   which learns from the front proxy's certificate and headers who asks, and nothing else.
//! - Discovery tells only of servers that answered when they were last asked.

mod forward;
mod remote;
mod remotes;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use self::remote::Remote;
pub use self::{
    forward::send,
    remotes::{RemotePath, Remotes},
};
use super::{
    metadata::now,
    objects::{Lookup, Named, Objects},
    registry::kinds::value::{items, set, text},
    server::ApiServer,
    start::own_user,
    status::Reason,
};
use crate::pki::Identity;

const PLURAL: &str = "apiservices.apiregistration.k8s.io";
/// What the availability of an API depends on, by storage.
const FOLLOWED: [&str; 3] = ["apiservices", "services", "endpointslices"];
/// A server that answered is asked again after so long: that it stops is told by nobody.
const RECHECK: Duration = Duration::from_secs(30);
/// One that did not answer is starting, most likely.
const RETRY: Duration = Duration::from_secs(1);

pub struct Aggregator {
    server: Weak<ApiServer>,
    /// Shown to the other servers.
    front: Arc<Identity>,
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

impl Aggregator {
    /// Follows until the server is gone.
    pub fn start(server: &Arc<ApiServer>, front: Arc<Identity>) {
        let aggregator = Self {
            server: Arc::downgrade(server),
            front,
        };
        let [mut services, mut targets, mut endpoints] =
            FOLLOWED.map(|storage| server.cache.kind(storage).changes());
        tokio::spawn(async move {
            loop {
                let begun = Instant::now();
                services.borrow_and_update();
                targets.borrow_and_update();
                endpoints.borrow_and_update();
                let Some(wait) = aggregator.refresh().await else {
                    return;
                };
                let lively = wait.is_some();
                let again = begun + wait.unwrap_or(RECHECK);
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
        });
    }

    /// Looks at every APIService; says when to look again (`Some(None)`: when one is made). `None`:
    /// the server is gone.
    async fn refresh(&self) -> Option<Option<Duration>> {
        let server = self.server.upgrade()?;
        let services = server.list(PLURAL, "").await;
        let before = server.remotes.all();
        let (front, server, before) = (&self.front, &server, &before);
        let checks = services.iter().map(|service| async move {
            let known = before.iter().find(|one| one.spec == service["spec"]);
            let remote = match known {
                Some(known) => Some(known.clone()),
                None => Remote::new(service, front).map(Arc::new),
            };
            let Some(remote) = remote else {
                let local = "Local APIServices are always available";
                return (service, None, Verdict::new(true, "Local", local));
            };
            let (resources, verdict) = self.check(server, &remote).await;
            let same = remote.resources == resources;
            let openapi = match (&resources, &remote.openapi) {
                (None, _) => None,
                (Some(_), Some(known)) if same => Some(known.clone()),
                (Some(_), _) => forward::openapi(&**server, &remote).await,
            };
            let remote = match same && remote.openapi == openapi {
                true => remote,
                false => Arc::new(remote.serving(resources, openapi)),
            };
            (service, Some(remote), verdict)
        });
        let checked = futures::future::join_all(checks).await;
        let remotes: Vec<Arc<Remote>> = checked.iter().filter_map(|one| one.1.clone()).collect();
        let wait = match (
            remotes.is_empty(),
            checked.iter().all(|one| one.2.available),
        ) {
            (true, _) => None,
            (false, true) => Some(RECHECK),
            (false, false) => Some(RETRY),
        };
        server.remotes.set(remotes);
        let after = server.remotes.all();
        let same = before.len() == after.len()
            && before
                .iter()
                .zip(after.iter())
                .all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            server.rows.touch();
        }
        for (service, _, verdict) in checked {
            self.tell(server, text(service, "metadata.name"), &verdict)
                .await;
        }
        Some(wait)
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
