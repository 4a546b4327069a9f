//! Addresses of IPv6 in a pool: announced by neighbour discovery, alone and beside those of IPv4.

use std::time::{Duration, Instant};

use super::{
    OUTSIDE, address_of, has_addresses, holds, is_told, lab, mac, neighbour, patch, pod, seen_from,
    seen_within,
};
use lab::{Cluster, Host, Machine, patiently, text, until};

const OUTSIDE_V6: &str = "fd77::9";
const V6: [&str; 2] = ["--pod-cidr=fd42::/64", "--service-cidr=fd96::/112"];
const BOTH: [&str; 2] = [
    "--pod-cidr=10.42.0.0/24,fd42::/64",
    "--service-cidr=10.96.0.0/16,fd96::/112",
];

/// Two nodes of one link, the second of which answers for an address of the pool first, and who is no node.
struct World {
    cluster: Cluster,
    machine: Machine,
    outside: Host,
    first: String,
}

impl World {
    fn new(ranges: [&str; 2], pool: &str, server: &str) -> Self {
        let cluster = Cluster::new();
        // The first host's end of the link is a bridge: its own rules must not take what passes for another host.
        for family in ["ip", "ip6"] {
            let setting = format!("net.bridge.bridge-nf-call-{family}tables");
            cluster.host.sh(&format!("sysctl -qw {setting}=0"));
        }
        cluster.host.add_ipv6(1);
        let pool = format!("--load-balancer-pool={pool}");
        let up = cluster.vetch(&[&["up", "--detach", &pool], &ranges[..]].concat());
        assert!(up.status.success(), "{}", text(&up));
        let machine = Machine::beside(&cluster, 2);
        machine.host.add_ipv6(2);
        let outside = Host::beside(&cluster.host, 9);
        outside.add_ipv6(9);
        machine.join_at(server, &cluster, "second");
        cluster.import("busybox");
        machine.import("busybox");
        let others = ".items[?(@.metadata.name!=\"second\")].metadata.name";
        let first = cluster.field("nodes", others);
        cluster.apply(&pod("here", &first, "web"));
        cluster.ready("here");
        Self {
            cluster,
            machine,
            outside,
            first,
        }
    }

    /// Who has these addresses: the first node, the second one.
    fn holders(&self, addresses: &[String]) -> [bool; 2] {
        [&self.cluster.host, &self.machine.host]
            .map(|host| addresses.iter().all(|address| holds(host, address)))
    }

    /// Waits until the client sends what is for the address to that host.
    fn leads_to(&self, what: &str, addresses: &[String], host: &Host) {
        let mac = mac(host);
        until(what, || {
            let to = |address: &String| neighbour(&self.outside, address);
            addresses.iter().all(|address| to(address) == mac)
        });
    }

    /// As a machine whose power is cut: nobody is told, and its cable leads nowhere.
    fn kill_second(&self) {
        let daemon = std::fs::read_to_string(self.machine.root.path().join("run/vetch.lock"));
        let daemon = daemon.unwrap();
        let line = format!("ip link set port2 down; kill -9 {}", daemon.trim());
        self.cluster.host.sh(&line);
    }
}

fn balancer(name: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: LoadBalancer, selector: \
         {{app: web}}, ports: [{{port: 80}}]{more}}}}}\n---\n"
    )
}

/// As it stands in a URL.
fn host_of(address: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    }
}

fn local(policy: &str) -> String {
    format!("{{\"spec\": {{\"externalTrafficPolicy\": \"{policy}\"}}}}")
}

#[test]
#[ignore = "needs root"]
fn an_ipv6_address_moves_to_another_node() {
    let world = World::new(V6, "fd77::100-fd77::119", "https://[fd77::1]:6443");
    let World {
        cluster,
        machine,
        outside,
        first,
    } = &world;
    let address = address_of("fd77::", "second", first);
    let url = host_of(&address);
    let held = std::slice::from_ref(&address);
    cluster.apply(&balancer("web", &format!(", loadBalancerIP: '{address}'")));
    has_addresses(cluster, "web", &address);
    let by_second = format!("the node second answers for {address}");
    is_told(cluster, "web", "AddressAnnounced", &by_second);
    for (name, host) in [
        ("outside", outside),
        ("the first node", &cluster.host),
        ("the second node", &machine.host),
    ] {
        until(&format!("{name} is answered"), || {
            seen_from(host, &url).is_some()
        });
    }
    until("the second node alone has it", || {
        world.holders(held) == [false, true]
    });
    // By a solicitation of who has never heard of it.
    outside.sh("ip -6 neigh flush dev host0");
    assert!(seen_from(outside, &url).is_some());
    assert_eq!(neighbour(outside, &address), mac(&machine.host));

    // Local: only a node with an endpoint has it, and the client is seen.
    patch(cluster, "service/web", &local("Local"));
    world.leads_to("the node with the endpoint has it", held, &cluster.host);
    until("the client is seen as it is", || {
        seen_from(outside, &url).as_deref() == Some(OUTSIDE_V6)
    });
    assert_eq!(world.holders(held), [true, false]);
    patch(cluster, "service/web", &local("Cluster"));
    world.leads_to("the second node has it again", held, &machine.host);
    until("the client is served", || {
        seen_from(outside, &url).is_some()
    });

    // The machine is gone at once. The client asks nobody: it is told.
    world.kill_second();
    let begun = Instant::now();
    world.leads_to("another node has told its neighbours", held, &cluster.host);
    let told = begun.elapsed();
    assert!(seen_within(outside, &url, "1").is_some());
    let served = begun.elapsed();
    eprintln!("told after {told:?}, served after {served:?}");
    assert!(served < patiently(Duration::from_secs(4)), "{served:?}");
    let by_first = format!("the node {first} answers for {address}");
    is_told(cluster, "web", "AddressAnnounced", &by_first);
    // Nobody is left there who could take it away, and it is gone.
    until("the address is not left behind", || {
        world.holders(held) == [true, false]
    });
    cluster.host.sh("ip link set port2 up");
    machine.ok(&["agent", "--detach"]);
    world.leads_to("the second node has it again", held, &machine.host);
    assert!(seen_from(outside, &url).is_some());
    cluster.ok("delete service web --timeout=30s");
    until("nobody has it", || world.holders(held) == [false, false]);
    let said = [cluster.daemon_log(), machine.daemon_log()].concat();
    assert!(!said.contains("forbidden"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn a_dual_stack_service_has_an_address_of_each_family() {
    let pool = "192.168.77.100-192.168.77.101,fd77::100-fd77::100";
    let world = World::new(BOTH, pool, lab::SERVER);
    let World {
        cluster,
        machine,
        outside,
        ..
    } = &world;
    let dual = ", ipFamilyPolicy: RequireDualStack";
    cluster.apply(&balancer("web", dual));
    let both = ["192.168.77.100", "fd77::100"];
    has_addresses(cluster, "web", &both.join(" "));
    let served = |seen: [&str; 2]| {
        for (address, seen) in both.iter().zip(seen) {
            until(&format!("{seen} is seen at {address}"), || {
                seen_from(outside, &host_of(address)).as_deref() == Some(seen)
            });
        }
    };
    for address in both {
        until(&format!("outside is answered at {address}"), || {
            seen_from(outside, &host_of(address)).is_some()
        });
    }
    // Both stay with the node of the endpoint, which sees the client by both families.
    patch(cluster, "service/web", &local("Local"));
    served([OUTSIDE, OUTSIDE_V6]);
    let both_held = both.map(str::to_owned);
    assert_eq!(world.holders(&both_held), [true, false]);
    // They go with the endpoint.
    cluster.apply(&pod("there", "second", "web"));
    cluster.ready("there");
    cluster.ok("delete pod here");
    world.leads_to("the other node has both", &both_held, &machine.host);
    served([OUTSIDE, OUTSIDE_V6]);
    assert_eq!(world.holders(&both_held), [false, true]);

    // The pool has one more address of one family alone.
    cluster.apply(&balancer("more", dual));
    is_told(
        cluster,
        "more",
        "SyncLoadBalancerFailed",
        "all IPv6 addresses of the pool are taken",
    );
    has_addresses(cluster, "more", "192.168.77.101");
    let condition = ".status.conditions[?(@.type==\"vetch.io/PoolAddresses\")].reason";
    assert_eq!(cluster.field("service/more", condition), "PoolExhausted");
    until("it is served by what it has", || {
        seen_from(outside, "192.168.77.101").is_some()
    });
    // Who has both gives up one.
    patch(
        cluster,
        "service/web",
        "{\"spec\": {\"ipFamilyPolicy\": \"SingleStack\", \"ipFamilies\": [\"IPv4\"]}}",
    );
    has_addresses(cluster, "web", "192.168.77.100");
    has_addresses(cluster, "more", "192.168.77.101 fd77::100");
    until("the heir is served by both", || {
        let is_served = |address| seen_from(outside, address).is_some();
        is_served("192.168.77.101") && is_served("[fd77::100]")
    });
    let said = [cluster.daemon_log(), machine.daemon_log()].concat();
    assert!(!said.contains("forbidden"), "{said}");
}
