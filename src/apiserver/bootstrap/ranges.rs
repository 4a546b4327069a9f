//! The ServiceCIDR `kubernetes`: the range that the daemon is configured with. Words are the original's.
//!
//! It stays as it is, as long as it is there: addresses hang on it. That it is not what the configuration
//! says is told, once a start.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Roles;
use crate::apiserver::{
    events::{self, About, Said},
    objects::{Lookup as _, Named, Objects as _},
    registry::kinds::value::{has, items, text, texts},
    server::ApiServer,
    start::{Config, own_user},
};

const PLURAL: &str = "servicecidrs.networking.k8s.io";
const NAME: &str = "kubernetes";
const COMPONENT: &str = "kubernetes-service-cidr-controller";

pub fn of_configuration(config: &Config) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": NAME},
        "spec": {"cidrs": cidrs(config)},
    })
}

fn cidrs(config: &Config) -> Vec<String> {
    let ranges = config.services.iter();
    ranges.map(|range| range.trunc().to_string()).collect()
}

/// What there is to say or do about the one that is there.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Being deleted, which others see to, or said to be ready.
    Settled,
    /// Nobody has said yet whether it is ready.
    New,
    NotReady {
        reason: String,
        message: String,
    },
    Differs,
}

fn state(held: &Value, config: &Config) -> State {
    if has(held, "metadata.deletionTimestamp") {
        return State::Settled;
    }
    if texts(held, "spec.cidrs") != cidrs(config) {
        return State::Differs;
    }
    let mut conditions = items(held, "status.conditions").iter();
    let Some(ready) = conditions.find(|condition| text(condition, "type") == "Ready") else {
        return State::New;
    };
    match text(ready, "status") {
        "True" => State::Settled,
        "False" => State::NotReady {
            reason: text(ready, "reason").to_owned(),
            message: text(ready, "message").to_owned(),
        },
        _ => State::New,
    }
}

/// Best effort: without a condition it is ready, and its controller says so soon.
pub async fn settle(server: &Arc<ApiServer>, config: &Config, roles: Roles) {
    let Some(held) = server.get(PLURAL, "", NAME).await else {
        return;
    };
    let about = About::range(NAME, text(&held, "metadata.uid"));
    let is_start = roles == Roles::Complete;
    match state(&held, config) {
        State::Differs if is_start => {
            let message = format!(
                "The default ServiceCIDR [{}] does not match the controller flag configurations [{}]",
                texts(&held, "spec.cidrs").join(" "),
                cidrs(config).join(" ")
            );
            warn(
                server,
                about,
                "KubernetesDefaultServiceCIDRInconsistent",
                &message,
            )
            .await;
        }
        State::NotReady { reason, message } if is_start => {
            let message = format!("Configuration matches, but {message}");
            let reason = match reason.as_str() {
                "" => "KubernetesDefaultServiceCIDRError",
                reason => reason,
            };
            warn(server, about, reason, &message).await;
        }
        State::New => say_ready(server).await,
        State::Settled | State::Differs | State::NotReady { .. } => {}
    }
}

async fn warn(server: &ApiServer, about: About<'_>, reason: &str, message: &str) {
    let said = Said {
        component: COMPONENT,
        action: "",
        reason,
        message,
    };
    events::warn(server, about, said).await;
}

async fn say_ready(server: &ApiServer) {
    let target = Named {
        plural: PLURAL,
        subresource: "status",
        namespace: "",
        name: NAME,
    };
    let now = jiff::Timestamp::now().as_second();
    let now = jiff::Timestamp::from_second(now)
        .unwrap_or_default()
        .to_string();
    let change = |held: &mut Value| {
        held["status"]["conditions"] = json!([{
            "type": "Ready", "status": "True", "reason": "",
            "message": "Kubernetes default Service CIDR is ready",
            "lastTransitionTime": now,
        }]);
        Ok(())
    };
    if let Err(status) = server.update(&own_user(), target, false, &change).await {
        tracing::debug!(%status, "the default ServiceCIDR is not said to be ready");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_to_do() {
        let config = Config {
            advertise: "192.0.2.1".parse().unwrap(),
            port: 6443,
            services: "10.96.0.0/24".parse().unwrap(),
        };
        let own = of_configuration(&config);
        let with = |path: &str, value: Value| {
            let mut held = own.clone();
            *held.pointer_mut(path).unwrap() = value;
            held
        };
        let ready = |status: &str| {
            let mut held = own.clone();
            held["status"] = json!({"conditions": [
                {"type": "Ready", "status": status, "reason": "R", "message": "m"}]});
            held
        };
        for (held, want) in [
            (own.clone(), State::New),
            (ready("True"), State::Settled),
            (ready("Unknown"), State::New),
            (
                ready("False"),
                State::NotReady {
                    reason: "R".into(),
                    message: "m".into(),
                },
            ),
            (with("/spec/cidrs", json!(["10.0.0.0/24"])), State::Differs),
            (
                with("/metadata", json!({"name": NAME, "deletionTimestamp": "x"})),
                State::Settled,
            ),
        ] {
            assert_eq!(state(&held, &config), want, "{held}");
        }
    }
}
