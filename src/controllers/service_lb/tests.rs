//! Who gets which addresses, and what is written of it.

use std::sync::Arc;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::{
    plan::{places, share, touched},
    *,
};

fn node(name: &str, addresses: &[(&str, &str)], more: Value) -> Arc<Node> {
    let addresses: Vec<Value> = addresses
        .iter()
        .map(|(kind, address)| json!({"type": kind, "address": address}))
        .collect();
    let mut node = json!({
        "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": "True"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        },
    });
    merge(&mut node, more);
    Arc::new(serde_json::from_value(node).unwrap())
}

/// Merges objects, and replaces everything else.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// A Service made in this second, with a port.
fn service(name: &str, second: i64, port: i32, more: Value) -> Arc<Service> {
    let mut service = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"type": "LoadBalancer", "ports": [{"port": port, "protocol": "TCP"}]},
    });
    merge(&mut service, more);
    let mut service: Service = serde_json::from_value(service).unwrap();
    service.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
    Arc::new(service)
}

fn cluster() -> Cluster {
    Cluster {
        ports: vec![
            Reserved {
                protocol: "TCP",
                port: 6443,
                user: "the API server",
            },
            Reserved {
                protocol: "UDP",
                port: 8472,
                user: "the tunnel between machines",
            },
        ],
        pool: Pool::default(),
        ranges: vec!["10.42.0.0/16".parse().unwrap()],
    }
}

fn three() -> Vec<Arc<Node>> {
    ["a", "b", "c"]
        .into_iter()
        .zip(["192.0.2.1", "192.0.2.2", "192.0.2.3"])
        .map(|(name, address)| node(name, &[("InternalIP", address)], json!({})))
        .collect()
}

/// What the last of `all` gets on these nodes, and the reasons for what it does not.
fn got(all: &[Arc<Service>], nodes: &[Arc<Node>], serving: &[&str]) -> (Vec<String>, Vec<String>) {
    let cluster = cluster();
    let places = places(nodes, &cluster.ranges);
    let serving = |_: &Service| serving.iter().map(|name| (*name).to_owned()).collect();
    let last = all.last().unwrap();
    let share = share(last, all, &places, &cluster, &serving);
    (
        share.addresses.iter().map(ToString::to_string).collect(),
        share.refusals.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn addresses_of_a_node() {
    let internal = ("InternalIP", "192.0.2.1");
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let unknown = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    let excluded = json!({"metadata": {"labels": {label: "false"}}});
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}});
    let cordoned = json!({"spec": {"unschedulable": true}});
    for (addresses, more, want) in [
        (
            &[internal, ("Hostname", "a")][..],
            json!({}),
            &["192.0.2.1"][..],
        ),
        (
            &[internal, ("ExternalIP", "203.0.113.1")],
            json!({}),
            &["203.0.113.1"],
        ),
        (
            &[internal, ("InternalIP", "192.0.2.9")],
            json!({}),
            &["192.0.2.1", "192.0.2.9"],
        ),
        // The other family is looked at by itself.
        (
            &[internal, ("ExternalIP", "2001:db8::1")],
            json!({}),
            &["192.0.2.1"],
        ),
        // A node says itself what its addresses are.
        (&[("InternalIP", "10.42.0.1")], json!({}), &[]),
        (&[("InternalIP", "127.0.0.1")], json!({}), &[]),
        (&[("InternalIP", "169.254.169.254")], json!({}), &[]),
        (&[internal], not_ready, &[]),
        (&[internal], unknown, &[]),
        (&[internal], excluded, &[]),
        (&[internal], deleted, &[]),
        (&[internal], cordoned, &["192.0.2.1"]),
    ] {
        let nodes = [node("a", addresses, more)];
        let (got, _) = got(&[service("s", 1, 80, json!({}))], &nodes, &[]);
        assert_eq!(got, want, "{:?}", nodes[0]);
    }
}

#[test]
fn an_address_that_two_nodes_claim_is_the_older_ones() {
    let later = json!({"metadata": {"creationTimestamp": "2026-02-01T00:00:00Z"},
        "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 80}}}});
    let address = [("InternalIP", "192.0.2.1")];
    let nodes = [
        node("thief", &address, later),
        node("owner", &address, json!({})),
    ];
    let places = places(&nodes, &[]);
    let names: Vec<&str> = places.iter().map(|place| place.node.as_str()).collect();
    assert_eq!(names, ["owner"]);
    let all = [service("s", 1, 80, json!({}))];
    assert_eq!(got(&all, &nodes, &[]).0, ["192.0.2.1"]);
}

#[test]
fn which_services_get_which_nodes() {
    let nodes = three();
    let every = &["192.0.2.1", "192.0.2.2", "192.0.2.3"][..];
    let local = || json!({"spec": {"externalTrafficPolicy": "Local"}});
    let v6 = json!({"spec": {"ipFamilies": ["IPv6"]}});
    let pinned = |address: &str| json!({"spec": {"loadBalancerIP": address}});
    for (more, serving, want, reason) in [
        (json!({}), &[][..], every, ""),
        (
            json!({"spec": {"allocateLoadBalancerNodePorts": false}}),
            &[],
            every,
            "",
        ),
        (
            json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}}),
            &[],
            every,
            "",
        ),
        (
            v6,
            &[],
            &[],
            "no node with an address of the Service's families",
        ),
        (local(), &["b"], &["192.0.2.2"], ""),
        (
            local(),
            &[],
            &[],
            "no node that is ready has a serving endpoint",
        ),
        (pinned("192.0.2.3"), &[], &["192.0.2.3"], ""),
        (
            pinned("192.0.2.9"),
            &[],
            &[],
            "set it to one of 192.0.2.1, 192.0.2.2, 192.0.2.3, or remove it",
        ),
        (pinned("nonsense"), &[], &[], "is not the address of a node"),
    ] {
        let all = [service("s", 1, 80, more)];
        let (addresses, refusals) = got(&all, &nodes, serving);
        assert_eq!(addresses, want, "{all:?}");
        match reason {
            "" => assert_eq!(refusals, [""; 0], "{all:?}"),
            some => assert!(refusals[0].contains(some), "{refusals:?}"),
        }
    }
    let mut pinned_and_local = pinned("192.0.2.3");
    merge(&mut pinned_and_local, local());
    let (none, why) = got(&[service("s", 1, 80, pinned_and_local)], &nodes, &["a"]);
    assert!(
        none.is_empty() && why[0].contains("has no endpoint"),
        "{why:?}"
    );
}

#[test]
fn ports_of_the_clusters_own_are_nobodys() {
    let nodes = three();
    let udp = || json!({"spec": {"ports": [{"port": 8472, "protocol": "UDP"}]}});
    for (port, more, user) in [
        (6443, json!({}), Some("the API server")),
        (10250, json!({}), Some("the kubelet")),
        (8472, udp(), Some("the tunnel between machines")),
        (8472, json!({}), None),
        (10251, json!({}), None),
        // One of its ports is enough.
        (
            80,
            json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 10250, "name": "b"}]}}),
            Some("the kubelet"),
        ),
    ] {
        let (addresses, why) = got(&[service("s", 1, port, more)], &nodes, &[]);
        match user {
            Some(user) => {
                assert!(addresses.is_empty(), "{port}");
                assert!(
                    why[0].contains(&format!("belongs to {user}: choose another")),
                    "{why:?}"
                );
            }
            None => assert_eq!((addresses.len(), why.len()), (3, 0), "{port}"),
        }
    }
}

#[test]
fn of_two_that_want_a_port_the_older_one_has_it() {
    let nodes = three();
    let old = service("old", 1, 80, json!({}));
    let two_ports = |first: i32, second: i32| json!({"spec": {"ports": [{"port": first, "name": "a"}, {"port": second, "name": "b"}]}});
    for (others, young, want, taken_by) in [
        (vec![], service("young", 2, 80, json!({})), 0, Some("n/old")),
        // In the same second the uid decides.
        (vec![], service("p", 1, 80, json!({})), 0, Some("n/old")),
        (vec![], service("k", 1, 80, json!({})), 3, None),
        (vec![], service("young", 2, 81, json!({})), 3, None),
        (
            vec![],
            service(
                "young",
                2,
                80,
                json!({"spec": {"ports": [{"port": 80, "protocol": "UDP"}]}}),
            ),
            3,
            None,
        ),
        (
            vec![],
            service("young", 3, 80, two_ports(81, 80)),
            0,
            Some("n/old"),
        ),
        // What the one between does not get, others can have.
        (
            vec![service("between", 2, 80, two_ports(80, 81))],
            service("young", 3, 81, json!({})),
            3,
            None,
        ),
        // Nor does it take anything that asks for a port of the cluster's own,
        (
            vec![service("between", 2, 80, two_ports(81, 10250))],
            service("young", 3, 81, json!({})),
            3,
            None,
        ),
        // is of another's class, or is being deleted.
        (
            vec![service(
                "between",
                2,
                81,
                json!({"spec": {"loadBalancerClass": "a.b/c"}}),
            )],
            service("young", 3, 81, json!({})),
            3,
            None,
        ),
        (
            vec![service(
                "between",
                2,
                81,
                json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}}),
            )],
            service("young", 3, 81, json!({})),
            3,
            None,
        ),
        // A node port answers on every node.
        (
            vec![service(
                "between",
                2,
                8080,
                json!({"spec": {"type": "NodePort", "ports": [{"port": 8080, "nodePort": 30080}]}}),
            )],
            service("young", 3, 30080, json!({})),
            0,
            Some("n/between"),
        ),
        (
            vec![service(
                "between",
                2,
                8080,
                json!({"spec": {"healthCheckNodePort": 30080}}),
            )],
            service("young", 3, 30080, json!({})),
            0,
            Some("n/between"),
        ),
        // Its own does not count, nor one that was given later.
        (
            vec![service(
                "later",
                9,
                8080,
                json!({"spec": {"healthCheckNodePort": 30080}}),
            )],
            service(
                "young",
                3,
                30080,
                json!({"spec": {"ports": [{"port": 30080, "nodePort": 30080}]}}),
            ),
            3,
            None,
        ),
    ] {
        let all: Vec<Arc<Service>> = [vec![old.clone()], others, vec![young]].concat();
        let (addresses, why) = got(&all, &nodes, &[]);
        assert_eq!(addresses.len(), want, "{:?}: {why:?}", all.last());
        let says = taken_by.map(|by| format!("the older Service {by} has port "));
        assert_eq!(why.len(), usize::from(says.is_some()), "{why:?}");
        if let Some(says) = says {
            assert!(why[0].starts_with(&says), "{why:?}");
        }
    }
}

#[test]
fn a_port_of_one_node_leaves_those_of_others() {
    let nodes = three();
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let all = [
        service("old", 1, 80, local),
        service("young", 2, 80, json!({})),
    ];
    let (addresses, why) = got(&all, &nodes, &["b"]);
    assert_eq!(addresses, ["192.0.2.1", "192.0.2.3"]);
    assert!(why[0].contains("has port 80/TCP of b: "), "{why:?}");
    // The kubelet of one node listens elsewhere.
    let other = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 80}}}});
    let own = [node("d", &[("InternalIP", "192.0.2.4")], other)];
    let nodes = [&nodes[..], &own].concat();
    let (addresses, why) = got(&[service("s", 1, 80, json!({}))], &nodes, &[]);
    assert_eq!((addresses.len(), why.len()), (3, 1));
}

#[test]
fn who_must_be_looked_at_again() {
    let all = [
        service("a", 1, 80, json!({})),
        service(
            "b",
            2,
            80,
            json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
        ),
        service("c", 3, 81, json!({})),
        service("d", 4, 82, json!({})),
        service("e", 5, 80, json!({"spec": {"type": "ClusterIP"}})),
        service(
            "f",
            6,
            1,
            json!({"spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": 82}]}}),
        ),
    ];
    for (name, want) in [
        ("a", &["a", "b", "c"][..]),
        ("d", &["d"]),
        ("e", &[]),
        ("f", &["d"]),
    ] {
        let service = all.iter().find(|one| one.name_any() == name).unwrap();
        let touched = touched(plan::ports_of_nodes(service), &all).into_iter();
        let names: Vec<String> = touched.map(ResourceExt::name_any).collect();
        assert_eq!(names, want, "{name}");
    }
}

#[test]
fn the_status_is_written_once() {
    let fresh = service("s", 1, 80, json!({}));
    assert!(!status::is_known(&fresh) && status::released(&fresh).is_none());
    let share = Share {
        source: plan::Source::Nodes,
        addresses: vec!["192.0.2.1".parse().unwrap()],
        refusals: Vec::new(),
    };
    let write = |service: &Service, wanted: Wanted| {
        let mut written = service.clone();
        let status = written.status.get_or_insert_default();
        status.load_balancer.get_or_insert_default().ingress = Some(wanted.ingress);
        status.conditions = Some(wanted.conditions);
        written
    };
    let wanted = status::given(&fresh, &share).unwrap();
    assert_eq!(wanted.ingress[0].ip_mode.as_deref(), Some("VIP"));
    let ports = wanted.ingress[0].ports.as_deref().unwrap();
    assert_eq!(
        (ports.len(), ports[0].port, &*ports[0].protocol),
        (1, 80, "TCP")
    );
    let held = write(&fresh, wanted);
    // Another port was not judged yet.
    let mut other = held.clone();
    other.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].port = 81;
    assert!(status::given(&other, &share).is_some());
    assert!(balancing::is_given(&held) && status::is_known(&held));
    assert_eq!(status::given(&held, &share), None);
    // It waits: the proxies serve nothing of it, and it says why.
    let none = Share {
        source: plan::Source::Nodes,
        addresses: Vec::new(),
        refusals: vec![Refusal::NoNode],
    };
    let waiting = write(&held, status::given(&held, &none).unwrap());
    assert!(!balancing::is_given(&waiting) && status::is_known(&waiting));
    let condition = &waiting
        .status
        .as_ref()
        .unwrap()
        .conditions
        .as_ref()
        .unwrap()[0];
    assert_eq!(
        (&*condition.status, &*condition.reason),
        ("False", "NoReadyNode")
    );
    assert!(condition.message.contains("no node"));
    // Conditions of others stay.
    let mut shared = held.clone();
    let other = json!({"type": "a.b/c", "status": "True", "reason": "R", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let conditions = shared.status.as_mut().unwrap().conditions.as_mut().unwrap();
    conditions.push(serde_json::from_value(other).unwrap());
    assert_eq!(status::given(&shared, &share), None);
    let released = status::released(&shared).unwrap();
    let left: Vec<&str> = released
        .conditions
        .iter()
        .map(|one| one.type_.as_str())
        .collect();
    assert_eq!((left, released.ingress.len()), (vec!["a.b/c"], 0));
}
