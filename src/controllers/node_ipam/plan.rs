//! Which range of pod addresses a node gets. Pure.

use ipnet::IpNet;

/// A range of the cluster's pod addresses, which nodes get parts of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterRange {
    pub range: IpNet,
    /// Bits of the network of one node's part.
    pub node_prefix: u8,
}

impl ClusterRange {
    /// The first part that no range in `taken` touches, after `last` and then from the beginning: what a
    /// node gave back rests as long as others are free. `wanted` comes before all, if it is one and free.
    /// `None`: all are taken.
    pub fn free(
        &self,
        taken: &[IpNet],
        last: Option<IpNet>,
        wanted: Option<IpNet>,
    ) -> Option<IpNet> {
        let parts = || self.range.subnets(self.node_prefix).into_iter().flatten();
        let is_free = |part: &IpNet| !taken.iter().any(|other| overlap(part, other));
        let is_part =
            |range: &IpNet| self.range.contains(range) && range.prefix_len() == self.node_prefix;
        let wanted = wanted.map(|range| range.trunc());
        if let Some(wanted) = wanted.filter(|range| is_part(range) && is_free(range)) {
            return Some(wanted);
        }
        let after = parts().filter(|part| last.is_none_or(|last| *part > last));
        after.chain(parts()).find(is_free)
    }
}

/// Of two ranges that share an address one holds the other.
fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    #[test]
    fn the_next_free_part() {
        let v4 = ClusterRange {
            range: range("10.42.0.0/22"),
            node_prefix: 24,
        };
        let v6 = ClusterRange {
            range: range("fd00:42::/62"),
            node_prefix: 64,
        };
        let none: &[&str] = &[];
        for (cluster, taken, last, want) in [
            (v4, none, None, Some("10.42.0.0/24")),
            (v4, none, Some("10.42.1.0/24"), Some("10.42.2.0/24")),
            (v4, none, Some("10.42.3.0/24"), Some("10.42.0.0/24")),
            (v4, &["10.42.0.0/24"], None, Some("10.42.1.0/24")),
            // Of another size, and what is not of this range.
            (
                v4,
                &["10.42.0.0/23", "10.9.0.0/16"],
                None,
                Some("10.42.2.0/24"),
            ),
            (v4, &["10.42.0.128/25"], None, Some("10.42.1.0/24")),
            (v4, &["10.42.0.0/16"], None, None),
            (
                v4,
                &["10.42.0.0/23", "10.42.3.0/24"],
                Some("10.42.3.0/24"),
                Some("10.42.2.0/24"),
            ),
            (v6, &["fd00:42::/64"], None, Some("fd00:42:0:1::/64")),
            (v6, &["10.42.0.0/16"], None, Some("fd00:42::/64")),
        ] {
            let taken: Vec<IpNet> = taken.iter().map(|text| range(text)).collect();
            let got = cluster.free(&taken, last.map(range), None);
            assert_eq!(got, want.map(range), "{cluster:?} {taken:?} {last:?}");
        }
        let wrong = ClusterRange {
            range: range("10.42.0.0/24"),
            node_prefix: 16,
        };
        assert_eq!(wrong.free(&[], None, None), None);
        for (taken, wanted, want) in [
            (none, "10.42.2.0/24", "10.42.2.0/24"),
            (&["10.42.2.0/24"], "10.42.2.0/24", "10.42.0.0/24"),
            (none, "10.42.2.0/25", "10.42.0.0/24"),
            (none, "10.9.0.0/24", "10.42.0.0/24"),
            (none, "10.42.2.7/24", "10.42.2.0/24"),
        ] {
            let taken: Vec<IpNet> = taken.iter().map(|text| range(text)).collect();
            let got = v4.free(&taken, None, Some(range(wanted)));
            assert_eq!(got, Some(range(want)), "{taken:?} {wanted}");
        }
    }
}
