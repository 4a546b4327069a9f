//! Events that the API server itself leaves on objects.
//!
//! One Event for each thing that is said about an object; said again, its count rises.

use serde_json::{Value, json};

use super::{
    objects::{Named, Objects},
    registry::kinds::value::{number, set, text},
    start::own_user,
    status::Reason,
};

/// What an Event is about.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
}

impl<'a> About<'a> {
    pub fn service(service: &'a Value) -> Self {
        Self::object("v1", "Service", service)
    }

    pub fn claim(claim: &'a Value) -> Self {
        Self::object("networking.k8s.io/v1", "IPAddress", claim)
    }

    pub fn range(name: &'a str, uid: &'a str) -> Self {
        Self {
            api_version: "networking.k8s.io/v1",
            kind: "ServiceCIDR",
            namespace: "",
            name,
            uid,
        }
    }

    fn object(api_version: &'a str, kind: &'a str, object: &'a Value) -> Self {
        Self {
            api_version,
            kind,
            namespace: text(object, "metadata.namespace"),
            name: text(object, "metadata.name"),
            uid: text(object, "metadata.uid"),
        }
    }
}

/// What is said, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    pub component: &'static str,
    pub action: &'static str,
    pub reason: &'a str,
    pub message: &'a str,
}

/// Best effort: a failure is logged.
pub async fn warn(objects: &dyn Objects, about: About<'_>, said: Said<'_>) {
    let (name, reason, message) = (about.name, said.reason, said.message);
    tracing::warn!(namespace = about.namespace, name, reason, "{message}");
    let event = event(about, said);
    let name = text(&event, "metadata.name").to_owned();
    let namespace = namespace(about);
    let told = match objects
        .create(&own_user(), "events", namespace, event)
        .await
    {
        Err(status) if status.reason == Reason::AlreadyExists => {
            let target = Named {
                plural: "events",
                subresource: "",
                namespace,
                name: &name,
            };
            let again = |event: &mut Value| {
                set(event, "count", number(event, "count").unwrap_or(1) + 1);
                set(event, "lastTimestamp", now());
                Ok(())
            };
            objects.update(&own_user(), target, false, &again).await
        }
        created => created,
    };
    if let Err(status) = told {
        tracing::debug!(%status, "event not written");
    }
}

fn namespace<'a>(about: About<'a>) -> &'a str {
    match about.namespace {
        "" => "default",
        namespace => namespace,
    }
}

fn now() -> String {
    let seconds = jiff::Timestamp::now().as_second();
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |now| now.to_string())
}

fn event(about: About<'_>, said: Said<'_>) -> Value {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hash = DefaultHasher::new();
    (about.uid, said.reason, said.message).hash(&mut hash);
    // An IPv6 address is no name of an Event.
    let name = about.name.replace(':', "-");
    let now = now();
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": format!("{name}.{:016x}", hash.finish())},
        "involvedObject": {
            "apiVersion": about.api_version, "kind": about.kind,
            "namespace": about.namespace, "name": about.name, "uid": about.uid,
        },
        "type": "Warning",
        "reason": said.reason,
        "action": said.action,
        "message": said.message,
        "source": {"component": said.component},
        "reportingComponent": said.component,
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}
