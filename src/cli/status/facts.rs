//! What `vetch status` has found.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::ResourceExt;
use serde::Serialize;

use crate::kubelet::network::{cni::Folders, peers::PUBLIC_KEY};

const ROLE: &str = "node-role.kubernetes.io/";

/// All of it. What was not to be had is empty, and `problems` say why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    pub machine: Machine,
    /// The daemon's process.
    pub daemon: Option<u32>,
    /// How the API server answered.
    pub server: Option<Server>,
    pub nodes: Vec<NodeLine>,
    pub store: Option<Store>,
    pub certificates: Vec<Certificate>,
    pub tokens: Vec<TokenLine>,
    /// Of `/livez` and `/readyz`.
    pub checks: Vec<Check>,
    /// That do not run as they should.
    pub pods: Vec<PodLine>,
    /// Where the plugins are that make this machine's pods' network, if plugins do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni: Option<Folders>,
    /// Packets of pods are encrypted on their way between machines, or not sent.
    pub encrypts: bool,
    /// What could not be asked, and why.
    pub problems: Vec<String>,
}

/// What this machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "role")]
pub enum Machine {
    /// No cluster was ever started or joined below this root.
    #[default]
    Nothing,
    Server,
    Agent {
        node: String,
        /// What the cluster has said since it has removed the node for good.
        removed: Option<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    pub address: String,
    /// Why it does not answer.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLine {
    pub name: String,
    pub roles: Vec<String>,
    pub ready: Health,
    /// Why it is not ready.
    pub why: Option<String>,
    pub unschedulable: bool,
    /// Conditions such as DiskPressure that hold.
    pub pressures: Vec<String>,
    pub version: String,
    pub created: Option<Timestamp>,
    pub addresses: Vec<String>,
    /// Of its encrypted tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Health {
    Ready,
    NotReady,
    /// Nothing has been heard of it.
    #[default]
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    pub used_bytes: u64,
    pub quota_bytes: u64,
    pub revision: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    pub name: String,
    pub kind: CertificateKind,
    pub ends: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CertificateKind {
    /// Vouches for the others and is never made anew.
    Authority,
    /// Renewed by the daemon.
    Renewed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenLine {
    pub id: String,
    /// `None`: never.
    pub expires: Option<Timestamp>,
    pub description: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    pub endpoint: &'static str,
    pub name: String,
    pub well: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLine {
    pub namespace: String,
    pub name: String,
    pub node: Option<String>,
    /// As `kubectl get pods` shows it.
    pub status: String,
    pub why: Option<String>,
    pub since: Option<Timestamp>,
    pub trouble: Trouble,
}

/// Whether somebody must do something about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Trouble {
    /// It is on its way, or another one takes its place.
    None,
    /// If it stays so.
    IfItStays,
    Now,
}

impl NodeLine {
    pub const HEAD: [&str; 6] = ["NAME", "STATUS", "ROLES", "AGE", "VERSION", "ADDRESSES"];

    pub fn of(node: &Node) -> Self {
        let status = node.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let ready = conditions.iter().find(|one| one.type_ == "Ready");
        let is_pressed = |one: &&NodeCondition| one.type_ != "Ready" && one.status == "True";
        Self {
            name: node.name_any(),
            roles: node
                .labels()
                .keys()
                .filter_map(|label| label.strip_prefix(ROLE))
                .map(str::to_owned)
                .collect(),
            ready: match ready.map(|one| one.status.as_str()) {
                Some("True") => Health::Ready,
                Some("False") => Health::NotReady,
                _ => Health::Unknown,
            },
            why: ready
                .filter(|one| one.status != "True")
                .and_then(|one| one.message.clone()),
            unschedulable: node
                .spec
                .as_ref()
                .and_then(|spec| spec.unschedulable)
                .unwrap_or(false),
            pressures: conditions
                .iter()
                .filter(is_pressed)
                .map(|one| one.type_.clone())
                .collect(),
            version: status
                .node_info
                .map(|info| info.kubelet_version)
                .unwrap_or_default(),
            created: node.creation_timestamp().map(|time| time.0),
            addresses: status
                .addresses
                .unwrap_or_default()
                .into_iter()
                .filter(|one| one.type_.ends_with("IP"))
                .map(|one| one.address)
                .collect(),
            public_key: node.annotations().get(PUBLIC_KEY).cloned(),
        }
    }

    pub fn cells(&self, now: Timestamp) -> [String; 6] {
        let mut status = format!("{:?}", self.ready);
        if self.unschedulable {
            status.push_str(",SchedulingDisabled");
        }
        let roles = match self.roles.is_empty() {
            true => "<none>".to_owned(),
            false => self.roles.join(","),
        };
        let created = self.created.map(|created| age(created, now));
        [
            self.name.clone(),
            status,
            roles,
            created.unwrap_or_default(),
            self.version.clone(),
            self.addresses.join(","),
        ]
    }
}

/// How long ago `then` was, in one unit.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    span(now.duration_since(then).as_secs())
}

/// So many seconds, in one unit.
pub fn span(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    match seconds.max(0) {
        seconds if seconds < 2 * MINUTE => format!("{seconds}s"),
        seconds if seconds < 2 * HOUR => format!("{}m", seconds / MINUTE),
        seconds if seconds < 2 * DAY => format!("{}h", seconds / HOUR),
        seconds => format!("{}d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_of_a_node() {
        let now: Timestamp = "2030-01-02T00:00:00Z".parse().expect("a time");
        let node = |labels: serde_json::Value, ready: &str, unschedulable: bool| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "n", "labels": labels,
                    "creationTimestamp": "2030-01-01T21:00:00Z"},
                "spec": {"unschedulable": unschedulable},
                "status": {
                    "conditions": [{"type": "Ready", "status": ready, "message": "m"},
                        {"type": "DiskPressure", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "192.0.2.1"},
                        {"type": "Hostname", "address": "n"}],
                },
            }))
            .expect("a node")
        };
        let role = json!({"node-role.kubernetes.io/control-plane": ""});
        for (labels, ready, unschedulable, status, roles) in [
            (role, "True", false, "Ready", "control-plane"),
            (
                json!({}),
                "True",
                true,
                "Ready,SchedulingDisabled",
                "<none>",
            ),
            (json!({}), "False", false, "NotReady", "<none>"),
            (json!({}), "Unknown", false, "Unknown", "<none>"),
        ] {
            let line = NodeLine::of(&node(labels, ready, unschedulable));
            let cells = line.cells(now);
            assert_eq!(cells, ["n", status, roles, "3h", "", "192.0.2.1"]);
            assert_eq!(line.pressures, ["DiskPressure"]);
            assert_eq!(line.why.is_some(), ready != "True");
        }
    }

    #[test]
    fn spans() {
        for (seconds, want) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7199, "119m"),
            (7200, "2h"),
            (172_800, "2d"),
        ] {
            assert_eq!(span(seconds), want);
        }
    }
}
