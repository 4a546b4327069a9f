//! Two programs, each with a cluster of its own, up at the same time and asked in turns:
//! `cargo bench --bench compare -- BEFORE NOW [CASE]`, as root. Needs the images of `tests/images/build`.
//!
//! A machine is faster in one hour than in another by more than what a change costs, so figures of two
//! programs that ran one after the other tell nothing. Here each case is a number of pairs; printed are both
//! medians, and the median of the pairs' ratios with the range that holds it with 95 % certainty.
//!
//! Cases: start (fresh and again), pod, throughput, idle. A program that does not know all flags of `up`
//! needs `VETCH_TEST_OLD_FLAGS`, for both.

#[path = "../lab/mod.rs"]
mod lab;
mod pods;
mod throughput;
mod turns;
mod usage;

use std::{
    fs,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use lab::Cluster;

use self::throughput::Ends;

const STARTS: usize = 25;
const PODS: usize = 100;
const THROUGHPUTS: usize = 240;
const THROUGHPUT: Duration = Duration::from_millis(250);
/// A start is over, and what it needed is given back.
const SETTLED: Duration = Duration::from_secs(30);
/// What comes every five minutes is among it.
const IDLE: Duration = Duration::from_secs(300);

fn main() {
    let words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'));
    let words: Vec<String> = words.collect();
    let [before, now, case @ ..] = &words[..] else {
        println!("compare: skipped, needs two programs: BEFORE NOW [CASE]");
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        println!("compare: skipped, needs root");
        return;
    }
    let wanted = |name: &str| case.is_empty() || case.iter().any(|case| case == name);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let programs = [before, now].map(|program| fs::canonicalize(program).unwrap());
    if wanted("start") {
        starts(&programs);
    }
    let sides = programs.map(Side::start);
    if wanted("idle") {
        idle(&sides);
    }
    if wanted("pod") {
        let figures = turns::take(PODS, |side| sides[side].ask(Task::Pod));
        turns::print("pod: create to Ready, ms", &figures);
    }
    if wanted("throughput") {
        let figures = turns::take(THROUGHPUTS, |side| sides[side].ask(Task::Throughput));
        turns::print("throughput: TCP from pod to pod, GB/s", &figures);
    }
}

fn cluster(program: PathBuf) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.program = program;
    cluster
}

fn starts(programs: &[PathBuf; 2]) {
    let clusters = programs.clone().map(cluster);
    let mut again: [Vec<f64>; 2] = Default::default();
    let up = |side: usize| {
        let cluster: &Cluster = &clusters[side];
        let started = Instant::now();
        cluster.up();
        let took = started.elapsed().as_secs_f64() * 1e3;
        assert!(cluster.vetch(&["down"]).status.success());
        took
    };
    let fresh = turns::take(STARTS, |side| {
        let fresh = up(side);
        again[side].push(up(side));
        let cluster = &clusters[side];
        assert!(cluster.vetch(&["reset", "--yes"]).status.success());
        fs::create_dir_all(cluster.root.path()).unwrap();
        fresh
    });
    turns::print("start/fresh: exec to node Ready, ms", &fresh);
    turns::print(
        "start/again: exec to node Ready, ms",
        &again.map(turns::settled),
    );
}

fn idle(sides: &[Side; 2]) {
    thread::sleep(SETTLED);
    let work = || [0, 1].map(|side: usize| usage::work(&sides[side].cluster).0);
    let before = work();
    thread::sleep(IDLE);
    let after = work();
    for (name, unit, figures) in [
        (
            "idle: processor",
            "% of a core",
            [0, 1].map(|side: usize| (after[side] - before[side]) / IDLE.as_secs_f64() * 100.0),
        ),
        (
            "idle: memory (PSS)",
            "MB",
            [0, 1].map(|side: usize| usage::memory(&sides[side].cluster)),
        ),
    ] {
        let [before, now] = figures;
        let change = (now / before - 1.0) * 100.0;
        println!("{name:<44} {before:>9.3} {now:>9.3} {unit}  {change:+.1} %");
    }
}

#[derive(Clone, Copy, Debug)]
enum Task {
    /// Milliseconds.
    Pod,
    /// Gigabytes a second.
    Throughput,
}

/// A cluster, and a thread on its host that does what it is told.
struct Side {
    cluster: Cluster,
    tasks: mpsc::Sender<Task>,
    figures: mpsc::Receiver<f64>,
}

impl Side {
    fn start(program: PathBuf) -> Self {
        let cluster = cluster(program);
        cluster.up();
        cluster.import("busybox");
        cluster.wait(
            "get serviceaccount default -o name",
            "serviceaccount/default",
        );
        let (tasks, told) = mpsc::channel();
        let (figure, figures) = mpsc::channel();
        let host = cluster.host.pid();
        let root = cluster.root.path().to_owned();
        thread::spawn(move || {
            throughput::enter(format!("/proc/{host}/ns/net").as_ref());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let pods = runtime.block_on(pods::client(&root));
            let pods: Api<Pod> = Api::namespaced(pods, "default");
            let mut ends = None;
            for (number, task) in told.iter().enumerate() {
                let done = match task {
                    Task::Pod => {
                        let name = format!("one-{number}");
                        let took = runtime.block_on(pods::start(&pods, &name));
                        took.as_secs_f64() * 1e3
                    }
                    Task::Throughput => {
                        let ends = ends.get_or_insert_with(|| {
                            let [server, client] = [1, 2].map(|end| format!("{host}000{end}"));
                            runtime.block_on(Ends::start(&pods, [&server, &client]))
                        });
                        ends.round(THROUGHPUT)
                    }
                };
                if figure.send(done).is_err() {
                    return;
                }
            }
        });
        Self {
            cluster,
            tasks,
            figures,
        }
    }

    fn ask(&self, task: Task) -> f64 {
        self.tasks.send(task).unwrap();
        self.figures.recv().unwrap()
    }
}
