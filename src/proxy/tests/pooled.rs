//! Addresses of the pool for load balancers: they are on a link of the node, and nothing of it is there.

use netns::nft::{self, BaseChain, Batch, ChainKind, Family, Hook, Policy, Reg, Rule, Table};

use super::*;
use crate::addresses::balancing::POOL_CONDITION;

const POOLED: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 100));

/// A Service with that address, by the word of the cluster's controller or without it.
fn plan(is_given: bool, port: u16, spec: Value) -> Plan {
    let mut service = json!({
        "metadata": {"name": "s", "namespace": "n"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": port}]},
        "status": {"loadBalancer": {"ingress": [
            {"ip": POOLED, "ipMode": "VIP", "ports": [{"port": port, "protocol": "TCP"}]},
        ]}},
    });
    for (name, value) in spec.as_object().into_iter().flatten() {
        service["spec"][name] = value.clone();
    }
    if is_given {
        service["status"]["conditions"] = json!([{
            "type": POOL_CONDITION, "status": "True", "reason": "Given", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
    }
    let service = serde_json::from_value(service).expect("a service");
    model::plan(&service, &[&slice(8080, "TCP", BOTH)], &at("a"))
}

#[test]
fn which_addresses_are_of_the_pool() {
    for (is_given, want) in [(true, 1), (false, 0)] {
        let plan = plan(is_given, 80, json!({}));
        assert_eq!((plan.pooled.len(), plan.ignored.len()), (want, 0));
    }
}

#[test]
#[ignore = "needs root"]
fn an_address_of_the_pool_leads_to_services_alone() -> TestResult {
    let lab = Lab::new()?;
    lab.serve()?;
    // As the node has it that announces it, and with a pod that wants its ports as host ports.
    lab.node.run(|| -> TestResult {
        let mut socket = Socket::open()?;
        let out = socket.link("out")?.index;
        socket.apply(vec![Change::lend_address(out, Prefix::host(POOLED), 600)])?;
        Ok(nft::Socket::open()?.commit(host_ports(&[80, 82]))?)
    })??;
    let key = Key::new("n", "s");
    // A port of the daemon's own elsewhere is a Service's here.
    for port in [80, 6443] {
        let plans = vec![(key.clone(), plan(true, port, json!({})))];
        let writer = lab.node.run(|| start(lab.config(), plans))??;
        for from in [&lab.outside, &lab.pods[0], &lab.node] {
            let mut servers = BTreeSet::new();
            for _ in 0..40 {
                servers.insert(ask(from, POOLED, port)?.0);
            }
            assert_eq!(servers, BTreeSet::from(PODS), "{port}");
        }
        drop(writer);
    }
    let local = json!({"externalTrafficPolicy": "Local"});
    let plans = vec![(key.clone(), plan(true, 80, local))];
    let mut writer = lab.node.run(|| start(lab.config(), plans))??;
    assert_eq!(ask(&lab.outside, POOLED, 80)?.1, CLIENT);
    // Neither programs of the node nor host ports answer there; on its own address they do.
    let program = lab
        .node
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 81)))??;
    for from in [&lab.outside, &lab.pods[0], &lab.node] {
        for port in [81, 82, 6443, 10250] {
            assert!(refused(from, POOLED, port)?, "{port}");
        }
    }
    let own = SocketAddr::new(NODE, 81);
    lab.outside
        .run(|| TcpStream::connect_timeout(&own, TIMEOUT))??;
    ask(&lab.outside, NODE, 82)?;
    // It is an address like others as soon as the Service is gone.
    writer.apply(vec![(key, Plan::default())]).1?;
    let there = SocketAddr::new(POOLED, 81);
    lab.outside
        .run(|| TcpStream::connect_timeout(&there, TIMEOUT))??;
    drop(program);
    Ok(())
}

/// Leads these ports of the node to the first pod, as the pod network does it.
fn host_ports(ports: &[u16]) -> Batch {
    let table = Table::new(Family::Ip, "host-ports");
    let base = BaseChain {
        kind: ChainKind::Nat,
        hook: Hook::Prerouting,
        priority: -101,
        policy: Policy::Accept,
    };
    let mut batch = Batch::new();
    batch
        .add_table(&table)
        .add_base_chain(&table, "ports", base);
    let IpAddr::V4(pod) = PODS[0] else {
        return batch;
    };
    for port in ports {
        let rule = Rule::new()
            .destination_local()
            .destination_port(Reg(0))
            .equal(Reg(0), &port.to_be_bytes())
            .immediate(Reg(1), &pod.octets())
            .immediate(Reg(2), &8080u16.to_be_bytes())
            .destination_nat(false, Reg(1), Reg(2));
        batch.add_rule(&table, "ports", rule);
    }
    batch
}
