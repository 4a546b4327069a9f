//! The embedded store. Unit: commits per second, with 1 to 1000 writers at once, on the disk that
//! holds the folder named by `BENCH_DIR` (else the temporary one). `cargo bench --bench store`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use vetch::store::{Durability, Expect, Op, Revision, Space, Store, Write, embedded::Embedded};

const VALUE: usize = 1024;
const LASTS: Duration = Duration::from_secs(2);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for durability in [Durability::Synced, Durability::Relaxed] {
        for writers in [1, 16, 64, 1000] {
            let dir = match std::env::var_os("BENCH_DIR") {
                Some(dir) => tempfile::tempdir_in(dir),
                None => tempfile::tempdir(),
            }
            .expect("a folder");
            let store = Arc::new(Embedded::open(dir.path()).expect("opens"));
            let started = Instant::now();
            let commits = runtime.block_on(write(&store, writers, durability));
            let seconds = started.elapsed().as_secs_f64();
            println!(
                "store/commit {durability:?} writers={writers:<4} {:>9.0} commits/s",
                commits as f64 / seconds
            );
        }
    }
    fan_out(&runtime);
}

async fn write(store: &Arc<Embedded>, writers: usize, durability: Durability) -> u64 {
    let until = Instant::now() + LASTS;
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let key: Arc<str> = format!("/registry/bench/{writer}").into();
                let value = Bytes::from(vec![b'x'; VALUE]);
                let mut last = None;
                let mut count = 0;
                while Instant::now() < until {
                    last = Some(put(&store, &key, &value, last, durability).await);
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut commits = 0;
    for task in tasks {
        commits += task.await.expect("a writer ends");
    }
    commits
}

async fn put(
    store: &Embedded,
    key: &Arc<str>,
    value: &Bytes,
    last: Option<Revision>,
    durability: Durability,
) -> Revision {
    let write = Write {
        key: key.clone(),
        expect: last.map_or(Expect::Absent, Expect::ModRevision),
        guards: Vec::new(),
        op: Op::Put {
            value: value.clone(),
            ttl: None,
        },
        durability,
        space: Space::Ordinary,
    };
    store.commit(write).await.expect("committed").revision
}

/// One write seen by every watcher. Unit: events delivered per second.
fn fan_out(runtime: &tokio::runtime::Runtime) {
    const EVENTS: usize = 200;
    for watchers in [1, 100, 5_000] {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Embedded::open(dir.path()).expect("opens"));
        let seconds = runtime.block_on(async {
            let mut tasks = Vec::new();
            for _ in 0..watchers {
                let mut watch = store.watch("/registry/", 0).await.expect("watches");
                tasks.push(tokio::spawn(async move {
                    let mut seen = 0;
                    while seen < EVENTS {
                        seen += watch.recv().await.expect("keeps up").len();
                    }
                }));
            }
            let started = Instant::now();
            let key: Arc<str> = "/registry/bench/fan-out".into();
            let value = Bytes::from(vec![b'x'; VALUE]);
            let mut last = None;
            for _ in 0..EVENTS {
                last = Some(put(&store, &key, &value, last, Durability::Relaxed).await);
            }
            for task in tasks {
                task.await.expect("a watcher ends");
            }
            started.elapsed().as_secs_f64()
        });
        println!(
            "store/fan_out watchers={watchers:<5} {:>9.0} events/s",
            (watchers * EVENTS) as f64 / seconds
        );
    }
}
