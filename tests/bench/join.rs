//! How long a machine takes to become a node.

use std::time::{Duration, Instant};

use super::lab::{Cluster, Machine, SERVER, interrupted, program, until};

const JOINS: usize = 10;
const LABS: usize = 3;
/// As tests start their daemons: see `lab::vetch`.
const FLAGS: [&str; 2] = [
    "--eviction-hard=memory.available<100Mi",
    "--image-gc-high-threshold=100",
];

pub fn one_and_many() {
    one(&Cluster::started());
    lab();
}

/// From the exec of `vetch agent` on a machine that never was one.
fn one(cluster: &Cluster) {
    let mut figures = Vec::new();
    for number in 0..JOINS {
        let machine = Machine::beside(cluster, 100 + u8::try_from(number).unwrap());
        let (name, token) = (format!("joins-{number}"), cluster.token());
        let (server, token) = (format!("--server={SERVER}"), format!("--token={token}"));
        let flag = format!("--node-name={name}");
        let begun = Instant::now();
        machine.ok(&["agent", &server, &token, &flag, "--detach"]);
        let returned = begun.elapsed();
        let line = format!(
            "get node {name} -o jsonpath={{.status.conditions[?(@.type==\"Ready\")].status}}"
        );
        let is_ready = || super::lab::text(&cluster.kubectl(&line)).trim() == "True";
        figures.push(match is_ready() {
            true => returned,
            false => {
                until("the node is Ready", is_ready);
                begun.elapsed()
            }
        });
        drop(machine);
        cluster.ok(&format!("delete node {name}"));
    }
    super::print("join: exec of agent to node Ready", figures, "goal 1000");
}

/// A lab of one server and five nodes.
fn lab() {
    let mut figures = Vec::new();
    for _ in 0..LABS {
        let root = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            let mut command = std::process::Command::new(program());
            let output = command.arg("lab").args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", super::lab::text(&output));
        };
        let at = format!("--root={}", root.path().display());
        interrupted::remove_by(&["lab", "down"], root.path(), std::process::id());
        let begun = Instant::now();
        run(&["up", "--nodes=5", &at, "--", FLAGS[0], FLAGS[1]]);
        figures.push(begun.elapsed());
        run(&["down", &at]);
        interrupted::is_removed(root.path());
        std::thread::sleep(Duration::from_secs(1));
    }
    super::print("join/lab: up --nodes 5 to all Ready", figures, "goal 3000");
}
