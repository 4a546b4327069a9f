//! Node ports on 127.0.0.1 and ::1, for programs of the machines alone.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
};

use serde_json::json;

use super::{
    lab::until,
    world::{DROPPED, ENOUGH, Got, LARGE, Net, Protocol, Want, World, node_port},
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
    let mut said = String::new();
    (&waiting).read_to_string(&mut said).unwrap();
    assert!(said.ends_with('x'), "{said}");
}
