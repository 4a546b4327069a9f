//! Services of one family and of both, in clusters of one family and of both.

use super::*;

/// What a Service with these cluster IPs asks for in a family, served by a pod of both families.
fn planned(addresses: &[&str], family: Family) -> Plan {
    let service = service(json!({
        "clusterIP": addresses[0], "clusterIPs": addresses, "ports": [{"port": 80}],
    }));
    let slices = Family::ALL.map(|family| net(family).slice(8080, "TCP", &[0], "a"));
    let slices: Vec<&EndpointSlice> = slices.iter().collect();
    model::plan(&service, &slices, &at("a"), family)
}

#[test]
fn each_family_has_its_own_addresses() {
    let (v4, v6) = ("10.96.0.1", "fd96::1");
    for (addresses, has_v4, has_v6) in [
        (&[v4][..], true, false),
        (&[v6], false, true),
        (&[v4, v6], true, true),
        (&[v6, v4], true, true), // the order does not matter
        (&["::ffff:10.96.0.1"], false, false),
        (&["None"], false, false),
    ] {
        for (family, address, want) in [(Family::V4, v4, has_v4), (Family::V6, v6, has_v6)] {
            let plan = planned(addresses, family);
            let backend = (net(family).pods[0], 8080);
            let fronts: Vec<_> = plan.fronts.into_iter().collect();
            let want: Vec<_> = want
                .then(|| {
                    let front = front(Some(address), 80, Audience::Everyone);
                    (front, forward([backend]))
                })
                .into_iter()
                .collect();
            assert_eq!(fronts, want, "{addresses:?} {family}");
        }
    }
}

#[test]
fn external_addresses_and_clients_are_of_one_family() {
    let both = ["198.51.100.7", "2001:db8:51::7"];
    let range = |ranges: &[&str], family| {
        let service = json!({
            "metadata": {"name": "s", "namespace": "n"},
            "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd96::1"],
                "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
                "loadBalancerSourceRanges": ranges, "externalIPs": ["198.51.100.9", "2001:db8:51::9"],
            },
            "status": {"loadBalancer": {"ingress": both.map(|ip| json!({"ip": ip}))}},
        });
        let service = serde_json::from_value(service).expect("a service");
        let slices = Family::ALL.map(|family| net(family).slice(8080, "TCP", &[0], "a"));
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        model::plan(&service, &slices, &at("a"), family)
    };
    for (family, balanced, other) in [
        (Family::V4, both[0], "198.51.100.9"),
        (Family::V6, both[1], "2001:db8:51::9"),
    ] {
        let (balanced, other) = (
            front(Some(balanced), 80, Audience::Everyone),
            front(Some(other), 80, Audience::Everyone),
        );
        for (ranges, want) in [
            (&[][..], Some(0)),
            (&["203.0.113.0/24", "2001:db8:9::/48"], Some(1)),
            // Who lets clients of one family in means nobody of the other.
            (&["203.0.113.0/24"], (family == Family::V4).then_some(1)),
            (&["2001:db8:9::/48"], (family == Family::V6).then_some(1)),
        ] {
            let plan = range(ranges, family);
            assert_eq!(plan.fronts.len(), 3, "{family}");
            assert!(matches!(&plan.fronts[&other],
                Outcome::Forward { sources, .. } if sources.is_empty()));
            let found = match &plan.fronts[&balanced] {
                Outcome::Forward { sources, .. } => {
                    assert!(sources.iter().all(|range| range.family() == family));
                    Some(sources.len())
                }
                _ => None,
            };
            assert_eq!(found, want, "{ranges:?} {family}");
        }
    }
}

#[test]
fn what_ipv6_leads_nowhere() {
    let external = |ip: &str| {
        let service = service(json!({
            "type": "LoadBalancer", "clusterIP": "fd96::1", "externalIPs": [ip],
            "ports": [{"port": 80}],
        }));
        model::plan(&service, &[], &at("a"), Family::V6)
    };
    for (ip, why) in [
        ("2001:db8:51::7", None),
        ("64:ff9b::c633:6407", None), // by a translator outside
        ("2001:db8:2::1", Some("it is the node's own")),
        ("fd08::1", Some("it is in a range of the cluster's own")),
        ("fd96::a", Some("it is in a range of the cluster's own")),
        ("::1", Some("it is only on this host or its links")),
        ("fe80::7", Some("it is only on this host or its links")),
        ("ff02::1", Some("it is only on this host or its links")),
        (
            "::ffff:198.51.100.7",
            Some("it is an IPv4 address in another form"),
        ),
        (
            "::ffff:127.0.0.1",
            Some("it is only on this host or its links"),
        ),
    ] {
        let plan = external(ip);
        let found: Vec<&str> = plan.ignored.values().copied().collect();
        assert_eq!(found, why.into_iter().collect::<Vec<_>>(), "{ip}");
        assert_eq!(plan.fronts.len(), 2 - found.len(), "{ip}");
    }
    let service = service(json!({"clusterIP": "fd96::1", "ports": [{"port": 80}]}));
    for address in ["::1", "fe80::2", "ff02::1", "::", "::ffff:10.8.0.2"] {
        let slice = slice(8080, "TCP", &[(address, "a", true, false)]);
        let plan = model::plan(&service, &[&slice], &at("a"), Family::V6);
        let outcomes: Vec<_> = plan.fronts.into_values().collect();
        assert_eq!(outcomes, [Outcome::Refuse], "{address}");
    }
}

#[test]
fn named_ports_have_a_number_in_each_slice() {
    let service = service(json!({
        "clusterIPs": ["10.96.0.1", "fd96::1"], "clusterIP": "10.96.0.1",
        "ports": [{"port": 80, "targetPort": "web"}],
    }));
    let slices = [
        net(Family::V4).slice(8080, "TCP", &[0], "a"),
        net(Family::V6).slice(8081, "TCP", &[0], "a"),
        net(Family::V6).slice(8082, "TCP", &[1], "a"),
    ];
    let slices: Vec<&EndpointSlice> = slices.iter().collect();
    let [v4, v6] = Family::ALL.map(|family| {
        let plan = model::plan(&service, &slices, &at("a"), family);
        plan.fronts.into_values().collect::<Vec<_>>()
    });
    let pods = |family, number: usize| net(family).pods[number];
    assert_eq!(v4, [forward([(pods(Family::V4, 0), 8080)])]);
    let want = [(pods(Family::V6, 0), 8081), (pods(Family::V6, 1), 8082)];
    assert_eq!(v6, [forward(want)]);
}

#[test]
fn a_change_in_one_family_leaves_the_other_alone() {
    let mut states = Family::ALL.map(render::State::new);
    let key = Key::new("n", "s");
    let both = ["10.96.0.1", "fd96::1"];
    let mut update = |addresses: &[&str]| {
        let mut sent = [0, 0];
        for (at, state) in states.iter_mut().enumerate() {
            let mut step = Step::default();
            state.update(&key, planned(addresses, state.family()), &mut step);
            let delta = step.into_delta();
            let sets = delta.delete.values().chain(delta.add.values());
            sent[at] = sets.flatten().count();
        }
        sent
    };
    // Door, backend, cluster IP and the local backend itself.
    assert_eq!(update(&both[..1]), [4, 0]);
    assert_eq!(update(&both), [0, 4]);
    assert_eq!(update(&both), [0, 0]);
    assert_eq!(update(&both[1..]), [4, 0]);
    assert_eq!(update(&both), [4, 0]);
    assert_eq!(update(&["None"]), [4, 4]);
}

#[test]
#[ignore = "needs root"]
fn a_service_gains_and_loses_a_family() -> TestResult {
    let lab = Lab::new(CLUSTERS[2])?;
    lab.serve()?;
    let plans = |families: &[Family]| {
        let nets = families.iter().map(|family| net(*family));
        let addresses: Vec<String> = nets.map(|net| net.cluster_ip.to_string()).collect();
        let service = service(json!({
            "type": "NodePort", "clusterIP": addresses[0], "clusterIPs": addresses,
            "ports": [{"port": 80, "nodePort": 30080}],
        }));
        lab.plans(&service, &lab.slices(&[0, 1]))
    };
    let (v4, v6) = (Family::V4, Family::V6);
    let mut writer = lab.start(plans(&[v4]))?;
    for families in [&[v4][..], &[v4, v6], &[v4], &[v6, v4], &[v6], &[v4, v6]] {
        writer.apply(plans(families)).1?;
        for family in Family::ALL {
            let net = net(family);
            let is_served = families.contains(&family);
            for (address, port) in [(net.cluster_ip, 80), (net.node, 30080)] {
                if is_served {
                    let servers = lab.servers(&lab.outside, address, port)?;
                    assert_eq!(servers, net.pods, "{families:?}");
                } else {
                    let to = SocketAddr::new(address, port);
                    let short = Duration::from_millis(300);
                    let connect = || TcpStream::connect_timeout(&to, short);
                    let found = lab.outside.run(connect)?;
                    assert!(found.is_err(), "{families:?} {to}");
                }
            }
        }
    }
    // What is wrong with one table is not the other's.
    let handles = || -> TestResult<[Option<u64>; 2]> {
        lab.node.run(|| {
            let mut socket = netns::nft::Socket::open()?;
            let [v4, v6] = Family::ALL.map(|family| table::table("vetch-proxy", family));
            Ok([socket.table_handle(&v4)?, socket.table_handle(&v6)?])
        })?
    };
    let before = handles()?;
    lab.nft(&["delete", "table", "ip6", "vetch-proxy"])?;
    let restored = lab.node.run(|| writer.settle())??;
    assert_eq!(restored, ["the nf_tables table ip6 vetch-proxy"]);
    let after = handles()?;
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1]);
    ask(&lab.outside, net(Family::V6).node, 30080)?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_cluster_of_one_family_has_one_table() -> TestResult {
    for (families, table) in [(CLUSTERS[0], "table ip "), (CLUSTERS[1], "table ip6 ")] {
        let lab = Lab::new(families)?;
        let service = service(json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"],
            "ports": [{"port": 80}],
        }));
        let mut writer = lab.start(Vec::new())?;
        writer.apply(lab.plans(&service, &lab.slices(&[0]))).1?;
        let listed = lab.nft(&["list", "tables"])?;
        assert_eq!(listed, format!("{table}vetch-proxy\n"));
    }
    Ok(())
}
