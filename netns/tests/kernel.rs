//! Everything the crate sends, witnessed by `ip` and `nft`, in namespaces of the tests' own.

use std::{
    error::Error,
    io::{ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, TcpStream},
    os::fd::AsFd,
    process::{Command, Stdio},
    time::Duration,
};

use netns::{
    Namespace,
    monitor::{Changes, Monitor, Subject},
    nft::{
        BaseChain, Batch, ChainKind, Element, Family, Hook, Policy, Reg, Reject, Rule, Set,
        SetKind, Socket, Table, Type, Value, Verdict,
    },
    route::{self, Change, Disturbance, Port, Prefix, RouteKind, Veth, Vxlan, WantedRoute},
};

type TestResult<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));

fn output(program: &str, args: &[&str]) -> TestResult<String> {
    let output = Command::new(program).args(args).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
#[ignore = "needs root"]
fn a_wired_namespace_reaches_its_gateway() -> TestResult {
    let (host, pod) = (Namespace::create()?, Namespace::create()?);
    host.run(|| -> TestResult {
        let mut socket = route::Socket::open()?;
        socket.apply(vec![Change::add_bridge("br0", [2, 0, 0, 0, 0, 1])])?;
        let bridge = socket.link("br0")?;
        assert_eq!(bridge.kind.as_deref(), Some("bridge"));
        socket.apply(vec![
            Change::add_address(bridge.index, Prefix::new(GATEWAY, 24)),
            Change::set_up(bridge.index),
        ])?;
        let veth = Veth {
            name: "v1",
            peer_name: "eth0",
            peer_netns: pod.as_fd(),
            mac: [2, 0, 0, 0, 1, 1],
            peer_mac: [2, 0, 0, 0, 1, 2],
            mtu: 1400,
            master: Some(bridge.index),
        };
        socket.apply(vec![
            Change::add_veth(&veth),
            Change::set_port("v1", Port::Learning),
        ])?;
        assert_eq!(socket.link("v1")?.master, Some(bridge.index));
        let detail = output("ip", &["-d", "link", "show", "v1"])?;
        assert!(detail.contains("hairpin on"), "{detail}");

        let again = socket.apply(vec![Change::add_veth(&veth)]);
        assert!(again.is_err_and(|error| error.is_present()
            && error.to_string().contains("add the veth pair v1 and eth0")));
        Ok(())
    })??;
    pod.run(|| -> TestResult {
        let mut socket = route::Socket::open()?;
        let lo = socket.link("lo")?.index;
        let eth0 = socket.link("eth0")?;
        assert_eq!((eth0.mtu, eth0.up), (1400, false));
        let everywhere = Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        socket.apply(vec![
            Change::set_up(lo),
            Change::set_up(eth0.index),
            Change::add_address(eth0.index, Prefix::host(POD)),
            Change::add_route(eth0.index, Prefix::host(GATEWAY), None),
            Change::add_route(eth0.index, everywhere, Some(GATEWAY)),
            Change::add_neighbour(eth0.index, GATEWAY, [2, 0, 0, 0, 0, 1]),
        ])?;
        let routes = output("ip", &["route"])?;
        assert!(routes.contains("default via 10.9.0.1 dev eth0"), "{routes}");
        let addresses = socket.addresses()?;
        assert!(addresses.contains(&(eth0.index, Prefix::host(POD))));
        let link = TcpStream::connect((GATEWAY, 7070));
        // Nobody listens, but the gateway says so: it was reached.
        assert!(link.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));

        let v6 = Prefix::host("fd00::2".parse()?);
        socket.apply(vec![
            Change::delete_neighbour(eth0.index, GATEWAY),
            Change::delete_route(eth0.index, everywhere),
            Change::add_address(eth0.index, v6),
            Change::set_mac(eth0.index, [2, 0, 0, 0, 1, 3]),
        ])?;
        let neighbours = output("ip", &["neighbour", "show", "nud", "permanent"])?;
        assert!(!neighbours.contains("10.9.0.1"), "{neighbours}");
        let routes = output("ip", &["route"])?;
        assert!(!routes.contains("default"), "{routes}");
        assert!(socket.addresses()?.contains(&(eth0.index, v6)));
        let eth0 = socket.link("eth0")?;
        assert_eq!((eth0.mac, eth0.up), (Some([2, 0, 0, 0, 1, 3]), true));
        Ok(())
    })??;
    host.run(|| -> TestResult {
        let mut socket = route::Socket::open()?;
        let destinations = socket.destinations()?;
        let network = Prefix::new("10.9.0.0".parse()?, 24);
        assert!(destinations.contains(&network), "{destinations:?}");
        assert!(destinations.contains(&Prefix::host(GATEWAY)));
        socket.apply(vec![Change::set_down("v1")])?;
        assert!(!socket.link("v1")?.up);
        disturb(&mut socket)?;
        socket.apply(vec![Change::delete_link("v1")])?;
        let gone = socket.apply(vec![Change::delete_link("v1")]);
        assert!(gone.is_err_and(|error| error.is_absent()));
        Ok(())
    })?
}

/// Where the kernel has a network emulator, it delays and loses; where it has none, it says that.
fn disturb(socket: &mut route::Socket) -> TestResult {
    let index = socket.link("v1")?.index;
    let nothing = socket.apply(vec![Change::undisturb(index)]);
    assert!(nothing.is_err_and(|error| error.is_absent()));
    for (delay_ms, lost_percent) in [(20, 5), (0, 100)] {
        let how = Disturbance {
            delay: Duration::from_millis(delay_ms),
            lost_percent,
        };
        match socket.apply(vec![Change::disturb(index, &how)]) {
            Err(error) => {
                assert!(error.is_absent(), "{error}");
                return Ok(());
            }
            Ok(()) => {
                let shown = output("tc", &["qdisc", "show", "dev", "v1"])?;
                assert!(shown.contains(&format!("loss {lost_percent}%")), "{shown}");
                assert_eq!(shown.contains("delay 20ms"), delay_ms == 20, "{shown}");
            }
        }
    }
    Ok(socket.apply(vec![Change::undisturb(index)])?)
}

/// A table with one of everything the proxy uses.
fn everything(table: &Table) -> Batch {
    let front = [Type::Ipv4, Type::Protocol, Type::Port];
    let back = [Type::Ipv4, Type::Protocol, Type::Port, Type::Mark];
    let client = [Type::Ipv4, Type::Ipv4, Type::Protocol, Type::Port];
    let endpoint = SetKind::Map(&[Type::Ipv4, Type::Port]);
    let base = |kind, hook, priority| BaseChain {
        kind,
        hook,
        priority,
        policy: Policy::Accept,
    };
    let service = |rule: Rule| {
        rule.destination_v4(Reg(1))
            .protocol(Reg(2))
            .destination_port(Reg(3))
    };
    let mut batch = Batch::new();
    batch
        .remove_table(table)
        .add_table(table)
        .add_set(table, &Set::new("fronts", &front, SetKind::VerdictMap))
        .add_set(table, &Set::new("backs", &back, endpoint))
        .add_set(
            table,
            &Set::new("affinity", &client, SetKind::Map(&[Type::Mark])).dynamic(1000),
        )
        .add_set(
            table,
            &Set::new("hairpin", &[Type::Ipv4, Type::Ipv4], SetKind::Set),
        )
        .add_chain(table, "pick-2")
        .add_chain(table, "turn-away")
        .add_base_chain(
            table,
            "prerouting",
            base(ChainKind::Nat, Hook::Prerouting, -100),
        )
        .add_rule(
            table,
            "prerouting",
            service(Rule::new()).verdict_of("fronts", Reg(1)),
        )
        .add_rule(
            table,
            "pick-2",
            service(Rule::new().source_v4(Reg(0)))
                .random(Reg(4), 2, 0)
                .remember("affinity", Reg(0), Reg(4), 5000),
        )
        .add_rule(
            table,
            "pick-2",
            service(Rule::new().source_v4(Reg(0)))
                .look_up("affinity", Reg(0), Reg(4))
                .set_priority(Reg(4)),
        )
        .add_rule(
            table,
            "pick-2",
            service(Rule::new())
                .load_priority(Reg(4))
                .look_up("backs", Reg(1), Reg(5))
                .destination_nat(false, Reg(5), Reg(6)),
        )
        .add_rule(
            table,
            "pick-2",
            service(Rule::new())
                .random(Reg(4), 2, 0)
                .look_up("backs", Reg(1), Reg(5))
                .destination_nat(false, Reg(5), Reg(6)),
        )
        .add_rule(
            table,
            "turn-away",
            Rule::new()
                .protocol(Reg(0))
                .equal(Reg(0), &[6])
                .reject(Reject::TcpReset),
        )
        .add_rule(table, "turn-away", Rule::new().reject(Reject::IcmpPort))
        .add_base_chain(
            table,
            "postrouting",
            base(ChainKind::Nat, Hook::Postrouting, 100),
        )
        .add_rule(
            table,
            "postrouting",
            Rule::new()
                .source_v4(Reg(0))
                .destination_v4(Reg(1))
                .in_set("hairpin", Reg(0))
                .masquerade(),
        )
        .add_rule(
            table,
            "postrouting",
            Rule::new()
                .source_in([10, 9, 0, 7].into(), 20, true)
                .destination_in([10, 0, 0, 0].into(), 8, false)
                .not_output_link("br0")
                .masquerade(),
        )
        .add_base_chain(table, "input", base(ChainKind::Filter, Hook::Input, 0))
        .add_rule(
            table,
            "input",
            Rule::new()
                .source_local(false)
                .destination_local()
                .load_mark(Reg(0))
                .bitwise(
                    Reg(0),
                    &0xffff_bfffu32.to_ne_bytes(),
                    &0x4000u32.to_ne_bytes(),
                )
                .set_mark(Reg(0))
                .counter()
                .verdict(&Verdict::Return),
        )
        .add_elements(
            table,
            "fronts",
            [Element {
                key: FRONT.to_vec(),
                value: Value::Verdict(Verdict::Goto("pick-2".into())),
            }],
        )
        .add_elements(
            table,
            "backs",
            (0..2u8).map(|slot| Element {
                key: back_key(slot.into()),
                value: Value::Data(vec![10, 9, 0, 2 + slot, 31, 144, 0, 0]),
            }),
        );
    batch
}

/// 10.96.0.10, UDP, port 53.
const FRONT: [u8; 12] = [10, 96, 0, 10, 17, 0, 0, 0, 0, 53, 0, 0];

fn back_key(slot: u32) -> Vec<u8> {
    [&FRONT[..], &slot.to_ne_bytes()].concat()
}

#[test]
#[ignore = "needs root"]
fn nft_reads_what_was_written() -> TestResult {
    Namespace::create()?.run(|| -> TestResult {
        let table = Table::new(Family::Ip, "probe");
        let mut socket = Socket::open()?;
        socket.commit(everything(&table))?;
        // A second time takes the first one's place, in one transaction.
        socket.commit(everything(&table))?;
        let listing = output("nft", &["list", "ruleset"])?;
        for line in [
            "10.96.0.10 . udp . 53 : goto pick-2",
            "10.96.0.10 . udp . 53 . 0x00000001 : 10.9.0.3 . 8080",
            "numgen random mod 2 map @backs",
            "ip daddr . meta l4proto . th dport",
            "type nat hook postrouting priority srcnat; policy accept;",
            "ip saddr 10.9.0.0/20 ip daddr != 10.0.0.0/8 oifname != \"br0\" masquerade fully-random",
            "fib saddr type != local fib daddr type local",
            "reject with tcp reset",
        ] {
            assert!(listing.contains(line), "no {line:?} in\n{listing}");
        }

        let mut batch = Batch::new();
        batch.delete_elements(&table, "backs", [Element {
            key: back_key(1),
            value: Value::None,
        }]);
        socket.commit(batch)?;
        let listing = output("nft", &["list", "map", "ip", "probe", "backs"])?;
        assert!(!listing.contains("10.9.0.3"), "{listing}");

        let mut batch = Batch::new();
        batch.remove_table(&table);
        socket.commit(batch)?;
        assert_eq!(output("nft", &["list", "ruleset"])?, "");
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn a_failed_transaction_changes_nothing_and_says_what_failed() -> TestResult {
    Namespace::create()?.run(|| -> TestResult {
        let table = Table::new(Family::Ip, "probe");
        let mut batch = Batch::new();
        batch.add_table(&table).add_chain(&table, "one").add_rule(
            &table,
            "two",
            Rule::new().counter(),
        );
        let error = Socket::open()?
            .commit(batch)
            .err()
            .ok_or("it was accepted")?;
        assert!(
            error
                .to_string()
                .contains("add a rule to the chain two of ip probe")
        );
        assert!(error.is_absent());
        assert_eq!(output("nft", &["list", "ruleset"])?, "");
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn a_large_transaction_goes_through() -> TestResult {
    Namespace::create()?.run(|| -> TestResult {
        let table = Table::new(Family::Ip, "probe");
        let mut batch = everything(&table);
        batch.add_elements(
            &table,
            "backs",
            (2..100_002).map(|slot| Element {
                key: back_key(slot),
                value: Value::Data(vec![10, 9, 0, 2, 31, 144, 0, 0]),
            }),
        );
        Socket::open()?.commit(batch)?;
        let listing = output("nft", &["list", "map", "ip", "probe", "backs"])?;
        assert_eq!(listing.matches("udp . 53 . ").count(), 100_002);
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn what_nft_lists_nft_accepts() -> TestResult {
    Namespace::create()?.run(|| -> TestResult {
        let table = Table::new(Family::Ip, "probe");
        // `nft` has no word for a register used twice, so only plain rules go this way.
        let mut batch = Batch::new();
        batch.add_table(&table).add_chain(&table, "plain").add_rule(
            &table,
            "plain",
            Rule::new()
                .source_in([10, 9, 0, 0].into(), 16, true)
                .output_link("br0")
                .verdict(&Verdict::Accept),
        );
        Socket::open()?.commit(batch)?;
        let listing = output("nft", &["list", "ruleset"])?;
        let mut check = Command::new("nft")
            .args(["-c", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        check
            .stdin
            .take()
            .ok_or("no stdin")?
            .write_all(listing.as_bytes())?;
        assert!(check.wait()?.success());
        Ok(())
    })?
}

/// What `line`, a line of shell, makes the monitor tell.
async fn told(monitor: &mut Monitor, line: &str) -> TestResult<Changes> {
    output("sh", &["-ec", line])?;
    Ok(tokio::time::timeout(Duration::from_secs(5), monitor.changes()).await??)
}

#[test]
#[ignore = "needs root"]
fn a_monitor_tells_what_others_change() -> TestResult {
    let host = Namespace::create()?;
    host.run(|| -> TestResult {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(watched())
    })?
}

async fn watched() -> TestResult {
    let mut own = Socket::open()?;
    let mut monitor = Monitor::open(own.port()?, Subject::default())?;
    let changes = told(
        &mut monitor,
        "ip link add br0 type bridge; ip link set br0 up",
    )
    .await?;
    let bridge = changes.links["br0"].clone().ok_or("no bridge")?;
    assert!(bridge.up);
    let line = "ip address add 10.9.0.1/24 dev br0; ip route add 10.8.0.0/16 dev br0; sleep 0.1; \
                ip route del 10.8.0.0/16";
    let changes = told(&mut monitor, line).await?;
    assert_eq!(
        changes.lost_routes.iter().collect::<Vec<_>>(),
        [&bridge.index]
    );
    assert_eq!(changes.lost_addresses, []);
    let changes = told(&mut monitor, "ip address del 10.9.0.1/24 dev br0").await?;
    assert_eq!(
        changes.lost_addresses,
        [(bridge.index, Prefix::new(GATEWAY, 24))]
    );

    netns::sysctl::write("net/ipv4/ip_forward", "0")?;
    let changes = told(&mut monitor, "echo 1 >/proc/sys/net/ipv4/ip_forward").await?;
    assert_eq!(changes.forwarding_of_all(), Some(true));
    assert_eq!(changes.forwarding_of(bridge.index), Some(true));

    // Our own changes are not told, those of others to the same table are.
    let table = Table::new(Family::Ip, "ours");
    let mut batch = Batch::new();
    batch.add_table(&table).add_chain(&table, "a");
    own.commit(batch)?;
    let handle = own.table_handle(&table)?.ok_or("no table")?;
    let changes = told(&mut monitor, "nft add table ip other").await?;
    let other = Table::new(Family::Ip, "other");
    assert_eq!(
        changes.tables.into_iter().collect::<Vec<_>>(),
        [other.key()]
    );
    let changes = told(&mut monitor, "nft add rule ip ours a accept").await?;
    assert_eq!(
        changes.tables.into_iter().collect::<Vec<_>>(),
        [table.key()]
    );
    let changes = told(&mut monitor, "nft flush ruleset").await?;
    assert!(changes.tables.contains(&table.key()), "{changes:?}");
    assert_eq!(own.table_handle(&table)?, None);
    let mut batch = Batch::new();
    own.commit(std::mem::take(batch.add_table(&table)))?;
    assert_ne!(own.table_handle(&table)?, Some(handle));

    // Of a link that came and went only the end is told; a new name is a loss of the old one.
    let line =
        "ip link add d0 type veth peer name d1; ip link del d0; ip link set br0 down name br1";
    let changes = told(&mut monitor, line).await?;
    assert_eq!(
        (&changes.links["d0"], &changes.links["br0"]),
        (&None, &None)
    );
    assert!(changes.links["br1"].is_some());
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn routes_are_made_where_they_are_missing() -> TestResult {
    let host = Namespace::create()?;
    host.run(|| -> TestResult {
        let line = "ip link add br0 type bridge; ip link add br1 type bridge; ip link set br0 up; \
                    ip link set br1 up; ip address add 10.9.0.1/24 dev br0";
        output("sh", &["-ec", line])?;
        let mut socket = route::Socket::open()?;
        let link = socket.link("br0")?.index;
        let route = |to, length, kind| WantedRoute {
            to: Prefix::new(to, length),
            link,
            kind,
        };
        let connected = route(
            Ipv4Addr::new(10, 9, 0, 0).into(),
            24,
            RouteKind::Connected(GATEWAY),
        );
        let wanted = [
            route(GATEWAY, 32, RouteKind::Local),
            connected,
            route(Ipv4Addr::new(10, 96, 0, 0).into(), 12, RouteKind::Link),
        ];
        assert_eq!(socket.static_routes(link)?, []);
        assert_eq!(socket.ensure_routes(&wanted)?, [wanted[2].to]);
        assert_eq!(socket.static_routes(link)?, [wanted[2].to]);
        let before = output("ip", &["route", "show", "table", "all"])?;
        assert_eq!(socket.ensure_routes(&wanted)?, []);
        // Flushed, led elsewhere; a narrower one of somebody else's is left alone.
        let lines = "ip route flush table main; ip route del local 10.9.0.1 table local; \
                     ip route add 10.96.0.0/12 dev br1; ip route add 10.96.0.0/24 dev br1";
        output("sh", &["-ec", lines])?;
        assert_eq!(socket.ensure_routes(&wanted)?, [wanted[0].to, wanted[1].to]);
        output("ip", &["route", "del", "10.96.0.0/24"])?;
        assert_eq!(socket.ensure_routes(&wanted)?, [wanted[2].to]);
        assert_eq!(output("ip", &["route", "show", "table", "all"])?, before);
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn a_monitor_tells_of_ipv6_and_neighbours_who_asks_for_them() -> TestResult {
    let host = Namespace::create()?;
    host.run(|| -> TestResult {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(watched_ipv6())
    })?
}

async fn watched_ipv6() -> TestResult {
    let line = "ip link add br0 type bridge; echo 1 >/proc/sys/net/ipv6/conf/br0/addr_gen_mode; \
                ip link set br0 up; ip address add fd42::1/64 dev br0 nodad; sleep 0.1; \
                ip neigh add fd42::2 lladdr 02:00:00:00:00:02 dev br0 nud permanent; \
                ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev br0 nud permanent";
    output("sh", &["-ec", line])?;
    let mut socket = route::Socket::open()?;
    let link = socket.link("br0")?.index;
    let mac = [2, 0, 0, 0, 0, 2];
    let known = [("fd42::2".parse()?, mac), (POD, mac)].into();
    assert_eq!(socket.permanent_neighbours(link)?, known);
    let subject = Subject {
        ipv6: true,
        neighbours: true,
    };
    let mut monitor = Monitor::open(Socket::open()?.port()?, subject)?;
    let mut plain = Monitor::open(Socket::open()?.port()?, Subject::default())?;
    // What is known anew is not told.
    let line = "ip neigh add fd42::3 lladdr 02:00:00:00:00:03 dev br0 nud permanent; \
                ip neigh del fd42::2 dev br0; ip neigh del 10.9.0.2 dev br0";
    let changes = told(&mut monitor, line).await?;
    let lost = [(link, POD), (link, "fd42::2".parse()?)];
    assert_eq!(changes.lost_neighbours, lost.into());
    let line = "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
    let changes = told(&mut monitor, line).await?;
    assert_eq!(changes.ipv6_forwarding_of_all(), Some(true));
    assert_eq!(changes.ipv6_forwarding_of(link), Some(true));
    assert_eq!(changes.forwarding_of_all(), None);
    let changes = told(&mut monitor, "ip address del fd42::1/64 dev br0").await?;
    let gone = Prefix::new("fd42::1".parse()?, 64);
    assert_eq!(changes.lost_addresses, [(link, gone)]);
    assert!(changes.lost_routes.contains(&link));
    let nothing = tokio::time::timeout(Duration::from_millis(300), plain.changes()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn ipv6_routes_are_made_where_they_are_missing() -> TestResult {
    let host = Namespace::create()?;
    host.run(|| -> TestResult {
        let line = "ip link add br0 type bridge; ip link set br0 up; \
                    echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; \
                    ip address add fd42::1/64 dev br0 nodad; sleep 0.2";
        output("sh", &["-ec", line])?;
        let mut socket = route::Socket::open()?;
        let link = socket.link("br0")?.index;
        let gateway: IpAddr = "fd42::1".parse()?;
        let route = |to: &str, length, kind| -> TestResult<WantedRoute> {
            let to = Prefix::new(to.parse()?, length);
            Ok(WantedRoute { to, link, kind })
        };
        let wanted = [
            route("fd42::1", 128, RouteKind::Local)?,
            // Its first address is every router's there.
            route("fd42::", 64, RouteKind::Connected(gateway))?,
            route("fd42:0:0:1::", 64, RouteKind::Via("fe80::5".parse()?))?,
            route("fd42:0:0:2::", 64, RouteKind::Via("fd42::9".parse()?))?,
        ];
        let ours = [wanted[2].to, wanted[3].to];
        assert_eq!(socket.ensure_routes(&wanted)?, ours);
        assert_eq!(socket.ensure_routes(&wanted)?, []);
        let found: Vec<Prefix> = socket.routes_via(true)?.iter().map(|one| one.to).collect();
        assert_eq!(found, ours);
        assert_eq!(socket.routes_via(false)?, []);
        let before = output("ip", &["-6", "route", "show"])?;
        output("ip", &["-6", "route", "flush", "table", "main"])?;
        assert_eq!(socket.ensure_routes(&wanted)?.len(), 3);
        let after = output("ip", &["-6", "route", "show"])?;
        assert_eq!(
            after
                .lines()
                .filter(|line| !line.starts_with("fe80"))
                .collect::<Vec<_>>(),
            before
                .lines()
                .filter(|line| !line.starts_with("fe80"))
                .collect::<Vec<_>>()
        );
        assert!(socket.advertised_defaults()?.is_empty());
        output(
            "ip",
            &[
                "route", "add", "default", "via", "fe80::7", "dev", "br0", "proto", "ra",
            ],
        )?;
        assert_eq!(socket.advertised_defaults()?, [link].into());
        Ok(())
    })?
}

/// One over each family, of the same number and port.
#[test]
#[ignore = "needs root"]
fn a_tunnel_is_told_by_the_family_that_it_runs_over() -> TestResult {
    let host = Namespace::create()?;
    host.run(|| -> TestResult {
        let mut socket = route::Socket::open()?;
        for (name, local) in [("x4", None), ("x6", Some("fd00::1".parse()?))] {
            let vxlan = Vxlan {
                id: 7,
                port: 8472,
                local,
            };
            socket.apply(vec![Change::add_vxlan(
                name,
                vxlan,
                [2, 0, 0, 0, 0, 9],
                1400,
            )])?;
            assert_eq!(socket.link(name)?.vxlan, Some(vxlan));
            let index = socket.link(name)?.index;
            socket.apply(vec![Change::set_up(index)])?;
        }
        Ok(())
    })?
}
