//! Packets between two pods that many NetworkPolicies select, and between two that none does: three clusters,
//! asked in turns.

use std::{net::SocketAddr, time::Duration};

use super::{
    bulk, packets,
    sides::{self, Side},
    turns,
};

const POLICIES: [usize; 3] = [0, 100, 10_000];
const PAIRS: usize = 60;
const CONNECTIONS: usize = 400;
const ROUND_TRIPS: usize = 3000;
const PORT: u16 = 8080;
const LONGEST_WAIT: Duration = Duration::from_secs(120);

pub fn without_and_with() {
    let mut number = 2;
    let sides = POLICIES.map(|policies| {
        number += 1;
        let side = Side::start(number);
        sides::on(&side.cluster, async |client| {
            bulk::policies(&client, policies).await;
        });
        if policies > 0 {
            await_ranges(&side, policies);
        }
        side
    });
    let connections = |side: &Side| {
        let listen = SocketAddr::new(side.address, PORT);
        packets::connections(&side.server, &side.client, listen, listen, CONNECTIONS)
    };
    let round_trips =
        |side: &Side| packets::round_trips(&side.server, &side.client, side.address, ROUND_TRIPS);
    for (with, side) in POLICIES.iter().zip(&sides).skip(1) {
        let sides = [&sides[0], side];
        let figures = turns::take(PAIRS, |side| round_trips(sides[side]));
        let name = |what: &str| format!("policy-packets: {what}, 0 and {with}, us");
        turns::print_wanted(&name("UDP round trip"), &figures, "goal 1.02x");
        let figures = turns::take(PAIRS, |side| connections(sides[side]));
        turns::print_wanted(&name("connection"), &figures, "goal 1.02x");
    }
}

/// The last policy's range is in the kernel.
fn await_ranges(side: &Side, policies: usize) {
    let last = policies - 1;
    let range = format!("172.{}.{}.0", 16 + last / 250, last % 250);
    let begun = std::time::Instant::now();
    while !side.cluster.host.sh("nft list ruleset").contains(&range) {
        assert!(begun.elapsed() < LONGEST_WAIT, "no rule has {range}");
        std::thread::sleep(Duration::from_millis(500));
    }
}
