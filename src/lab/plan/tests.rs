use std::collections::BTreeSet;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn v4_net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn wanted(servers: u8, nodes: u8) -> Wanted {
    Wanted {
        size: Size::new(servers, nodes).unwrap(),
        ip_family: IpFamily::Ipv4,
        flags: vec!["--swap=limited".into()],
    }
}

fn lab(nodes: u8) -> Record {
    lab_in("10.200.7.0/24", nodes)
}

fn lab_in(ranges: &str, nodes: u8) -> Record {
    let group = |root: &Path| format!("vetch-{}", root.file_name().unwrap().display());
    let ranges = ranges.parse().unwrap();
    record(Path::new("/l/a"), ranges, &wanted(1, nodes), group)
}

#[test]
fn names() {
    let longest = "a".repeat(32);
    for (text, good) in [
        ("a", true),
        ("default", true),
        ("ci-1", true),
        (&longest, true),
        (&format!("{longest}a"), false),
        ("", false),
        ("1a", false), // would look like a number in places
        ("a-", false),
        ("-a", false),
        ("A", false),
        ("a.b", false),
        ("a/b", false),
        ("..", false),
        ("a b", false),
    ] {
        assert_eq!(text.parse::<Name>().is_ok(), good, "{text:?}");
    }
}

#[test]
fn sizes() {
    for (servers, nodes, want) in [
        (1, 0, None),
        (1, 99, None),
        (1, 100, Some(BadSize::TooMany)),
        (1, 255, Some(BadSize::TooMany)),
        (0, 3, Some(BadSize::NoServer)),
        (2, 3, Some(BadSize::SeveralServers)),
        (3, 0, Some(BadSize::SeveralServers)),
    ] {
        assert_eq!(Size::new(servers, nodes).err(), want, "{servers} {nodes}");
    }
}

#[test]
fn a_lab_is_all_there_before_it_is_made() {
    let lab = lab(2);
    let hosts: Vec<(&str, Role, String, &str)> = lab
        .hosts
        .iter()
        .map(|host| {
            let address = host.address.to_string();
            (host.name.as_str(), host.role, address, host.group.as_str())
        })
        .collect();
    assert_eq!(
        hosts,
        [
            (
                "server1",
                Role::Server,
                "10.200.7.2".into(),
                "vetch-server1"
            ),
            ("node1", Role::Node, "10.200.7.3".into(), "vetch-node1"),
            ("node2", Role::Node, "10.200.7.4".into(), "vetch-node2"),
        ]
    );
    assert_eq!(machine_address(&lab.range).to_string(), "10.200.7.1");
    assert_eq!(lab.stage, Stage::Making);
    assert!(lab.link.len() <= 15, "{}", lab.link);
    assert_ne!(lab.link, link(Path::new("/l/b")));
}

#[test]
fn the_largest_lab_has_addresses_and_names_for_all() {
    for ranges in [
        "10.200.7.0/24",
        "fd01:203:4::/64",
        "10.200.7.0/24,fd01:203:4::/64",
    ] {
        let lab = lab_in(ranges, MOST_HOSTS - 1);
        assert_eq!(lab.hosts.len(), usize::from(MOST_HOSTS));
        let mut macs = BTreeSet::new();
        let machine = machine_address(&lab.range);
        for address in { lab.hosts.iter().map(|host| &host.address) }.chain([&machine]) {
            assert!(address.families().eq(lab.range.families()), "{address}");
            assert!(address.iter().all(|one| lab.range.contains(one)));
            for end in [End::Switch, End::Host] {
                assert!(macs.insert(mac(*address.primary(), end)));
            }
        }
        assert!(lab.hosts.iter().all(|host| host.name.len() <= 15));
        assert_eq!(lab.version, if ranges.contains(':') { 2 } else { 1 });
    }
}

#[test]
fn ranges_meet_none_that_is_taken() {
    let folder = Path::new("/l/a");
    let free = |folder: &Path, taken: &[IpNet]| match free_range(folder, Family::V4, taken) {
        Some(IpNet::V4(range)) => Some(range),
        Some(IpNet::V6(range)) => panic!("{range}"),
        None => None,
    };
    let first = free(folder, &[]).unwrap();
    assert!(v4_net("10.200.0.0/16").contains(&first), "{first}");
    assert_ne!(Some(first), free(Path::new("/l/b"), &[]));
    let pool = |taken: &[&str]| {
        let taken: Vec<IpNet> = taken.iter().map(|text| net(text)).collect();
        free(folder, &taken).map(|range| range.supernet().unwrap().addr().octets()[..2].to_vec())
    };
    for (taken, want) in [
        (&[][..], Some(vec![10, 200])),
        (&["0.0.0.0/0"], Some(vec![10, 200])), // the default route
        (&["0.0.0.0/1", "128.0.0.0/1"], Some(vec![10, 200])), // a VPN that takes everything
        (&["10.0.0.0/8"], Some(vec![172, 30])), // a VPN with a network of its own
        (&["10.200.0.0/16"], Some(vec![172, 30])),
        (&["10.0.0.0/8", "172.16.0.0/12"], Some(vec![192, 168])),
        (&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], None),
    ] {
        assert_eq!(pool(taken), want, "{taken:?}");
    }
    // An address in it is enough.
    let inside = IpNet::from(IpAddr::V4(first.hosts().nth(76).unwrap()));
    let next = free(folder, &[inside]).unwrap();
    assert_ne!(next, first);
    // The last that is free is found.
    let all = (0..=u8::MAX).map(|part| Ipv4Net::new_assert(Ipv4Addr::new(10, 200, part, 0), 24));
    let but_one = all.filter(|range| *range != v4_net("10.200.9.0/24"));
    let but_one: Vec<IpNet> = but_one.map(IpNet::V4).collect();
    assert_eq!(free(folder, &but_one), Some(v4_net("10.200.9.0/24")));
}

#[test]
fn ranges_of_each_family() {
    let folder = Path::new("/l/a");
    let ranges = |ip_family, taken: &[IpNet]| free_ranges(folder, ip_family, taken);
    let both = ranges(IpFamily::Dual, &[]).unwrap();
    let (v4, v6) = (*both.primary(), *both.of(Family::V6).unwrap());
    assert!(net("10.200.0.0/16").contains(&v4), "{v4}");
    assert!(net("fd00::/8").contains(&v6), "{v6}");
    assert_eq!(v6.prefix_len(), 64);
    assert_eq!(ranges(IpFamily::Ipv4, &[]).unwrap(), PerFamily::one(v4));
    assert_eq!(ranges(IpFamily::Ipv6, &[]).unwrap(), PerFamily::one(v6));
    assert_ne!(
        free_ranges(Path::new("/l/b"), IpFamily::Ipv6, &[]).unwrap(),
        PerFamily::one(v6)
    );
    // Another one beside a range that is taken; ways out, such as that to all of RFC 4193, do not count.
    let next = ranges(IpFamily::Ipv6, &[v6, net("fc00::/7"), net("::/0")]).unwrap();
    assert_ne!(*next.primary(), v6);
    // The machine is in the whole of it.
    let whole = IpNet::new(v6.addr(), 40).unwrap().trunc();
    let error = ranges(IpFamily::Dual, &[whole]).unwrap_err();
    assert!(
        error.to_string().contains("no range of IPv6 addresses"),
        "{error}"
    );
}

#[test]
fn folders_hold_sockets() {
    let folder = |length: usize| format!("/{}", "x".repeat(length - 1));
    let fits = 107 - "/run/.tmpXXXXXX/notify".len();
    assert_eq!(too_long(Path::new(&folder(fits))), None);
    assert_eq!(too_long(Path::new(&folder(fits + 3))), Some(3));
    let usual = format!("/var/lib/vetch-labs/{}/server1", "a".repeat(32));
    assert_eq!(too_long(Path::new(&usual)), None);
}

#[test]
fn how_to_join_is_read_from_what_the_server_prints() {
    let said = "The cluster is up.\n  export KUBECONFIG=/k\n  kubectl get nodes\n\
                To make another machine a node, run there within a day:\n  \
                vetch agent --server https://10.200.7.2:6443 --token abcdef.0123456789abcdef";
    let join = Join::find(said).unwrap();
    assert_eq!(join.server, "https://10.200.7.2:6443");
    assert_eq!(join.token, "abcdef.0123456789abcdef");
    for none in [
        "",
        "The cluster is up.",
        "vetch agent --server x",
        "vetch agent",
    ] {
        assert_eq!(Join::find(none), None, "{none:?}");
    }
}

#[test]
fn daemons_are_started_as_users_do_it() {
    let lab = lab(1);
    let join = Join {
        server: "https://10.200.7.2:6443".into(),
        token: "t".into(),
    };
    let line = |host: usize, join| {
        let host = &lab.hosts[host];
        let root = Path::new("/l/a").join(&host.name);
        arguments(&root, host, join, &lab.flags).join(" ")
    };
    assert_eq!(
        line(0, None),
        "up --detach --root /l/a/server1 --node-name server1 --swap=limited"
    );
    assert_eq!(
        line(1, Some(&join)),
        "agent --detach --root /l/a/node1 --node-name node1 --server https://10.200.7.2:6443 --token t \
         --swap=limited"
    );
    // It keeps what it has joined.
    assert_eq!(
        line(1, None),
        "agent --detach --root /l/a/node1 --node-name node1 --swap=limited"
    );
    // Ranges of other families than the usual ones are the server's to say.
    for (ranges, want) in [
        (
            "fd01::/64",
            "--pod-cidr=fd42::/64 --service-cidr=fd96::/112",
        ),
        (
            "10.200.7.0/24,fd01::/64",
            "--pod-cidr=10.42.0.0/24,fd42::/64 --service-cidr=10.96.0.0/16,fd96::/112",
        ),
    ] {
        let lab = lab_in(ranges, 1);
        let line = |host: usize| {
            let host = &lab.hosts[host];
            arguments(&Path::new("/l").join(&host.name), host, None, &lab.flags).join(" ")
        };
        let start = "up --detach --root /l/server1 --node-name server1";
        assert_eq!(line(0), format!("{start} {want} --swap=limited"));
        assert!(!line(1).contains("cidr"), "{}", line(1));
    }
}

#[test]
fn what_heals() {
    use Step::{ContinueDaemon, LetPacketsPass, MakeHost, SetLinkUp, StartDaemon};
    let none = Faults::default();
    let killed = Faults {
        killed: true,
        ..none.clone()
    };
    let cut = Faults {
        cut: true,
        ..none.clone()
    };
    let frozen = Faults {
        frozen: true,
        ..none.clone()
    };
    let all = Faults {
        frozen: true,
        cut: true,
        lost_percent: 5,
        ..none.clone()
    };
    for (life, faults, want) in [
        (Life::Daemon, &none, &[][..]),
        (Life::Daemon, &cut, &[SetLinkUp]),
        (Life::Daemon, &frozen, &[ContinueDaemon]),
        (
            Life::Daemon,
            &all,
            &[SetLinkUp, LetPacketsPass, ContinueDaemon],
        ),
        (Life::None, &killed, &[MakeHost, StartDaemon]),
        (Life::None, &none, &[MakeHost, StartDaemon]), // the machine was started anew
        (Life::None, &all, &[MakeHost, StartDaemon]),  // its faults went with it
        (Life::Bare, &killed, &[StartDaemon]),         // a heal that was cut off
        (Life::Bare, &cut, &[SetLinkUp, StartDaemon]), // it needs its network to start
    ] {
        assert_eq!(healing(life, faults), want, "{life:?} {faults:?}");
    }
}

#[test]
fn processes_by_their_inner_number() {
    let status = "Name:\tvetch\nPid:\t4711\nNSpid:\t4711\t12\nNSsid:\t1\n";
    assert!(is_called(status, 12));
    assert!(!is_called(status, 4711)); // that is what it is called outside
    assert!(is_called("NSpid:\t7\n", 7));
    assert!(!is_called("Name:\tx\n", 7)); // it has ended
}

#[test]
fn the_kubeconfig_leads_to_the_server() {
    let inside = "  cluster:\n    server: \"https://127.0.0.1:6443\"\n";
    for (server, want) in [
        ("10.200.7.2", "https://10.200.7.2:6443"),
        ("fd01::2", "https://[fd01::2]:6443"),
    ] {
        assert_eq!(
            from_outside(inside, server.parse().unwrap()),
            format!("  cluster:\n    server: \"{want}\"\n")
        );
    }
}
