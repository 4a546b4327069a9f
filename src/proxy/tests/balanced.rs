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
    model::plan(service, &[&slice], node)
}

const OWN: [u8; 4] = [192, 0, 2, 1];

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
        assert_eq!(plan.balanced.contains(&OWN.into()), is_served, "{by}");
        let why = plan.ignored.get("192.0.2.1").copied();
        let want = (!is_served).then_some("it is the node's own");
        assert_eq!(why, want, "{by}");
        // Other nodes' addresses lead the same way from here.
        let elsewhere = front(Some([192, 0, 2, 7]), 80, Audience::Everyone);
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
    for address in [OWN, [192, 0, 2, 7]] {
        let taken = front(Some(address), 10250, Audience::Everyone);
        assert!(!plan.fronts.contains_key(&taken), "{address:?}");
    }
    asked(&mut service, 80);
    assert_eq!(planned(&service, &at("a")).fronts.len(), 3);
}

#[test]
fn own_ports_stay_the_nodes() {
    let spec = json!({"ports": [{"port": 6443, "name": "a"}, {"port": 80, "name": "b"}]});
    let plan = planned(&balancer("cluster", &["192.0.2.1"], spec), &at("a"));
    let own = |port| front(Some(OWN), port, Audience::Everyone);
    assert!(!plan.fronts.contains_key(&own(6443)));
    assert!(plan.fronts.contains_key(&own(80)));
    let why = plan.ignored.get("192.0.2.1:6443").copied();
    assert_eq!(why, Some("the port is the node's own"));
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
    let named = front(Some([203, 0, 113, 1]), 80, Audience::Everyone);
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

#[test]
#[ignore = "needs root"]
fn the_nodes_own_address_answers_for_a_balanced_service() -> TestResult {
    let lab = Lab::new()?;
    lab.serve()?;
    let plan = |by: &str, endpoints, spec: Value| {
        let slice = slice(8080, "TCP", endpoints);
        model::plan(&balancer(by, &["192.0.2.1"], spec), &[&slice], &at("a"))
    };
    let key = Key::new("n", "s");
    let ports = json!([{"port": 80, "name": "", "nodePort": 30080}]);
    let cluster = json!({"ports": ports});
    let first = vec![(key.clone(), plan("cluster", BOTH, cluster))];
    let mut writer = lab.node.run(|| start(lab.config(), first))??;
    for (from, address, port) in [
        (&lab.outside, NODE, 80),
        (&lab.pods[0], NODE, 80),
        (&lab.node, NODE, 80),
        (&lab.outside, NODE, 30080),
        (&lab.pods[1], NODE, 30080),
        (&lab.outside, CLUSTER_IP, 80),
    ] {
        let mut servers = BTreeSet::new();
        for _ in 0..40 {
            servers.insert(ask(from, address, port)?.0);
        }
        assert_eq!(servers, BTreeSet::from(PODS), "{address}:{port}");
    }
    // Another port of the address is still the node's, and so are the daemon's.
    assert!(refused(&lab.outside, NODE, 81)?);
    let own_listener = lab.node.run(|| TcpListener::bind((NODE, 81)))??;
    lab.outside
        .run(|| TcpStream::connect_timeout(&SocketAddr::new(NODE, 81), TIMEOUT))??;
    drop(own_listener);
    let taken = json!({"ports": [{"port": 6443}]});
    writer
        .apply(vec![(key.clone(), plan("cluster", BOTH, taken))])
        .1?;
    assert!(refused(&lab.outside, NODE, 6443)?);
    assert!(refused(&lab.pods[0], NODE, 6443)?);

    // The client is seen as it is, where its endpoint is.
    let local = json!({"externalTrafficPolicy": "Local"});
    writer
        .apply(vec![(key.clone(), plan("cluster", BOTH, local.clone()))])
        .1?;
    assert_eq!(ask(&lab.outside, NODE, 80)?.1, CLIENT);
    // Without one here, clients outside are not sent on; pods and the node are.
    let elsewhere = &[("10.8.0.2", "b", true, false)];
    writer
        .apply(vec![(key.clone(), plan("cluster", elsewhere, local))])
        .1?;
    assert!(ask(&lab.outside, NODE, 80).is_err());
    assert_eq!(ask(&lab.pods[1], NODE, 80)?.0, PODS[0]);
    assert_eq!(ask(&lab.node, NODE, 80)?.0, PODS[0]);

    // Source ranges hold for the node's own address.
    let ranges = |range: &str| json!({"loadBalancerSourceRanges": [range]});
    for (range, gets_in) in [("192.0.2.0/24", true), ("198.18.0.0/15", false)] {
        writer
            .apply(vec![(key.clone(), plan("cluster", BOTH, ranges(range)))])
            .1?;
        assert_eq!(ask(&lab.outside, NODE, 80).is_ok(), gets_in, "{range}");
    }

    // It is nobody's without the controller's word.
    writer
        .apply(vec![(key, plan("another", BOTH, json!({})))])
        .1?;
    assert!(refused(&lab.outside, NODE, 80)?);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_balanced_address_is_for_its_source_ranges() -> TestResult {
    let lab = Lab::new()?;
    lab.serve()?;
    let plan = |range: &str| -> TestResult<Plan> {
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
            "loadBalancerSourceRanges": [range, " 203.0.113.0/24"],
        });
        let mut service = serde_json::to_value(service(spec))?;
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}});
        let service = serde_json::from_value(service)?;
        let slice = slice(8080, "TCP", BOTH);
        Ok(model::plan(&service, &[&slice], &at("a")))
    };
    let key = Key::new("n", "s");
    let first = vec![(key.clone(), plan("192.0.2.0/24")?)];
    let mut writer = lab.node.run(|| start(lab.config(), first))??;
    let balanced = IpAddr::from([198, 51, 100, 7]);
    ask(&lab.outside, balanced, 80)?;
    ask(&lab.outside, CLUSTER_IP, 80)?;
    writer.apply(vec![(key, plan("198.18.0.0/15")?)]).1?;
    assert!(ask(&lab.outside, balanced, 80).is_err());
    ask(&lab.outside, CLUSTER_IP, 80)?;
    Ok(())
}
