//! `--disable`: parts of the cluster that somebody else's program takes the place of.

use crate::{
    addresses::pool::Pool,
    cli::{Error, node},
    controllers::{Balancing, Reserved},
};

/// A part that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Addresses of nodes for Services of the type LoadBalancer; `vetch up` alone has it
    ServiceLb,
    /// What NetworkPolicies say, on this machine
    NetworkPolicy,
}

/// What a machine without the control plane cannot leave out: it does not have it.
pub fn refuse_control_plane(disabled: &[Part]) -> Result<(), Error> {
    match disabled.contains(&Part::ServiceLb) {
        false => Ok(()),
        true => {
            Err("--disable service-lb is for `vetch up`: this machine gives no addresses".into())
        }
    }
}

/// A pool that nobody gives addresses from is a mistake.
pub fn refuse_idle_pool(disabled: &[Part], pool: &Pool) -> Result<(), Error> {
    match disabled.contains(&Part::ServiceLb) && !pool.is_empty() {
        false => Ok(()),
        true => Err(
            "--load-balancer-pool is of no use with --disable service-lb: nobody gives addresses from it".into(),
        ),
    }
}

/// Who gives addresses to load balancers, in a cluster whose first machine listens on these ports.
pub fn balancing(disabled: &[Part], pool: Pool, api_port: u16, kubelet_port: u16) -> Balancing {
    if disabled.contains(&Part::ServiceLb) {
        return Balancing::Others;
    }
    let own = |protocol, port, user| Reserved {
        protocol,
        port,
        user,
    };
    let reserved = vec![
        own("TCP", api_port, "the API server"),
        own("TCP", kubelet_port, "the kubelet"),
        own("UDP", node::VXLAN_PORT, "the tunnel between machines"),
        own(
            "UDP",
            node::WIREGUARD_PORT,
            "the encrypted tunnel between machines",
        ),
    ];
    Balancing::Ours { reserved, pool }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[arg(long, value_enum, value_delimiter = ',')]
        disable: Vec<Part>,
    }

    #[test]
    fn parts_are_named_between_commas() {
        let given = |line: &[&str]| {
            let words = ["vetch"].iter().chain(line);
            Line::try_parse_from(words).map(|line| line.disable)
        };
        assert_eq!(given(&[]).unwrap(), []);
        let twice = given(&["--disable=service-lb,service-lb"]).unwrap();
        let pool = Pool::default();
        let others = balancing(&twice, pool.clone(), 6443, 10250);
        assert!(matches!(others, Balancing::Others));
        assert!(refuse_idle_pool(&twice, &pool).is_ok());
        let some = Pool::new(vec!["192.0.2.0/28".parse().unwrap()], &[]).unwrap();
        assert!(refuse_idle_pool(&twice, &some).is_err() && refuse_idle_pool(&[], &some).is_ok());
        assert!(given(&["--disable", "everything"]).is_err());
        let policies = given(&["--disable", "network-policy"]).unwrap();
        assert_eq!(policies, [Part::NetworkPolicy]);
        assert!(refuse_control_plane(&policies).is_ok());
        assert!(refuse_control_plane(&twice).is_err());
    }
}
