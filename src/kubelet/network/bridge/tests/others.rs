//! Pods of one machine and of another: on a link, behind a router, with one family of addresses or two.

use std::path::Path;

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use netns::route::{self, Change, Veth, Vxlan};
use serde_json::json;

use super::*;
use crate::{
    events::{Recorder, Source},
    kubelet::network::bridge::peers::{
        self, Config as PeersConfig, Own, Routes, TunnelConfig, WireGuardConfig,
    },
};

const CLUSTERS: [(&str, &str); 2] = [("10.7", "10.7.0.0/16"), ("fd07", "fd07::/56")];

/// How the two machines, a and b, are connected, and what their pods and they have.
struct Case {
    what: &'static str,
    routed: bool,
    ranges: [&'static str; 2],
    addresses: [&'static str; 2],
    /// The MTU of the tunnel that there is, if there is one.
    tunnel: Option<u32>,
    mtu: u32,
}

const A: &str = "10.7.1.0/24,fd07:0:0:1::/64";
const B: &str = "10.7.2.0/24,fd07:0:0:2::/64";

#[test]
#[ignore = "needs root"]
fn pods_of_two_machines_reach_each_other() -> TestResult {
    let cases = [
        Case {
            what: "both families on a link",
            routed: false,
            ranges: [A, B],
            addresses: ["192.0.2.1,fd00::1", "192.0.2.2,fd00::2"],
            tunnel: None,
            mtu: 1500,
        },
        Case {
            what: "both families behind a router",
            routed: true,
            ranges: [A, B],
            addresses: ["192.0.2.1,fd00:0:0:1::1", "198.51.100.1,fd00:0:0:2::1"],
            tunnel: Some(1450),
            mtu: 1450,
        },
        Case {
            what: "IPv4 behind a router",
            routed: true,
            ranges: ["10.7.1.0/24", "10.7.2.0/24"],
            addresses: ["192.0.2.1", "198.51.100.1"],
            tunnel: Some(1450),
            mtu: 1450,
        },
        Case {
            what: "IPv6 on a link",
            routed: false,
            ranges: ["fd07:0:0:1::/64", "fd07:0:0:2::/64"],
            addresses: ["fd00::1", "fd00::2"],
            tunnel: None,
            mtu: 1500,
        },
        Case {
            what: "IPv6 behind a router",
            routed: true,
            ranges: ["fd07:0:0:1::/64", "fd07:0:0:2::/64"],
            addresses: ["fd00:0:0:1::1", "fd00:0:0:2::1"],
            tunnel: Some(1430),
            mtu: 1430,
        },
        Case {
            what: "a machine without IPv6 on a link",
            routed: false,
            ranges: [A, B],
            addresses: ["192.0.2.1,fd00::1", "192.0.2.2"],
            tunnel: Some(1450),
            mtu: 1450,
        },
        Case {
            what: "a machine without IPv4 behind a router",
            routed: true,
            ranges: [A, B],
            addresses: ["192.0.2.1,fd00:0:0:1::1", "fd00:0:0:2::1"],
            tunnel: Some(1430),
            mtu: 1430,
        },
    ];
    for case in &cases {
        reached(case).map_err(|error| format!("{}: {error}", case.what))?;
    }
    Ok(())
}

fn cable(from: &Namespace, name: &str, to: &Namespace, peer_name: &str) -> TestResult {
    let mac = |seed| wiring::mac(&format!("{name} {peer_name} {seed}"));
    let veth = Veth {
        name,
        peer_name,
        peer_netns: to.as_fd(),
        mac: mac("a"),
        peer_mac: mac("b"),
        mtu: 1500,
        master: None,
    };
    from.run(|| route::Socket::open()?.apply(vec![Change::add_veth(&veth)]))??;
    Ok(())
}

fn shell(at: &Namespace, lines: &str) -> TestResult {
    let done = at.run(|| Command::new("sh").args(["-ec", lines]).status())??;
    assert!(done.success(), "{lines}");
    Ok(())
}

/// Machines `a` and `b` as the case says.
fn connect(case: &Case, a: &Namespace, b: &Namespace, router: &Namespace) -> TestResult {
    let assign = |at: &Namespace, addresses: &str| -> TestResult {
        shell(at, "ip link set lo up; ip link set up0 up")?;
        for address in addresses.split(',') {
            let (length, via) = match address {
                "192.0.2.1" => (24, "192.0.2.254"),
                "198.51.100.1" => (24, "198.51.100.254"),
                "fd00:0:0:1::1" => (64, "fd00:0:0:1::fe"),
                "fd00:0:0:2::1" => (64, "fd00:0:0:2::fe"),
                address if address.contains(':') => (64, "-"),
                _ => (24, "-"),
            };
            let nodad = if address.contains(':') { "nodad" } else { "" };
            shell(
                at,
                &format!("ip address add {address}/{length} dev up0 {nodad}"),
            )?;
            if case.routed && via != "-" {
                shell(at, &format!("ip route add default via {via} dev up0"))?;
            }
        }
        Ok(())
    };
    match case.routed {
        false => cable(a, "up0", b, "up0")?,
        true => {
            cable(a, "up0", router, "r1")?;
            cable(b, "up0", router, "r2")?;
            let lines = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; \
                         ip link set r1 up; ip link set r2 up; \
                         ip address add 192.0.2.254/24 dev r1; ip address add 198.51.100.254/24 dev r2; \
                         ip address add fd00:0:0:1::fe/64 dev r1 nodad; \
                         ip address add fd00:0:0:2::fe/64 dev r2 nodad";
            shell(router, lines)?;
        }
    }
    assign(a, case.addresses[0])?;
    assign(b, case.addresses[1])
}

fn tunnels(folder: &Path) -> PeersConfig {
    PeersConfig {
        tunnel: TunnelConfig {
            link: "vetch0x".into(),
            vxlan: Vxlan {
                id: 7,
                port: 8472,
                local: None,
            },
            table: "vetch-tunnel".into(),
            bridge: "vetch0".into(),
        },
        wireguard: WireGuardConfig {
            link: "vetch0w".into(),
            port: 51871,
            table: "vetch-wireguard".into(),
            bridge: "vetch0".into(),
            folder: folder.into(),
        },
    }
}

fn node(case: &Case, at: usize) -> TestResult<Arc<Node>> {
    let name = ["a", "b"][at];
    let ranges: Vec<&str> = case.ranges[at].split(',').collect();
    let told = case.addresses[at].split(',');
    let told: Vec<_> = told
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    Ok(Arc::new(serde_json::from_value(json!({
        "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": {"addresses": told},
    }))?))
}

fn clusters(ranges: &str) -> PerFamily<IpNet> {
    let of = |range: &str| {
        let found = CLUSTERS.iter().find(|(start, _)| range.starts_with(start));
        found.expect("a range of the test's").1
    };
    let list: Vec<&str> = ranges.split(',').map(of).collect();
    list.join(",").parse().expect("literal ranges")
}

async fn routes(
    case: &Case,
    at: usize,
    network: &BridgeNetwork,
    folder: &Path,
) -> TestResult<Routes> {
    let own = Own {
        name: ["a", "b"][at].to_owned(),
        addresses: case.addresses[at].parse()?,
        ranges: case.ranges[at].parse()?,
        clusters: clusters(case.ranges[at]),
    };
    let nobody = |_| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is there"))
    };
    let client = kube::Client::new(tower::service_fn(nobody), "default");
    let source = Source {
        component: "test",
        host: None,
    };
    let events = Recorder::start(client, source);
    let about = ObjectReference::default();
    Ok(Routes::open(
        own,
        &tunnels(folder),
        network.to_peers(),
        events,
        about,
    )?)
}

fn reached(case: &Case) -> TestResult {
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let [a, b, router, one, two] = namespaces()?;
    connect(case, &a, &b, &router)?;
    let nodes = [node(case, 0)?, node(case, 1)?];
    let (hosts, pods) = ([&a, &b], [&one, &two]);
    let mut made = Vec::new();
    for at in [0, 1] {
        let start = async || -> TestResult<_> {
            let network = opened(folders[at].path(), case.ranges[at]).await?;
            let routes = routes(case, at, &network, folders[at].path()).await?;
            routes.want(&nodes);
            assert!(routes.settle()?.is_empty());
            // The second look finds all of it.
            assert!(routes.settle()?.is_empty());
            network.shared.repair()?;
            let addresses = network.attach("pod", pods[at].as_fd()).await?;
            Ok((network, routes, addresses))
        };
        made.push(in_host(hosts[at], start)?);
    }
    for at in [0, 1] {
        let links = hosts[at].run(|| route::Socket::open()?.links())??;
        let tunnels = links.iter().filter(|link| link.vxlan.is_some());
        let tunnels: Vec<u32> = tunnels.map(|link| link.mtu).collect();
        assert_eq!(tunnels, Vec::from_iter(case.tunnel));
        let eth0 = pods[at].run(|| route::Socket::open()?.link("eth0"))??;
        assert_eq!(eth0.mtu, case.mtu);
        let (own, other) = (&made[at].2, &made[1 - at].2);
        for (own, other) in own.iter().zip(other.iter()) {
            let seen = hello(pods[at], pods[1 - at], *other);
            let seen = seen.map_err(|error| format!("{own} to {other}: {error}"))?;
            assert_eq!(seen, *own);
            let from_node = hello(hosts[at], pods[1 - at], *other);
            from_node.map_err(|error| format!("the node to {other}: {error}"))?;
        }
        // What others take away is found.
        let undone = hosts[at].run(|| -> TestResult<_> {
            ip("-4 route flush proto 86")?;
            ip("-6 route flush proto 86")?;
            Ok(made[at].1.settle()?)
        })??;
        assert_eq!(undone.len(), own.iter().count());
    }
    for at in [0, 1] {
        let remove = async || -> TestResult {
            let ranges = case.ranges[at];
            let tunnels = tunnels(folders[at].path());
            peers::remove(ranges.parse()?, clusters(ranges), tunnels).await?;
            made[at].0.remove().await?;
            assert_eq!(ip("-4 route show proto 86")?, "");
            assert_eq!(ip("-6 route show proto 86")?, "");
            assert_eq!(nft("list ruleset")?, "");
            let links = route::Socket::open()?.links()?;
            assert!(links.iter().all(|link| !link.name.starts_with("vetch")));
            Ok(())
        };
        in_host(hosts[at], remove)?;
    }
    Ok(())
}
