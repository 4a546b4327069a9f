//! The pod network in namespaces of the test's own.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use netns::Namespace;

use super::*;
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

fn config(folder: &std::path::Path) -> Config {
    Config {
        state_dir: folder.into(),
        pod_cidr: "10.7.1.0/24".parse().expect("a literal range"),
        bridge: "vetch0".into(),
        table: "vetch".into(),
        cluster_cidr: "10.7.0.0/16".parse().expect("a literal range"),
        own_ports: OwnPorts::new([OwnPort {
            address: None,
            protocol: TCP,
            port: 6443,
            user: "the API server",
        }]),
    }
}

fn ip(args: &str) -> TestResult<String> {
    let output = Command::new("ip").args(args.split(' ')).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
#[ignore = "needs root"]
fn pods_reach_each_other_and_leave_nothing() -> TestResult {
    let folder = tempfile::tempdir()?;
    let (host, one, two) = (
        Namespace::create()?,
        Namespace::create()?,
        Namespace::create()?,
    );
    in_host(&host, async || {
        sysctl::write(FORWARD, "0")?;
        let network = PodNetwork::open(config(folder.path())).await?;
        let first = network.attach("uid-1", one.as_fd()).await?;
        let start = Instant::now();
        let second = network.attach("uid-2", two.as_fd()).await?;
        println!("attach took {:?}", start.elapsed());
        assert_eq!(first, IpAddr::from([10, 7, 1, 2]));

        let listener = two.run(|| TcpListener::bind((second, 80)))??;
        let address = SocketAddr::new(second, 80);
        let mut client = one.run(|| TcpStream::connect_timeout(&address, TIMEOUT))??;
        let (mut server, from) = listener.accept()?;
        server.write_all(b"hello")?;
        drop(server);
        let mut text = String::new();
        client.read_to_string(&mut text)?;
        assert_eq!(text, "hello");
        assert_eq!(from.ip(), first); // no address translation between pods

        // The daemon restarts: the pods keep their addresses.
        let network = PodNetwork::open(config(folder.path())).await?;
        assert_eq!(network.address("uid-2").await, Some(second));
        let before = ip("-o link")?;
        assert_eq!(network.attach("uid-2", two.as_fd()).await?, second);
        assert_eq!(ip("-o link")?, before); // the wire was not touched
        network.retain(&["uid-2".into()]).await?;
        assert_eq!(network.address("uid-1").await, None);
        assert!(!ip("link")?.contains(&wiring::link_name("uid-1")));

        network.remove().await?;
        assert_eq!(ip("-o link")?.lines().count(), 1); // lo
        assert_eq!(sysctl::read(FORWARD)?.as_deref(), Some("0"));
        let tables = Command::new("nft").args(["list", "ruleset"]).output()?;
        assert_eq!(tables.stdout, b"");
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn ports_of_the_node_lead_to_pods() -> TestResult {
    let folder = tempfile::tempdir()?;
    let (host, one, two) = (
        Namespace::create()?,
        Namespace::create()?,
        Namespace::create()?,
    );
    in_host(&host, async || {
        ip("link set lo up")?;
        ip("address add 192.168.9.1/32 dev lo")?;
        let network = PodNetwork::open(config(folder.path())).await?;
        let web = network.attach("web", one.as_fd()).await?;
        network.attach("other", two.as_fd()).await?;
        let to = |address, port| Forward {
            address,
            protocol: 6,
            port,
            to: 80,
        };
        let node = [192, 168, 9, 1];
        let forwards = vec![to(None, 8080), to(Some(node.into()), 8081), to(None, 6443)];
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
        let tables = Command::new("nft").args(["list", "ruleset"]).output()?;
        assert_eq!(tables.stdout, b"");
        Ok(())
    })
}
