//! Addresses of load balancers: whose they may be, and who gets in.

use super::*;
use crate::addresses::balancing::{CLASS, CONDITION};

/// A Service of the type LoadBalancer with these addresses, given by the cluster's own controller or another.
fn balancer(by: &str, addresses: &[&str], spec: Value) -> Service {
    let mut service = json!({
        "metadata": {"name": "s", "namespace": "n"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": []}},
    });
    for (name, value) in spec.as_object().into_iter().flatten() {
        service["spec"][name] = value.clone();
    }
    let asked_for = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports: Value = asked_for
        .filter(|_| by == "cluster")
        .map(|port| json!({"port": port["port"], "protocol": "TCP"}))
        .collect();
    let ingress = addresses
        .iter()
        .map(|ip| json!({"ip": ip, "ipMode": "VIP", "ports": ports}));
    service["status"]["loadBalancer"]["ingress"] = ingress.collect();
    if by == "cluster" {
        service["status"]["conditions"] = json!([{
            "type": CONDITION, "status": "True", "reason": "Given", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
    }
    serde_json::from_value(service).expect("a service")
}

fn planned(service: &Service, node: &Node) -> Plan {
    let slice = slice(8080, "TCP", BOTH);
    plan(service, &[&slice], node)
}

const OWN: &str = "192.0.2.1";

#[test]
fn the_nodes_own_address_is_served_on_the_controllers_word_alone() {
    let other = json!({"loadBalancerClass": "a.b/c"});
    for (by, spec, is_served) in [
        ("cluster", json!({}), true),
        ("cluster", json!({"loadBalancerClass": CLASS}), true),
        ("another", json!({}), false),
        ("cluster", other, false),
        // What an owner names is never served, whatever the controller has given.
        ("another", json!({"externalIPs": ["192.0.2.1"]}), false),
    ] {
        let plan = planned(&balancer(by, &["192.0.2.1", "192.0.2.7"], spec), &at("a"));
        let own = front(Some(OWN), 80, Audience::Everyone);
        assert_eq!(plan.fronts.contains_key(&own), is_served, "{by}");
        assert_eq!(plan.balanced.contains(&NET_V4.node), is_served, "{by}");
        let why = plan.ignored.get("192.0.2.1").copied();
        let want = (!is_served).then_some("it is the node's own");
        assert_eq!(why, want, "{by}");
        // Other nodes' addresses lead the same way from here.
        let elsewhere = front(Some("192.0.2.7"), 80, Audience::Everyone);
        assert!(plan.fronts.contains_key(&elsewhere), "{by}");
    }
    // What its owner names beside changes nothing, not even who may come.
    let spec =
        json!({"externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": ["198.51.100.0/24"]});
    let plan = planned(&balancer("cluster", &["192.0.2.1"], spec), &at("a"));
    assert!(plan.ignored.is_empty(), "{:?}", plan.ignored);
    match plan.fronts.get(&front(Some(OWN), 80, Audience::Everyone)) {
        Some(Outcome::Forward { sources, .. }) => assert_eq!(sources.len(), 1),
        other => panic!("{other:?}"),
    }
    // A node that says that the cluster's addresses are its own gets none of them.
    let plan = planned(
        &balancer("cluster", &["10.8.0.1", "127.0.0.1"], json!({})),
        &at("a"),
    );
    assert_eq!((plan.balanced.len(), plan.ignored.len()), (0, 2));
}

#[test]
fn only_the_ports_that_were_given_are_served() {
    // Its owner has changed the port, and the controller has not seen that yet: on other nodes' addresses this
    // would lead what this node says to their kubelets elsewhere.
    let mut service = balancer("cluster", &["192.0.2.1", "192.0.2.7"], json!({}));
    let asked = |service: &mut Service, port| {
        let ports = service.spec.as_mut().and_then(|spec| spec.ports.as_mut());
        ports.expect("ports")[0].port = port;
    };
    asked(&mut service, 10250);
    let plan = planned(&service, &at("a"));
    for address in [OWN, "192.0.2.7"] {
        let taken = front(Some(address), 10250, Audience::Everyone);
        assert!(!plan.fronts.contains_key(&taken), "{address:?}");
    }
    asked(&mut service, 80);
    assert_eq!(planned(&service, &at("a")).fronts.len(), 3);
}

#[test]
fn own_ports_stay_the_nodes() {
    let slices = Family::ALL.map(|family| net(family).slice(8080, "TCP", &[0], "a"));
    for (family, address, ignored) in [
        (Family::V4, OWN, "192.0.2.1:6443"),
        (Family::V6, "2001:db8:2::1", "[2001:db8:2::1]:6443"),
    ] {
        let spec = json!({
            "clusterIP": net(family).cluster_ip.to_string(),
            "ports": [{"port": 6443, "name": "a"}, {"port": 80}],
        });
        let service = balancer("cluster", &[address], spec);
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        let plan = model::plan(&service, &slices, &at("a"), family);
        let own = |port| front(Some(address), port, Audience::Everyone);
        assert!(!plan.fronts.contains_key(&own(6443)));
        assert!(plan.fronts.contains_key(&own(80)));
        let why = plan.ignored.get(ignored).copied();
        assert_eq!(why, Some("the port is the node's own"));
    }
}

#[test]
fn a_port_is_left_to_the_program_that_listens_there() -> TestResult {
    let service = |port: u16| {
        balancer(
            "cluster",
            &["192.0.2.1"],
            json!({"ports": [{"port": port}]}),
        )
    };
    let program = TcpListener::bind("0.0.0.0:0")?;
    let port = program.local_addr()?.port();
    let mut node = at("a");
    node.listening = Listening::read()?;
    let plan = planned(&service(port), &node);
    let own = front(Some(OWN), port, Audience::Everyone);
    assert!(!plan.fronts.contains_key(&own));
    let why = plan.ignored.get(&format!("192.0.2.1:{port}")).copied();
    assert_eq!(why, Some("a program of the node listens on the port"));
    drop(program);
    node.listening = Listening::read()?;
    assert!(planned(&service(port), &node).fronts.contains_key(&own));
    Ok(())
}

#[test]
fn an_external_address_of_the_node_leads_to_its_own() {
    let service = balancer("cluster", &["203.0.113.1"], json!({}));
    let own = front(Some(OWN), 80, Audience::Everyone);
    let named = front(Some("203.0.113.1"), 80, Audience::Everyone);
    let mut node = at("a");
    let plan = planned(&service, &node);
    assert!(plan.fronts.contains_key(&named) && !plan.fronts.contains_key(&own));
    let object = json!({"metadata": {"name": "a"}, "status": {"addresses": [
        {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "ExternalIP", "address": "203.0.113.1"},
    ]}});
    let object: NodeObject = serde_json::from_value(object).expect("a node");
    assert!(node.take(Some(&object)) && !node.take(Some(&object)));
    let plan = planned(&service, &node);
    assert!(plan.fronts.contains_key(&named) && plan.fronts.contains_key(&own));
    // Not on another controller's word.
    let plan = planned(&balancer("another", &["203.0.113.1"], json!({})), &node);
    assert!(!plan.fronts.contains_key(&own));
}

/// The Service in every family of the cluster, with these addresses.
fn balanced(
    lab: &Lab,
    by: &str,
    address: fn(&Net) -> IpAddr,
    slices: &[EndpointSlice],
    mut spec: Value,
) -> Vec<(Key, Plan)> {
    let texts = |of: fn(&Net) -> IpAddr| -> Vec<String> {
        lab.nets().map(|net| of(&net).to_string()).collect()
    };
    let cluster_ips = texts(|net| net.cluster_ip);
    spec["clusterIP"] = json!(cluster_ips[0]);
    spec["clusterIPs"] = json!(cluster_ips);
    let addresses = texts(address);
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    lab.plans(&balancer(by, &addresses, spec), slices)
}

#[test]
#[ignore = "needs root"]
fn the_nodes_own_address_answers_for_a_balanced_service() -> TestResult {
    CLUSTERS.into_iter().try_for_each(|families| {
        let lab = Lab::new(families)?;
        lab.serve()?;
        let both = lab.slices(&[0, 1]);
        let plans =
            |by, slices: &[EndpointSlice], spec| balanced(&lab, by, |net| net.node, slices, spec);
        let ports = json!({"ports": [{"port": 80, "name": "", "nodePort": 30080}]});
        let mut writer = lab.start(plans("cluster", &both, ports))?;
        for net in lab.nets() {
            for (from, address, port) in [
                (&lab.outside, net.node, 80),
                (&lab.pods[0], net.node, 80),
                (&lab.node, net.node, 80),
                (&lab.outside, net.node, 30080),
                (&lab.pods[1], net.node, 30080),
                (&lab.outside, net.cluster_ip, 80),
            ] {
                let servers = lab.servers(from, address, port)?;
                assert_eq!(servers, net.pods, "{address}:{port}");
            }
            // Another port of the address is still the node's, and so are the daemon's.
            assert!(refused(&lab.outside, net.node, 81)?);
            let own_listener = lab.node.run(|| TcpListener::bind((net.node, 81)))??;
            let at = SocketAddr::new(net.node, 81);
            lab.outside
                .run(|| TcpStream::connect_timeout(&at, TIMEOUT))??;
            drop(own_listener);
        }
        let taken = json!({"ports": [{"port": 6443}]});
        writer.apply(plans("cluster", &both, taken)).1?;
        for net in lab.nets() {
            assert!(refused(&lab.outside, net.node, 6443)?);
            assert!(refused(&lab.pods[0], net.node, 6443)?);
        }

        // The client is seen as it is, where its endpoint is.
        let local = json!({"externalTrafficPolicy": "Local"});
        writer.apply(plans("cluster", &both, local.clone())).1?;
        for net in lab.nets() {
            assert_eq!(ask(&lab.outside, net.node, 80)?.1, net.client);
        }
        // Without one here, clients outside are not sent on; pods and the node are.
        let nets = lab.nets();
        let elsewhere: Vec<_> = nets.map(|net| net.slice(8080, "TCP", &[0], "b")).collect();
        writer.apply(plans("cluster", &elsewhere, local)).1?;
        for net in lab.nets() {
            assert!(ask(&lab.outside, net.node, 80).is_err());
            assert_eq!(ask(&lab.pods[1], net.node, 80)?.0, net.pods[0]);
            assert_eq!(ask(&lab.node, net.node, 80)?.0, net.pods[0]);
        }

        // Source ranges hold for the node's own address.
        let host_ranges: Vec<&str> = lab.nets().map(|net| net.host_range).collect();
        let others: Vec<&str> = lab.nets().map(|net| net.added_range).collect();
        for (ranges, gets_in) in [(host_ranges, true), (others, false)] {
            let spec = json!({"loadBalancerSourceRanges": ranges});
            writer.apply(plans("cluster", &both, spec)).1?;
            for net in lab.nets() {
                let found = ask(&lab.outside, net.node, 80).is_ok();
                assert_eq!(found, gets_in, "{ranges:?}");
            }
        }

        // It is nobody's without the controller's word.
        writer.apply(plans("another", &both, json!({}))).1?;
        for net in lab.nets() {
            assert!(refused(&lab.outside, net.node, 80)?);
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_balanced_address_is_for_its_source_ranges() -> TestResult {
    CLUSTERS.into_iter().try_for_each(|families| {
        let lab = Lab::new(families)?;
        lab.serve()?;
        let slices = lab.slices(&[0, 1]);
        let plans = |ranges: Vec<String>| {
            let spec = json!({"loadBalancerSourceRanges": ranges});
            balanced(&lab, "another", |net| net.external, &slices, spec)
        };
        let ranges = |of: fn(&Net) -> &str| -> Vec<String> {
            let nets: Vec<Net> = lab.nets().collect();
            let wanted = nets.iter().map(|net| of(net).to_owned());
            wanted
                .chain(nets.iter().map(|net| format!(" {}", net.later_range)))
                .collect()
        };
        let mut writer = lab.start(plans(ranges(|net| net.host_range)))?;
        for net in lab.nets() {
            ask(&lab.outside, net.external, 80)?;
            ask(&lab.outside, net.cluster_ip, 80)?;
        }
        writer.apply(plans(ranges(|net| net.added_range))).1?;
        for net in lab.nets() {
            assert!(ask(&lab.outside, net.external, 80).is_err());
            ask(&lab.outside, net.cluster_ip, 80)?;
        }
        Ok(())
    })
}
