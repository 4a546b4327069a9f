//! `--disable`: parts of the cluster that somebody else's program takes the place of.

use crate::{
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

/// Who gives addresses to load balancers, in a cluster whose first machine listens on these ports.
pub fn balancing(disabled: &[Part], api_port: u16, kubelet_port: u16) -> Balancing {
    if disabled.contains(&Part::ServiceLb) {
        return Balancing::Others;
    }
    let own = |protocol, port, user| Reserved {
        protocol,
        port,
        user,
    };
    Balancing::Nodes(vec![
        own("TCP", api_port, "the API server"),
        own("TCP", kubelet_port, "the kubelet"),
        own("UDP", node::VXLAN_PORT, "the tunnel between machines"),
    ])
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
        assert!(matches!(balancing(&twice, 6443, 10250), Balancing::Others));
        assert!(given(&["--disable", "everything"]).is_err());
        let policies = given(&["--disable", "network-policy"]).unwrap();
        assert_eq!(policies, [Part::NetworkPolicy]);
        assert!(refuse_control_plane(&policies).is_ok());
        assert!(refuse_control_plane(&twice).is_err());
    }
}
