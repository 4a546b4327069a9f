//! Whether the networks that this machine is in leave room for the cluster's.

use std::net::IpAddr;

use ipnet::IpNet;
use netns::route::Socket;

use super::{Config, names::Names};
use crate::{
    addresses::{family::PerFamily, ranges::overlap},
    cli::Error,
};

/// What pods send at most in a packet.
const POD_MTU: u32 = 1500;

/// A link of this machine with one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    link: String,
    mtu: u32,
    address: IpAddr,
    length: u8,
}

/// What is in the way of pods and services here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Obstacles {
    /// Addresses that two would have.
    pub clash: Option<String>,
    /// Packets that do not fit.
    pub narrow: Option<String>,
}

/// Looks at this machine.
pub(super) fn look(config: &Config, names: &Names) -> Result<Obstacles, Error> {
    let mut socket = Socket::open()?;
    let links = socket.links()?;
    let attached = socket
        .addresses()?
        .into_iter()
        .filter_map(|(link, prefix)| {
            let link = links.iter().find(|one| one.index == link)?;
            Some(Attached {
                link: link.name.clone(),
                mtu: link.mtu,
                address: prefix.address,
                length: prefix.length,
            })
        });
    let others: Vec<Attached> = attached
        .filter(|one| !one.link.starts_with(&names.bridge))
        .collect();
    Ok(judge(
        &others,
        &config.addresses,
        &config.pod_cidrs,
        &config.services,
    ))
}

/// Pure. `attached`: without the links of this cluster.
fn judge(
    attached: &[Attached],
    own: &PerFamily<IpAddr>,
    pods: &PerFamily<IpNet>,
    services: &PerFamily<IpNet>,
) -> Obstacles {
    let is_in = |range: &IpNet| {
        attached.iter().find(|one| {
            let network = IpNet::new(one.address, one.length);
            network.is_ok_and(|network| overlap(&network.trunc(), range))
        })
    };
    let clash = |what: &str, range: &IpNet, flag: &str| {
        let Attached {
            link,
            address,
            length,
            ..
        } = is_in(range)?;
        Some(format!(
            "the cluster's {what} have addresses of {range}, and this machine is in such a network itself: \
             {link} has {address}/{length}. Start the cluster with another {flag}, or give this machine other \
             addresses"
        ))
    };
    let carrier = attached.iter().find(|one| one.address == *own.primary());
    let carrier = carrier.filter(|one| one.mtu < POD_MTU);
    Obstacles {
        clash: pods
            .iter()
            .find_map(|pods| clash("pods", pods, "--pod-cidr"))
            .or_else(|| {
                let mut services = services.iter();
                services.find_map(|range| clash("services", range, "--service-cidr"))
            }),
        narrow: carrier.map(|one| {
            format!(
                "{} takes packets of {} bytes, and pods send up to {POD_MTU}: TCP adapts itself, larger UDP \
                 packets to other machines are lost; `ip link set {} mtu {POD_MTU}`, if the network takes that",
                one.link, one.mtu, one.link
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way() {
        let at = |link: &str, mtu, prefix: &str| {
            let prefix: IpNet = prefix.parse().unwrap();
            Attached {
                link: link.to_owned(),
                mtu,
                address: prefix.addr(),
                length: prefix.prefix_len(),
            }
        };
        let plain = at("eth0", 1500, "192.0.2.1/24");
        for (attached, clash, narrow) in [
            (vec![plain.clone()], None, None),
            (
                vec![plain.clone(), at("lo", 65536, "127.0.0.1/8")],
                None,
                None,
            ),
            // Other clusters of this machine have other parts of the range.
            (
                vec![plain.clone(), at("vetchx", 1500, "10.42.1.1/24")],
                None,
                None,
            ),
            (
                vec![plain.clone(), at("eth1", 1500, "10.42.9.9/16")],
                Some("eth1 has 10.42.9.9/16. Start the cluster with another --pod-cidr"),
                None,
            ),
            (
                vec![at("eth0", 1500, "10.100.0.7/24")],
                Some("another --service-cidr"),
                None,
            ),
            (
                vec![plain.clone(), at("vpn", 1400, "10.0.0.1/8")],
                Some("vpn has 10.0.0.1/8"),
                None,
            ),
            (
                vec![plain.clone(), at("vpn", 1500, "fd42::7/48")],
                Some("vpn has fd42::7/48"),
                None,
            ),
            (vec![plain, at("vpn", 1400, "198.51.100.1/24")], None, None),
            (
                vec![at("eth0", 1400, "192.0.2.1/24")],
                None,
                Some("eth0 takes packets of 1400 bytes"),
            ),
        ] {
            let found = judge(
                &attached,
                &"192.0.2.1".parse().unwrap(),
                &"10.42.0.0/24,fd42::/64".parse().unwrap(),
                &"10.96.0.0/12".parse().unwrap(),
            );
            for (found, want) in [(found.clash, clash), (found.narrow, narrow)] {
                let fits = match want {
                    None => found.is_none(),
                    Some(want) => found.as_ref().is_some_and(|found| found.contains(want)),
                };
                assert!(fits, "{attached:?}: {found:?}");
            }
        }
    }
}
