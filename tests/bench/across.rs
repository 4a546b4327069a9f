//! Packets from pod to pod across two nodes, beside those between the two hosts alone: on one link, where they go
//! directly, and behind a router, where they go in VXLAN.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use super::{
    lab::{Cluster, Host, Machine, until},
    packets, sides,
    throughput::{Ends, sleeper},
    turns,
};

const PAIRS: usize = 40;
const THROUGHPUT: Duration = Duration::from_millis(400);
const ROUND_TRIPS: usize = 3000;
const NODE: &str = "second";
/// The first machine.
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

pub fn machines() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    super::await_account(&cluster);
    let beside = Machine::beside(&cluster, 2);
    measure(&cluster, &beside, "direct", "goal 0.95x of the link");
    drop(beside);
    cluster.ok(&format!("delete node {NODE}"));
    let behind = Machine::behind_a_router(&cluster);
    measure(&cluster, &behind, "VXLAN", "beside the routed link");
}

fn measure(cluster: &Cluster, machine: &Machine, how: &str, wanted: &str) {
    machine.join(cluster, NODE);
    machine.import("busybox");
    for host in [&cluster.host, &machine.host] {
        // As where nobody has loaded br_netfilter, which vetch does not need.
        host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0 || true");
    }
    let first = "jsonpath={.items[?(@.metadata.name!=\"second\")].metadata.name}";
    let first = cluster.ok_with(&["get", "nodes", "-o", first]);
    let (server, client) = sides::on(cluster, async |api| {
        let pods: Api<Pod> = Api::default_namespaced(api);
        // Bytes go from the machine whose way out is a plain link: the other's is a bridge, which cuts what is in a
        // tunnel into single packets, as physical links do that know no tunnels.
        let server = sleeper(&pods, &format!("3001{}", how.len()), Some(&first)).await;
        let client = sleeper(&pods, &format!("3002{}", how.len()), Some(NODE)).await;
        (server, client.0)
    });
    let pods = Ends::between(server.0, client, server.1);
    let hosts = Ends::between(space(&cluster.host), space(&machine.host), SERVER.into());
    until("the other pod is reached", || {
        packets::is_reached(&pods.client, pods.to)
    });
    let ends = [&hosts, &pods];
    let figures = turns::take(PAIRS, |side| ends[side].round(THROUGHPUT));
    turns::print_wanted(
        &format!("across/{how}: TCP, hosts and pods, GB/s"),
        &figures,
        wanted,
    );
    let figures = turns::take(PAIRS, |side| {
        let Ends { server, client, to } = ends[side];
        packets::round_trips(server, client, to.ip(), ROUND_TRIPS)
    });
    turns::print_wanted(
        &format!("across/{how}: UDP round trip, hosts and pods, us"),
        &figures,
        "beside it",
    );
    cluster.ok("delete pods --all --now");
}

fn space(host: &Host) -> PathBuf {
    format!("/proc/{}/ns/net", host.pid()).into()
}
