//! What policies let through: by the words of the API, and by rules in a kernel of one's own.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::{
    model::{PodFacts, Protocol},
    plan::{World, plan},
    rules::Rules,
    sync::Writer,
    trace::{Connection, End, trace},
};
use crate::addresses::family::Family;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `a1` is 10.0.0.1 in the namespace `a`, `b2` is 10.0.1.2 in `b`.
fn pod(name: &str) -> PodFacts {
    let (namespace, number) = name.split_at(1);
    let network = namespace.as_bytes()[0] - b'a';
    PodFacts {
        namespace: namespace.into(),
        name: name.into(),
        uid: name.into(),
        labels: [("pod".to_owned(), number.to_owned())].into(),
        addresses: vec![address(&format!("10.0.{network}.{number}"))],
        ports: [
            ((Protocol::Tcp, "web".to_owned()), 80),
            ((Protocol::Udp, "dns".to_owned()), 53),
        ]
        .into(),
        is_local: true,
    }
}

fn policy(namespace: &str, name: &str, spec: Value) -> Arc<Rules> {
    let object =
        json!({"metadata": {"namespace": namespace, "name": name, "uid": name}, "spec": spec});
    let policy: NetworkPolicy = serde_json::from_value(object).unwrap();
    Arc::new(Rules::of(&policy))
}

fn world(policies: Vec<Arc<Rules>>) -> World {
    let namespaces = ["a", "b", "c"].map(|name| {
        let labels = BTreeMap::from([("ns".to_owned(), name.to_owned())]);
        (name.to_owned(), labels)
    });
    let names = ["a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2", "c3"];
    World {
        policies,
        namespaces: namespaces.into(),
        pods: names.map(pod).into(),
    }
}

/// Who may connect to `server` there: of the pods `a1` to `c3`, and from outside (`x`).
fn clients(world: &World, server: &str, protocol: u8, port: u16) -> String {
    let desired = plan(world, false);
    let to = pod(server).addresses[0];
    let pods = world.pods.iter().map(|pod| (&*pod.name, pod.addresses[0]));
    let all = pods.chain([("x", address("192.0.2.1"))]);
    let allowed = all.filter(|(_, from)| desired.allows(*from, to, protocol, port));
    allowed.map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

const ALL: &str = "a1 a2 a3 b1 b2 b3 c1 c2 c3 x";

#[test]
fn who_may_connect() {
    let to_web = |from: Value| json!({"podSelector": {"matchLabels": {"pod": "1"}}, "ingress": [{"from": [from]}]});
    for (spec, want, why) in [
        (json!({"podSelector": {}}), "a1", "nobody but oneself"),
        (
            json!({"podSelector": {}, "ingress": []}),
            "a1",
            "an empty list is none",
        ),
        (
            json!({"podSelector": {}, "ingress": [{}]}),
            ALL,
            "an empty rule is everybody",
        ),
        (
            json!({"podSelector": {"matchLabels": {"pod": "2"}}}),
            ALL,
            "it selects others",
        ),
        (
            json!({"podSelector": {}, "policyTypes": ["Egress"]}),
            "a1 b1 b2 b3 c1 c2 c3 x",
            "the other direction",
        ),
        (
            to_web(json!({"podSelector": {}})),
            "a1 a2 a3",
            "pods of the namespace",
        ),
        (
            to_web(json!({"podSelector": {"matchLabels": {"pod": "2"}}})),
            "a1 a2",
            "some of them",
        ),
        (
            to_web(json!({"namespaceSelector": {}})),
            "a1 a2 a3 b1 b2 b3 c1 c2 c3",
            "all pods",
        ),
        (
            to_web(json!({"namespaceSelector": {"matchLabels": {"ns": "b"}}})),
            "a1 b1 b2 b3",
            "a namespace",
        ),
        (
            to_web(
                json!({"namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["b"]}]},
                "podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["2", "3"]}]}}),
            ),
            "a1 a2 a3 c2 c3",
            "both at once",
        ),
        (
            to_web(json!({"ipBlock": {"cidr": "10.0.1.0/24"}})),
            "a1 b1 b2 b3",
            "a block has pods too",
        ),
        (
            to_web(
                json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.1.0/24", "10.0.2.2/32"]}}),
            ),
            "a1 a2 a3 c1 c3 x",
            "exceptions",
        ),
        (
            to_web(json!({"ipBlock": {"cidr": "::/0"}})),
            "a1",
            "the other family",
        ),
        (
            to_web(json!({"ipBlock": {"cidr": "nonsense"}})),
            "a1",
            "nothing that makes sense",
        ),
        (to_web(json!({})), "a1", "no peer at all"),
    ] {
        let world = world(vec![policy("a", "p", spec)]);
        assert_eq!(clients(&world, "a1", TCP, 80), want, "{why}");
        let others = clients(&world, "b1", TCP, 80);
        assert!(others.contains('x'), "not selected: {why}");
    }
}

#[test]
fn to_which_ports() {
    let to = |ports: Value| json!({"podSelector": {}, "ingress": [{"ports": ports}]});
    for (ports, open) in [
        (json!([]), &[(TCP, 80), (TCP, 81), (UDP, 53), (ICMP, 0)][..]),
        (json!([{"port": 80}]), &[(TCP, 80)]),
        (json!([{"protocol": "UDP"}]), &[(UDP, 53)]),
        (
            json!([{"port": 79, "endPort": 81}]),
            &[(TCP, 80), (TCP, 81)],
        ),
        (
            json!([{"port": "web"}, {"protocol": "UDP", "port": "dns"}]),
            &[(TCP, 80), (UDP, 53)],
        ),
        (json!([{"protocol": "UDP", "port": "web"}]), &[]),
        (json!([{"port": "gone"}]), &[]),
        (json!([{"port": "gone"}, {"port": 81}]), &[(TCP, 81)]),
        (json!([{"protocol": "ICMP"}]), &[]),
    ] {
        let world = world(vec![policy("a", "p", to(ports.clone()))]);
        for (protocol, port) in [(TCP, 80), (TCP, 81), (UDP, 53), (ICMP, 0)] {
            let want = if open.contains(&(protocol, port)) {
                ALL
            } else {
                "a1"
            };
            assert_eq!(
                clients(&world, "a1", protocol, port),
                want,
                "{ports} {protocol} {port}"
            );
        }
    }
}

#[test]
fn where_to() {
    // From every pod of `a`, to ports by the names that the servers have for them.
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"to": [{"namespaceSelector": {"matchLabels": {"ns": "b"}}}], "ports": [{"port": "web"}]},
        {"to": [{"ipBlock": {"cidr": "10.0.2.0/24", "except": ["10.0.2.3/32"]}}], "ports": [{"port": "dns", "protocol": "UDP"}]},
    ]});
    let mut world = world(vec![policy("a", "p", spec)]);
    let other = world.pods.iter_mut().find(|pod| pod.name == "b2").unwrap();
    other.ports = [((Protocol::Tcp, "web".to_owned()), 8080)].into();
    let desired = plan(&world, false);
    let open = |to: &str, protocol, port| {
        let to = pod(to).addresses[0];
        desired.allows(pod("a1").addresses[0], to, protocol, port)
    };
    for (to, protocol, port, want) in [
        ("b1", TCP, 80, true),
        ("b1", TCP, 8080, false),
        ("b2", TCP, 80, false),
        ("b2", TCP, 8080, true),
        ("c1", UDP, 53, true),
        ("c3", UDP, 53, false),
        ("c1", TCP, 80, false),
        ("a2", TCP, 80, false),
        ("a1", TCP, 80, true),
    ] {
        assert_eq!(open(to, protocol, port), want, "{to} {protocol} {port}");
    }
}

#[test]
fn many_policies_are_a_union() {
    let none = policy(
        "a",
        "none",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    );
    let from_b = json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "b"}}}],
        "ports": [{"port": 80}]}]});
    let from_c = json!({"podSelector": {"matchLabels": {"pod": "1"}}, "ingress": [
        {"from": [{"namespaceSelector": {"matchLabels": {"ns": "c"}}}], "ports": [{"port": 80}]}]});
    let world = world(vec![
        none,
        policy("a", "b", from_b),
        policy("a", "c", from_c),
    ]);
    assert_eq!(clients(&world, "a1", TCP, 80), "a1 b1 b2 b3 c1 c2 c3");
    assert_eq!(clients(&world, "a2", TCP, 80), "a2 b1 b2 b3");
    assert_eq!(clients(&world, "a1", TCP, 81), "a1");
    let desired = plan(&world, false);
    assert!(!desired.allows(pod("a1").addresses[0], pod("b1").addresses[0], TCP, 80));
    // One rule for one set of ports, however many name it; pods of a kind share it.
    assert_eq!(desired.chains.len(), 3);
    assert!(
        desired
            .chains
            .values()
            .all(|chain| chain.allowed.len() <= 1)
    );
    assert_eq!(
        desired.ingress[&address("10.0.0.2")],
        desired.ingress[&address("10.0.0.3")]
    );
}

#[test]
fn why_a_connection_is_denied() {
    let none = policy("a", "none", json!({"podSelector": {}}));
    let from_b = json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "b"}}}]}]});
    let world = world(vec![none, policy("a", "from-b", from_b)]);
    let ask = |from: End, to: &str| {
        let connection = Connection {
            from,
            to: End::Pod(Box::new(pod(to))),
            protocol: Protocol::Tcp,
            port: 80,
        };
        trace(&world, &connection).map(|judgement| judgement.to_string())
    };
    let free = "allowed: no policy isolates it".to_owned();
    let by = |name: &str| End::Pod(Box::new(pod(name)));
    assert_eq!(
        ask(by("b1"), "a1"),
        [free.clone(), "allowed by from-b".into()]
    );
    let denied = "denied: isolated by none, from-b, none of which allows it".to_owned();
    assert_eq!(ask(by("c1"), "a1"), [free.clone(), denied.clone()]);
    assert_eq!(
        ask(End::Address(address("192.0.2.1")), "a1"),
        [free.clone(), denied]
    );
    assert_eq!(ask(by("a1"), "a1"), [free.clone(), free.clone()]);
    assert_eq!(ask(by("a1"), "c1"), [free.clone(), free]);
}

#[test]
fn a_pod_elsewhere_changes_elements_only() {
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]});
    let mut world = world(vec![policy("a", "p", spec)]);
    let before = plan(&world, false);
    let mut more = pod("c4");
    more.is_local = false;
    world.pods.push(more);
    let after = plan(&world, false);
    let names =
        |desired: &super::model::Desired| desired.chains.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after));
    assert!(!after.may_be_stricter_than(&before) && before.may_be_stricter_than(&after));
    assert!(
        !after.ingress.contains_key(&address("10.0.2.4")),
        "it is not ours"
    );
}

/// Every state that the plans above come to is one that the kernel takes, by any way from one to another.
#[test]
#[ignore = "needs root"]
fn the_kernel_takes_every_state() {
    let specs = [
        json!({"podSelector": {}}),
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.1.0/24"]}},
            {"podSelector": {}}], "ports": [{"port": 80}, {"port": 100, "endPort": 200, "protocol": "SCTP"}]}]}),
        json!({"podSelector": {"matchLabels": {"pod": "1"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": "web"}, {"protocol": "UDP"}]}]}),
    ];
    let states: Vec<World> = (0..1 << specs.len())
        .map(|set: usize| {
            let chosen = specs
                .iter()
                .enumerate()
                .filter(|(at, _)| set & 1 << at != 0);
            let policies = chosen.map(|(at, spec)| policy("a", &format!("p{at}"), spec.clone()));
            world(policies.collect())
        })
        .collect();
    let namespace = netns::Namespace::create().unwrap();
    let run = || {
        let mut writer = Writer::open("policies", Family::ALL).unwrap();
        let handles = |name: &str| {
            let out = std::process::Command::new("nft")
                .args(["list", "tables"])
                .output()
                .unwrap();
            String::from_utf8(out.stdout).unwrap().contains(name)
        };
        for from in &states {
            for to in &states {
                for state in [from, to] {
                    writer.apply(|ipv6| plan(state, ipv6)).unwrap();
                    assert_eq!(handles("policies"), !state.policies.is_empty());
                }
                let mut fewer = world(to.policies.clone());
                fewer
                    .pods
                    .retain(|pod| pod.name != "a1" && pod.name != "b2");
                writer.apply(|ipv6| plan(&fewer, ipv6)).unwrap();
            }
        }
        assert!(writer.settle().unwrap().is_empty());
        writer.remove().unwrap();
        assert!(!handles("policies"));
    };
    namespace.run(run).unwrap();
}
