//! The pod network in namespaces of the test's own: over IPv4, over IPv6, and over both.

mod families;
mod frames;
mod others;
mod sizes;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use netns::Namespace;

use super::{
    ports::{HostAddress, host_address},
    *,
};
use crate::own_ports::{OwnPort, TCP};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const TIMEOUT: Duration = Duration::from_secs(3);

/// Runs a future in a namespace; its blocking threads are in it too.
fn in_host<T: Send>(
    host: &Namespace,
    work: impl AsyncFnOnce() -> TestResult<T> + Send,
) -> TestResult<T> {
    host.run(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(work())
    })?
}

const IPV4: &str = "10.7.1.0/24";
const IPV6: &str = "fd07:0:0:1::/64";
const BOTH: &str = "10.7.1.0/24,fd07:0:0:1::/64";

fn config(folder: &std::path::Path, ranges: &str) -> Config {
    let pod_cidrs: PerFamily<IpNet> = ranges.parse().expect("literal ranges");
    Config {
        state_dir: folder.into(),
        pod_cidrs,
        bridge: "vetch0".into(),
        table: "vetch".into(),
        cluster_cidrs: pod_cidrs.map(|range| match range {
            IpNet::V4(_) => "10.7.0.0/16".parse().expect("a literal range"),
            IpNet::V6(_) => "fd07::/56".parse().expect("a literal range"),
        }),
        own_ports: OwnPorts::new([OwnPort {
            address: None,
            protocol: TCP,
            port: 6443,
            user: "the API server",
        }]),
    }
}

/// A host, and one for each pod.
fn namespaces<const N: usize>() -> TestResult<[Namespace; N]> {
    let made = (0..N).map(|_| Namespace::create());
    let made = made.collect::<Result<Vec<_>, _>>()?;
    made.try_into().map_err(|_| "as many as asked for".into())
}

/// A network without pods.
async fn opened(folder: &std::path::Path, ranges: &str) -> TestResult<BridgeNetwork> {
    let network = BridgeNetwork::open(config(folder, ranges)).await?;
    network.adopt(&[], BTreeMap::new()).await?;
    Ok(network)
}

fn output(program: &str, args: &str) -> TestResult<String> {
    let output = Command::new(program).args(args.split(' ')).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

fn ip(args: &str) -> TestResult<String> {
    output("ip", args)
}

fn nft(args: &str) -> TestResult<String> {
    output("nft", args)
}

/// What is said on the way from a pod to one at this address, and who the other end sees.
fn hello(from: &Namespace, to: &Namespace, address: IpAddr) -> TestResult<IpAddr> {
    let address = SocketAddr::new(address, 80);
    let listener = to.run(|| TcpListener::bind(address))??;
    let mut client = from.run(|| TcpStream::connect_timeout(&address, TIMEOUT))??;
    let (mut server, from) = listener.accept()?;
    server.write_all(b"hello")?;
    drop(server);
    let mut text = String::new();
    client.read_to_string(&mut text)?;
    assert_eq!(text, "hello");
    Ok(from.ip())
}

#[test]
#[ignore = "needs root"]
fn pods_reach_each_other_and_leave_nothing() -> TestResult {
    for (ranges, want) in [
        (IPV4, "10.7.1.2"),
        (IPV6, "fd07:0:0:1::2"),
        (BOTH, "10.7.1.2,fd07:0:0:1::2"),
    ] {
        reach_each_other(ranges, want)?;
    }
    Ok(())
}

fn reach_each_other(ranges: &str, want: &str) -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, one, two] = namespaces()?;
    in_host(&host, async || {
        let config = || config(folder.path(), ranges);
        sysctl::write(FORWARD, "0")?;
        sysctl::write(FORWARD_IPV6, "0")?;
        let network = BridgeNetwork::open(config()).await?;
        let first = network.attach("uid-1", one.as_fd()).await?;
        let start = Instant::now();
        let second = network.attach("uid-2", two.as_fd()).await?;
        println!("attach with {want} took {:?}", start.elapsed());
        assert_eq!(first.to_string(), want);
        for (own, other) in first.iter().zip(second.iter()) {
            // No address translation between pods.
            assert_eq!(hello(&one, &two, *other)?, *own);
            assert_eq!(hello(&two, &one, *own)?, *other);
        }

        // The daemon restarts: the pods keep their addresses.
        let network = BridgeNetwork::open(config()).await?;
        assert_eq!(network.addresses("uid-2").await, Some(second));
        let before = ip("-o link")?;
        assert_eq!(network.attach("uid-2", two.as_fd()).await?, second);
        assert_eq!(ip("-o link")?, before); // the wire was not touched
        network.adopt(&["uid-2".into()], BTreeMap::new()).await?;
        assert_eq!(network.addresses("uid-1").await, None);
        assert!(!ip("link")?.contains(&wiring::link_name("uid-1")));

        network.remove().await?;
        assert_eq!(ip("-o link")?.lines().count(), 1); // lo
        assert_eq!(sysctl::read(FORWARD)?.as_deref(), Some("0"));
        assert_eq!(sysctl::read(FORWARD_IPV6)?.as_deref(), Some("0"));
        assert_eq!(nft("list ruleset")?, "");
        Ok(())
    })
}

/// Bytes a second that `server` gets from a client in `from`.
fn rate(from: &Namespace, server: TcpListener, to: SocketAddr) -> TestResult<f64> {
    const AMOUNT: usize = 4 << 20;
    let mut client = from.run(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
    let sending = std::thread::spawn(move || client.write_all(&vec![0; AMOUNT]));
    let (mut server, _) = server.accept()?;
    // What may come at once is not counted.
    server.read_exact(&mut vec![0; AMOUNT / 4])?;
    let start = Instant::now();
    server.read_exact(&mut vec![0; AMOUNT * 3 / 4])?;
    sending.join().map_err(|_| "the client panicked")??;
    Ok((AMOUNT * 3 / 4) as f64 / start.elapsed().as_secs_f64())
}

#[test]
#[ignore = "needs root"]
fn pods_receive_and_send_no_more_than_they_may() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, one, two] = namespaces()?;
    in_host(&host, async || {
        let network = opened(folder.path(), IPV4).await?;
        network.attach("one", one.as_fd()).await?;
        let address = *network.attach("two", two.as_fd()).await?.primary();
        let to = SocketAddr::new(address, 80);
        let listen = || two.run(|| TcpListener::bind(to));
        // 40 Mbit/s are 5 MB/s, 80 are 10.
        let limits = |ingress, egress| Bandwidth { ingress, egress };
        network
            .shape("two", two.as_fd(), limits(Some(40_000_000), None))
            .await?;
        let received = rate(&one, listen()??, to)?;
        assert!((3e6..6e6).contains(&received), "{received}");
        network
            .shape(
                "two",
                two.as_fd(),
                limits(Some(1_000_000_000_000_000), None),
            )
            .await?;
        network
            .shape("one", one.as_fd(), limits(None, Some(80_000_000)))
            .await?;
        let sent = rate(&one, listen()??, to)?;
        assert!((6e6..12e6).contains(&sent), "{sent}");
        network.remove().await?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn ports_of_the_node_lead_to_pods() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, one, two] = namespaces()?;
    in_host(&host, async || {
        ip("link set lo up")?;
        ip("address add 192.168.9.1/32 dev lo")?;
        let network = BridgeNetwork::open(config(folder.path(), IPV4)).await?;
        let web = *network.attach("web", one.as_fd()).await?.primary();
        network.attach("other", two.as_fd()).await?;
        let to = |address, port| Forward {
            address,
            protocol: 6,
            port,
            to: 80,
        };
        let node = [192, 168, 9, 1];
        let of_node = HostAddress::One(node.into());
        let every = HostAddress::Every;
        let forwards = vec![to(every, 8080), to(of_node, 8081), to(every, 6443)];
        network
            .adopt(&["web".into(), "other".into()], BTreeMap::new())
            .await?;
        network.forward("web", forwards).await?;

        let listener = one.run(|| TcpListener::bind((web, 80)))??;
        let reach = |address: [u8; 4], port: u16| {
            TcpStream::connect_timeout(&(address, port).into(), TIMEOUT / 3).is_ok()
        };
        assert!(reach([127, 0, 0, 1], 8080));
        assert!(reach(node, 8080) && reach(node, 8081));
        assert!(!reach([127, 0, 0, 1], 8081)); // of one address only
        assert!(!reach(node, 6443)); // the daemon's own
        assert!(two.run(|| reach(node, 8080))?);
        assert!(one.run(|| reach(node, 8080))?); // itself
        drop(listener);

        // A pod never reaches what listens on the node's loopback.
        let secret = TcpListener::bind("127.0.0.1:9000")?;
        let route = |line: &str| two.run(|| ip(line));
        route("route add 127.0.0.1/32 via 10.7.1.1 table 100")??;
        route("rule del pref 0")??;
        route("rule add pref 0 table 100")??;
        sysctl::write("net/ipv4/conf/vetch0/route_localnet", "1")?;
        two.run(|| sysctl::write("net/ipv4/conf/all/route_localnet", "1"))??;
        assert!(!two.run(|| reach([127, 0, 0, 1], 9000))?);
        drop(secret);

        network.detach("web").await?;
        assert!(!reach([127, 0, 0, 1], 8080));
        network.remove().await?;
        assert_eq!(nft("list ruleset")?, "");
        Ok(())
    })
}

/// A port of the node that leads to port 80 of the pod.
fn port(protocol: u8, port: u16) -> Forward {
    Forward {
        address: HostAddress::Every,
        protocol,
        port,
        to: 80,
    }
}

#[test]
#[ignore = "needs root"]
fn a_udp_sender_with_a_fixed_port_moves_to_the_next_pod() -> TestResult {
    const UDP: u8 = 17;
    let folder = tempfile::tempdir()?;
    let [host, one, two] = namespaces()?;
    in_host(&host, async || {
        ip("link set lo up")?;
        ip("address add 192.168.9.1/32 dev lo")?;
        let network = opened(folder.path(), IPV4).await?;
        let client = UdpSocket::bind("192.168.9.1:5000")?;
        client.set_read_timeout(Some(TIMEOUT))?;
        let mut buffer = [0; 16];
        for (uid, pod) in [("one", &one), ("two", &two)] {
            let address = *network.attach(uid, pod.as_fd()).await?.primary();
            network.forward(uid, vec![port(UDP, 5353)]).await?;
            let server = pod.run(|| UdpSocket::bind((address, 80)))??;
            server.set_read_timeout(Some(TIMEOUT))?;
            client.send_to(uid.as_bytes(), "192.168.9.1:5353")?;
            let (length, from) = server.recv_from(&mut buffer)?;
            assert_eq!(&buffer[..length], uid.as_bytes());
            server.send_to(b"answer", from)?;
            assert_eq!(client.recv_from(&mut buffer)?.0, 6);
            // The pod is replaced, and the sender goes on meanwhile.
            network.detach(uid).await?;
            client.send_to(b"nobody", "192.168.9.1:5353")?;
            let _ = client.recv_from(&mut buffer); // refused
        }
        network.remove().await?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_restarted_daemon_replaces_the_ports_once_all_are_known() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, one, two] = namespaces()?;
    in_host(&host, async || {
        let network = opened(folder.path(), IPV4).await?;
        network.attach("one", one.as_fd()).await?;
        network.forward("one", vec![port(6, 8081)]).await?;
        let before = nft("list table ip vetch-ports")?;
        assert!(before.contains("8081"), "{before}");
        drop(network);

        let network = BridgeNetwork::open(config(folder.path(), IPV4)).await?;
        network.attach("two", two.as_fd()).await?;
        // A new pod is there before those that run are known: it waits.
        let mut opening = Box::pin(network.forward("two", vec![port(6, 8082)]));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut opening).await;
        assert!(early.is_err());
        network.shared.repair()?; // nor does a repair write what is not known
        assert_eq!(nft("list table ip vetch-ports")?, before);
        let running = BTreeMap::from([
            ("one".to_owned(), vec![port(6, 8081)]),
            ("gone".to_owned(), vec![port(6, 8083)]), // it has no address any more
        ]);
        network
            .adopt(&["one".into(), "two".into()], running)
            .await?;
        opening.await?;
        let after = nft("list table ip vetch-ports")?;
        assert!(after.contains("8081") && after.contains("8082"), "{after}");
        assert!(!after.contains("8083"), "{after}");
        network.remove().await?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_change_of_ports_that_fails_is_made_again() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, one] = namespaces()?;
    in_host(&host, async || {
        let network = opened(folder.path(), IPV4).await?;
        network.attach("one", one.as_fd()).await?;
        // From the first port on, a setting must be looked at.
        network.forward("one", vec![port(6, 8080)]).await?;
        tokio::time::timeout(TIMEOUT, network.shared.again.notified()).await?;
        nft("delete table ip vetch-ports")?;
        // Whoever owns a table lets nobody else write it.
        let mut owner = Command::new("nft")
            .arg("-i")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()?;
        let order = b"add table ip vetch-ports { flags owner; }\n";
        owner.stdin.as_mut().ok_or("no input")?.write_all(order)?;
        let deadline = Instant::now() + TIMEOUT;
        while !nft("list tables")?.contains("vetch-ports") {
            assert!(Instant::now() < deadline, "nobody owns the table");
        }
        assert!(network.forward("one", vec![port(6, 8081)]).await.is_err());
        assert!(network.shared.repair().is_err());
        // It was asked for again, and is carried out once it can be.
        tokio::time::timeout(TIMEOUT, network.shared.again.notified()).await?;
        owner.kill()?;
        owner.wait()?;
        network.shared.repair()?;
        assert!(nft("list table ip vetch-ports")?.contains("8081"));

        // A pod is not unwired as long as its ports may lead to its address.
        nft("delete table ip vetch-ports")?;
        network.detach("one").await?;
        assert_eq!(nft("list table ip vetch-ports")?, "");
        network.remove().await?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn what_others_undo_is_found_and_restored() -> TestResult {
    const COMMON: [&str; 6] = [
        "nft flush ruleset",
        "nft delete table bridge vetch",
        "ip link set vetch0 down",
        "ip link del vetch0",
        "bridge link set dev $wire learning on",
        "ip link set $wire type bridge_slave group_fwd_mask 0",
    ];
    const OF_IPV4: [&str; 5] = [
        "nft add rule ip vetch-ports ports drop",
        "ip address flush dev vetch0",
        "ip route flush dev vetch0",
        "sysctl -qw net.ipv4.ip_forward=0",
        "ip -4 neigh flush dev vetch0 nud permanent",
    ];
    const OF_IPV6: [&str; 7] = [
        "nft add rule ip6 vetch-ports ports drop",
        "nft delete table ip6 vetch",
        "ip -6 address flush dev vetch0",
        "ip -6 route flush dev vetch0",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1; sysctl -qw net.ipv6.conf.lo.disable_ipv6=0",
        "ip -6 neigh flush dev vetch0 nud permanent",
    ];
    let of = |lists: &[&[&'static str]]| lists.concat();
    restored(IPV4, &of(&[&COMMON, &OF_IPV4]))?;
    restored(IPV6, &of(&[&COMMON, &OF_IPV6]))?;
    restored(BOTH, &of(&[&COMMON, &OF_IPV4, &OF_IPV6]))
}

/// What of the network can be seen from outside.
fn picture(wire: &str) -> TestResult<String> {
    let connected = ip("-o link show master vetch0")?.contains(wire);
    let port = ip(&format!("-d -o link show {wire}"))?;
    // Timers are shown among them.
    let names = [
        "hairpin",
        "learning",
        "flood",
        "mcast_flood",
        "group_fwd_mask",
        "locked",
    ];
    let setting = |name| {
        let rest = port.split_once(&format!(" {name} "))?.1;
        Some(rest.split(' ').next()?.to_owned())
    };
    let settings = names.map(setting);
    let routes = ip("route")?.replace(" linkdown", "");
    let addresses = ip("-4 -o address")?.replace(char::is_numeric, "");
    let sorted = |text: String, keep: &dyn Fn(&&str) -> bool| {
        let mut lines: Vec<&str> = text.lines().filter(keep).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    // Of the links' own addresses some come a moment later.
    let is_ours = |line: &&str| line.contains("vetch0") && !line.contains("fe80");
    let routes6 = sorted(ip("-6 route")?.replace(" linkdown", ""), &is_ours);
    let ours: String = ip("-6 -o address show dev vetch0 scope global")?;
    let addresses6 = ours.replace(char::is_numeric, "");
    let neighbours = sorted(ip("neigh show nud permanent")?, &|_| true);
    Ok(format!(
        "{connected} {settings:?} {routes} {addresses} {routes6} {addresses6} {neighbours}"
    ))
}

fn restored(ranges: &str, lines: &[&str]) -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, one] = namespaces()?;
    in_host(&host, async || {
        let network = opened(folder.path(), ranges).await?;
        network.attach("one", one.as_fd()).await?;
        network.forward("one", vec![port(6, 8081)]).await?;
        let shared = &network.shared;
        let nothing = repairs::Repaired::default();
        assert_eq!(shared.repair()?, nothing);
        let wire = wiring::link_name("one");
        let rules = || -> TestResult<Vec<String>> {
            let of_family = network.shared.config.pod_cidrs.families();
            let mut all = vec![nft("list table bridge vetch")?];
            for family in of_family {
                let family = match family {
                    Family::V4 => "ip",
                    Family::V6 => "ip6",
                };
                all.push(nft(&format!("list table {family} vetch"))?);
                all.push(nft(&format!("list table {family} vetch-ports"))?);
            }
            Ok(all)
        };
        let before = (picture(&wire)?, rules()?);
        let own = shared.tables().own_port()?;
        let mut monitor = netns::monitor::Monitor::open(own, shared.subject())?;
        for line in lines {
            let done = Command::new("sh")
                .args(["-ec", line])
                .env("wire", &wire)
                .status()?;
            assert!(done.success(), "{line}");
            let changes = tokio::time::timeout(TIMEOUT, monitor.changes()).await??;
            assert!(shared.notice(&changes), "{line}: {changes:?}");
            let found = shared.repair()?;
            assert!(!found.restored.is_empty(), "{line}");
            assert!(
                found.unwired.is_empty() && found.resized.is_empty(),
                "{line}"
            );
            assert_eq!((picture(&wire)?, rules()?), before, "{line}");
            for name in [FORWARD, FORWARD_IPV6] {
                let is_ours = (name == FORWARD_IPV6) == (ranges == IPV6) || ranges == BOTH;
                let value = sysctl::read(name)?;
                assert!(!is_ours || value.as_deref() == Some("1"), "{line}: {name}");
            }
            assert_eq!(shared.repair()?, nothing, "{line}");
            // What we have done ourselves is no reason to look again and again.
            while let Ok(changes) = tokio::time::timeout(TIMEOUT / 30, monitor.changes()).await {
                if shared.notice(&changes?) {
                    assert_eq!(shared.repair()?, nothing, "{line}");
                }
            }
        }
        // Of these the kernel tells nobody: they are looked at every few seconds.
        for (name, value) in wiring::IPV6_SETTINGS {
            let name = format!("net/ipv6/conf/vetch0/{name}");
            let other = if value == "0" { "1" } else { "0" };
            if ranges == IPV4 || name.ends_with("disable_ipv6") {
                continue;
            }
            sysctl::write(&name, other)?;
            assert_eq!(shared.repair()?.restored.len(), 1, "{name}");
            assert_eq!(sysctl::read(&name)?.as_deref(), Some(value));
        }
        ip(&format!("link del {wire}"))?;
        let changes = tokio::time::timeout(TIMEOUT, monitor.changes()).await??;
        assert!(shared.notice(&changes), "{changes:?}");
        assert_eq!(shared.repair()?.unwired, ["one"]);
        assert!(shared.rewire("one", one.as_fd())?);
        assert_eq!(shared.repair()?, nothing);
        network.remove().await?;
        Ok(())
    })
}
