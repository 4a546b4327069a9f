//! A cluster as a user has it, from the outside: real `vetch`, real pods. As root:
//! `cargo bench --bench cluster`. Needs the images of `tests/images/build`, and crun and runc for
//! the comparison. Units are printed; figures are medians unless said otherwise.
//!
//! Cases: exec to node Ready; one pod, create to Ready; 50 pods at once; claims with their pods, one
//! and 100 at once, beside pods without; memory (PSS) idle and per pod; CPU and disk writes while
//! idle; creations under three policies and two webhooks; bytes a second between two pods; a container of `true` beside crun and runc.

mod claims;
mod containers;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../lab/partner.rs"]
mod partner;
mod policies;
mod throughput;

use std::{
    fs,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::{await_condition, conditions},
};
use lab::Cluster;
use serde_json::json;

const STARTS: usize = 10;
const SINGLE_PODS: usize = 40;
const MANY: usize = 50;
const IDLE: Duration = Duration::from_secs(60);

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("cluster: skipped, needs root");
        return;
    }
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let wanted = |name: &str| only.as_deref().is_none_or(|only| name.contains(only));
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
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let pods: Api<Pod> = Api::namespaced(client(&cluster).await, "default");
        await_account(&cluster);
        if wanted("pod") {
            single_pods(&pods).await;
        }
        if wanted("many") {
            many_pods(&pods, &cluster).await;
        }
        if wanted("claim") {
            claims::bound(client(&cluster).await).await;
        }
        if wanted("policies") {
            policies::judged(&pods, &cluster).await;
        }
        if wanted("throughput") {
            throughput::between_pods(&pods).await;
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

async fn client(cluster: &Cluster) -> Client {
    let path = cluster.root.path().join("etc/admin.kubeconfig");
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

fn await_account(cluster: &Cluster) {
    cluster.wait(
        "get serviceaccount default -o name",
        "serviceaccount/default",
    );
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"bench": "pod"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "100000"]}],
        },
    }))
    .unwrap()
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
}

async fn single_pods(pods: &Api<Pod>) {
    let mut figures = Vec::new();
    for index in 0..SINGLE_PODS {
        let name = format!("one-{index}");
        let started = Instant::now();
        pods.create(&PostParams::default(), &pod(&name))
            .await
            .unwrap();
        await_condition(pods.clone(), &name, |pod: Option<&Pod>| {
            pod.is_some_and(is_ready)
        })
        .await
        .unwrap();
        figures.push(started.elapsed());
        let gone = pods.delete(&name, &DeleteParams::default()).await.unwrap();
        if let Some(pod) = gone.left() {
            let uid = pod.metadata.uid.unwrap();
            await_condition(pods.clone(), &name, conditions::is_deleted(&uid))
                .await
                .unwrap();
        }
    }
    print("pod/one: create to Ready", figures, "now 100, goal 30");
}

async fn many_pods(pods: &Api<Pod>, cluster: &Cluster) {
    let before = memory(cluster);
    let mut figures = Vec::new();
    for round in 0..3 {
        let started = Instant::now();
        let all = (0..MANY).map(|index| async move {
            let name = format!("many-{round}-{index}");
            pods.create(&PostParams::default(), &pod(&name))
                .await
                .unwrap();
            await_condition(pods.clone(), &name, |pod: Option<&Pod>| {
                pod.is_some_and(is_ready)
            })
            .await
            .unwrap();
        });
        futures::future::join_all(all).await;
        figures.push(started.elapsed());
        if round == 0 {
            let per_pod = (memory(cluster) - before) / MANY as f64;
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

/// Processes of ours below this cluster: the daemon and the supervisors.
fn processes(cluster: &Cluster) -> Vec<i32> {
    let program = fs::canonicalize(lab::program()).unwrap();
    let root = cluster.root.path().display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let ours = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program);
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if ours && String::from_utf8_lossy(&arguments).contains(&root) {
            found.push(pid);
        }
    }
    found
}

/// PSS of all our processes, in MB.
fn memory(cluster: &Cluster) -> f64 {
    let pss = |pid: i32| -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    processes(cluster).into_iter().filter_map(pss).sum::<f64>() / 1024.0
}

/// CPU seconds and bytes written by our processes so far.
fn work(cluster: &Cluster) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for pid in processes(cluster) {
        // In nanoseconds, where /proc/PID/stat counts ticks of 10 ms.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        for thread in threads.flatten() {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let spent = text
                .split(' ')
                .next()
                .and_then(|text| text.parse::<f64>().ok());
            sum.0 += spent.unwrap_or(0.0) / 1e9;
        }
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let written = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        sum.1 += written
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0);
    }
    sum
}

fn idle(cluster: &Cluster) {
    std::thread::sleep(Duration::from_secs(5));
    println!(
        "{:<44} {:>12.1} MB (now 60, goal 40)",
        "memory/idle: PSS",
        memory(cluster)
    );
    let before = work(cluster);
    std::thread::sleep(IDLE);
    let after = work(cluster);
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
