//! Two machines, a client outside, two servers and a client beside each; what a client may get, and what it got.

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
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::lab::{self, Cluster, Host, Machine, netns_of};

pub const PORT: u16 = 80;
/// What does not answer within this time was dropped: nothing here leaves the machine.
pub const DROPPED: Duration = Duration::from_millis(400);
/// So many connections find each of two servers: that they do not is less likely than 1 in 100 million.
pub const ENOUGH: usize = 28;
/// With a large answer TCP must split, and a datagram be put together of several packets.
pub const LARGE: usize = 8 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Those that the kernel has.
pub fn protocols() -> &'static [Protocol] {
    static ALL: OnceLock<&[Protocol]> = OnceLock::new();
    ALL.get_or_init(|| match sctp(IpAddr::from([127, 0, 0, 1])) {
        Ok(_) => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
        Err(error) => {
            println!("nothing is asked over SCTP, which the kernel lacks: {error}");
            &[Protocol::Tcp, Protocol::Udp]
        }
    })
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Got {
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
pub struct Place {
    pub name: &'static str,
    pub netns: File,
    pub addresses: Vec<IpAddr>,
}

impl Place {
    pub fn pod(cluster: &Cluster, name: &'static str) -> Self {
        cluster.ready(name);
        let addresses = cluster.field(&format!("pod {name}"), ".status.podIPs[*].ip");
        let uid = cluster.field(&format!("pod {name}"), ".metadata.uid");
        Self {
            name,
            netns: netns_of(&uid),
            addresses: addresses.split(' ').map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    pub fn host(name: &'static str, host: &Host, addresses: &[IpAddr]) -> Self {
        Self {
            name,
            netns: File::open(format!("/proc/{}/ns/net", host.pid())).unwrap(),
            addresses: addresses.to_vec(),
        }
    }

    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::namespace::run_in(self.netns.as_fd(), work).unwrap()
    }

    /// The address in the family of `other`.
    pub fn address(&self, other: IpAddr) -> IpAddr {
        let mut all = self.addresses.iter();
        let same = all.find(|address| address.is_ipv4() == other.is_ipv4());
        *same.unwrap_or_else(|| panic!("{} has no address like {other}", self.name))
    }

    /// Says its name and the client's address, and gives back what it got.
    pub fn serve(&self) {
        let name = self.name;
        for address in &self.addresses {
            let at = SocketAddr::new(*address, PORT);
            let (tcp, udp) = self.enter(move || {
                let tcp = TcpListener::bind(at).unwrap();
                (tcp, UdpSocket::bind(at).unwrap())
            });
            if protocols().contains(&Protocol::Sctp) {
                let listener = self.enter(move || listen_sctp(at)).unwrap();
                thread::spawn(move || serve_sctp(&listener, name));
            }
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

    pub fn ask(&self, to: SocketAddr, protocol: Protocol, size: usize) -> Got {
        let question = vec![b'x'; size];
        let answer = self.enter(|| match protocol {
            Protocol::Tcp => ask_tcp(to, &question),
            Protocol::Udp => ask_udp(to, &question),
            Protocol::Sctp => ask_sctp(to, &question),
        });
        match answer {
            Ok(said) => read(&said, &question),
            Err(error) if error.kind() == ConnectionRefused => Got::Refused,
            Err(error) if error.kind() == PermissionDenied => Got::NotSent,
            Err(_) => Got::Silence,
        }
    }

    /// All that comes of so many tries, or of those up to the first that goes wrong where nothing shall.
    pub fn asks(&self, to: SocketAddr, protocol: Protocol, times: usize) -> BTreeSet<Got> {
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

pub fn head(name: &str, client: IpAddr) -> Vec<u8> {
    format!("{name} {client}\n").into_bytes()
}

pub fn answer(mut stream: TcpStream, name: &str) {
    let client = stream.peer_addr().unwrap().ip();
    let mut question = Vec::new();
    if stream.read_to_end(&mut question).is_ok() {
        let mut said = head(name, client);
        said.append(&mut question);
        let _ = stream.write_all(&said);
    }
}

pub fn ask_tcp(to: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, DROPPED)?;
    stream.set_read_timeout(Some(5 * DROPPED))?;
    stream.write_all(question)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said)?;
    Ok(said)
}

pub fn ask_udp(to: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
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

fn sctp(like: IpAddr) -> std::io::Result<Socket> {
    let domain = match like {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    Socket::new(domain, Type::STREAM, Some(libc::IPPROTO_SCTP.into()))
}

fn listen_sctp(at: SocketAddr) -> std::io::Result<Socket> {
    let socket = sctp(at.ip())?;
    socket.bind(&at.into())?;
    socket.listen(16)?;
    Ok(socket)
}

/// One message each way, as neither side can close its half alone.
fn serve_sctp(listener: &Socket, name: &'static str) {
    while let Ok((stream, from)) = listener.accept() {
        thread::spawn(move || {
            let client = from.as_socket().expect("an address").ip();
            if let Ok(question) = receive(&stream) {
                let said = [head(name, client), question].concat();
                let _ = stream.send(&said);
            }
        });
    }
}

fn ask_sctp(to: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = sctp(to.ip())?;
    socket.set_write_timeout(Some(DROPPED))?;
    socket.set_read_timeout(Some(5 * DROPPED))?;
    socket.connect(&to.into())?;
    socket.send(question)?;
    receive(&socket)
}

fn receive(mut socket: &Socket) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 2 * LARGE];
    let length = socket.read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

pub fn read(said: &[u8], question: &[u8]) -> Got {
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
pub const SERVERS: [&str; 2] = ["here", "there"];
/// The same, without being selected.
pub const CLIENTS: [&str; 2] = ["near", "far"];

pub fn pod(name: &str, node: &str, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 0, "nodeName": node,
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"],
                "env": [{"name": "POD_PROBED", "value": "yes"}]}]}})
}

/// A Service of the two servers; `more` is the rest of its spec.
pub fn service(name: &str, more: &Value) -> Value {
    let port = |protocol: Protocol| json!({"name": protocol.name().to_lowercase(), "port": PORT, "protocol": protocol.name()});
    let mut spec = json!({"selector": {"app": "server"}, "ports": protocols().iter().copied().map(port).collect::<Vec<_>>(),
        "ipFamilyPolicy": "PreferDualStack"});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// Addresses of the machines and of outside, in one family.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    pub prefix: &'static str,
}

impl Net {
    pub const V4: Self = Self {
        prefix: "192.168.77.",
    };

    pub const V6: Self = Self { prefix: "fd77::" };

    pub fn host(self, number: u8) -> IpAddr {
        format!("{}{number}", self.prefix).parse().unwrap()
    }
}

/// What a client gets.
#[derive(Clone, Copy, Debug)]
pub enum Want {
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
    pub fn tries(self) -> usize {
        match self {
            Self::Both(_) => ENOUGH,
            _ => 4,
        }
    }
}

/// Two machines, a client outside, two servers and a client beside each.
pub struct World {
    pub cluster: Cluster,
    pub machine: Machine,
    pub nets: Vec<Net>,
    pub servers: Vec<Place>,
    pub clients: Vec<Place>,
    pub hosts: Vec<Place>,
    pub outside: Place,
    pub outside_host: Host,
}

impl World {
    pub fn new(nets: &[Net], flags: &[&str]) -> Self {
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
            outside_host: outside,
            nets: nets.to_vec(),
            servers,
            clients,
            machine,
            cluster,
        }
    }

    /// Makes the Service, and waits until each of its fronts is known where it is to be asked.
    pub fn serve(&self, name: &str, more: &Value) -> Value {
        self.cluster.apply(&service(name, more).to_string());
        let made = self.cluster.ok(&format!("get service {name} -o json"));
        serde_json::from_str(&made).unwrap()
    }

    pub fn drop_service(&self, name: &str) {
        self.cluster.ok(&format!("delete service {name}"));
    }

    /// On which machine the place is: 0, 1, or neither.
    pub fn machine_of(&self, client: &Place) -> Option<usize> {
        let is_it = |all: &[Place]| all.iter().position(|one| one.name == client.name);
        is_it(&self.clients)
            .or_else(|| is_it(&self.servers))
            .or_else(|| is_it(&self.hosts))
    }

    /// Everything that `want` allows for this client and this address, whatever is chosen at random.
    pub fn allowed(
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
    pub fn expect(&self, client: &Place, to: SocketAddr, protocol: Protocol, want: Want) {
        let begun = Instant::now();
        let end = begun + lab::patiently(Duration::from_secs(5));
        loop {
            let got = client.asks(to, protocol, want.tries());
            let wrong = self.judge(client, to, want, (&got, protocol));
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

    pub fn judge(
        &self,
        client: &Place,
        to: SocketAddr,
        want: Want,
        (got, protocol): (&BTreeSet<Got>, Protocol),
    ) -> Option<String> {
        let only = |one: Got| {
            let all = got.iter().all(|got| [&one, &Got::NotSent].contains(&got));
            (!all).then(|| format!("not only {one:?}"))
        };
        match want {
            // The kernel does not say it more often than once in a while.
            Want::Refused if protocol == Protocol::Udp && got.len() == 2 => {
                let words = BTreeSet::from([Got::Refused, Got::Silence]);
                return (*got != words).then(|| "answers".to_owned());
            }
            // An association's kernel hears that a port is unreachable, and goes on trying (RFC 9260, 10).
            Want::Refused if protocol == Protocol::Sctp => return only(Got::Silence),
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
    pub fn check(&self, clients: &[&Place], to: impl Fn(Net) -> SocketAddr, want: Want) {
        for net in &self.nets {
            for &protocol in protocols() {
                for client in clients {
                    self.expect(client, to(*net), protocol, want);
                }
            }
        }
    }

    pub fn pods(&self) -> Vec<&Place> {
        self.clients.iter().chain(&self.servers).collect()
    }

    pub fn machines(&self) -> Vec<&Place> {
        self.hosts.iter().collect()
    }
}

/// The cluster IP in the family of the net.
pub fn cluster_ip(service: &Value, net: Net) -> SocketAddr {
    let all = service["spec"]["clusterIPs"].as_array().unwrap().iter();
    let mut all = all.map(|ip| ip.as_str().unwrap().parse::<IpAddr>().unwrap());
    let ip = all.find(|ip| ip.is_ipv4() == net.host(1).is_ipv4());
    SocketAddr::new(ip.expect("an address of the family"), PORT)
}

pub fn node_port(service: &Value, protocol: Protocol) -> u16 {
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
