//! Every feature of Services by packets: from pods of both machines, from the machines and from outside. As root.

#[path = "../lab/mod.rs"]
mod lab;
mod loopback;
mod world;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use lab::until;
use serde_json::json;

use self::world::{
    DROPPED, ENOUGH, Got, LARGE, Net, PORT, Place, Protocol, SERVERS, Want, World, cluster_ip,
    node_port, protocols, read,
};

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
    loopback::node_ports(world);
    rules_load_again(world);
    loopback::host_ports(world);
}

/// Administrators save a machine's rules by `nft list ruleset` and load them again: what is ours must be what `nft`
/// takes, but for the guard in the family `bridge`, which compares what `nft` has no words for, and the rule that
/// remembers an IPv6 client (`nft` 1.0.6 runs out of registers there).
fn rules_load_again(world: &World) {
    world.serve(
        "saved",
        &json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP"}),
    );
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "saved"},
        "spec": {"podSelector": {}, "ingress": [{
            "from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}}, {"podSelector": {}}],
            "ports": [{"protocol": "TCP", "port": 1, "endPort": 65535}, {"protocol": "UDP"}],
        }], "egress": [{}]},
    });
    world.cluster.apply(&policy.to_string());
    let host = &world.cluster.host;
    let file = world.cluster.path("rules.nft");
    until("the rules are there", || {
        let listed = host.sh("nft list ruleset ip && nft list ruleset ip6");
        let tables = ["vetch-proxy", "vetch-policy"];
        let remembers = |line: &&str| line.contains("update @") && line.contains("ip6 saddr");
        let taken: Vec<&str> = listed.lines().filter(|line| !remembers(line)).collect();
        std::fs::write(&file, taken.join("\n") + "\n").unwrap();
        tables.iter().all(|table| listed.contains(table))
    });
    host.sh(&format!("unshare --net nft -f {}", file.display()));
    world.cluster.ok("delete networkpolicy saved");
    world.drop_service("saved");
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
        for &protocol in protocols() {
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
            for &protocol in protocols() {
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
        world
            .outside_host
            .sh(&format!("ip route add {to} via {by}"));
    }
    world.serve("external", &json!({"externalIPs": addresses}));
    let to = |net: Net| SocketAddr::new(net.host(100), PORT);
    let everyone: Vec<&Place> = [world.pods(), world.machines(), vec![&world.outside]].concat();
    world.check(&everyone, to, Want::Both(false));
    world.drop_service("external");
    for net in &world.nets {
        world
            .outside_host
            .sh(&format!("ip route del {}", net.host(100)));
    }
}

fn affinity(world: &World) {
    let made = world.serve("sticky", &json!({"sessionAffinity": "ClientIP"}));
    for net in &world.nets {
        let to = cluster_ip(&made, *net);
        for &protocol in protocols() {
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
        for &protocol in protocols() {
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
        for host in [
            &world.cluster.host,
            &world.machine.host,
            &world.outside_host,
        ] {
            host.sh(&format!("ip link set host0 mtu {mtu}"));
        }
        for net in &world.nets {
            for &protocol in protocols() {
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
    for host in [
        &world.cluster.host,
        &world.machine.host,
        &world.outside_host,
    ] {
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
