//! A cluster as a user has it, from the outside: real `vetch`, real pods. As root:
//! `cargo bench --bench cluster`. Needs the images of `tests/images/build`, and crun and runc for
//! the comparison. Units are printed; figures are medians unless said otherwise.
//!
//! Cases: exec to node Ready; one pod, create to Ready; 50 pods at once; claims with their pods, one
//! and 100 at once, beside pods without; memory (PSS) idle and per pod; CPU and disk writes while
//! idle; creations under three policies and two webhooks; applies of a Deployment; a definition, create to served; bytes a second between two pods; a container of `true` beside crun and runc.
//!
//! Cases of the network, on clusters of their own (docs/performance.md has their figures): `services`,
//! `first-packet`, `policy-packets`, `dns`, `join`, `across`, `agent-idle`. A case is chosen by its name, or a part
//! of it.

mod across;
mod applies;
mod bulk;
mod claims;
mod containers;
mod dns;
mod first_packet;
mod idle_agents;
mod join;
mod kernel;
#[path = "../lab/mod.rs"]
mod lab;
mod packets;
#[path = "../lab/partner.rs"]
mod partner;
mod pods;
mod policies;
mod policy_packets;
mod services;
mod sides;
mod throughput;
mod turns;
mod usage;

use std::{
    fs,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
    runtime::wait::await_condition,
};
use lab::Cluster;

const STARTS: usize = 10;
const SINGLE_PODS: usize = 40;
const MANY: usize = 50;
const IDLE: Duration = Duration::from_secs(60);

/// Cases with clusters of their own, of the network.
const NETWORK: [(&str, fn()); 7] = [
    ("services", services::many),
    ("first-packet", first_packet::few_and_many),
    ("policy-packets", policy_packets::without_and_with),
    ("dns", dns::asked),
    ("join", join::one_and_many),
    ("across", across::machines),
    ("agent-idle", idle_agents::many),
];

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("cluster: skipped, needs root");
        return;
    }
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let wanted = |name: &str| only.as_deref().is_none_or(|only| name.contains(only));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut has_run = false;
    for (name, run) in NETWORK {
        if wanted(name) {
            run();
            has_run = true;
        }
    }
    if has_run && only.is_some() {
        return;
    }
    let cluster = Cluster::new();
    if wanted("start") {
        start(&cluster);
    }
    if only.as_deref() == Some("true") {
        return containers::compare(&cluster.host);
    }
    cluster.up();
    cluster.import("busybox");
    // From here on this thread, and every one it makes, is on the cluster's host.
    let namespace = fs::File::open(format!("/proc/{}/ns/net", cluster.host.pid())).unwrap();
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let pods: Api<Pod> = Api::namespaced(pods::client(cluster.root.path()).await, "default");
        await_account(&cluster);
        if wanted("pod") {
            single_pods(&pods).await;
        }
        if wanted("many") {
            many_pods(&pods, &cluster).await;
        }
        if wanted("claim") {
            claims::bound(pods::client(cluster.root.path()).await).await;
        }
        if wanted("policies") {
            policies::judged(&pods, &cluster).await;
        }
        if wanted("apply") {
            applies::deployments(pods::client(cluster.root.path()).await).await;
        }
        if wanted("definition") {
            applies::definitions(pods::client(cluster.root.path()).await).await;
        }
        if wanted("throughput") {
            throughput(&pods).await;
        }
    });
    if wanted("idle") {
        idle(&cluster);
    }
    if wanted("true") {
        containers::compare(&cluster.host);
    }
}

fn median(mut figures: Vec<Duration>) -> (Duration, Duration, Duration) {
    figures.sort();
    let at = |part: usize| figures[(figures.len() * part / 100).min(figures.len() - 1)];
    (at(50), at(99), figures[0])
}

fn print(name: &str, figures: Vec<Duration>, wanted: &str) {
    let count = figures.len();
    let (median, worst, best) = median(figures);
    println!(
        "{name:<44} p50 {:>8.1} ms  p99 {:>8.1} ms  best {:>8.1} ms  n={count} ({wanted})",
        median.as_secs_f64() * 1e3,
        worst.as_secs_f64() * 1e3,
        best.as_secs_f64() * 1e3,
    );
}

/// From the exec of `vetch up` to its return with a Ready node, on a host that had a cluster before
/// (keys exist) and on a fresh one.
fn start(cluster: &Cluster) {
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        for figures in [&mut fresh, &mut again] {
            let started = Instant::now();
            cluster.up();
            figures.push(started.elapsed());
            assert!(cluster.vetch(&["down"]).status.success());
        }
        assert!(cluster.vetch(&["reset", "--yes"]).status.success());
        fs::create_dir_all(cluster.root.path()).unwrap();
    }
    print(
        "start/fresh: exec to node Ready",
        fresh,
        "now 1000, goal 300",
    );
    print(
        "start/again: exec to node Ready",
        again,
        "now 1000, goal 300",
    );
}

fn await_account(cluster: &Cluster) {
    cluster.wait(
        "get serviceaccount default -o name",
        "serviceaccount/default",
    );
}

async fn single_pods(pods: &Api<Pod>) {
    let mut figures = Vec::new();
    for index in 0..SINGLE_PODS {
        figures.push(pods::start(pods, &format!("one-{index}")).await);
    }
    print("pod/one: create to Ready", figures, "now 100, goal 30");
}

async fn throughput(pods: &Api<Pod>) {
    const ROUNDS: usize = 5;
    let ends = throughput::Ends::start(pods, ["1000001", "1000002"]).await;
    let rounds = (0..ROUNDS).map(|_| ends.round(Duration::from_secs(2)));
    let mut figures: Vec<f64> = rounds.collect();
    figures.sort_by(f64::total_cmp);
    println!(
        "{:<44} p50 {:>8.2} GB/s best {:>8.2} GB/s  n={ROUNDS}",
        "throughput: TCP from pod to pod",
        figures[ROUNDS / 2],
        figures[ROUNDS - 1],
    );
}

async fn many_pods(pods: &Api<Pod>, cluster: &Cluster) {
    let before = usage::memory(cluster);
    let mut figures = Vec::new();
    for round in 0..3 {
        let started = Instant::now();
        let all = (0..MANY).map(|index| async move {
            let name = format!("many-{round}-{index}");
            pods.create(&PostParams::default(), &pods::pod(&name))
                .await
                .unwrap();
            await_condition(pods.clone(), &name, |pod: Option<&Pod>| {
                pod.is_some_and(pods::is_ready)
            })
            .await
            .unwrap();
        });
        futures::future::join_all(all).await;
        figures.push(started.elapsed());
        if round == 0 {
            let per_pod = (usage::memory(cluster) - before) / MANY as f64;
            println!(
                "{:<44} {per_pod:>12.2} MB (now 2, goal 1)",
                "memory/pod: PSS a pod of ours"
            );
        }
        pods.delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .unwrap();
        while !pods
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    print(
        "pod/many: 50 at once, all Ready",
        figures,
        "now 3000, goal 1000",
    );
}

fn idle(cluster: &Cluster) {
    std::thread::sleep(Duration::from_secs(5));
    println!(
        "{:<44} {:>12.1} MB (now 60, goal 40)",
        "memory/idle: PSS",
        usage::memory(cluster)
    );
    let before = usage::work(cluster);
    std::thread::sleep(IDLE);
    let after = usage::work(cluster);
    println!(
        "{:<44} {:>12.3} % of a core (goal 0.2)",
        "idle/cpu",
        (after.0 - before.0) / IDLE.as_secs_f64() * 100.0
    );
    println!(
        "{:<44} {:>12.1} KB a minute (goal 17)",
        "idle/disk writes",
        (after.1 - before.1) / 1024.0
    );
}
