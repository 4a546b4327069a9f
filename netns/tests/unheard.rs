//! Large transactions, which nobody of this process listens to, and what others do meanwhile. As root.

use std::{
    collections::HashSet,
    error::Error,
    process::{Child, Command},
    time::Duration,
};

use netns::{
    Namespace,
    monitor::{Changes, Monitor, Subject, TableKey},
    nft::{Batch, Element, Family, Set, SetKind, Socket, Table, Type, Value},
};

type TestResult<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const ROUNDS: usize = 30;

/// In a namespace of its own.
fn alone(test: impl AsyncFnOnce() -> TestResult + Send) -> TestResult {
    Namespace::create()?.run(|| -> TestResult {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(test())
    })?
}

/// The table anew, with so many elements.
fn large(table: &Table, elements: u32) -> Batch {
    let mut batch = Batch::new();
    let element = |number: u32| Element {
        key: number.to_be_bytes().to_vec(),
        value: Value::None,
    };
    batch
        .remove_table(table)
        .add_table(table)
        .add_set(table, &Set::new("all", &[Type::Ipv4], SetKind::Set))
        .add_elements(table, "all", (1..=elements).map(element));
    batch
}

fn table(name: &str) -> Table {
    Table::new(Family::Ip, name)
}

async fn heard(monitor: &mut Monitor) -> TestResult<Option<Changes>> {
    let quiet = Duration::from_millis(300);
    match tokio::time::timeout(quiet, monitor.changes()).await {
        Ok(changes) => Ok(Some(changes?)),
        Err(_) => Ok(None),
    }
}

#[test]
#[ignore = "needs root"]
fn a_large_transaction_is_not_heard_and_others_are() -> TestResult {
    alone(async || {
        let mut socket = Socket::open()?;
        // Neither is its own.
        let mut monitors = [
            Monitor::open(0, Subject::default())?,
            Monitor::open(0, Subject::default())?,
        ];
        socket.commit(large(&table("large"), 50_000))?;
        let mut fails = large(&table("large"), 50_000);
        fails.delete_table(&table("absent"));
        assert!(socket.commit(fails).is_err());
        for monitor in &mut monitors {
            assert_eq!(heard(monitor).await?, None);
        }
        let mut small = Batch::new();
        small.add_table(&table("small"));
        socket.commit(small)?;
        for monitor in &mut monitors {
            let changes = heard(monitor).await?.ok_or("the small one is not heard")?;
            assert_eq!(changes.tables, HashSet::from([table("small").key()]));
            assert!(!changes.overrun);
        }
        Ok(())
    })
}

/// Adds tables as fast as they can, until this is dropped.
struct Others(Child);

impl Others {
    fn start() -> TestResult<Self> {
        let script = "i=0; while nft add table ip other-$i; do i=$((i+1)); done";
        Ok(Self(Command::new("sh").args(["-c", script]).spawn()?))
    }

    /// All tables that there are now: it cannot list them as long as they change all the time.
    fn listed(&self) -> TestResult<HashSet<TableKey>> {
        self.signal("STOP")?;
        let listed = listed();
        self.signal("CONT")?;
        listed
    }

    fn signal(&self, signal: &str) -> TestResult {
        let process = self.0.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", signal, &process])
            .status()?;
        assert!(sent.success());
        Ok(())
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listed() -> TestResult<HashSet<TableKey>> {
    let listed = Command::new("nft").args(["list", "tables"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let names = listed
        .lines()
        .filter_map(|line| line.strip_prefix("table ip "));
    Ok(names.map(|name| table(name).key()).collect())
}

#[test]
#[ignore = "needs root"]
fn what_others_change_meanwhile_is_noticed() -> TestResult {
    alone(async || {
        let mut socket = Socket::open()?;
        let mut monitor = Monitor::open(socket.port()?, Subject::default())?;
        let large_one = table("large");
        let mut known = HashSet::from([large_one.key()]);
        let mut missed = 0;
        let others = Others::start()?;
        let mut take = |changes: Changes| -> TestResult {
            known.extend(changes.tables);
            if changes.overrun {
                missed += 1;
                known.extend(others.listed()?);
            }
            Ok(())
        };
        for _ in 0..ROUNDS {
            socket.commit(large(&large_one, 20_000))?;
            let soon = Duration::from_millis(40);
            if let Ok(changes) = tokio::time::timeout(soon, monitor.changes()).await {
                take(changes?)?;
            }
        }
        others.signal("STOP")?;
        while let Some(changes) = heard(&mut monitor).await? {
            take(changes)?;
        }
        drop(others);
        let there = listed()?;
        let unknown: Vec<_> = there.difference(&known).collect();
        assert!(unknown.is_empty(), "{unknown:?} of {}", there.len());
        assert!(there.len() > ROUNDS, "others have hardly done anything");
        // It was disturbed, and after that it was listened to.
        assert!((1..=ROUNDS / 2 + 1).contains(&missed), "{missed}");
        Ok(())
    })
}
