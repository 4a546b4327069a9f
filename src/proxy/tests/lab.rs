//! A node with two pods and one client outside of the cluster, with addresses of one family or both.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::Command,
    thread,
};

use netns::{
    Namespace,
    route::{Change, Port, Prefix, Socket, Veth},
    sysctl,
};

use super::*;

/// What clusters of the tests have.
pub const CLUSTERS: [&[Family]; 3] = [&[Family::V4], &[Family::V6], &[Family::V6, Family::V4]];

pub struct Lab {
    pub node: Namespace,
    pub pods: [Namespace; 2],
    pub outside: Namespace,
    pub families: &'static [Family],
}

impl Lab {
    pub fn new(families: &'static [Family]) -> TestResult<Self> {
        let lab = Self {
            node: Namespace::create()?,
            pods: [Namespace::create()?, Namespace::create()?],
            outside: Namespace::create()?,
            families,
        };
        lab.node.run(|| lab.wire_node())??;
        for (number, pod) in (0..).zip(&lab.pods) {
            let own = |net: &Net| (Prefix::host(net.pods[number]), net.gateway);
            pod.run(|| lab.wire(own))??;
        }
        let own = |net: &Net| (Prefix::new(net.client, net.length), net.node);
        lab.outside.run(|| lab.wire(own))??;
        Ok(lab)
    }

    /// The cluster's networks.
    pub fn nets(&self) -> impl Iterator<Item = Net> {
        self.families.iter().map(|family| net(*family))
    }

    fn wire_node(&self) -> TestResult {
        sysctl::write("net/ipv4/ip_forward", "1")?;
        sysctl::write("net/ipv6/conf/all/forwarding", "1")?;
        // The node asks for others' neighbours by its link-local addresses: without waiting until they are known
        // to be its own.
        sysctl::write("net/ipv6/conf/default/accept_dad", "0")?;
        // Hosts with other container software have this on, others do not: nothing may depend on it.
        let bridge_calls = match self.families {
            [_] => "1",
            _ => "0",
        };
        for name in ["iptables", "ip6tables"] {
            let name = format!("net/bridge/bridge-nf-call-{name}");
            if sysctl::read(&name)?.is_some() {
                sysctl::write(&name, bridge_calls)?;
            }
        }
        let mut socket = Socket::open()?;
        socket.apply(vec![Change::add_bridge("br0", [2, 0, 0, 0, 0, 1])])?;
        let (bridge, lo) = (socket.link("br0")?.index, socket.link("lo")?.index);
        socket.apply(vec![Change::set_up(lo), Change::set_up(bridge)])?;
        for (name, pod, master) in [
            ("pod0", &self.pods[0], Some(bridge)),
            ("pod1", &self.pods[1], Some(bridge)),
            ("out", &self.outside, None),
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
        let ports = ["pod0", "pod1"].map(|name| Change::set_port(name, Port::Learning));
        socket.apply(ports.into())?;
        for net in self.nets() {
            socket.apply(vec![
                Change::add_address(bridge, Prefix::new(net.gateway, net.length)),
                Change::add_address(out, Prefix::new(net.node, net.length)),
            ])?;
        }
        Ok(())
    }

    /// Gives a machine behind the node its own address, and leads everything else by the node.
    fn wire(&self, own: impl Fn(&Net) -> (Prefix, IpAddr)) -> TestResult {
        let mut socket = Socket::open()?;
        let (lo, eth0) = (socket.link("lo")?.index, socket.link("eth0")?.index);
        socket.apply(vec![Change::set_up(lo), Change::set_up(eth0)])?;
        for net in self.nets() {
            let (address, gateway) = own(&net);
            socket.apply(vec![
                Change::add_address(eth0, address),
                Change::add_route(eth0, Prefix::host(gateway), None),
                Change::add_route(eth0, Prefix::new(net.unspecified(), 0), Some(gateway)),
            ])?;
        }
        Ok(())
    }

    /// A server in each pod, of each family, that answers its address and its client's.
    pub fn serve(&self) -> TestResult {
        for net in self.nets() {
            for (pod, address) in self.pods.iter().zip(net.pods) {
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
        }
        Ok(())
    }

    pub fn config(&self) -> Config {
        let ranges = |range: fn(&Net) -> &str| {
            let parsed = self.nets().map(|net| range(&net).parse::<IpNet>());
            let parsed: Result<Vec<IpNet>, _> = parsed.collect();
            PerFamily::of_list(parsed.expect("literal ranges")).expect("one of each family")
        };
        Config {
            table: "vetch-proxy".into(),
            node: "a".into(),
            cluster_cidrs: ranges(|net| net.pod_range),
            services: ranges(|net| net.service_range),
            service_link: Some("br0".into()),
            mark: DEFAULT_MARK,
            addresses: self.nets().map(|net| net.node).collect(),
            own_ports: own_ports(),
        }
    }

    /// The Service's plan in each family of the cluster.
    pub fn plans(&self, service: &Service, slices: &[EndpointSlice]) -> Vec<(Key, Plan)> {
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        let plans = self.families.iter();
        plans
            .map(|family| model::plan(service, &slices, &at("a"), *family))
            .map(|plan| (Key::new("n", "s"), plan))
            .collect()
    }

    /// Of each family, a slice with these pods of the two.
    pub fn slices(&self, pods: &[usize]) -> Vec<EndpointSlice> {
        self.slices_of(8080, "TCP", pods)
    }

    pub fn slices_of(&self, port: u16, protocol: &str, pods: &[usize]) -> Vec<EndpointSlice> {
        let nets = self.nets();
        nets.map(|net| net.slice(port, protocol, pods, "a"))
            .collect()
    }

    /// All of it written.
    pub fn start(&self, plans: Vec<(Key, Plan)>) -> TestResult<Writer> {
        self.start_with(&[], plans)
    }

    /// Node ports of loopback addresses are led to these ports.
    pub fn start_with(
        &self,
        loopback: &[(Family, u16)],
        plans: Vec<(Key, Plan)>,
    ) -> TestResult<Writer> {
        self.node.run(|| -> TestResult<Writer> {
            let (mut writer, _) = Writer::open(&self.config(), loopback, plans)?;
            writer.settle()?;
            Ok(writer)
        })?
    }

    /// What `nft` says on the node.
    pub fn nft(&self, arguments: &[&str]) -> TestResult<String> {
        let said = self
            .node
            .run(|| Command::new("nft").args(arguments).output())??;
        assert!(said.status.success(), "{arguments:?}: {said:?}");
        Ok(String::from_utf8(said.stdout)?)
    }

    /// Who answers there, asked often enough that everybody has.
    pub fn servers(&self, from: &Namespace, address: IpAddr, port: u16) -> TestResult<Vec<IpAddr>> {
        let mut servers = BTreeSet::new();
        for _ in 0..40 {
            servers.insert(ask(from, address, port)?.0);
        }
        Ok(servers.into_iter().collect())
    }
}

/// What the server says: its address and the client's as it sees it.
pub fn ask(from: &Namespace, address: IpAddr, port: u16) -> TestResult<(IpAddr, IpAddr)> {
    let at = SocketAddr::new(address, port);
    let mut stream = from
        .run(|| TcpStream::connect_timeout(&at, TIMEOUT))?
        .map_err(|error| format!("{at}: {error}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (server, client) = text.split_once(' ').ok_or("a cut answer")?;
    Ok((server.parse()?, client.parse()?))
}

pub fn refused(from: &Namespace, address: IpAddr, port: u16) -> TestResult<bool> {
    let address = SocketAddr::new(address, port);
    let error = from
        .run(|| TcpStream::connect_timeout(&address, TIMEOUT))?
        .err();
    Ok(error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
}

/// Asked again for a while: the kernel sends only so many errors, and counts redirects among them.
pub fn refused_udp(from: &Namespace, address: IpAddr, port: u16) -> TestResult<bool> {
    let error = from.run(|| -> std::io::Result<usize> {
        let any: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(TIMEOUT / 10))?;
        socket.connect((address, port))?;
        let ask = || socket.send(b"?").and_then(|_| socket.recv(&mut [0; 16]));
        let is_silent = |said: &std::io::Result<usize>| {
            let silence = std::io::ErrorKind::WouldBlock;
            said.as_ref().is_err_and(|error| error.kind() == silence)
        };
        let mut said = ask();
        for _ in 0..20 {
            if !is_silent(&said) {
                break;
            }
            said = ask();
        }
        said
    })?;
    Ok(error.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
}
