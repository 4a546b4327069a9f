//! Pod network, proxy and DNS together, fed by a real API server, in namespaces of the test's own.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, api::PostParams};
use netns::sysctl;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use vetch::{
    addresses::family::PerFamily,
    apiserver, dns,
    informer::Informers,
    kubelet::network::bridge::{BridgeNetwork, Config},
    pki::Pki,
    proxy,
    served::Served,
    store::embedded::Embedded,
};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SECOND: Duration = Duration::from_secs(1);
const WEB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 50));
const DNS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10));

/// Asks the cluster DNS from inside a pod.
fn resolve(pod: &netns::Namespace, name: &str) -> TestResult<Message> {
    let socket = pod.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.set_read_timeout(Some(SECOND / 5))?;
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
    socket.send_to(&query.to_vec()?, (DNS, 53))?;
    let mut buffer = [0; 1024];
    let (length, from) = socket.recv_from(&mut buffer)?;
    assert_eq!(from, SocketAddr::new(DNS, 53));
    Ok(Message::from_vec(&buffer[..length])?)
}

/// Tries on a thread of its own until it holds; the last failure is the error.
async fn eventually(mut holds: impl FnMut() -> TestResult<bool>) -> TestResult {
    let deadline = Instant::now() + SECOND * 10;
    loop {
        let outcome = tokio::task::block_in_place(&mut holds);
        match outcome {
            Ok(true) => return Ok(()),
            _ if Instant::now() < deadline => tokio::task::yield_now().await,
            Ok(false) => return Err("it did not come true in time".into()),
            Err(error) => return Err(error),
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_pod_finds_and_reaches_a_service() -> TestResult {
    let host = netns::Namespace::create()?;
    host.run(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(async { tokio::spawn(scenario()).await? })
    })?
}

async fn scenario() -> TestResult {
    let folder = tempfile::tempdir()?;
    let pods = [netns::Namespace::create()?, netns::Namespace::create()?];
    // Hosts with other container software have this on; nothing may depend on it.
    if sysctl::read("net/bridge/bridge-nf-call-iptables")?.is_some() {
        sysctl::write("net/bridge/bridge-nf-call-iptables", "1")?;
    }
    let network = BridgeNetwork::open(Config {
        state_dir: folder.path().join("network"),
        pod_cidrs: "10.244.0.0/24".parse()?,
        bridge: "vetch0".into(),
        table: "vetch".into(),
        cluster_cidrs: "10.244.0.0/16".parse()?,
        own_ports: vetch::own_ports::OwnPorts::default(),
    })
    .await?;
    network.attach("uid-0", pods[0].as_fd()).await?;
    let server = *network.attach("uid-1", pods[1].as_fd()).await?.primary();

    let pki = Pki::open(&folder.path().join("pki"))?;
    let store = Arc::new(Embedded::open(&folder.path().join("store"))?);
    let config = apiserver::start::Config {
        advertise: *network.gateways().primary(),
        port: 6443,
        services: "10.96.0.0/12".parse()?,
    };
    let api = apiserver::start::Handle::new(config, store, &pki, Vec::new()).await?;
    api.start(Vec::new()).await?;
    let client = api.client(apiserver::start::own_user());

    let informers = Informers::new(client.clone());
    let shutdown = CancellationToken::new();
    let proxy_config = proxy::Config {
        table: "vetch-proxy".into(),
        node: "a".into(),
        cluster_cidrs: "10.244.0.0/16".parse()?,
        services: "10.96.0.0/12".parse()?,
        service_link: Some("vetch0".into()),
        mark: proxy::DEFAULT_MARK,
        addresses: Vec::new(),
        own_ports: vetch::own_ports::OwnPorts::default(),
    };
    let proxy = tokio::spawn(proxy::run(
        informers.clone(),
        proxy_config.clone(),
        Served::default(),
        shutdown.clone(),
    ));
    let dns = tokio::spawn(dns::run(
        informers,
        dns::Config {
            listen: vec![SocketAddr::new(*network.gateways().primary(), 53)],
            domain: "cluster.local".into(),
            clients: vec!["0.0.0.0/0".parse()?],
            resolv_conf: folder.path().join("resolv.conf"),
        },
        shutdown.clone(),
    ));

    let post = PostParams::default();
    let system: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    let system_slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "kube-system");
    system
        .create(&post, &dns::service(&PerFamily::one(DNS)))
        .await?;
    let slice = dns::endpoint_slice("a", *network.gateways().primary(), true);
    system_slices.create(&post, &slice).await?;

    let namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}}))?;
    Api::<Namespace>::all(client.clone())
        .create(&post, &namespace)
        .await?;
    let services: Api<Service> = Api::namespaced(client.clone(), "shop");
    let slices: Api<EndpointSlice> = Api::namespaced(client, "shop");
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {"clusterIP": WEB, "clusterIPs": [WEB], "ports": [{"port": 80, "targetPort": 8080}]},
    });
    services
        .create(&post, &serde_json::from_value(web)?)
        .await?;
    let slice = json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [server], "nodeName": "a", "conditions": {"ready": true}}],
    });
    slices
        .create(&post, &serde_json::from_value(slice)?)
        .await?;

    // By name and by address, from a pod, from the server itself, and from the node.
    let name = "web.shop.svc.cluster.local.";
    eventually(|| {
        let reply = resolve(&pods[0], name)?;
        Ok(matches!(&reply.answers[..], [record] if record.data == RData::A("10.96.0.50".parse()?)))
    })
    .await?;
    let listener = pods[1].run(|| TcpListener::bind((server, 8080)))??;
    let address = SocketAddr::new(WEB, 80);
    let greet = |stream: std::io::Result<TcpStream>| -> TestResult<bool> {
        let mut stream = stream?;
        listener.accept()?.0.write_all(b"hello")?;
        let mut text = [0; 5];
        stream.read_exact(&mut text)?;
        Ok(&text == b"hello")
    };
    let connect = || TcpStream::connect_timeout(&address, SECOND);
    eventually(|| greet(pods[0].run(connect)?)).await?;
    eventually(|| greet(pods[1].run(connect)?)).await?;
    eventually(|| greet(connect())).await?;

    services
        .delete("web", &kube::api::DeleteParams::default())
        .await?;
    eventually(|| Ok(resolve(&pods[0], name)?.metadata.response_code == ResponseCode::NXDomain))
        .await?;
    eventually(|| Ok(pods[0].run(connect)?.is_err())).await?;

    shutdown.cancel();
    proxy.await??;
    dns.await??;
    proxy::remove(proxy_config).await?;
    network.remove().await?;
    let ruleset = Command::new("nft").args(["list", "ruleset"]).output()?;
    assert_eq!(ruleset.stdout, b"");
    Ok(())
}
