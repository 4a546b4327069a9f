//! Every feature of Services by packets: from pods of both machines, from the machines and from outside. As root.

mod lab;

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::{
        ErrorKind::{ConnectionRefused, PermissionDenied},
        Read, Write,
    },
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use lab::{Cluster, Host, Machine, netns_of, until};
use serde_json::{Value, json};

const PORT: u16 = 80;
/// What does not answer within this time was dropped: nothing here leaves the machine.
const DROPPED: Duration = Duration::from_millis(400);
/// So many connections find each of two servers: that they do not is less likely than 1 in 100 million.
const ENOUGH: usize = 28;
/// With a large answer TCP must split, and a datagram be put together of several packets.
const LARGE: usize = 8 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Got {
    /// From this server, which has seen the client at this address.
    Answer(&'static str, IpAddr),
    /// Turned away at once.
    Refused,
    /// Nothing came.
    Silence,
    /// What the kernel says to a program of the machine itself whose datagram goes nowhere, for whatever reason.
    NotSent,
}

/// Where packets begin or end.
struct Place {
    name: &'static str,
    netns: File,
    addresses: Vec<IpAddr>,
}

impl Place {
    fn pod(cluster: &Cluster, name: &'static str) -> Self {
        cluster.ready(name);
        let addresses = cluster.field(&format!("pod {name}"), ".status.podIPs[*].ip");
        let uid = cluster.field(&format!("pod {name}"), ".metadata.uid");
        Self {
            name,
            netns: netns_of(&uid),
            addresses: addresses.split(' ').map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    fn host(name: &'static str, host: &Host, addresses: &[IpAddr]) -> Self {
        Self {
            name,
            netns: File::open(format!("/proc/{}/ns/net", host.pid())).unwrap(),
            addresses: addresses.to_vec(),
        }
    }

    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::namespace::run_in(self.netns.as_fd(), work).unwrap()
    }

    /// The address in the family of `other`.
    fn address(&self, other: IpAddr) -> IpAddr {
        let mut all = self.addresses.iter();
        let same = all.find(|address| address.is_ipv4() == other.is_ipv4());
        *same.unwrap_or_else(|| panic!("{} has no address like {other}", self.name))
    }

    /// Says its name and the client's address, and gives back what it got.
    fn serve(&self) {
        let name = self.name;
        for address in &self.addresses {
            let at = SocketAddr::new(*address, PORT);
            let (tcp, udp) = self.enter(move || {
                let tcp = TcpListener::bind(at).unwrap();
                (tcp, UdpSocket::bind(at).unwrap())
            });
            thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    thread::spawn(move || answer(stream, name));
                }
            });
            thread::spawn(move || {
                let mut buffer = vec![0; 2 * LARGE];
                while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    let mut said = head(name, from.ip());
                    said.extend_from_slice(&buffer[..length]);
                    let _ = udp.send_to(&said, from);
                }
            });
        }
    }

    fn ask(&self, to: SocketAddr, protocol: Protocol, size: usize) -> Got {
        let question = vec![b'x'; size];
        let answer = self.enter(|| match protocol {
            Protocol::Tcp => ask_tcp(to, &question),
            Protocol::Udp => ask_udp(to, &question),
        });
        match answer {
            Ok(said) => read(&said, &question),
            Err(error) if error.kind() == ConnectionRefused => Got::Refused,
            Err(error) if error.kind() == PermissionDenied => Got::NotSent,
            Err(_) => Got::Silence,
        }
    }

    /// All that comes of so many tries, or of those up to the first that goes wrong where nothing shall.
    fn asks(&self, to: SocketAddr, protocol: Protocol, times: usize) -> BTreeSet<Got> {
        let mut got = BTreeSet::new();
        for _ in 0..times {
            let one = self.ask(to, protocol, 1);
            let is_answer = matches!(one, Got::Answer(..));
            got.insert(one);
            if times == ENOUGH && !is_answer {
                break;
            }
        }
        got
    }
}

fn head(name: &str, client: IpAddr) -> Vec<u8> {
    format!("{name} {client}\n").into_bytes()
}

fn answer(mut stream: TcpStream, name: &str) {
    let client = stream.peer_addr().unwrap().ip();
    let mut question = Vec::new();
    if stream.read_to_end(&mut question).is_ok() {
        let mut said = head(name, client);
        said.append(&mut question);
        let _ = stream.write_all(&said);
    }
}

fn ask_tcp(to: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, DROPPED)?;
    stream.set_read_timeout(Some(5 * DROPPED))?;
    stream.write_all(question)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said)?;
    Ok(said)
}

fn ask_udp(to: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => [0u16; 8].into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(DROPPED))?;
    socket.send(question)?;
    let mut said = vec![0; 2 * LARGE];
    let length = socket.recv(&mut said)?;
    said.truncate(length);
    Ok(said)
}

fn read(said: &[u8], question: &[u8]) -> Got {
    let end = said.iter().position(|byte| *byte == b'\n').expect("a line");
    assert!(
        &said[end + 1..] == question,
        "another answer than was asked for"
    );
    let line = std::str::from_utf8(&said[..end]).unwrap();
    let (name, client) = line.split_once(' ').unwrap();
    let mut names = SERVERS.into_iter();
    let name = names.find(|one| *one == name).expect("a server");
    Got::Answer(name, client.parse().unwrap())
}

/// On the first machine and on the second.
const SERVERS: [&str; 2] = ["here", "there"];
/// The same, without being selected.
const CLIENTS: [&str; 2] = ["near", "far"];

fn pod(name: &str, node: &str, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 0, "nodeName": node,
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"],
                "env": [{"name": "POD_PROBED", "value": "yes"}]}]}})
}

/// A Service of the two servers; `more` is the rest of its spec.
fn service(name: &str, more: &Value) -> Value {
    let port = |protocol: Protocol| json!({"name": protocol.name().to_lowercase(), "port": PORT, "protocol": protocol.name()});
    let mut spec = json!({"selector": {"app": "server"}, "ports": PROTOCOLS.map(port),
        "ipFamilyPolicy": "PreferDualStack"});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// Addresses of the machines and of outside, in one family.
#[derive(Clone, Copy, Debug)]
struct Net {
    prefix: &'static str,
}

impl Net {
    const V4: Self = Self {
        prefix: "192.168.77.",
    };

    const V6: Self = Self { prefix: "fd77::" };

    fn host(self, number: u8) -> IpAddr {
        format!("{}{number}", self.prefix).parse().unwrap()
    }
}

/// What a client gets.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// From each of the servers, which sees the client as it is, or (`false`) as one of the machines.
    Both(bool),
    /// From the server on the client's machine.
    Near(bool),
    /// From the server on the machine whose address was asked.
    OfMachine(bool),
    Refused,
    Silence,
}

impl Want {
    /// How often it must be seen: silence takes its time, and chance has no part in what is no choice.
    fn tries(self) -> usize {
        match self {
            Self::Both(_) => ENOUGH,
            _ => 4,
        }
    }
}

/// Two machines, a client outside, two servers and a client beside each.
struct World {
    cluster: Cluster,
    machine: Machine,
    nets: Vec<Net>,
    servers: Vec<Place>,
    clients: Vec<Place>,
    hosts: Vec<Place>,
    outside: Place,
    _outside: Host,
}

impl World {
    fn new(nets: &[Net], flags: &[&str]) -> Self {
        let cluster = Cluster::new();
        let all = |number: u8| nets.iter().map(|net| net.host(number)).collect::<Vec<_>>();
        // The first host's end of the link is a bridge, from which the kernel would lead a packet back to the
        // port that it came by, and drop it there: docs/decisions/service-proxy.md.
        for family in ["ip", "ip6"] {
            let setting = format!("net.bridge.bridge-nf-call-{family}tables");
            cluster.host.sh(&format!("sysctl -qw {setting}=0"));
        }
        cluster.host.add_ipv6(1);
        let up = cluster.vetch(&[&["up", "--detach"], flags].concat());
        assert!(up.status.success(), "{}", lab::text(&up));
        let machine = Machine::beside(&cluster, 2);
        let outside = Host::beside(&cluster.host, 9);
        machine.host.add_ipv6(2);
        outside.add_ipv6(9);
        let server = SocketAddr::new(nets[0].host(1), 6443);
        machine.join_at(&format!("https://{server}"), &cluster, "second");
        cluster.import("busybox");
        machine.import("busybox");
        let first = cluster.field(
            "nodes",
            ".items[?(@.metadata.name!=\"second\")].metadata.name",
        );
        let pods = [
            pod("here", &first, "server"),
            pod("there", "second", "server"),
            pod("near", &first, "client"),
            pod("far", "second", "client"),
        ];
        cluster.wait(
            "get serviceaccount default -o jsonpath={.metadata.name}",
            "default",
        );
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string());
        let places = |names: [&'static str; 2]| names.map(|name| Place::pod(&cluster, name)).into();
        let servers: Vec<Place> = places(SERVERS);
        let clients = places(CLIENTS);
        for server in &servers {
            server.serve();
        }
        Self {
            hosts: vec![
                Place::host("first", &cluster.host, &all(1)),
                Place::host("second", &machine.host, &all(2)),
            ],
            outside: Place::host("outside", &outside, &all(9)),
            _outside: outside,
            nets: nets.to_vec(),
            servers,
            clients,
            machine,
            cluster,
        }
    }

    /// Makes the Service, and waits until each of its fronts is known where it is to be asked.
    fn serve(&self, name: &str, more: &Value) -> Value {
        self.cluster.apply(&service(name, more).to_string());
        let made = self.cluster.ok(&format!("get service {name} -o json"));
        serde_json::from_str(&made).unwrap()
    }

    fn drop_service(&self, name: &str) {
        self.cluster.ok(&format!("delete service {name}"));
    }

    /// On which machine the place is: 0, 1, or neither.
    fn machine_of(&self, client: &Place) -> Option<usize> {
        let is_it = |all: &[Place]| all.iter().position(|one| one.name == client.name);
        is_it(&self.clients)
            .or_else(|| is_it(&self.servers))
            .or_else(|| is_it(&self.hosts))
    }

    /// Everything that `want` allows for this client and this address, whatever is chosen at random.
    fn allowed(
        &self,
        client: &Place,
        to: IpAddr,
        want: Want,
    ) -> Vec<(&'static str, Option<IpAddr>)> {
        let own = client.address(to);
        let seen = |is_seen: bool| is_seen.then_some(own);
        match want {
            Want::Both(is_seen) => SERVERS.map(|server| (server, seen(is_seen))).into(),
            Want::Near(is_seen) => {
                let at = self.machine_of(client).expect("a machine");
                vec![(SERVERS[at], seen(is_seen))]
            }
            Want::OfMachine(is_seen) => {
                let mut hosts = self.hosts.iter();
                let at = hosts.position(|host| host.addresses.contains(&to));
                vec![(SERVERS[at.expect("a machine's address")], seen(is_seen))]
            }
            Want::Refused | Want::Silence => Vec::new(),
        }
    }

    /// That exactly this comes of it, within what a change may take until packets see it.
    fn expect(&self, client: &Place, to: SocketAddr, protocol: Protocol, want: Want) {
        let begun = Instant::now();
        let end = begun + lab::patiently(Duration::from_secs(5));
        loop {
            let got = client.asks(to, protocol, want.tries());
            let is_datagram = protocol == Protocol::Udp;
            let wrong = self.judge(client, to, want, (&got, is_datagram));
            match wrong {
                None => {
                    let late = begun.elapsed();
                    if late > Duration::from_secs(2) {
                        println!("{client} was led to {to} after {late:?}");
                    }
                    return;
                }
                Some(_) if Instant::now() < end => {}
                Some(wrong) => panic!(
                    "{} asks {to} over {}: {wrong}, not {want:?}: {got:?}",
                    client.name,
                    protocol.name()
                ),
            }
        }
    }

    fn judge(
        &self,
        client: &Place,
        to: SocketAddr,
        want: Want,
        (got, is_datagram): (&BTreeSet<Got>, bool),
    ) -> Option<String> {
        let only = |one: Got| {
            let all = got.iter().all(|got| [&one, &Got::NotSent].contains(&got));
            (!all).then(|| format!("not only {one:?}"))
        };
        match want {
            // The kernel does not say it more often than once in a while.
            Want::Refused if is_datagram && got.len() == 2 => {
                let words = BTreeSet::from([Got::Refused, Got::Silence]);
                return (*got != words).then(|| "answers".to_owned());
            }
            Want::Refused => return only(Got::Refused),
            Want::Silence => return only(Got::Silence),
            _ => {}
        }
        let allowed = self.allowed(client, to.ip(), want);
        let mut missing: BTreeSet<&str> = allowed.iter().map(|(server, _)| *server).collect();
        for one in got {
            let Got::Answer(server, seen) = one else {
                return Some(format!("{one:?}"));
            };
            let Some((_, wanted)) = allowed.iter().find(|(name, _)| name == server) else {
                return Some(format!("{server} answers"));
            };
            // Its own address too, when it asks itself: then it must not be seen as it is.
            let is_itself = client.name == *server;
            if let Some(wanted) = wanted
                && wanted != seen
                && !is_itself
            {
                return Some(format!("{server} sees {seen}"));
            }
            missing.remove(server);
        }
        (!missing.is_empty()).then(|| format!("nothing of {missing:?}"))
    }

    /// Asks in each family over both protocols: `to` says which address, `want` what comes of it.
    fn check(&self, clients: &[&Place], to: impl Fn(Net) -> SocketAddr, want: Want) {
        for net in &self.nets {
            for protocol in PROTOCOLS {
                for client in clients {
                    self.expect(client, to(*net), protocol, want);
                }
            }
        }
    }

    fn pods(&self) -> Vec<&Place> {
        self.clients.iter().chain(&self.servers).collect()
    }

    fn machines(&self) -> Vec<&Place> {
        self.hosts.iter().collect()
    }
}

/// The cluster IP in the family of the net.
fn cluster_ip(service: &Value, net: Net) -> SocketAddr {
    let all = service["spec"]["clusterIPs"].as_array().unwrap().iter();
    let mut all = all.map(|ip| ip.as_str().unwrap().parse::<IpAddr>().unwrap());
    let ip = all.find(|ip| ip.is_ipv4() == net.host(1).is_ipv4());
    SocketAddr::new(ip.expect("an address of the family"), PORT)
}

fn node_port(service: &Value, protocol: Protocol) -> u16 {
    let mut ports = service["spec"]["ports"].as_array().unwrap().iter();
    let port = ports
        .find(|port| port["protocol"] == protocol.name())
        .unwrap();
    port["nodePort"].as_u64().unwrap().try_into().unwrap()
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name)
    }
}

/// One after the other on the same two machines: what makes them costs more than what is asked of them.
fn every_feature(world: &World) {
    cluster_ips(world);
    internal_traffic(world);
    node_ports(world);
    external_traffic(world);
    external_addresses(world);
    affinity(world);
    nobody_serves(world);
    large_packets(world);
    senders_of_datagrams(world);
    near_ones_first(world);
}

fn cluster_ips(world: &World) {
    let made = world.serve("plain", &json!({}));
    let to = |net| cluster_ip(&made, net);
    world.check(&world.pods(), to, Want::Both(true));
    world.check(&world.machines(), to, Want::Both(false));
    // A port that it does not have.
    let other = |net| SocketAddr::new(cluster_ip(&made, net).ip(), PORT + 1);
    world.check(&world.pods(), other, Want::Refused);
    world.check(&world.machines(), other, Want::Refused);
    world.drop_service("plain");
}

fn internal_traffic(world: &World) {
    let made = world.serve("inside", &json!({"internalTrafficPolicy": "Local"}));
    let to = |net| cluster_ip(&made, net);
    world.check(&world.pods(), to, Want::Near(true));
    world.check(&world.machines(), to, Want::Near(false));
    // Without a server on its machine there is nothing.
    world.cluster.ok("label pod there app=other --overwrite");
    world.check(&[&world.clients[0]], to, Want::Near(true));
    world.check(&[&world.clients[1], &world.hosts[1]], to, Want::Silence);
    world.cluster.ok("label pod there app=server --overwrite");
    world.check(&[&world.clients[1]], to, Want::Near(true));
    world.drop_service("inside");
}

fn node_ports(world: &World) {
    let made = world.serve("ports", &json!({"type": "NodePort"}));
    let everyone: Vec<&Place> = [world.pods(), world.machines(), vec![&world.outside]].concat();
    for net in &world.nets {
        for protocol in PROTOCOLS {
            for number in [1, 2] {
                let to = SocketAddr::new(net.host(number), node_port(&made, protocol));
                for client in &everyone {
                    world.expect(client, to, protocol, Want::Both(false));
                }
            }
        }
    }
    world.drop_service("ports");
}

fn external_traffic(world: &World) {
    let more = json!({"type": "NodePort", "externalTrafficPolicy": "Local"});
    let made = world.serve("outside", &more);
    let each = |clients: &[&Place], number: u8, want: Want| {
        for net in &world.nets {
            for protocol in PROTOCOLS {
                let to = SocketAddr::new(net.host(number), node_port(&made, protocol));
                for client in clients {
                    world.expect(client, to, protocol, want);
                }
            }
        }
    };
    for number in [1, 2] {
        each(&[&world.outside], number, Want::OfMachine(true));
    }
    // Pods and machines are inside: all servers are theirs, by the port of their own machine.
    each(&[&world.clients[0], &world.hosts[0]], 1, Want::Both(false));
    each(&[&world.clients[1], &world.hosts[1]], 2, Want::Both(false));
    world.cluster.ok("label pod there app=other --overwrite");
    each(&[&world.outside], 2, Want::Silence);
    each(&[&world.outside], 1, Want::OfMachine(true));
    world.cluster.ok("label pod there app=server --overwrite");
    each(&[&world.outside], 2, Want::OfMachine(true));
    world.drop_service("outside");
}

/// An address of neither machine, which outside reaches by the second one.
fn external_addresses(world: &World) {
    let addresses: Vec<IpAddr> = world.nets.iter().map(|net| net.host(100)).collect();
    for net in &world.nets {
        let (to, by) = (net.host(100), net.host(2));
        world._outside.sh(&format!("ip route add {to} via {by}"));
    }
    world.serve("external", &json!({"externalIPs": addresses}));
    let to = |net: Net| SocketAddr::new(net.host(100), PORT);
    let everyone: Vec<&Place> = [world.pods(), world.machines(), vec![&world.outside]].concat();
    world.check(&everyone, to, Want::Both(false));
    world.drop_service("external");
    for net in &world.nets {
        world
            ._outside
            .sh(&format!("ip route del {}", net.host(100)));
    }
}

fn affinity(world: &World) {
    let made = world.serve("sticky", &json!({"sessionAffinity": "ClientIP"}));
    for net in &world.nets {
        let to = cluster_ip(&made, *net);
        for protocol in PROTOCOLS {
            for client in &world.clients {
                until("the Service is served", || {
                    matches!(client.ask(to, protocol, 1), Got::Answer(..))
                });
                let got = client.asks(to, protocol, ENOUGH);
                assert_eq!(got.len(), 1, "{client} over {}: {got:?}", protocol.name());
            }
        }
    }
    // The one that it stayed with goes: another one, and that one stays.
    let (client, net) = (&world.clients[0], world.nets[0]);
    let to = cluster_ip(&made, net);
    let Got::Answer(before, _) = client.ask(to, Protocol::Tcp, 1) else {
        panic!("no answer");
    };
    let label = |app: &str| {
        let line = format!("label pod {before} app={app} --overwrite");
        world.cluster.ok(&line);
    };
    label("other");
    until(
        "another one answers",
        || matches!(client.ask(to, Protocol::Tcp, 1), Got::Answer(now, _) if now != before),
    );
    label("server");
    let slices = "get endpointslices -l kubernetes.io/service-name=sticky -o jsonpath={.items[0].endpoints[*].nodeName}";
    world.cluster.wait_for(slices, |got| got.contains(' '));
    let got = client.asks(to, Protocol::Tcp, ENOUGH);
    assert_eq!(got.len(), 1, "{got:?}");
    // It is a setting that may change while all goes on.
    world.serve("sticky", &json!({"sessionAffinity": "None"}));
    world.expect(client, to, Protocol::Tcp, Want::Both(true));
    world.drop_service("sticky");
}

fn nobody_serves(world: &World) {
    let made = world.serve(
        "nobody",
        &json!({"type": "NodePort", "selector": {"app": "nobody"}}),
    );
    let to = |net| cluster_ip(&made, net);
    world.check(&world.pods(), to, Want::Refused);
    world.check(&world.machines(), to, Want::Refused);
    for net in &world.nets {
        for protocol in PROTOCOLS {
            let to = SocketAddr::new(net.host(2), node_port(&made, protocol));
            world.expect(&world.outside, to, protocol, Want::Refused);
        }
    }
    world.drop_service("nobody");
}

/// Also where a link on the way takes less than pods send.
fn large_packets(world: &World) {
    let made = world.serve("large", &json!({"type": "NodePort"}));
    for mtu in [1500, 1400] {
        for host in [&world.cluster.host, &world.machine.host, &world._outside] {
            host.sh(&format!("ip link set host0 mtu {mtu}"));
        }
        for net in &world.nets {
            for protocol in PROTOCOLS {
                let inside = cluster_ip(&made, *net);
                let outside = SocketAddr::new(net.host(1), node_port(&made, protocol));
                let clients = world.clients.iter().map(|client| (client, inside));
                for (client, to) in clients.chain([(&world.outside, outside)]) {
                    let mut servers = BTreeSet::new();
                    until(&format!("{client} gets large answers from both"), || {
                        if let Got::Answer(server, _) = client.ask(to, protocol, LARGE) {
                            servers.insert(server);
                        }
                        servers.len() == SERVERS.len()
                    });
                }
            }
        }
    }
    for host in [&world.cluster.host, &world.machine.host, &world._outside] {
        host.sh("ip link set host0 mtu 1500");
    }
    world.drop_service("large");
}

/// Who goes on sending from one port is led anew when the server that it was led to has gone.
fn senders_of_datagrams(world: &World) {
    let made = world.serve("datagrams", &json!({}));
    for net in &world.nets {
        let to = cluster_ip(&made, *net);
        for client in &world.clients {
            world.expect(client, to, Protocol::Udp, Want::Both(true));
            let any: IpAddr = match to {
                SocketAddr::V4(_) => [0, 0, 0, 0].into(),
                SocketAddr::V6(_) => [0u16; 8].into(),
            };
            let socket = client.enter(|| UdpSocket::bind((any, 0)).unwrap());
            socket.set_read_timeout(Some(DROPPED)).unwrap();
            let ask = || {
                socket.send_to(b"x", to).unwrap();
                let mut said = [0; 128];
                let length = socket.recv(&mut said).ok()?;
                match read(&said[..length], b"x") {
                    Got::Answer(server, _) => Some(server),
                    _ => None,
                }
            };
            let first = ask().expect("an answer");
            world
                .cluster
                .ok(&format!("label pod {first} app=other --overwrite"));
            until("the other one answers the same sender", || {
                ask().is_some_and(|server| server != first)
            });
            world
                .cluster
                .ok(&format!("label pod {first} app=server --overwrite"));
            world.expect(client, to, Protocol::Udp, Want::Both(true));
        }
    }
    world.drop_service("datagrams");
}

fn near_ones_first(world: &World) {
    let made = world.serve("nearest", &json!({"trafficDistribution": "PreferSameNode"}));
    let to = |net| cluster_ip(&made, net);
    world.check(&world.pods(), to, Want::Near(true));
    world.cluster.ok("label pod there app=other --overwrite");
    for net in &world.nets {
        let end = Instant::now() + Duration::from_secs(10);
        let to = cluster_ip(&made, *net);
        let far = &world.clients[1];
        let mut got = far.asks(to, Protocol::Tcp, ENOUGH);
        while got.iter().any(|one| !matches!(one, Got::Answer("here", _))) {
            assert!(Instant::now() < end, "{got:?}");
            got = far.asks(to, Protocol::Tcp, ENOUGH);
        }
    }
    world.cluster.ok("label pod there app=server --overwrite");
    world.check(&world.pods(), to, Want::Near(true));
    world.drop_service("nearest");
}

#[test]
#[ignore = "needs root"]
fn every_feature_over_ipv4() {
    every_feature(&World::new(&[Net::V4], &[]));
}

#[test]
#[ignore = "needs root"]
fn every_feature_over_ipv6() {
    let ranges = ["--pod-cidr=fd42::/64", "--service-cidr=fd96::/112"];
    every_feature(&World::new(&[Net::V6], &ranges));
}

#[test]
#[ignore = "needs root"]
fn every_feature_over_both() {
    let ranges = [
        "--pod-cidr=10.42.0.0/24,fd42::/64",
        "--service-cidr=10.96.0.0/16,fd96::/112",
    ];
    every_feature(&World::new(&[Net::V4, Net::V6], &ranges));
}
