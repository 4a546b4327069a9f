//! Whether this node takes a new pod: the last word, also on pods that no scheduler placed. Pure.
//!
//! Called by the table with the pods that it runs; reasons and messages are those of the kubelet.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::network::{HostAddress, host_address};
use crate::{
    addresses::family::{Family, OfFamily, PerFamily},
    own_ports::{OwnPorts, TCP, UDP},
    placement::{HostPort, Requests, Resources, host_ports},
};

/// What the node can give.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub pods: u32,
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

impl Refusal {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// What decides about ports of the node.
#[derive(Clone, Copy, Debug)]
pub struct Ports<'a> {
    /// The daemon's.
    pub own: &'a OwnPorts,
    /// Where pods have their addresses.
    pub pods: &'a PerFamily<IpNet>,
}

/// `others` run here, or are going to.
pub fn refusal<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    room: Room,
    ports: Ports<'_>,
) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Some(Refusal::new(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    if wants_apparmor(pod, spec) {
        // Better not run than run without what its author relies on.
        return Some(Refusal::new(
            "AppArmor",
            "Cannot enforce AppArmor: this node's runtime has no support for it",
        ));
    }
    let short = |what: &str, requested: i64, used: i64, capacity: i64| {
        Refusal::new(
            format!("OutOf{what}"),
            format!(
                "Node didn't have enough resource: {what}, requested: {requested}, used: {used}, \
                 capacity: {capacity}"
            ),
        )
    };
    let count = i64::try_from(others.clone().count()).unwrap_or(i64::MAX);
    if count >= i64::from(room.pods) {
        return Some(short("pods", 1, count, room.pods.into()));
    }
    let mut used = Resources::default();
    others
        .clone()
        .for_each(|other| used.add(&Requests::of(other).needed));
    let needed = Requests::of(pod).needed;
    for (what, needed, used, capacity) in [
        ("cpu", needed.milli_cpu, used.milli_cpu, room.milli_cpu),
        ("memory", needed.memory, used.memory, room.memory),
        (
            "ephemeral-storage",
            needed.ephemeral,
            used.ephemeral,
            room.ephemeral,
        ),
    ] {
        if needed > 0 && needed > capacity - used {
            return Some(short(what, needed, used, capacity));
        }
    }
    let wanted = host_ports(spec);
    if let Some(why) = wanted.iter().find_map(|port| impossible(port, spec, ports)) {
        return Some(Refusal::new(
            "NodePorts",
            format!("Predicate NodePorts failed: {why}"),
        ));
    }
    let mut taken = others
        .filter_map(|other| other.spec.as_ref())
        .flat_map(host_ports);
    let clash = !wanted.is_empty() && taken.any(|one| wanted.iter().any(|port| port.clashes(&one)));
    clash.then(|| {
        Refusal::new(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        )
    })
}

/// Why no pod can ever have this port of the node.
fn impossible(port: &HostPort, spec: &PodSpec, ports: Ports<'_>) -> Option<String> {
    let (number, protocol) = (port.port, &port.protocol);
    let nothing_is_led = |why: &dyn std::fmt::Display| {
        let address = &port.address;
        format!("hostIP {address} of host port {number}/{protocol} {why}")
    };
    let address = match host_address(&port.address) {
        // It listens where it likes.
        address if spec.host_network == Some(true) => address.unwrap_or(HostAddress::Every),
        Ok(HostAddress::EveryIpv6) if ports.pods.of(Family::V6).is_none() => {
            return Some(nothing_is_led(&no_pod_has(Family::V6)));
        }
        Ok(HostAddress::One(one)) if ports.pods.of(one.family()).is_none() => {
            return Some(nothing_is_led(&no_pod_has(one.family())));
        }
        Ok(address) => address,
        Err(why) => return Some(nothing_is_led(&why)),
    };
    let protocol_number = match &**protocol {
        "TCP" => TCP,
        "UDP" => UDP,
        _ => return None, // nothing of ours
    };
    let number = u16::try_from(number).ok()?;
    let user = ports.own.user(address.one(), protocol_number, number)?;
    Some(format!("host port {number}/{protocol} is used by {user}"))
}

fn no_pod_has(family: Family) -> String {
    format!("is an {family} address, and this node's pods have none")
}

/// A profile that must be enforced: all but "unconfined", in fields or in the older annotations.
fn wants_apparmor(pod: &Pod, spec: &PodSpec) -> bool {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let whole = spec.security_context.as_ref();
    let containers = spec.init_containers.iter().flatten();
    let each = containers
        .chain(&spec.containers)
        .filter_map(|container| container.security_context.as_ref());
    let fields = whole
        .and_then(|context| context.app_armor_profile.as_ref())
        .into_iter()
        .chain(each.filter_map(|context| context.app_armor_profile.as_ref()));
    let annotations = pod.metadata.annotations.iter().flatten();
    fields
        .into_iter()
        .any(|profile| profile.type_ != "Unconfined")
        || annotations
            .filter(|(name, _)| name.starts_with(ANNOTATION))
            .any(|(_, value)| value != "unconfined")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::own_ports::OwnPort;
    use serde_json::{Value, json};

    const ROOM: Room = Room {
        pods: 2,
        milli_cpu: 2000,
        memory: 1 << 30,
        ephemeral: 1 << 30,
    };

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    fn asking(cpu: &str, port: i32) -> Pod {
        pod(json!({"containers": [{"name": "c",
            "resources": {"requests": {"cpu": cpu}},
            "ports": [{"containerPort": 80, "hostPort": port}]}]}))
    }

    #[test]
    fn who_is_refused_and_why() {
        let apparmor = |kind: &str| {
            pod(json!({"containers": [{"name": "c",
                "securityContext": {"appArmorProfile": {"type": kind}}}]}))
        };
        let one = asking("1500m", 80);
        let own = OwnPorts::new([OwnPort {
            address: None,
            protocol: TCP,
            port: 6443,
            user: "the API server",
        }]);
        let at = |address: &str, network: bool| {
            pod(json!({"hostNetwork": network, "containers": [{"name": "c",
                "ports": [{"containerPort": 6443, "hostPort": 6443, "hostIP": address}]}]}))
        };
        for (new, others, want) in [
            (asking("500m", 81), vec![&one], None),
            (asking("501m", 81), vec![&one], Some("OutOfcpu")),
            (
                pod(json!({"containers": [{"name": "c",
                    "resources": {"requests": {"ephemeral-storage": "2Gi"}}}]})),
                vec![&one],
                Some("OutOfephemeral-storage"),
            ),
            (asking("0", 81), vec![&one, &one], Some("OutOfpods")),
            (asking("100m", 80), vec![&one], Some("NodePorts")),
            (asking("0", 6443), vec![], Some("NodePorts")),
            (at("127.0.0.1", false), vec![], Some("NodePorts")),
            (at("::ffff:127.0.0.1", false), vec![], Some("NodePorts")),
            (at("0.0.0.0", true), vec![], Some("NodePorts")),
            (at("::1", false), vec![], Some("NodePorts")),
            (apparmor("Unconfined"), vec![], None),
            (apparmor("RuntimeDefault"), vec![], Some("AppArmor")),
            (
                pod(json!({"os": {"name": "windows"}, "containers": []})),
                vec![],
                Some("PodOSNotSupported"),
            ),
        ] {
            let ports = Ports {
                own: &own,
                pods: &"10.42.0.0/24".parse().unwrap(),
            };
            let refusal = refusal(&new, others.into_iter(), ROOM, ports);
            let reason = refusal.as_ref().map(|refusal| refusal.reason.as_str());
            assert_eq!(reason, want, "{new:?}");
        }
        for (pods, address, want) in [
            ("10.42.0.0/24", "192.0.2.1", None),
            (
                "10.42.0.0/24",
                "2001:db8::1",
                Some(
                    "hostIP 2001:db8::1 of host port 80/TCP is an IPv6 address, and this node's pods have none",
                ),
            ),
            (
                "10.42.0.0/24",
                "::",
                Some(
                    "hostIP :: of host port 80/TCP is an IPv6 address, and this node's pods have none",
                ),
            ),
            ("fd42::/64", "0.0.0.0", None),
            (
                "fd42::/64",
                "192.0.2.1",
                Some(
                    "hostIP 192.0.2.1 of host port 80/TCP is an IPv4 address, and this node's pods have none",
                ),
            ),
            ("10.42.0.0/24,fd42::/64", "::", None),
            ("10.42.0.0/24,fd42::/64", "2001:db8::1", None),
            ("10.42.0.0/24,fd42::/64", "::1", None),
        ] {
            let new = pod(json!({"containers": [{"name": "c",
                "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": address}]}]}));
            let pods = pods.parse().unwrap();
            let ports = Ports {
                own: &own,
                pods: &pods,
            };
            let refusal = refusal(&new, [].into_iter(), ROOM, ports);
            let message = refusal.map(|refusal| refusal.message);
            let want = want.map(|why| format!("Predicate NodePorts failed: {why}"));
            assert_eq!(message, want, "{address} {pods}");
        }
    }
}
