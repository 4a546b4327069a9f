//! What is otherwise with IPv6 and with two families.

use std::net::Ipv6Addr;

use tokio::{io::AsyncReadExt, net::TcpSocket};

use super::*;

fn records(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["addresses", "addresses-ipv6"] {
        let list = std::fs::read_dir(folder.join(name)).into_iter().flatten();
        let names = list.flatten().map(|entry| entry.file_name());
        found.extend(names.map(|name| name.to_string_lossy().into_owned()));
    }
    found.sort();
    found
}

#[test]
#[ignore = "needs root"]
fn a_further_family_is_for_new_pods() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, old, new] = namespaces()?;
    in_host(&host, async || {
        let network = opened(folder.path(), IPV4).await?;
        let first = network.attach("old", old.as_fd()).await?;
        let network = BridgeNetwork::open(config(folder.path(), BOTH)).await?;
        assert_eq!(network.attach("old", old.as_fd()).await?, first);
        assert_eq!(network.addresses("old").await, Some(first));
        let inside = old.run(|| ip("-6 -o address show dev eth0 scope global"))??;
        assert_eq!(inside, "");
        let running = BTreeMap::from([("old".to_owned(), vec![port(6, 8081)])]);
        network.adopt(&["old".into()], running).await?;
        let second = network.attach("new", new.as_fd()).await?;
        assert_eq!(second.to_string(), "10.7.1.3,fd07:0:0:1::2");
        assert_eq!(hello(&old, &new, *second.primary())?, *first.primary());
        assert_eq!(nft("list table ip6 vetch-ports")?, "");
        assert_eq!(network.shared.repair()?, repairs::Repaired::default());
        assert_eq!(
            records(folder.path()),
            ["10.7.1.2", "10.7.1.3", "fd07:0:0:1::2"]
        );
        // A daemon that knows no IPv6 leaves its records alone.
        let network = BridgeNetwork::open(config(folder.path(), IPV4)).await?;
        assert_eq!(
            network.addresses("new").await.unwrap().to_string(),
            "10.7.1.3"
        );
        let network = BridgeNetwork::open(config(folder.path(), BOTH)).await?;
        assert_eq!(network.addresses("new").await, Some(second));
        // Without its wire a pod is a new one.
        ip(&format!("link del {}", wiring::link_name("old")))?;
        let again = network.attach("old", old.as_fd()).await?;
        assert_eq!(again.to_string(), "10.7.1.2,fd07:0:0:1::3");
        network.adopt(&[], BTreeMap::new()).await?;
        assert_eq!(records(folder.path()), [""; 0]);
        network.remove().await?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_failed_attach_leaves_nothing() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, pod] = namespaces()?;
    in_host(&host, async || {
        let network = opened(folder.path(), BOTH).await?;
        let before = (nft("list ruleset")?, ip("-o link")?);
        pod.run(|| ip("link add eth0 type bridge"))??;
        assert!(network.attach("pod", pod.as_fd()).await.is_err());
        assert_eq!(network.addresses("pod").await, None);
        assert_eq!(records(folder.path()), [""; 0]);
        assert_eq!((nft("list ruleset")?, ip("-o link")?), before);
        assert_eq!(ip("neigh show nud permanent")?, "");
        pod.run(|| ip("link del eth0"))??;
        let addresses = network.attach("pod", pod.as_fd()).await?;
        assert_eq!(addresses.to_string(), "10.7.1.3,fd07:0:0:1::3");
        network.remove().await?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn pods_do_ipv6_with_what_they_are_given() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, pod] = namespaces()?;
    in_host(&host, async || {
        let network = opened(folder.path(), BOTH).await?;
        network.attach("pod", pod.as_fd()).await?;
        pod.run(|| -> TestResult {
            for (name, value) in wiring::IPV6_SETTINGS {
                let name = format!("net/ipv6/conf/eth0/{name}");
                assert_eq!(sysctl::read(&name)?.as_deref(), Some(value), "{name}");
            }
            let address = ip("-6 -o address show dev eth0")?;
            assert!(address.contains("fd07:0:0:1::2/128"), "{address}");
            assert!(
                !address.contains("fe80") && !address.contains("tentative"),
                "{address}"
            );
            let routes = ip("-6 route")?;
            assert!(
                routes.contains("default via fd07:0:0:1::1 dev eth0"),
                "{routes}"
            );
            let neighbours = ip("-6 neigh show nud permanent")?;
            assert!(neighbours.contains("fd07:0:0:1::1"), "{neighbours}");
            assert!(ip("-6 -o address show dev lo")?.contains("::1/128"));
            Ok(())
        })??;
        // Nobody on the bridge has a link-local address, so the host sends no redirects.
        let bridge = ip("-6 -o address show dev vetch0")?;
        assert!(
            bridge.contains("fd07:0:0:1::1/64") && !bridge.contains("fe80"),
            "{bridge}"
        );
        network.remove().await?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn ports_of_the_node_lead_to_pods_over_ipv6() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, one, two] = namespaces()?;
    in_host(&host, async || {
        ip("link set lo up")?;
        ip("address add fd09::1/128 dev lo nodad")?;
        ip("address add 192.168.9.1/32 dev lo")?;
        let network = opened(folder.path(), BOTH).await?;
        let web = network.attach("web", one.as_fd()).await?;
        network.attach("other", two.as_fd()).await?;
        let to = |address: &str, port| Forward {
            address: host_address(address).expect("a literal address"),
            protocol: 6,
            port,
            to: 80,
        };
        let forwards = vec![
            to("", 8080),
            to("fd09::1", 8081),
            to("::", 8082),
            to("192.168.9.1", 8083),
            to("::1", 8084),
            to("", 6443),
        ];
        network.forward("web", forwards).await?;
        let listeners = web
            .iter()
            .map(|address| one.run(|| TcpListener::bind((*address, 80))))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        let reach = |address: &str, port: u16| {
            let to = SocketAddr::new(address.parse().expect("a literal address"), port);
            TcpStream::connect_timeout(&to, TIMEOUT / 3).is_ok()
        };
        let (ipv6, ipv4, gateway) = ("fd09::1", "192.168.9.1", "fd07:0:0:1::1");
        assert!(reach(ipv6, 8080) && reach(ipv4, 8080) && reach(gateway, 8080));
        assert!(reach(ipv6, 8081) && !reach(gateway, 8081) && !reach(ipv4, 8081));
        assert!(reach(ipv6, 8082) && reach(gateway, 8082) && !reach(ipv4, 8082));
        assert!(reach(ipv4, 8083) && !reach(ipv6, 8083));
        assert!(!reach(ipv6, 6443)); // the daemon's own
        assert!(reach("::1", 8080) && !reach("::1", 8081)); // the daemon answers, and passes it on:
        assert!(reach("::1", 8084) && !reach(ipv6, 8084));
        for listener in listeners {
            std::thread::spawn(move || {
                for mut client in listener.incoming().flatten() {
                    let _ = client.write_all(b"pod");
                }
            });
        }
        let forwarder = network.shared.loopback.as_ref().expect("IPv6");
        for port in [8080, 8084] {
            // From another address of the node the kernel leads to the pod.
            let from = TcpSocket::new_v6()?;
            from.bind(SocketAddr::new(ipv6.parse()?, 0))?;
            for client in [TcpSocket::new_v6()?, from] {
                let ask = async {
                    let mut said = String::new();
                    let to = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
                    let mut client = client.connect(to).await?;
                    client.read_to_string(&mut said).await?;
                    Ok::<_, std::io::Error>(said)
                };
                let said = tokio::select! {
                    () = forwarder.run() => unreachable!("it has no end"),
                    said = tokio::time::timeout(TIMEOUT, ask) => said??,
                };
                assert_eq!(said, "pod");
            }
        }
        assert!(reach("127.0.0.1", 8080));
        assert!(two.run(|| reach(ipv6, 8080))?);
        assert!(one.run(|| reach(ipv6, 8080))?); // itself
        network.detach("web").await?;
        assert!(!reach(ipv6, 8080));
        network.remove().await?;
        assert_eq!(nft("list ruleset")?, "");
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_router_is_heard_although_the_host_forwards() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host] = namespaces()?;
    in_host(&host, async || {
        let accepts = |link: &str| sysctl::read(&format!("net/ipv6/conf/{link}/accept_ra"));
        ip("link add up0 type veth peer name up1")?;
        ip("link set up0 up")?;
        ip("link set up1 up")?;
        ip("-6 route add default via fe80::7 dev up0 proto ra")?;
        sysctl::write(FORWARD_IPV6, "0")?;
        let network = opened(folder.path(), BOTH).await?;
        assert_eq!(sysctl::read(FORWARD_IPV6)?.as_deref(), Some("1"));
        assert_eq!(accepts("up0")?.as_deref(), Some("2"));
        assert_eq!(accepts("up1")?.as_deref(), Some("1")); // has no route by one
        sysctl::write("net/ipv6/conf/up0/accept_ra", "1")?;
        let restored = network.shared.repair()?.restored;
        assert_eq!(restored, ["the setting net.ipv6.conf.up0.accept_ra"]);
        // A machine that starts again may have no such route yet.
        ip("-6 route del default")?;
        sysctl::write("net/ipv6/conf/up0/accept_ra", "1")?;
        let network = opened(folder.path(), BOTH).await?;
        assert_eq!(accepts("up0")?.as_deref(), Some("2"));
        network.remove().await?;
        assert_eq!(accepts("up0")?.as_deref(), Some("1"));
        assert_eq!(sysctl::read(FORWARD_IPV6)?.as_deref(), Some("0"));
        Ok(())
    })
}
