//! Services in namespaces of the tests' own, with real sockets.

mod balanced;
mod near;
mod pooled;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::Command,
    thread,
    time::Duration,
};

use k8s_openapi::api::core::v1::Service;
use netns::{
    Namespace,
    route::{Change, Port, Prefix, Socket, Veth},
    sysctl,
};
use serde_json::{Value, json};

use super::{
    model::{Audience, Front, Outcome, Protocol},
    *,
};
use crate::{
    informer::services::SERVICE_NAME,
    own_ports::{OwnPort, TCP},
};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const TIMEOUT: Duration = Duration::from_secs(2);

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec}))
        .expect("a service")
}

/// Each endpoint: address, node, ready, serving while it ends.
fn slice(port: u16, protocol: &str, endpoints: &[(&str, &str, bool, bool)]) -> EndpointSlice {
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
        "addressType": "IPv4",
        "ports": [{"name": "", "port": port, "protocol": protocol}],
        "endpoints": endpoints,
    }))
    .expect("a slice")
}

/// A node of this name.
fn at(name: &str) -> Node {
    Node {
        name: name.into(),
        cluster: ["10.8.0.0/16", "10.96.0.0/12"]
            .map(|range| range.parse().expect("a literal range"))
            .into(),
        addresses: vec![NODE],
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

fn front(address: Option<[u8; 4]>, port: u16, audience: Audience) -> Front {
    Front {
        address: address.map(Ipv4Addr::from),
        protocol: Protocol::Tcp,
        port,
        audience,
    }
}

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
        let plan = model::plan(&service, &[&slice(8080, "TCP", endpoints)], &at("a"));
        let backends: BTreeSet<_> = want
            .iter()
            .map(|last| (Ipv4Addr::from([10, 0, 0, *last]), 8080))
            .collect();
        let want = match backends.is_empty() {
            true => Outcome::Refuse,
            false => Outcome::Forward {
                backends,
                affinity: None,
                sources: BTreeSet::new(),
            },
        };
        let front = front(Some([10, 96, 0, 1]), 80, Audience::Everyone);
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
    let plan = model::plan(&service, &[&slice], &at("a"));
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
    let plan = |endpoints: &[_]| model::plan(&service, &[&slice(8080, "TCP", endpoints)], &at("a"));
    let (one, two) = (
        ("10.0.0.1", "b", true, false),
        ("10.0.0.2", "b", true, false),
    );
    let mut state = render::State::default();
    let key = Key::new("n", "s");
    let mut step = render::Step::default();
    state.update(&key, plan(&[one]), &mut step);
    assert_eq!((step.delete.len(), step.add.len()), (0, 3)); // door, back, cluster IP
    let mut step = render::Step::default();
    state.update(&key, plan(&[one, two]), &mut step);
    assert_eq!((step.delete.len(), step.add.len()), (1, 2)); // door again, one more back
    let mut step = render::Step::default();
    state.update(&key, plan(&[one, two]), &mut step);
    assert!(step.is_empty());
    state.update(&key, Plan::default(), &mut step);
    assert_eq!((step.delete.len(), step.add.len()), (4, 0));
    assert_eq!(state.whole().add, []);
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
        model::plan(&service, &[], &at("a"))
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
        let plan = model::plan(&service, &[&slice], &at("a"));
        let outcomes: Vec<_> = plan.fronts.into_values().collect();
        assert_eq!(outcomes, [Outcome::Refuse], "{address}");
    }
}

#[test]
fn the_older_service_keeps_an_address() {
    let plan = |seconds: i64, spec| Plan {
        since: (seconds, String::new()),
        ..model::plan(
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
    let mut state = render::State::default();
    // In whatever order they come, as after a restart.
    let mut step = render::Step::default();
    state.update(&new, plan(2, spec("10.96.0.2", "Local")), &mut step);
    let alone = state.whole().add.len();
    state.update(&old, plan(1, spec("10.96.0.1", "Cluster")), &mut step);
    let messages: Vec<&str> = step.notices.iter().map(|n| n.message.as_str()).collect();
    assert_eq!(
        messages,
        ["198.51.100.7:80 is not served for this Service: z/old has it"]
    );
    // Nothing of the younger one is left at the address, not even for clients outside.
    let outside = |state: &render::State| {
        let door = render::SetName::Door(render::Door::OutsideAddresses);
        state
            .whole()
            .add
            .iter()
            .filter(|(set, _)| *set == door)
            .count()
    };
    assert_eq!(outside(&state), 0);
    state.update(&old, Plan::default(), &mut render::Step::default());
    assert_eq!((outside(&state), state.whole().add.len()), (1, alone));
}

/// A node with two pods and one client outside the cluster.
struct Lab {
    node: Namespace,
    pods: [Namespace; 2],
    outside: Namespace,
}

const PODS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 8, 0, 2)),
    IpAddr::V4(Ipv4Addr::new(10, 8, 0, 3)),
];
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 8, 0, 1));
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const CLUSTER_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));

impl Lab {
    fn new() -> TestResult<Self> {
        let lab = Self {
            node: Namespace::create()?,
            pods: [Namespace::create()?, Namespace::create()?],
            outside: Namespace::create()?,
        };
        lab.node.run(|| -> TestResult {
            sysctl::write("net/ipv4/ip_forward", "1")?;
            let mut socket = Socket::open()?;
            socket.apply(vec![Change::add_bridge("br0", [2, 0, 0, 0, 0, 1])])?;
            let bridge = socket.link("br0")?.index;
            let lo = socket.link("lo")?.index;
            socket.apply(vec![
                Change::set_up(lo),
                Change::add_address(bridge, Prefix::new(GATEWAY, 24)),
                Change::set_up(bridge),
            ])?;
            for (name, pod, master) in [
                ("pod0", &lab.pods[0], Some(bridge)),
                ("pod1", &lab.pods[1], Some(bridge)),
                ("out", &lab.outside, None),
            ] {
                let last = name.as_bytes()[name.len() - 1];
                socket.apply(vec![Change::add_veth(&Veth {
                    name,
                    peer_name: "eth0",
                    peer_netns: pod.as_fd(),
                    mac: [2, 0, 0, 1, 0, last],
                    peer_mac: [2, 0, 0, 2, 0, last],
                    mtu: 1500,
                    master,
                })])?;
            }
            let out = socket.link("out")?.index;
            socket.apply(vec![
                Change::set_port("pod0", Port::Learning),
                Change::set_port("pod1", Port::Learning),
                Change::add_address(out, Prefix::new(NODE, 24)),
            ])?;
            Ok(())
        })??;
        for (pod, address, gateway) in [
            (&lab.pods[0], Prefix::host(PODS[0]), GATEWAY),
            (&lab.pods[1], Prefix::host(PODS[1]), GATEWAY),
            (&lab.outside, Prefix::new(CLIENT, 24), NODE),
        ] {
            pod.run(|| -> TestResult {
                let mut socket = Socket::open()?;
                let (lo, eth0) = (socket.link("lo")?.index, socket.link("eth0")?.index);
                let everywhere = Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0);
                Ok(socket.apply(vec![
                    Change::set_up(lo),
                    Change::set_up(eth0),
                    Change::add_address(eth0, address),
                    Change::add_route(eth0, Prefix::host(gateway), None),
                    Change::add_route(eth0, everywhere, Some(gateway)),
                ])?)
            })??;
        }
        Ok(lab)
    }

    /// A server in each pod that answers its number and its client's address.
    fn serve(&self) -> TestResult {
        for (pod, address) in self.pods.iter().zip(PODS) {
            let listener = pod.run(|| TcpListener::bind((address, 8080)))??;
            let socket = pod.run(|| UdpSocket::bind((address, 5353)))??;
            thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let client = stream.peer_addr().map(|from| from.ip().to_string());
                    let _ = write!(stream, "{address} {}", client.unwrap_or_default());
                }
            });
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(address.to_string().as_bytes(), from);
                }
            });
        }
        Ok(())
    }

    fn config(&self) -> Config {
        Config {
            table: "vetch-proxy".into(),
            node: "a".into(),
            cluster_cidrs: "10.8.0.0/16".parse().expect("a literal range"),
            service_routes: Some((
                "10.96.0.0/12".parse().expect("a literal range"),
                "br0".into(),
            )),
            mark: DEFAULT_MARK,
            addresses: vec![NODE],
            own_ports: own_ports(),
        }
    }
}

/// What the server says: its address and the client's as it sees it.
fn ask(from: &Namespace, address: IpAddr, port: u16) -> TestResult<(IpAddr, IpAddr)> {
    let mut stream =
        from.run(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), TIMEOUT))??;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (server, client) = text.split_once(' ').ok_or("a cut answer")?;
    Ok((server.parse()?, client.parse()?))
}

fn refused(from: &Namespace, address: IpAddr, port: u16) -> TestResult<bool> {
    let address = SocketAddr::new(address, port);
    let error = from
        .run(|| TcpStream::connect_timeout(&address, TIMEOUT))?
        .err();
    Ok(error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
}

fn refused_udp(from: &Namespace, address: IpAddr, port: u16) -> TestResult<bool> {
    let error = from.run(|| -> std::io::Result<usize> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.connect((address, port))?;
        socket.send(b"?")?;
        socket.recv(&mut [0; 16])
    })?;
    Ok(error.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
}

/// All of it written.
fn start(config: Config, plans: Vec<(Key, Plan)>) -> TestResult<Writer> {
    let (mut writer, _) = Writer::open(config, plans)?;
    writer.settle()?;
    Ok(writer)
}

const BOTH: &[(&str, &str, bool, bool)] = &[
    ("10.8.0.2", "a", true, false),
    ("10.8.0.3", "a", true, false),
];

#[test]
#[ignore = "needs root"]
fn services_answer_from_everywhere() -> TestResult {
    let lab = Lab::new()?;
    lab.serve()?;
    let service = service(json!({
        "type": "NodePort", "clusterIP": "10.96.0.1",
        "externalIPs": ["198.51.100.7"],
        "ports": [{"port": 80, "nodePort": 30080}],
    }));
    let key = Key::new("n", "s");
    let plan = |endpoints| model::plan(&service, &[&slice(8080, "TCP", endpoints)], &at("a"));
    let mut writer = lab
        .node
        .run(|| start(lab.config(), vec![(key.clone(), plan(BOTH))]))??;

    // Both endpoints get their share, from a pod (to itself too), the node, and outside.
    let external = IpAddr::from([198, 51, 100, 7]);
    for (from, address, port) in [
        (&lab.pods[0], CLUSTER_IP, 80),
        (&lab.node, CLUSTER_IP, 80),
        (&lab.pods[0], NODE, 30080),
        (&lab.node, NODE, 30080),
        (&lab.outside, NODE, 30080),
        (&lab.outside, external, 80),
        (&lab.outside, CLUSTER_IP, 80),
    ] {
        let mut servers = BTreeSet::new();
        for _ in 0..40 {
            servers.insert(ask(from, address, port)?.0);
        }
        assert_eq!(servers, BTreeSet::from(PODS), "{address}:{port}");
    }
    // What is the daemon's own is refused by who listens there: nobody, in this lab.
    assert!(refused(&lab.outside, NODE, 6443)?);
    // A pod is seen with its own address, unless it is its own server.
    for _ in 0..10 {
        let (server, client) = ask(&lab.pods[0], CLUSTER_IP, 80)?;
        match server == PODS[0] {
            true => assert_eq!(client, GATEWAY),
            false => assert_eq!(client, PODS[0]),
        }
    }
    // Without endpoints, and on a port nobody has: refused, not silence.
    writer.apply(vec![(key.clone(), plan(&[]))]).1?;
    for (from, address, port) in [
        (&lab.pods[0], CLUSTER_IP, 80),
        (&lab.node, CLUSTER_IP, 80),
        (&lab.pods[0], CLUSTER_IP, 81),
        (&lab.outside, NODE, 30080),
        (&lab.node, NODE, 30080),
    ] {
        assert!(refused(from, address, port)?, "{address}:{port}");
    }
    // (The node's own datagrams are refused by the error of the call that sends them.)
    for from in [&lab.pods[0], &lab.outside] {
        assert!(refused_udp(from, CLUSTER_IP, 81)?);
    }
    // One endpoint back again.
    writer.apply(vec![(key.clone(), plan(&BOTH[1..]))]).1?;
    assert_eq!(ask(&lab.pods[0], CLUSTER_IP, 80)?.0, PODS[1]);

    // Somebody deletes the table: the next change makes it anew.
    lab.node.run(|| sync::remove(&lab.config()))??;
    writer.apply(vec![(key.clone(), plan(BOTH))]).1?;
    ask(&lab.pods[0], CLUSTER_IP, 80)?;

    lab.node.run(|| sync::remove(&lab.config()))??;
    let rules = lab
        .node
        .run(|| Command::new("nft").args(["list", "ruleset"]).output())??;
    assert_eq!(rules.stdout, b"");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn added_ranges_are_routed_but_not_the_hosts_own() -> TestResult {
    let lab = Lab::new()?;
    let ranges = |texts: &[&str]| {
        let parsed = texts.iter().map(|text| text.parse());
        parsed.collect::<Result<_, _>>().expect("literal ranges")
    };
    let routed = || -> TestResult<Vec<String>> {
        let mut socket = Socket::open()?;
        let link = socket.link("br0")?.index;
        let routes = socket.static_routes(link)?;
        let mut routes: Vec<String> = routes.iter().map(ToString::to_string).collect();
        routes.sort();
        Ok(routes)
    };
    lab.node.run(|| -> TestResult {
        let mut writer = start(lab.config(), Vec::new())?;
        // The second is inside of the configured range; in the others the host has an address.
        let added = [
            "203.0.113.0/24",
            "10.97.0.0/24",
            "192.0.2.0/25",
            "10.8.0.0/16",
            "0.0.0.0/0",
            "fd00::/64",
        ];
        writer.set_ranges(ranges(&added));
        assert_eq!(writer.settle()?, Vec::<String>::new());
        assert_eq!(routed()?, ["10.96.0.0/12", "203.0.113.0/24"]);
        let mut socket = Socket::open()?;
        let link = socket.link("br0")?.index;
        let added = Prefix::new(Ipv4Addr::new(203, 0, 113, 0).into(), 24);
        socket.apply(vec![Change::delete_route(link, added)])?;
        assert_eq!(writer.settle()?, ["the route to 203.0.113.0/24"]);
        // The next daemon finds another range.
        let (mut writer, _) = Writer::open(lab.config(), Vec::new())?;
        writer.set_ranges(ranges(&["198.51.100.0/24"]));
        writer.settle()?;
        assert_eq!(routed()?, ["10.96.0.0/12", "198.51.100.0/24"]);
        writer.set_ranges(ranges(&[]));
        writer.settle()?;
        assert_eq!(routed()?, ["10.96.0.0/12"]);
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn a_client_stays_with_its_endpoint() -> TestResult {
    let lab = Lab::new()?;
    lab.serve()?;
    let service = service(json!({
        "clusterIP": "10.96.0.1", "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
    }));
    let key = Key::new("n", "s");
    let plan = |endpoints| model::plan(&service, &[&slice(8080, "TCP", endpoints)], &at("a"));
    let mut writer = lab
        .node
        .run(|| start(lab.config(), vec![(key.clone(), plan(BOTH))]))??;
    let rules = lab
        .node
        .run(|| Command::new("nft").args(["list", "ruleset"]).output())??;
    assert!(rules.status.success(), "nft cannot read the table");
    for from in [&lab.node, &lab.pods[0], &lab.pods[1]] {
        let first = ask(from, CLUSTER_IP, 80)?.0;
        for _ in 0..20 {
            assert_eq!(ask(from, CLUSTER_IP, 80)?.0, first);
        }
    }
    // Its endpoint goes: it is served by the other.
    writer.apply(vec![(key.clone(), plan(&BOTH[..1]))]).1?;
    for from in [&lab.node, &lab.pods[0], &lab.pods[1]] {
        assert_eq!(ask(from, CLUSTER_IP, 80)?.0, PODS[0]);
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_udp_sender_moves_when_its_endpoint_goes() -> TestResult {
    let lab = Lab::new()?;
    lab.serve()?;
    let service = service(json!({
        "clusterIP": "10.96.0.1", "ports": [{"port": 53, "protocol": "UDP"}],
    }));
    let key = Key::new("n", "s");
    let plan = |endpoints| model::plan(&service, &[&slice(5353, "UDP", endpoints)], &at("a"));
    lab.node.run(|| -> TestResult {
        let mut writer = start(lab.config(), vec![(key.clone(), plan(&BOTH[..1]))])?;
        let socket = lab.pods[1].run(|| UdpSocket::bind((PODS[1], 0)))??;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let ask = || -> TestResult<IpAddr> {
            let mut buffer = [0; 64];
            socket.send_to(b"?", (CLUSTER_IP, 53))?;
            let (length, from) = socket.recv_from(&mut buffer)?;
            assert_eq!(from, SocketAddr::new(CLUSTER_IP, 53));
            Ok(std::str::from_utf8(&buffer[..length])?.parse()?)
        };
        assert_eq!(ask()?, PODS[0]);
        writer.apply(vec![(key.clone(), plan(&BOTH[1..]))]).1?;
        assert_eq!(ask()?, PODS[1]); // hairpin, from the same source port
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn chains_that_nothing_points_to_are_taken_away() -> TestResult {
    let lab = Lab::new()?;
    let chains = || -> TestResult<usize> {
        let list = || Command::new("nft").args(["list", "chains"]).output();
        let said = lab.node.run(list)??;
        assert!(said.status.success(), "{said:?}");
        Ok(String::from_utf8(said.stdout)?.matches("chain ").count())
    };
    let key = Key::new("n", "s");
    // Every other set of ranges is another chain.
    let plan = |number: usize| {
        let [.., high, low] = number.to_be_bytes();
        let mut service = service(json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
            "loadBalancerSourceRanges": [format!("203.{high}.{low}.0/24")],
        }));
        service.status = serde_json::from_value(json!({
            "loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}
        }))
        .expect("a status");
        model::plan(&service, &[&slice(8080, "TCP", BOTH)], &at("a"))
    };
    let mut writer = lab
        .node
        .run(|| start(lab.config(), vec![(key.clone(), plan(1))]))??;
    let few = chains()?;
    let mut most = 0;
    for number in 2..3 * sync::FEW_CHAINS {
        lab.node
            .run(|| writer.apply(vec![(key.clone(), plan(number))]).1)??;
        if number % 100 == 0 {
            most = most.max(chains()?);
        }
    }
    assert!(most > few + 100, "{most}: no chain is left behind at all");
    assert!(
        most <= few + sync::FEW_CHAINS + 1,
        "{most} of {}",
        sync::FEW_CHAINS
    );
    Ok(())
}
