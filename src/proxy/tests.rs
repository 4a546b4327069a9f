//! Services in namespaces of the tests' own, with real sockets.

mod balanced;
mod families;
mod kernel;
mod lab;
mod near;
mod pooled;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use self::lab::{CLUSTERS, Lab, ask, refused, refused_udp};
use super::{
    elements::{Door, SetName},
    family_table::FEW_CHAINS,
    model::{Audience, Backend, Front, Outcome, Protocol},
    step::Step,
    *,
};
use crate::{
    addresses::family::OfFamily,
    informer::services::SERVICE_NAME,
    own_ports::{OwnPort, TCP},
};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const TIMEOUT: Duration = Duration::from_secs(2);

/// A cluster's addresses of one family.
#[derive(Clone, Copy)]
struct Net {
    family: Family,
    pods: [IpAddr; 2],
    /// The node's address on the pods' bridge, and on the network of the client outside.
    gateway: IpAddr,
    node: IpAddr,
    client: IpAddr,
    /// Bits of both networks' prefixes.
    length: u8,
    cluster_ip: IpAddr,
    external: IpAddr,
    pod_range: &'static str,
    service_range: &'static str,
    /// Inside of the services' range, and two outside of all others.
    inner_range: &'static str,
    added_range: &'static str,
    later_range: &'static str,
    /// The node's own network.
    host_range: &'static str,
    everything: &'static str,
}

const NET_V4: Net = Net {
    family: Family::V4,
    pods: [
        IpAddr::V4(Ipv4Addr::new(10, 8, 0, 2)),
        IpAddr::V4(Ipv4Addr::new(10, 8, 0, 3)),
    ],
    gateway: IpAddr::V4(Ipv4Addr::new(10, 8, 0, 1)),
    node: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
    length: 24,
    cluster_ip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
    external: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
    pod_range: "10.8.0.0/16",
    service_range: "10.96.0.0/12",
    inner_range: "10.97.0.0/24",
    added_range: "203.0.113.0/24",
    later_range: "198.51.100.0/24",
    host_range: "192.0.2.0/24",
    everything: "0.0.0.0/0",
};

const NET_V6: Net = Net {
    family: Family::V6,
    pods: [
        IpAddr::V6(Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 2)),
        IpAddr::V6(Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 3)),
    ],
    gateway: IpAddr::V6(Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 1)),
    node: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1)),
    client: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2)),
    length: 64,
    cluster_ip: IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1)),
    external: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7)),
    pod_range: "fd08::/56",
    service_range: "fd96::/108",
    inner_range: "fd96::a:0/112",
    added_range: "fd97::/112",
    later_range: "fd98::/112",
    host_range: "2001:db8:2::/64",
    everything: "::/0",
};

fn net(family: Family) -> Net {
    match family {
        Family::V4 => NET_V4,
        Family::V6 => NET_V6,
    }
}

impl Net {
    fn loopback(&self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    fn unspecified(&self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// A slice with these pods of the two, on that node.
    fn slice(&self, port: u16, protocol: &str, pods: &[usize], node: &str) -> EndpointSlice {
        let addresses: Vec<String> = pods.iter().map(|at| self.pods[*at].to_string()).collect();
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|address| (address.as_str(), node, true, false))
            .collect();
        slice_of(self.family, port, protocol, &endpoints)
    }
}

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec}))
        .expect("a service")
}

/// Each endpoint: address, node, ready, serving while it ends.
fn slice(port: u16, protocol: &str, endpoints: &[(&str, &str, bool, bool)]) -> EndpointSlice {
    let is_v6 = endpoints.iter().any(|one| one.0.contains(':'));
    let family = if is_v6 { Family::V6 } else { Family::V4 };
    slice_of(family, port, protocol, endpoints)
}

fn slice_of(
    family: Family,
    port: u16,
    protocol: &str,
    endpoints: &[(&str, &str, bool, bool)],
) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node, ready, ending)| {
            json!({
                "addresses": [address], "nodeName": node,
                "conditions": {"ready": ready, "serving": ready | ending, "terminating": ending},
            })
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": "s-1", "namespace": "n", "labels": {SERVICE_NAME: "s"}},
        "addressType": family.name(),
        "ports": [{"name": "", "port": port, "protocol": protocol}],
        "endpoints": endpoints,
    }))
    .expect("a slice")
}

/// The plan of IPv4.
fn plan(service: &Service, slices: &[&EndpointSlice], node: &Node) -> Plan {
    model::plan(service, slices, node, Family::V4)
}

/// A node of this name.
fn at(name: &str) -> Node {
    let ranges = Family::ALL.map(net);
    let ranges = ranges
        .iter()
        .flat_map(|net| [net.pod_range, net.service_range]);
    Node {
        name: name.into(),
        cluster: ranges
            .map(|range| range.parse().expect("a literal range"))
            .collect(),
        addresses: Family::ALL.map(|family| net(family).node).into(),
        own_ports: own_ports(),
        ..Node::default()
    }
}

fn own_ports() -> OwnPorts {
    OwnPorts::new([OwnPort {
        address: None,
        protocol: TCP,
        port: 6443,
        user: "the API server",
    }])
}

fn front(address: Option<&str>, port: u16, audience: Audience) -> Front {
    Front {
        address: address.map(|text| text.parse().expect("a literal address")),
        protocol: Protocol::Tcp,
        port,
        audience,
    }
}

fn forward(backends: impl IntoIterator<Item = Backend>) -> Outcome {
    Outcome::Forward {
        backends: backends.into_iter().collect(),
        affinity: None,
        sources: BTreeSet::new(),
    }
}

/// IPv4's.
const BOTH: &[(&str, &str, bool, bool)] = &[
    ("10.8.0.2", "a", true, false),
    ("10.8.0.3", "a", true, false),
];

#[test]
fn endpoints_of_a_cluster_ip() {
    let service = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    for (endpoints, want) in [
        (&[("10.0.0.1", "a", true, false)][..], &[1u8][..]),
        // Ready ones hide those that end.
        (
            &[
                ("10.0.0.1", "a", true, false),
                ("10.0.0.2", "a", false, true),
            ],
            &[1],
        ),
        (&[("10.0.0.2", "a", false, true)], &[2]),
        (&[("10.0.0.2", "a", false, false)], &[]), // not ready, not serving
    ] {
        let plan = plan(&service, &[&slice(8080, "TCP", endpoints)], &at("a"));
        let backends: BTreeSet<_> = want
            .iter()
            .map(|last| (IpAddr::from([10, 0, 0, *last]), 8080))
            .collect();
        let want = match backends.is_empty() {
            true => Outcome::Refuse,
            false => forward(backends),
        };
        let front = front(Some("10.96.0.1"), 80, Audience::Everyone);
        assert_eq!(
            plan.fronts,
            BTreeMap::from([(front, want)]),
            "{endpoints:?}"
        );
    }
}

#[test]
fn local_policy_binds_only_clients_from_outside() {
    let service = service(json!({
        "type": "NodePort", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "nodePort": 30080}],
    }));
    let slice = slice(8080, "TCP", &[("10.0.0.1", "b", true, false)]);
    let plan = plan(&service, &[&slice], &at("a"));
    let outside = front(None, 30080, Audience::Outside);
    assert_eq!(plan.fronts.get(&outside), Some(&Outcome::Drop));
    let everyone = front(None, 30080, Audience::Everyone);
    assert!(matches!(
        plan.fronts.get(&everyone),
        Some(Outcome::Forward { .. })
    ));
    assert!(plan.masqueraded.is_empty());
}

#[test]
fn a_change_costs_what_changed() {
    let service = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    let plan = |endpoints: &[_]| plan(&service, &[&slice(8080, "TCP", endpoints)], &at("a"));
    let (one, two) = (
        ("10.0.0.1", "b", true, false),
        ("10.0.0.2", "b", true, false),
    );
    let mut state = render::State::new(Family::V4);
    let key = Key::new("n", "s");
    // How many elements go and come.
    let mut change = |plan: Plan| {
        let mut step = Step::default();
        state.update(&key, plan, &mut step);
        let is_empty = step.is_empty();
        let delta = step.into_delta();
        let [gone, new] = [delta.delete, delta.add].map(|sets| sets.values().flatten().count());
        assert_eq!(is_empty, gone + new == 0);
        (gone, new)
    };
    assert_eq!(change(plan(&[one])), (0, 3)); // door, back, cluster IP
    assert_eq!(change(plan(&[one, two])), (1, 2)); // door again, one more back
    assert_eq!(change(plan(&[one, two])), (0, 0));
    assert_eq!(change(Plan::nothing(Family::V4)), (4, 0));
    assert_eq!(all(&state), 0);
}

/// How many elements there are.
fn all(state: &render::State) -> usize {
    state.whole().add.values().flatten().count()
}

#[test]
fn what_is_the_clusters_stays_the_clusters() {
    let external = |ip: &str, status: &str| {
        let service = service(json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalIPs": [ip],
            "ports": [{"port": 80}],
        }));
        let mut service = serde_json::to_value(service).unwrap();
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": status}]}});
        let service = serde_json::from_value(service).unwrap();
        plan(&service, &[], &at("a"))
    };
    for (ip, why) in [
        ("198.51.100.7", None),
        ("192.0.2.1", Some("it is the node's own")),
        ("10.8.0.1", Some("it is in a range of the cluster's own")),
        ("10.96.0.10", Some("it is in a range of the cluster's own")),
        ("127.0.0.1", Some("it is only on this host or its links")),
        ("0.0.0.0", Some("it is only on this host or its links")),
        ("169.254.1.1", Some("it is only on this host or its links")),
        ("224.0.0.5", Some("it is only on this host or its links")),
    ] {
        for (ip, status) in [(ip, "198.51.100.8"), ("198.51.100.8", ip)] {
            let plan = external(ip, status);
            let wanted: Vec<&str> = why.into_iter().collect();
            assert_eq!(
                plan.ignored.values().copied().collect::<Vec<_>>(),
                wanted,
                "{ip}"
            );
            let fronts = 3 - wanted.len(); // cluster IP and both others
            assert_eq!(plan.fronts.len(), fronts, "{ip} {status}");
        }
    }
    // Nor is anything led to where only this host is.
    let service = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    for address in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"] {
        let slice = slice(8080, "TCP", &[(address, "a", true, false)]);
        let plan = plan(&service, &[&slice], &at("a"));
        let outcomes: Vec<_> = plan.fronts.into_values().collect();
        assert_eq!(outcomes, [Outcome::Refuse], "{address}");
    }
}

#[test]
fn the_older_service_keeps_an_address() {
    let made = |seconds: i64, spec| Plan {
        since: (seconds, String::new()),
        ..plan(
            &service(spec),
            &[&slice(8080, "TCP", &[("10.0.0.1", "b", true, false)])],
            &at("a"),
        )
    };
    let spec = |ip: &str, policy: &str| {
        json!({"type": "NodePort", "clusterIP": ip, "externalIPs": ["198.51.100.7"],
            "externalTrafficPolicy": policy, "ports": [{"port": 80}]})
    };
    let (old, new) = (Key::new("z", "old"), Key::new("a", "new"));
    let mut state = render::State::new(Family::V4);
    // In whatever order they come, as after a restart.
    let mut step = Step::default();
    state.update(&new, made(2, spec("10.96.0.2", "Local")), &mut step);
    let alone = all(&state);
    state.update(&old, made(1, spec("10.96.0.1", "Cluster")), &mut step);
    let messages: Vec<&str> = step.notices.iter().map(|n| n.message.as_str()).collect();
    assert_eq!(
        messages,
        ["198.51.100.7:80 is not served for this Service: z/old has it"]
    );
    // Nothing of the younger one is left at the address, not even for clients outside.
    let outside = |state: &render::State| {
        let door = SetName::Door(Door::OutsideAddresses);
        state.whole().add.get(&door).map_or(0, Vec::len)
    };
    assert_eq!(outside(&state), 0);
    state.update(&old, Plan::nothing(Family::V4), &mut Step::default());
    assert_eq!((outside(&state), all(&state)), (1, alone));
}
