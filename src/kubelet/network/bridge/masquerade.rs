//! What pods send out of the cluster leaves with the node's address. Pure; everything is in a table of our own.

use ipnet::IpNet;
use netns::nft::{self, BaseChain, Batch, ChainKind, Hook, Policy, Reg, Rule, Table, Verdict};

use crate::addresses::family::{Family, OfFamily};

/// Protocol of the family's ICMP, and its type of a redirect.
fn redirect(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (1, 5),
        Family::V6 => (58, 137),
    }
}

/// The family of tables that see these packets.
pub fn of_packets(family: Family) -> nft::Family {
    match family {
        Family::V4 => nft::Family::Ip,
        Family::V6 => nft::Family::Ip6,
    }
}

/// The table of the family of `pods` and `cluster` anew.
pub fn whole(table: &str, bridge: &str, pods: &IpNet, cluster: &IpNet) -> Batch {
    let table = Table::new(of_packets(pods.family()), table);
    let (icmp, redirect) = redirect(pods.family());
    let base = |kind, hook, priority| BaseChain {
        kind,
        hook,
        priority,
        policy: Policy::Accept,
    };
    let mut batch = Batch::new();
    batch
        .remove_table(&table)
        .add_table(&table)
        .add_base_chain(
            &table,
            "postrouting",
            base(ChainKind::Nat, Hook::Postrouting, 100),
        )
        .add_rule(
            &table,
            "postrouting",
            Rule::new()
                .source_in(pods.network(), pods.prefix_len(), true)
                .destination_in(cluster.network(), cluster.prefix_len(), false)
                .not_output_link(bridge)
                .masquerade(),
        )
        // Pods reach each other through the gateway on purpose; redirects would only confuse them.
        .add_base_chain(&table, "output", base(ChainKind::Filter, Hook::Output, 0))
        .add_rule(
            &table,
            "output",
            Rule::new()
                .output_link(bridge)
                .protocol(Reg(0))
                .equal(Reg(0), &[icmp])
                .icmp_type(Reg(0))
                .equal(Reg(0), &[redirect])
                .verdict(&Verdict::Drop),
        );
    batch
}
