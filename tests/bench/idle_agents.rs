//! What agents take that have nothing to do, and what they cost the server.

use std::{thread, time::Duration};

use super::{
    lab::{Cluster, Machine},
    usage,
};

/// As many as a small machine holds; what more of them cost is this many times as much.
const AGENTS: u8 = 20;
const SETTLED: Duration = Duration::from_secs(45);
const IDLE: Duration = Duration::from_secs(120);

pub fn many() {
    let cluster = Cluster::started();
    thread::sleep(SETTLED);
    let server = |what: fn(&Cluster) -> f64| what(&cluster);
    let alone = (server(usage::memory), spent(|| usage::work(&cluster).0));
    let first = Machine::beside(&cluster, 2);
    let token = cluster.token();
    first.join_by(&token, "agent-2");
    thread::sleep(SETTLED);
    let processor = spent(|| usage::work_below(first.root.path()).0);
    println!(
        "{:<44} {:>12.1} MB (goal 15)",
        "agent-idle: PSS of an agent, one beside the server",
        usage::memory_below(first.root.path())
    );
    println!(
        "{:<44} {processor:>12.3} % of a core (goal 0.1)",
        "agent-idle: processor of an agent"
    );
    let mut agents = vec![first];
    for number in 3..AGENTS + 2 {
        let machine = Machine::beside(&cluster, number);
        machine.join_by(&token, &format!("agent-{number}"));
        agents.push(machine);
    }
    thread::sleep(SETTLED);
    let count = f64::from(AGENTS);
    let all = |what: fn(&std::path::Path) -> f64| {
        let of_each = agents.iter().map(|agent| what(agent.root.path()));
        of_each.sum::<f64>()
    };
    let begun = (
        usage::work(&cluster).0,
        all(|root| usage::work_below(root).0),
    );
    thread::sleep(IDLE);
    let servers = (usage::work(&cluster).0 - begun.0) / IDLE.as_secs_f64() * 100.0;
    let each =
        (all(|root| usage::work_below(root).0) - begun.1) / IDLE.as_secs_f64() * 100.0 / count;
    println!(
        "{:<44} {:>12.1} MB, {each:.3} % of a core",
        format!("agent-idle: one of {AGENTS}"),
        all(usage::memory_below) / count,
    );
    println!(
        "{:<44} {:>12.2} MB, {:.3} % of a core an agent ({AGENTS} measured; more are taken to cost as much each)",
        "agent-idle: the server, for each agent",
        (server(usage::memory) - alone.0) / count,
        (servers - alone.1) / count,
    );
    drop(agents);
}

/// Percent of a core.
fn spent(work: impl Fn() -> f64) -> f64 {
    let before = work();
    thread::sleep(IDLE);
    (work() - before) / IDLE.as_secs_f64() * 100.0
}
