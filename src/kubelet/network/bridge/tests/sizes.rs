//! How large packets may be follows what they leave by.

use super::*;

fn eth0(pod: &Namespace) -> TestResult<u32> {
    let found = pod.run(|| netns::route::Socket::open()?.link("eth0"))?;
    Ok(found?.mtu)
}

#[test]
#[ignore = "needs root"]
fn pods_links_follow_the_uplink() -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, one] = namespaces()?;
    in_host(&host, async || {
        let lines = "ip link add up0 type veth peer name up1; ip link set up0 mtu 1400 up; \
                     ip link set up1 up; ip address add 192.0.2.1/24 dev up0; \
                     ip route add default via 192.0.2.254";
        assert!(Command::new("sh").args(["-ec", lines]).status()?.success());
        let network = opened(folder.path(), BOTH).await?;
        network.attach("one", one.as_fd()).await?;
        let shared = &network.shared;
        assert_eq!(eth0(&one)?, 1400);
        assert_eq!(shared.repair()?, repairs::Repaired::default());
        let own = shared.tables().own_port()?;
        let mut monitor = netns::monitor::Monitor::open(own, shared.subject())?;
        for (mtu, want) in [(1300, 1300), (9000, 1500), (1200, 1280), (1450, 1450)] {
            ip(&format!("link set up0 mtu {mtu}"))?;
            let changes = tokio::time::timeout(TIMEOUT, monitor.changes()).await??;
            assert!(shared.notice(&changes), "{changes:?}");
            let found = shared.repair()?;
            assert_eq!(
                (found.restored.len(), &*found.resized),
                (0, &["one".to_owned()][..])
            );
            shared.resize("one", one.as_fd())?;
            assert_eq!(eth0(&one)?, want);
            assert_eq!(shared.repair()?, repairs::Repaired::default());
            let complaint = lock(&shared.size).plan.complaint.clone();
            let complains = complaint.is_some_and(|text| {
                text.starts_with("MTU too small for IPv6: the link up0 takes packets of 1200 bytes")
            });
            assert_eq!(complains, mtu == 1200);
            while let Ok(changes) = tokio::time::timeout(TIMEOUT / 30, monitor.changes()).await {
                assert!(!shared.notice(&changes?));
            }
        }
        // What peers are reached by counts too.
        let ways = [("the tunnel".to_owned(), 1330)];
        network.to_peers().set(ways.into());
        assert_eq!(shared.repair()?.resized, ["one"]);
        shared.resize("one", one.as_fd())?;
        assert_eq!(eth0(&one)?, 1330);
        network.remove().await?;
        Ok(())
    })
}
