//! The store against `kill -9`: a writer process is killed again and again in the middle of its
//! work, and what it was told to be safe must be there afterwards.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use vetch::store::{
    Durability, Expect, Op, Range, Revision, Space, Store, Write, embedded::Embedded,
};

/// Set in the child: the folder to write in.
const FOLDER: &str = "STORE_CRASH_FOLDER";
const ROUNDS: usize = 200;
/// The whole test; a round takes some milliseconds.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn acknowledged_writes_survive_and_revisions_are_not_reused() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        write_until_killed(Path::new(&folder));
    }
    let dir = tempfile::tempdir().expect("a folder");
    let started = Instant::now();
    let mut told = Told::default();
    for round in 0..ROUNDS {
        assert!(started.elapsed() < DEADLINE, "round {round}");
        let mut child = spawn(dir.path());
        let killer = std::thread::spawn({
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
            // Rounds of different length hit opening, writing and compacting.
            let life = Duration::from_millis(15 + (round as u64 * 7) % 60);
            move || {
                std::thread::sleep(life);
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
            }
        });
        let mut broken = None;
        let output = BufReader::new(child.stdout.take().expect("its output"));
        for line in output.lines().map_while(Result::ok) {
            // The last line may be cut.
            if let Some(line) = line.strip_suffix(';') {
                told.hear(line, round);
            } else if line.starts_with("error") {
                broken = Some(line);
            }
        }
        killer.join().expect("killed");
        child.wait().expect("ended");
        assert_eq!(broken, None, "round {round}");
        told.check(dir.path(), round);
    }
    println!(
        "{} acknowledged writes in {ROUNDS} rounds, {:?}",
        told.revisions.len(),
        started.elapsed()
    );
    assert!(told.revisions.len() > ROUNDS, "the child hardly wrote");
}

fn spawn(folder: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "--nocapture"])
        .arg("acknowledged_writes_survive_and_revisions_are_not_reused")
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the writer starts")
}

/// What the killed processes said was written: `key value revision`.
#[derive(Default)]
struct Told {
    revisions: HashSet<Revision>,
    keys: HashMap<String, (u64, Revision)>,
}

impl Told {
    fn hear(&mut self, line: &str, round: usize) {
        // The test harness may have begun the child's first line.
        let Some((_, line)) = line.rsplit_once('>') else {
            return;
        };
        let mut words = line.split(' ');
        let (Some(key), Some(value), Some(revision)) = (words.next(), words.next(), words.next())
        else {
            return;
        };
        let value = value.parse().expect("a number");
        let revision = revision.parse().expect("a number");
        assert!(
            self.revisions.insert(revision),
            "round {round}: revision {revision} was given out twice"
        );
        let last = self.keys.entry(key.to_owned()).or_default();
        if revision > last.1 {
            *last = (value, revision);
        }
    }

    /// Each key has its last acknowledged value, or a later one whose answer was cut off.
    fn check(&self, folder: &Path, round: usize) {
        let store = Embedded::open(folder).expect("opens after a kill");
        let slice = runtime()
            .block_on(store.range(Range::default()))
            .expect("readable");
        let found: HashMap<&str, (u64, Revision)> = slice
            .entries
            .iter()
            .map(|entry| {
                let value = entry.value.bytes();
                let text = std::str::from_utf8(&value).expect("text");
                let number = text.trim_end().parse().expect("a number");
                (&*entry.key, (number, entry.mod_revision))
            })
            .collect();
        for (key, (value, revision)) in &self.keys {
            let (is, at) = found
                .get(key.as_str())
                .unwrap_or_else(|| panic!("round {round}: {key} is lost"));
            assert!(
                at > revision && is > value || at == revision && is == value,
                "round {round}: {key} is {is} at {at}, told {value} at {revision}"
            );
        }
        assert!(slice.revision >= self.revisions.iter().copied().max().unwrap_or(0));
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
}

/// Several writers count up keys of their own and say so when a write is acknowledged.
fn write_until_killed(folder: &Path) -> ! {
    let store = match Embedded::open(folder) {
        Ok(store) => Arc::new(store),
        Err(error) => {
            println!("\nerror {error}");
            std::process::exit(1);
        }
    };
    runtime().block_on(async {
        let writers = (0..8).map(|writer| count_up(store.clone(), writer));
        futures::future::join_all(writers).await;
    });
    std::process::exit(0);
}

async fn count_up(store: Arc<Embedded>, writer: usize) {
    let key: Arc<str> = format!("/k/{writer}").into();
    // Half of them like heartbeats: a kill must not lose those either, only a power cut may.
    let durability = if writer.is_multiple_of(2) {
        Durability::Synced
    } else {
        Durability::Relaxed
    };
    loop {
        let (current, _) = store.get(&key).await.expect("readable");
        let (expect, value) = match &current {
            None => (Expect::Absent, 1),
            Some(entry) => {
                let value = entry.value.bytes();
                let text = std::str::from_utf8(&value).expect("text");
                let last: u64 = text.trim_end().parse().expect("a number");
                (Expect::ModRevision(entry.mod_revision), last + 1)
            }
        };
        let write = Write {
            key: key.clone(),
            expect,
            guards: Vec::new(),
            op: Op::Put {
                value: Bytes::from(format!("{value:<200}")),
                ttl: None,
            },
            durability,
            space: Space::Ordinary,
        };
        let revision = store.commit(write).await.expect("written").revision;
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n>{key} {value} {revision};").expect("told");
        out.flush().expect("told");
        drop(out);
        tokio::task::yield_now().await;
    }
}
