//! Node ports and host ports on 127.0.0.1 and ::1, for programs of the machines alone.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
};

use serde_json::json;

use super::{
    lab::{patiently, until},
    world::{
        DROPPED, ENOUGH, Got, LARGE, Net, PORT, Place, Protocol, SERVERS, Want, World, node_port,
        pod,
    },
};

/// As many as one family has at most.
const CONNECTIONS: usize = 512;

fn loopback(net: Net) -> IpAddr {
    match net.host(1).is_ipv4() {
        true => Ipv4Addr::LOCALHOST.into(),
        false => Ipv6Addr::LOCALHOST.into(),
    }
}

pub fn node_ports(world: &World) {
    let spec = json!({"type": "NodePort"});
    let made = world.serve("loopback", &spec);
    let at = |net, protocol| SocketAddr::new(loopback(net), node_port(&made, protocol));
    let tcp = |net| at(net, Protocol::Tcp);
    for net in &world.nets {
        for machine in world.machines() {
            world.expect(machine, tcp(*net), Protocol::Tcp, Want::Both(false));
            // What is too long for one buffer comes whole, both ways.
            let got = machine.ask(tcp(*net), Protocol::Tcp, 100 * LARGE);
            assert!(matches!(got, Got::Answer(..)), "{got:?}");
            let udp = at(*net, Protocol::Udp);
            world.expect(machine, udp, Protocol::Udp, Want::Refused);
        }
        let setting = "sysctl -n net.ipv4.conf.all.route_localnet";
        assert_eq!(world.cluster.host.sh(setting).trim(), "0");
    }
    bounded(world, tcp(world.nets[0]));

    let sticky = json!({"type": "NodePort", "sessionAffinity": "ClientIP"});
    world.serve("loopback", &sticky);
    for net in &world.nets {
        until("a machine stays with its server", || {
            let got = world.hosts[0].asks(tcp(*net), Protocol::Tcp, ENOUGH);
            got.len() == 1 && matches!(got.first(), Some(Got::Answer(..)))
        });
    }
    // Where the port is not led anywhere, the machine's own answer comes.
    let nobody = json!({"type": "NodePort", "selector": {"app": "nobody"}});
    world.serve("loopback", &nobody);
    for net in &world.nets {
        world.expect(&world.hosts[0], tcp(*net), Protocol::Tcp, Want::Refused);
    }
    world.drop_service("loopback");
}

/// A host port on `::1` that programs of the machine cannot reach is told; one that they can reach is not.
pub fn host_ports(world: &World) {
    let Some(v6) = world.nets.iter().find(|net| !net.host(1).is_ipv4()) else {
        return;
    };
    const LED: u16 = 7001;
    const NOT_LED: u16 = 7002;
    const SCTP: u16 = 7003;
    const EVERYWHERE: u16 = 7004;
    let port = |number: u16, protocol: &str, address: &str| json!({"containerPort": PORT, "hostPort": number, "protocol": protocol, "hostIP": address});
    let mut object = pod("ports", "second", "ports");
    object["spec"]["containers"][0]["ports"] = json!([
        port(LED, "TCP", "::1"),
        port(NOT_LED, "UDP", "::1"),
        port(SCTP, "SCTP", "::1"),
        port(EVERYWHERE, "UDP", ""),
    ]);
    world.cluster.apply(&object.to_string());
    let mut server = Place::pod(&world.cluster, "ports");
    server.name = SERVERS[1];
    server.serve();
    let machine = &world.hosts[1];
    let ask = |from: &Place, number, protocol, to: IpAddr| {
        from.ask(SocketAddr::new(to, number), protocol, 1)
    };
    let here = Ipv6Addr::LOCALHOST.into();
    until("the pod answers on ::1", || {
        matches!(
            ask(machine, LED, Protocol::Tcp, here),
            Got::Answer("there", _)
        )
    });
    let got = ask(&world.outside, EVERYWHERE, Protocol::Udp, v6.host(2));
    assert!(matches!(got, Got::Answer("there", _)), "{got:?}");
    let got = ask(machine, NOT_LED, Protocol::Udp, here);
    assert!(!matches!(got, Got::Answer(..)), "{got:?}");

    let events = "get events --field-selector involvedObject.name=ports,reason=HostPortNotSupported -o \
                  jsonpath={.items[*].message}";
    let says = |port: &str| {
        format!("Host port {port} with hostIP ::1 cannot be reached by programs of the node")
    };
    let told = world.cluster.wait_for(events, |told| {
        [format!("{NOT_LED}/UDP"), format!("{SCTP}/SCTP")]
            .iter()
            .all(|port| told.contains(&says(port)))
    });
    assert_eq!(told.matches("Host port ").count(), 2, "{told}");
    world.cluster.ok("delete pod ports");
}

/// With as many connections as there may be, the next one waits until one of them ends.
fn bounded(world: &World, to: SocketAddr) {
    let machine = &world.hosts[0];
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&to, DROPPED).unwrap();
        stream.write_all(b"x").unwrap();
        stream
    };
    let mut held: Vec<TcpStream> = machine.enter(|| (0..=CONNECTIONS).map(|_| connect()).collect());
    let waiting = held.pop().unwrap();
    waiting.set_read_timeout(Some(5 * DROPPED)).unwrap();
    waiting.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(waiting.peek(&mut [0]).is_err(), "it is served at once");
    drop(held);
    let answered = patiently(5 * DROPPED);
    waiting.set_read_timeout(Some(answered)).unwrap();
    let mut said = String::new();
    (&waiting).read_to_string(&mut said).unwrap();
    assert!(said.ends_with('x'), "{said}");
}
