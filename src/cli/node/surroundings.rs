//! Whether the networks that this machine is in leave room for the cluster's.

use std::net::IpAddr;

use ipnet::IpNet;
use netns::route::Socket;

use super::{Config, names::Names};
use crate::{
    addresses::{family::PerFamily, ranges::overlap},
    cli::Error,
};

/// A link of this machine with one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    link: String,
    address: IpAddr,
    length: u8,
}

/// Looks at this machine: addresses that two would have.
pub(super) fn clash(config: &Config, names: &Names) -> Result<Option<String>, Error> {
    let mut socket = Socket::open()?;
    let links = socket.links()?;
    let attached = socket
        .addresses()?
        .into_iter()
        .filter_map(|(link, prefix)| {
            let link = links.iter().find(|one| one.index == link)?;
            Some(Attached {
                link: link.name.clone(),
                address: prefix.address,
                length: prefix.length,
            })
        });
    let others: Vec<Attached> = attached
        .filter(|one| !one.link.starts_with(&names.bridge))
        .collect();
    // A network that plugins make is one of the machine's too.
    let pods = config.cni.is_none().then_some(&config.pod_cidrs);
    Ok(judge(&others, pods, &config.services))
}

/// Pure. `attached`: without the links of this cluster.
fn judge(
    attached: &[Attached],
    pods: Option<&PerFamily<IpNet>>,
    services: &PerFamily<IpNet>,
) -> Option<String> {
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
    pods.into_iter()
        .flat_map(PerFamily::iter)
        .find_map(|pods| clash("pods", pods, "--pod-cidr"))
        .or_else(|| {
            let mut services = services.iter();
            services.find_map(|range| clash("services", range, "--service-cidr"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way() {
        let at = |link: &str, prefix: &str| {
            let prefix: IpNet = prefix.parse().unwrap();
            Attached {
                link: link.to_owned(),
                address: prefix.addr(),
                length: prefix.prefix_len(),
            }
        };
        let plain = at("eth0", "192.0.2.1/24");
        for (attached, clash) in [
            (vec![plain.clone()], None),
            (vec![plain.clone(), at("lo", "127.0.0.1/8")], None),
            // Other clusters of this machine have other parts of the range.
            (vec![plain.clone(), at("vetchx", "10.42.1.1/24")], None),
            (
                vec![plain.clone(), at("eth1", "10.42.9.9/16")],
                Some("eth1 has 10.42.9.9/16. Start the cluster with another --pod-cidr"),
            ),
            (
                vec![at("eth0", "10.100.0.7/24")],
                Some("another --service-cidr"),
            ),
            (
                vec![plain.clone(), at("vpn", "10.0.0.1/8")],
                Some("vpn has 10.0.0.1/8"),
            ),
            (
                vec![plain, at("vpn", "fd42::7/48")],
                Some("vpn has fd42::7/48"),
            ),
        ] {
            let found = judge(
                &attached,
                Some(&"10.42.0.0/24,fd42::/64".parse().unwrap()),
                &"10.96.0.0/12".parse().unwrap(),
            );
            let fits = match clash {
                None => found.is_none(),
                Some(want) => found.as_ref().is_some_and(|found| found.contains(want)),
            };
            assert!(fits, "{attached:?}: {found:?}");
        }
    }
}
