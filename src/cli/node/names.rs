//! What must be unique where several clusters live on one machine, and the ranges of addresses.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    path::Path,
};

use ipnet::{IpNet, Ipv4Net};
use sha2::{Digest, Sha256};

use crate::{
    addresses::{
        family::PerFamily,
        pool,
        ranges::{nth, overlap},
    },
    cli::{Error, paths::Paths},
    hex::hex,
};

/// The address of the cluster DNS is this one of the service range.
const DNS_ADDRESS: u8 = 10;

/// Lengths that prefixes may have, for IPv4 and IPv6: a node has some pods, and not so many addresses that others
/// have none.
const POD_LENGTHS: [RangeInclusive<u8>; 2] = [8..=28, 48..=120];
/// The first addresses are the API server's and the cluster DNS's.
const SERVICE_LENGTHS: [RangeInclusive<u8>; 2] = [8..=28, 64..=124];

/// The ranges of a cluster when nobody chose any. Below a root of its own they are a part of the
/// usual ranges, so that clusters on one machine hardly ever meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    pub pods: PerFamily<IpNet>,
    pub services: PerFamily<IpNet>,
}

impl Ranges {
    pub fn of(paths: &Paths) -> Self {
        let v4 = |a, b, c, length| {
            let address = Ipv4Addr::new(10, a, b, c);
            PerFamily::one(IpNet::V4(Ipv4Net::new_assert(address, length)))
        };
        match digest(paths) {
            None => Self {
                pods: v4(42, 0, 0, 24),
                services: v4(96, 0, 0, 12),
            },
            Some([pods, services, ..]) => Self {
                pods: v4(42, pods, 0, 24),
                services: v4(96 + services / 16, services % 16 * 16, 0, 20),
            },
        }
    }

    /// Whether a cluster whose Services had addresses in `recorded` can go on with these: their first family
    /// is that of objects which cannot change it.
    pub fn continues(&self, recorded: &PerFamily<IpNet>) -> Result<(), Error> {
        let given = self.services;
        if given.families().next() == recorded.families().next() {
            return Ok(());
        }
        Err(format!(
            "this cluster's Services have addresses in {recorded}, not in {given}: start it with the flags of its \
             first start, --service-cidr {recorded} and a --pod-cidr of the same families, or remove it with \
             `vetch reset`"
        )
        .into())
    }

    /// Whether a cluster can have these.
    pub fn check(&self) -> Result<(), Error> {
        let Self { pods, services } = self;
        if !pods.families().eq(services.families()) {
            return Err(format!(
                "--pod-cidr {pods} and --service-cidr {services} must be of the same families, in the same order"
            )
            .into());
        }
        for (flag, ranges, lengths) in [
            ("--pod-cidr", pods, POD_LENGTHS),
            ("--service-cidr", services, SERVICE_LENGTHS),
        ] {
            for range in ranges.iter() {
                let lengths = match range {
                    IpNet::V4(_) => &lengths[0],
                    IpNet::V6(_) => &lengths[1],
                };
                if !lengths.contains(&range.prefix_len()) {
                    let (least, most) = (lengths.start(), lengths.end());
                    return Err(format!(
                        "{flag} {range}: the number after the slash must be from {least} to {most} here"
                    )
                    .into());
                }
            }
        }
        let clash = |pods: &&IpNet| {
            services
                .iter()
                .any(|range| overlap(&cluster_cidr(pods), range))
        };
        match pods.iter().find(clash) {
            Some(pods) => Err(format!(
                "the pods of all nodes have addresses of {}, and --service-cidr {services} overlaps that: choose \
                 another --service-cidr or another --pod-cidr",
                cluster_cidr(pods)
            )
            .into()),
            None => Ok(()),
        }
    }
}

impl Ranges {
    /// A pool for load balancers beside these.
    pub fn pool(&self, ranges: Vec<pool::Range>) -> Result<pool::Pool, Error> {
        let pods = self.pods.iter().map(|pods| (cluster_cidr(pods), "pods"));
        let services = self.services.iter().map(|range| (*range, "Services"));
        let others: Vec<_> = pods.chain(services).collect();
        let pool = pool::Pool::new(ranges, &others);
        pool.map_err(|clash| format!("--load-balancer-pool: {clash}").into())
    }
}

/// What must be unique on one host.
pub(super) struct Names {
    pub bridge: String,
    pub table: String,
    pub proxy_table: String,
    pub policy_table: String,
    pub cgroup_root: String,
}

impl Names {
    pub fn of(paths: &Paths) -> Self {
        match digest(paths) {
            None => Self {
                bridge: "vetch0".into(),
                table: "vetch".into(),
                proxy_table: "vetch-proxy".into(),
                policy_table: "vetch-policy".into(),
                cgroup_root: "vetch".into(),
            },
            Some(bytes) => {
                let tag = hex(&bytes);
                Self {
                    bridge: format!("vetch{tag}"),
                    table: format!("vetch-{tag}"),
                    proxy_table: format!("vetch-proxy-{tag}"),
                    policy_table: format!("vetch-policy-{tag}"),
                    cgroup_root: format!("vetch-{tag}"),
                }
            }
        }
    }
}

/// The control group of what runs below that root.
pub fn cgroup_below(root: &Path) -> String {
    Names::of(&Paths::under(root)).cgroup_root
}

/// Follows from the root folder; `None` for the system's own.
fn digest(paths: &Paths) -> Option<[u8; 4]> {
    let root = paths.root.as_ref()?;
    let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
    Some([digest[0], digest[1], digest[2], digest[3]])
}

/// The nodes' ranges are /24s of one /16, or /64s of one /56.
pub fn cluster_cidr(pods: &IpNet) -> IpNet {
    let whole = match pods {
        IpNet::V4(_) => 16,
        IpNet::V6(_) => 56,
    };
    let length = whole.min(pods.prefix_len());
    IpNet::new_assert(pods.addr(), length).trunc()
}

/// The node's own address in its range of pods: where pods find it, and its DNS.
pub fn gateway(pods: &IpNet) -> Option<IpAddr> {
    nth(pods, 1)
}

/// The address of the cluster DNS, per family.
pub fn cluster_dns(services: &PerFamily<IpNet>) -> Result<PerFamily<IpAddr>, Error> {
    services.try_map(|range| {
        nth(range, DNS_ADDRESS)
            .ok_or_else(|| format!("--service-cidr {range} has less than ten addresses").into())
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn paths(root: Option<&str>) -> Paths {
        let folder = PathBuf::from("/r");
        Paths {
            etc: folder.clone(),
            state: folder.clone(),
            run: folder.clone(),
            log: folder,
            root: root.map(PathBuf::from),
        }
    }

    #[test]
    fn clusters_of_one_machine_do_not_meet() {
        let system = Ranges::of(&paths(None));
        assert_eq!(system.pods.to_string(), "10.42.0.0/24");
        assert_eq!(system.services.to_string(), "10.96.0.0/12");
        let (a, b) = (paths(Some("/a")), paths(Some("/b")));
        assert_ne!(Ranges::of(&a).pods, Ranges::of(&b).pods);
        assert_ne!(Ranges::of(&a).services, Ranges::of(&b).services);
        let system = system.services.primary();
        assert!(system.contains(Ranges::of(&a).services.primary()));
        let (a, b) = (Names::of(&a), Names::of(&b));
        assert!(a.bridge.len() <= 15 && a.bridge != b.bridge);
        assert_ne!(a.table, b.table);
    }

    #[test]
    fn which_ranges_a_cluster_can_have() {
        for (pods, services, want) in [
            ("10.42.0.0/24", "10.96.0.0/12", None),
            ("fd42::/64", "fd96::/112", None),
            ("10.42.0.0/24,fd42::/64", "10.96.0.0/12,fd96::/112", None),
            ("10.42.0.0/24", "fd96::/112", Some("same families")),
            (
                "10.42.0.0/24,fd42::/64",
                "10.96.0.0/12",
                Some("same families"),
            ),
            (
                "10.42.0.0/24,fd42::/64",
                "fd96::/112,10.96.0.0/12",
                Some("same families, in the same order"),
            ),
            (
                "10.42.0.0/30",
                "10.96.0.0/12",
                Some("--pod-cidr 10.42.0.0/30"),
            ),
            ("fd42::/32", "fd96::/112", Some("--pod-cidr fd42::/32")),
            ("fd42::/64", "fd96::/126", Some("--service-cidr fd96::/126")),
            ("10.42.0.0/24", "10.42.128.0/20", Some("10.42.0.0/16")),
            ("fd42::/64", "fd42:0:0:1::/112", Some("fd42::/56")),
        ] {
            let ranges = Ranges {
                pods: pods.parse().unwrap(),
                services: services.parse().unwrap(),
            };
            let found = ranges.check().map_err(|error| error.to_string());
            match want {
                None => assert_eq!(found, Ok(()), "{pods} {services}"),
                Some(want) => assert!(found.clone().unwrap_err().contains(want), "{found:?}"),
            }
        }
    }

    #[test]
    fn a_cluster_keeps_its_first_family() {
        let ranges = |services: &str| Ranges {
            pods: "10.42.0.0/24".parse().unwrap(),
            services: services.parse().unwrap(),
        };
        for (first, now, holds) in [
            ("10.96.0.0/12", "10.111.0.0/28", true),
            ("10.96.0.0/12", "10.96.0.0/12,fd96::/112", true),
            ("fd96::/112,10.96.0.0/12", "fd97::/112", true),
            ("fd96::/112", "10.96.0.0/12", false),
            ("10.96.0.0/12", "fd96::/112,10.96.0.0/12", false),
        ] {
            let found = ranges(now).continues(&first.parse().unwrap());
            match holds {
                true => found.unwrap(),
                false => {
                    let found = found.unwrap_err().to_string();
                    let flag = format!("--service-cidr {first} and a --pod-cidr");
                    assert!(found.contains(&flag), "{found}");
                }
            }
        }
    }

    #[test]
    fn a_pool_lies_beside_the_other_ranges() {
        let ranges = Ranges {
            pods: "10.42.7.0/24".parse().unwrap(),
            services: "10.96.0.0/12".parse().unwrap(),
        };
        for (pool, want) in [
            ("192.0.2.64/27", None),
            // Other nodes' pods have addresses of the whole range.
            ("10.42.200.1-10.42.200.9", Some("pods have addresses")),
            ("10.96.1.0/24", Some("Services have addresses")),
        ] {
            let found = ranges.pool(vec![pool.parse().unwrap()]);
            let found = found.map(drop).map_err(|error| error.to_string());
            match want {
                None => assert_eq!(found, Ok(()), "{pool}"),
                Some(want) => {
                    let found = found.unwrap_err();
                    assert!(found.starts_with("--load-balancer-pool: "), "{found}");
                    assert!(found.contains(want), "{found}");
                }
            }
        }
    }

    #[test]
    fn ranges_follow_from_one_another() {
        let range = |text: &str| text.parse::<IpNet>().unwrap();
        for (own, whole, gateway) in [
            ("10.42.7.0/24", "10.42.0.0/16", "10.42.7.1"),
            ("10.0.0.0/8", "10.0.0.0/8", "10.0.0.1"),
            ("fd42:1:2:3::/64", "fd42:1:2::/56", "fd42:1:2:3::1"),
            ("fd42::/48", "fd42::/48", "fd42::1"),
        ] {
            let own = range(own);
            assert_eq!(cluster_cidr(&own), range(whole));
            assert_eq!(super::gateway(&own).unwrap().to_string(), gateway);
        }
        let dns = |text: &str| cluster_dns(&text.parse().unwrap()).map(|dns| dns.to_string());
        assert_eq!(
            dns("10.96.0.0/12,fd96::/112").unwrap(),
            "10.96.0.10,fd96::a"
        );
        assert!(dns("10.96.0.0/30").is_err());
    }
}
