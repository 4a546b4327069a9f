//! Addresses of the pool for load balancers: they are on a link of the node, and nothing of it is there.

use std::net::{SocketAddr, TcpListener, TcpStream};

use netns::{
    nft::{self, BaseChain, Batch, ChainKind, Hook, Policy, Reg, Rule, Table},
    route::{Change, Prefix, Socket},
};

use super::{lab::*, *};
use crate::addresses::balancing::POOL_CONDITION;

/// Of the host's own network.
fn pooled(net: &Net) -> IpAddr {
    match net.family {
        Family::V4 => IpAddr::from([192, 0, 2, 100]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x100]),
    }
}

/// A Service with that address, by the word of the cluster's controller or without it.
fn balancer(net: &Net, is_given: bool, port: u16, spec: Value) -> Service {
    let ports = json!([{"port": port, "protocol": "TCP"}]);
    let mut service = json!({
        "metadata": {"name": "s", "namespace": "n"},
        "spec": {"type": "LoadBalancer", "clusterIP": net.cluster_ip, "clusterIPs": [net.cluster_ip],
            "ports": [{"port": port}]},
        "status": {"loadBalancer": {"ingress": [
            {"ip": pooled(net), "ipMode": "VIP", "ports": ports},
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
    serde_json::from_value(service).expect("a service")
}

#[test]
fn which_addresses_are_of_the_pool() {
    for family in Family::ALL {
        let net = net(family);
        for (is_given, want) in [(true, 1), (false, 0)] {
            let service = balancer(&net, is_given, 80, json!({}));
            let slice = net.slice(8080, "TCP", &[0], "a");
            let plan = model::plan(&service, &[&slice], &at("a"), family);
            assert_eq!((plan.pooled.len(), plan.ignored.len()), (want, 0));
        }
    }
}

#[test]
#[ignore = "needs root"]
fn an_address_of_the_pool_leads_to_services_alone() -> TestResult {
    for families in [&[Family::V4][..], &[Family::V6]] {
        let lab = Lab::new(families)?;
        lab.serve()?;
        for net in lab.nets() {
            leads_to_services_alone(&lab, &net)?;
        }
    }
    Ok(())
}

fn leads_to_services_alone(lab: &Lab, net: &Net) -> TestResult {
    let address = pooled(net);
    // As the node has it that announces it, and with a pod that wants its ports as host ports.
    lab.node.run(|| -> TestResult {
        let mut socket = Socket::open()?;
        let out = socket.link("out")?.index;
        socket.apply(vec![Change::lend_address(out, Prefix::host(address), 600)])?;
        Ok(nft::Socket::open()?.commit(host_ports(net, &[80, 82]))?)
    })??;
    let plans = |port: u16, spec: Value| {
        let service = balancer(net, true, port, spec);
        lab.plans(&service, &lab.slices(&[0, 1]))
    };
    // A port of the daemon's own elsewhere is a Service's here.
    for port in [80, 6443] {
        let writer = lab.start(plans(port, json!({})))?;
        for from in [&lab.outside, &lab.pods[0], &lab.node] {
            assert_eq!(lab.servers(from, address, port)?, net.pods, "{port}");
        }
        drop(writer);
    }
    let local = json!({"externalTrafficPolicy": "Local"});
    let mut writer = lab.start(plans(80, local))?;
    assert_eq!(ask(&lab.outside, address, 80)?.1, net.client);
    // Neither programs of the node nor host ports answer there; on its own address they do.
    let everywhere = net.unspecified();
    let program = lab.node.run(|| TcpListener::bind((everywhere, 81)))??;
    for from in [&lab.outside, &lab.pods[0], &lab.node] {
        for port in [81, 82, 6443, 10250] {
            assert!(refused(from, address, port)?, "{port}");
        }
    }
    let own = SocketAddr::new(net.node, 81);
    lab.outside
        .run(|| TcpStream::connect_timeout(&own, TIMEOUT))??;
    ask(&lab.outside, net.node, 82)?;
    // It is an address like others as soon as the Service is gone.
    let none = Plan::nothing(net.family);
    writer.apply(vec![(Key::new("n", "s"), none)]).1?;
    let there = SocketAddr::new(address, 81);
    lab.outside
        .run(|| TcpStream::connect_timeout(&there, TIMEOUT))??;
    drop(program);
    Ok(())
}

/// Leads these ports of the node to the first pod, as the pod network does it.
fn host_ports(net: &Net, ports: &[u16]) -> Batch {
    let (family, is_v6) = match net.family {
        Family::V4 => (nft::Family::Ip, false),
        Family::V6 => (nft::Family::Ip6, true),
    };
    let table = Table::new(family, "host-ports");
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
    let pod = match net.pods[0] {
        IpAddr::V4(pod) => pod.octets().to_vec(),
        IpAddr::V6(pod) => pod.octets().to_vec(),
    };
    for port in ports {
        let rule = Rule::new()
            .destination_local()
            .destination_port(Reg(0))
            .equal(Reg(0), &port.to_be_bytes())
            .immediate(Reg(4), &pod)
            .immediate(Reg(8), &8080u16.to_be_bytes())
            .destination_nat(is_v6, Reg(4), Reg(8));
        batch.add_rule(&table, "ports", rule);
    }
    batch
}
