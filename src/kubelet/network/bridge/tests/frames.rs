//! Every kind of IPv6 frame that is not a packet with the pod's own address to its gateway, from a raw socket.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use super::*;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attacks/frames.py");

/// Hears what comes to a link until the last frame.
struct Ear(Child, BufReader<std::process::ChildStdout>);

impl Ear {
    fn at(link: &str) -> TestResult<Self> {
        let mut child = Command::new("python3")
            .args([SCRIPT, "listen", link])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        assert_eq!(line, "ready\n");
        Ok(Self(child, output))
    }

    fn heard(mut self) -> TestResult<String> {
        let mut text = String::new();
        self.1.read_to_string(&mut text)?;
        self.0.wait()?;
        Ok(text.trim().to_owned())
    }
}

fn mac(link: &str) -> TestResult<String> {
    let shown = ip(&format!("-o link show {link}"))?;
    let rest = shown.split_once("link/ether ").ok_or("no address")?.1;
    Ok(rest.split(' ').next().unwrap_or_default().to_owned())
}

#[test]
#[ignore = "needs root"]
fn no_pod_sends_as_another_over_ipv6() -> TestResult {
    for ranges in [IPV6, BOTH] {
        attacked(ranges)?;
    }
    Ok(())
}

fn attacked(ranges: &str) -> TestResult {
    let folder = tempfile::tempdir()?;
    let [host, attacker, victim] = namespaces()?;
    in_host(&host, async || {
        let lines = "ip link set lo up; ip link add up0 type bridge; ip link set up0 up; \
                     ip address add 2001:db8:5::1/64 dev up0 nodad; \
                     ip neigh add 2001:db8:5::9 lladdr 02:00:00:00:77:fe dev up0 nud permanent";
        assert!(Command::new("sh").args(["-ec", lines]).status()?.success());
        let network = opened(folder.path(), ranges).await?;
        let own = network.attach("attacker", attacker.as_fd()).await?;
        let other = network.attach("victim", victim.as_fd()).await?;
        let of_ipv6 = |addresses: &PerFamily<IpAddr>| addresses.of(Family::V6).unwrap().to_string();
        let before = ip("neigh show nud permanent")?;
        // The links' own entries, for groups, come and go.
        let forwarding = || -> TestResult<Vec<String>> {
            let shown = output("bridge", "fdb show br vetch0")?;
            let of_bridge = shown.lines().filter(|line| line.contains("master"));
            Ok(of_bridge.map(str::to_owned).collect())
        };
        let known = forwarding()?;

        let ears = [Ear::at("vetch0")?, Ear::at("up0")?, Ear::at("ip6")?];
        let at_victim = victim.run(|| Ear::at("eth0"))??;
        let pair = |mac: String, address: String| format!("{mac}/{address}");
        let ends = [
            pair(attacker.run(|| mac("eth0"))??, of_ipv6(&own)),
            pair(victim.run(|| mac("eth0"))??, of_ipv6(&other)),
            pair(mac("vetch0")?, "fd07:0:0:1::1".to_owned()),
            pair(mac(&wiring::link_name("attacker"))?, "-".to_owned()),
        ];
        let sent = attacker.run(|| {
            Command::new("python3")
                .args([SCRIPT, "send"])
                .args(&ends)
                .arg("2001:db8:5::9")
                .output()
        })??;
        let said = String::from_utf8_lossy(&sent.stderr).into_owned();
        assert!(sent.status.success(), "{said}");
        let kinds: u32 = String::from_utf8(sent.stdout)?.trim().parse()?;
        assert!(kinds > 150, "{kinds} kinds of frames");
        assert_eq!(at_victim.heard()?, "done");
        let [on_bridge, on_uplink, at_host] = ears;
        assert_eq!(on_bridge.heard()?, "done own");
        assert_eq!(on_uplink.heard()?, "done own");
        assert_eq!(at_host.heard()?, "done");

        // Nobody believed anything, and what is right still passes.
        assert_eq!(ip("neigh show nud permanent")?, before);
        assert_eq!(forwarding()?, known);
        let inside = victim.run(|| ip("-6 route"))??;
        assert!(!inside.contains("proto ra"), "{inside}");
        for (own, other) in own.iter().zip(other.iter()) {
            assert_eq!(hello(&attacker, &victim, *other)?, *own);
        }
        network.remove().await?;
        Ok(())
    })
}
