//! Many Services: what the daemon's start, one more of them, and each of them cost.

use std::time::{Duration, Instant};

use kube::Client;

use super::{
    bulk, kernel,
    lab::{Cluster, until},
    sides, usage,
};

/// Services, and endpoints of each.
const SIZES: [(usize, usize); 2] = [(10_000, 2), (44_000, 1)];
const RESTARTS: usize = 3;
const MORE: usize = 200;
const LOADS: usize = 3;
const SETTLED: Duration = Duration::from_secs(15);
const BETWEEN: Duration = Duration::from_millis(20);
const TABLE: &str = "vetch-proxy";
/// Destinations, and the backends of each.
const FRONTS: &str = "addresses";
const BACKENDS: &str = "addresses-backs";

pub fn many() {
    // What one more costs where there is next to none.
    let cluster = sides::roomy();
    one_more(&cluster, 10, 0);
    drop(cluster);
    let most = std::env::var("VETCH_BENCH_MOST").map_or(usize::MAX, |most| most.parse().unwrap());
    for (count, endpoints) in SIZES.into_iter().filter(|(count, _)| *count <= most) {
        let cluster = sides::roomy();
        std::thread::sleep(SETTLED);
        let before = usage::memory(&cluster);
        let idle = usage::processor(cluster.daemon());
        let begun = Instant::now();
        sides::on(&cluster, async |client| {
            bulk::services(&client, 0..count, endpoints).await;
        });
        let took = begun.elapsed().as_secs_f64();
        let table = kernel::table(&cluster.host, TABLE).unwrap();
        await_all(&cluster, &table, count, endpoints);
        std::thread::sleep(SETTLED);
        let spent = usage::processor(cluster.daemon()) - idle;
        println!(
            "{:<44} {:>12.3} ms of the daemon's processor, with its slice (goal 0.5)",
            format!("services/{count}: a Service, made in a row"),
            spent.as_secs_f64() * 1e3 / count as f64
        );
        println!(
            "{:<44} {:>12.2} KB, with its slice of {endpoints} (made in {took:.0} s)",
            format!("services/{count}: PSS a Service"),
            (usage::memory(&cluster) - before) * 1024.0 / count as f64
        );
        one_more(&cluster, count, count);
        again(&cluster, count, endpoints);
        restart(&cluster, count, endpoints);
        load(&cluster, count);
    }
}

/// All of them are in the kernel.
fn await_all(cluster: &Cluster, table: &kernel::Table, count: usize, endpoints: usize) {
    sides::within(&cluster.host, || {
        until("all Services are in the kernel", || {
            kernel::count(table, BACKENDS) >= count * endpoints
                && kernel::count(table, FRONTS) >= count
        });
    });
}

/// Each after the other, with one endpoint that is there before it.
fn one_more(cluster: &Cluster, count: usize, first: usize) {
    let daemon = cluster.daemon();
    let numbers = first + 1..first + 1 + MORE;
    sides::on(cluster, async |client: Client| {
        for number in numbers.clone() {
            bulk::slice(&client, number, vec!["10.200.0.1".into()], 8080).await;
        }
        tokio::time::sleep(SETTLED).await;
        let mut watch = kernel::Watch::open();
        let mut figures = Vec::new();
        let before = usage::processor(daemon);
        for number in numbers {
            let begun = Instant::now();
            bulk::service(&client, number).await;
            watch.element_with(&bulk::address(number).octets());
            figures.push(begun.elapsed());
            // What follows belongs to it too.
            tokio::time::sleep(BETWEEN).await;
        }
        let spent = usage::processor(daemon) - before;
        super::print(
            &format!("services/{count}: one more, create to element"),
            figures,
            "goal 2",
        );
        println!(
            "{:<44} {:>12.3} ms of the daemon's processor (goal 0.5)",
            format!("services/{count}: one more"),
            spent.as_secs_f64() * 1e3 / MORE as f64
        );
    });
}

/// From the moment in which the table is deleted, until the daemon has made it anew with all elements.
fn again(cluster: &Cluster, count: usize, endpoints: usize) {
    let (mut figures, mut spent) = (Vec::new(), Vec::new());
    let table = kernel::table(&cluster.host, TABLE).unwrap();
    let daemon = cluster.daemon();
    for _ in 0..LOADS {
        let before = usage::processor(daemon);
        delete(cluster, &table);
        let begun = Instant::now();
        await_all(cluster, &table, count, endpoints);
        figures.push(begun.elapsed());
        // Nor does what follows, if anything does, take long.
        std::thread::sleep(SETTLED);
        spent.push(usage::processor(daemon) - before);
    }
    let name = |what: &str| format!("services/{count}: all anew, {what}");
    super::print(&name("to all elements"), figures, "goal 1000");
    super::print(&name("daemon's processor"), spent, "beside it");
    let others = kernel::listeners(&cluster.host);
    println!(
        "{:<44} {others:>12} that listen to nf_tables elsewhere, which makes it slower",
        name("sockets")
    );
}

fn delete(cluster: &Cluster, table: &kernel::Table) {
    let (family, name) = (&table.family_name, &table.name);
    cluster
        .host
        .sh(&format!("nft delete table {family} {name}"));
}

/// From the exec of `vetch up` until a table that is not there has all elements.
fn restart(cluster: &Cluster, count: usize, endpoints: usize) {
    let mut figures = Vec::new();
    let (mut ready, mut spent) = (Vec::new(), Vec::new());
    let table = kernel::table(&cluster.host, TABLE).unwrap();
    for _ in 0..RESTARTS {
        assert!(cluster.vetch(&["down"]).status.success());
        delete(cluster, &table);
        let begun = Instant::now();
        let complete = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                await_all(cluster, &table, count, endpoints);
                begun.elapsed()
            });
            sides::up(cluster);
            ready.push(begun.elapsed());
            waiting.join().unwrap()
        });
        figures.push(complete);
        spent.push(usage::processor(cluster.daemon()));
    }
    let name = |what: &str| format!("services/{count}: restart, {what}");
    super::print(&name("exec to all elements"), figures, "goal 1000");
    super::print(&name("exec to node Ready"), ready, "beside it");
    super::print(&name("daemon's processor"), spent, "beside it");
    std::thread::sleep(SETTLED);
    println!(
        "{:<44} {:>12.1} MB of the daemon",
        format!("services/{count}: PSS after a restart"),
        usage::memory(cluster)
    );
}

/// The same table by the program `nft`, in a network of its own.
fn load(cluster: &Cluster, count: usize) {
    let table = kernel::table(&cluster.host, TABLE).unwrap();
    let (family, name) = (&table.family_name, &table.name);
    let file = cluster.root.path().join("rules.nft");
    let file = file.display();
    cluster
        .host
        .sh(&format!("nft list table {family} {name} > {file}"));
    let mut figures = Vec::new();
    for _ in 0..LOADS {
        let begun = Instant::now();
        cluster.host.sh(&format!("unshare --net nft -f {file}"));
        figures.push(begun.elapsed());
    }
    super::print(
        &format!("services/{count}: the same by nft -f"),
        figures,
        "beside it",
    );
}
