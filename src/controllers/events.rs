//! Events that controllers leave on their objects.
//!
//! Best effort: an event that cannot be written is logged and forgotten, and no sync waits for it.

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, PostParams},
};

/// How an event shall be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Normal,
    Warning,
}

/// Writes events in the name of one component.
#[derive(Clone)]
pub struct Events {
    client: Client,
    component: &'static str,
}

impl Events {
    pub fn new(client: Client, component: &'static str) -> Self {
        Self { client, component }
    }

    pub fn record<K>(&self, about: &K, level: Level, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.record_ref(about.object_ref(&()), level, reason, message.into());
    }

    pub fn record_ref(&self, about: ObjectReference, level: Level, reason: &str, message: String) {
        let event = self.event(about, level, reason, message);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        tokio::spawn(async move {
            if let Err(error) = api.create(&PostParams::default(), &event).await {
                tracing::debug!(%error, reason = event.reason, "event not recorded");
            }
        });
    }

    fn event(&self, about: ObjectReference, level: Level, reason: &str, message: String) -> Event {
        let now = Timestamp::now();
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
        let name = about.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: about,
            reason: Some(reason.into()),
            message: Some(message),
            type_: Some(
                match level {
                    Level::Normal => "Normal",
                    Level::Warning => "Warning",
                }
                .into(),
            ),
            source: Some(EventSource {
                component: Some(self.component.into()),
                host: None,
            }),
            reporting_component: Some(self.component.into()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        }
    }
}
