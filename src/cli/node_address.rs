//! The addresses by which others reach this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::Error;
use crate::addresses::{
    family::{Family, PerFamily},
    may_be_proxied_to,
};

/// Those of the cluster's families, its primary family's first. `known`: those that were chosen, or by which the
/// cluster's server is reached; others are the ones by which this machine reaches the world. Where it has none of
/// the primary family, that is the one by which it reaches itself; of the other family there need be none.
pub fn addresses(
    families: &[Family],
    known: Option<&PerFamily<IpAddr>>,
) -> Result<PerFamily<IpAddr>, Error> {
    let of = |family| {
        let known = known.and_then(|known| known.of(family)).copied();
        known.or_else(|| outgoing(family))
    };
    let Some((primary, others)) = families.split_first() else {
        return Err("a cluster has at least one family of addresses".into());
    };
    if let Some(known) = known
        && known.of(*primary).is_none()
    {
        return Err(format!(
            "the cluster's addresses are {primary}, and {known} is not: --node-ip names such an address of this \
             machine"
        )
        .into());
    }
    let first = of(*primary).unwrap_or(loopback(*primary));
    let second = others.first().and_then(|family| of(*family));
    Ok(PerFamily::of_list([first].into_iter().chain(second))?)
}

/// The address of the default route. Connecting a UDP socket sends nothing; it only asks the kernel for a route.
pub fn outgoing(family: Family) -> Option<IpAddr> {
    let (from, documentation): (SocketAddr, SocketAddr) = match family {
        Family::V4 => (
            (Ipv4Addr::UNSPECIFIED, 0).into(),
            ([192, 0, 2, 1], 9).into(),
        ),
        Family::V6 => {
            let to = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            ((Ipv6Addr::UNSPECIFIED, 0).into(), (to, 9).into())
        }
    };
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(documentation).ok()?;
    let address = socket.local_addr().ok()?.ip();
    may_be_proxied_to(address).then_some(address)
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_families_of_the_cluster() {
        let known = |text: &str| text.parse::<PerFamily<IpAddr>>().unwrap();
        let (v4, v6) = (Family::V4, Family::V6);
        for (families, known, want) in [
            (&[v4][..], known("192.0.2.7"), Ok("192.0.2.7")),
            (&[v4], known("2001:db8::7,192.0.2.7"), Ok("192.0.2.7")),
            (
                &[v6, v4],
                known("192.0.2.7,2001:db8::7"),
                Ok("2001:db8::7,192.0.2.7"),
            ),
            (&[v6], known("192.0.2.7"), Err("--node-ip")),
        ] {
            match (addresses(families, Some(&known)), want) {
                (Ok(found), want) => assert_eq!(Ok(found.to_string().as_str()), want),
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
                (Err(error), Ok(want)) => panic!("{want}: {error}"),
            }
        }
        assert!(addresses(&[v4], None).is_ok());
    }
}
