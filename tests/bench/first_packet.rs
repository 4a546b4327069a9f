//! A new connection to a Service's address where there are few Services and where there are many: two clusters,
//! asked in turns.

use std::net::SocketAddr;

use super::{
    bulk, kernel,
    lab::until,
    packets,
    sides::{self, Side},
    turns,
};

const FEW: usize = 10;
const MANY: usize = 30_000;
const PAIRS: usize = 80;
const CONNECTIONS: usize = 400;
const PORT: u16 = 8080;

pub fn few_and_many() {
    let sides = [FEW, MANY].map(|count| {
        let side = Side::start(if count == FEW { 1 } else { 2 });
        let served = side.address.to_string();
        sides::on(&side.cluster, async |client| {
            bulk::slice(&client, 0, vec![served], PORT).await;
            bulk::service(&client, 0).await;
            bulk::services(&client, 1..count, 2).await;
        });
        let table = kernel::table(&side.cluster.host, "vetch-proxy").unwrap();
        sides::within(&side.cluster.host, || {
            until("all Services are in the kernel", || {
                kernel::count(&table, "addresses-backs") >= 2 * count - 1
            });
        });
        side
    });
    let to = SocketAddr::new(bulk::address(0).into(), 80);
    let figures = turns::take(PAIRS, |side| {
        let Side {
            server,
            client,
            address,
            ..
        } = &sides[side];
        let listen = SocketAddr::new(*address, PORT);
        packets::connections(server, client, listen, to, CONNECTIONS)
    });
    turns::print_wanted(
        &format!("first-packet: {FEW} and {MANY} Services, us"),
        &figures,
        "goal 1.05x",
    );
}
