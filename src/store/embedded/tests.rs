//! The engine against a plain map, and over restarts.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::store::{Durability, Expect, Guard, Op, Space};

fn write(key: &str, expect: Expect, value: Option<&str>) -> Write {
    let op = match value {
        Some(value) => Op::Put {
            value: value.to_owned().into(),
            ttl: None,
        },
        None => Op::Delete,
    };
    Write {
        key: key.into(),
        expect,
        guards: Vec::new(),
        op,
        durability: Durability::Synced,
        space: Space::Ordinary,
    }
}

async fn put(store: &Embedded, key: &str, value: &str) -> Revision {
    let expect = match store.get(key).await.unwrap().0 {
        Some(entry) => Expect::ModRevision(entry.mod_revision),
        None => Expect::Absent,
    };
    store
        .commit(write(key, expect, Some(value)))
        .await
        .unwrap()
        .revision
}

async fn dump(store: &Embedded, at: Option<Revision>) -> BTreeMap<String, String> {
    let slice = store
        .range(Range {
            at,
            ..Range::default()
        })
        .await
        .unwrap();
    let text = |entry: &Entry| String::from_utf8(entry.value.bytes().to_vec()).unwrap();
    slice
        .entries
        .iter()
        .map(|entry| (entry.key.to_string(), text(entry)))
        .collect()
}

#[tokio::test]
async fn a_write_needs_what_it_depends_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(dir.path()).unwrap());
    let first = put(&store, "home", "open").await;
    let second = put(&store, "home", "closed").await;
    let guard = |key: &str, expect| Guard {
        key: key.into(),
        expect,
    };
    let as_of = |revision| guard("home", Expect::ModRevision(revision));
    for (name, guards, want) in [
        ("old", vec![as_of(first)], Err("home")),
        ("now", vec![as_of(second)], Ok(())),
        (
            "free",
            vec![as_of(second), guard("lock", Expect::Absent)],
            Ok(()),
        ),
        (
            "taken",
            vec![as_of(second), guard("home", Expect::Absent)],
            Err("home"),
        ),
        (
            "missing",
            vec![guard("lock", Expect::ModRevision(1))],
            Err("lock"),
        ),
    ] {
        let mut write = write(name, Expect::Absent, Some("x"));
        write.guards = guards;
        let got = match store.commit(write).await {
            Ok(_) => Ok(()),
            Err(Error::Guarded { key }) => Err(key),
            Err(other) => panic!("{name}: {other}"),
        };
        assert_eq!(
            got.as_ref().map_err(|key| &**key),
            want.as_ref().map_err(|key| *key),
            "{name}"
        );
        assert_eq!(
            store.get(name).await.unwrap().0.is_some(),
            want.is_ok(),
            "{name}"
        );
    }
    // Also against what came before in the same batch: one of two that depend on each other's
    // absence is refused.
    let cross = |own: &str, other: &str| {
        let mut write = write(own, Expect::Absent, Some("x"));
        write.guards = vec![guard(other, Expect::Absent)];
        let store = store.clone();
        async move { store.commit(write).await.is_ok() }
    };
    let (a, b) = tokio::join!(cross("a", "b"), cross("b", "a"));
    assert_eq!((a, b), (true, false));
}

#[tokio::test]
async fn a_value_is_no_larger_than_it_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let value = "x".repeat(MAX_VALUE_BYTES + 1);
    let put = |value: &str| store.commit(write("a", Expect::Absent, Some(value)));
    let refused = put(&value).await;
    assert!(
        matches!(refused, Err(Error::TooLarge { limit, .. }) if limit == MAX_VALUE_BYTES),
        "{refused:?}"
    );
    assert!(store.get("a").await.unwrap().0.is_none());
    put(&value[1..]).await.unwrap();
}

#[tokio::test]
async fn a_write_needs_what_it_expects() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let first = store
        .commit(write("a", Expect::Absent, Some("1")))
        .await
        .unwrap()
        .revision;
    let again = store.commit(write("a", Expect::Absent, Some("2"))).await;
    assert!(
        matches!(again, Err(Error::Conflict { current: Some(entry) }) if entry.mod_revision == first)
    );
    let stale = store
        .commit(write("a", Expect::ModRevision(first + 9), None))
        .await;
    assert!(matches!(stale, Err(Error::Conflict { .. })));
    store
        .commit(write("a", Expect::ModRevision(first), None))
        .await
        .unwrap();
    let gone = store
        .commit(write("a", Expect::ModRevision(first), None))
        .await;
    assert!(matches!(gone, Err(Error::Conflict { current: None })));
}

#[tokio::test]
async fn pages_of_one_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    for key in ["p/a", "p/b", "p/c", "q/d"] {
        put(&store, key, "1").await;
    }
    let range = |after: &str, at| Range {
        prefix: "p/".into(),
        after: after.into(),
        limit: 2,
        at,
    };
    let first = store.range(range("", None)).await.unwrap();
    assert_eq!((first.entries.len(), first.remaining), (2, 1));
    // Changes between the pages must not show.
    put(&store, "p/c", "2").await;
    put(&store, "p/bb", "new").await;
    let second = store
        .range(range("p/b", Some(first.revision)))
        .await
        .unwrap();
    assert_eq!(second.entries.len(), 1);
    assert_eq!(&second.entries[0].value.bytes()[..], b"1");
}

#[tokio::test]
async fn watchers_see_every_change_once_or_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let start = store.revision();
    let mut watcher = store.watch("p/", start).await.unwrap();
    let mut slow = store.watch("p/", start).await.unwrap();
    let mut revisions = Vec::new();
    for round in 0..3 {
        revisions.push(put(&store, "p/a", &round.to_string()).await);
        put(&store, "q/other", &round.to_string()).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(watcher.recv().await.unwrap().iter().map(Event::revision));
    }
    assert_eq!(seen, revisions);
    store.compact(revisions[1]).await.unwrap();
    assert!(matches!(slow.recv().await, Err(Error::Compacted { .. })));
    assert!(matches!(
        store.watch("p/", start).await,
        Err(Error::Compacted { .. })
    ));
    let late = store
        .range(Range {
            at: Some(start),
            ..Range::default()
        })
        .await;
    assert!(matches!(late, Err(Error::Compacted { .. })));
}

#[tokio::test]
async fn an_entry_with_a_lifetime_ends_with_an_event() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let op = Op::Put {
        value: "v".into(),
        ttl: Some(Duration::from_secs(1)),
    };
    let write = Write {
        key: "e".into(),
        expect: Expect::Absent,
        guards: Vec::new(),
        op,
        durability: Durability::Relaxed,
        space: Space::Ordinary,
    };
    let revision = store.commit(write).await.unwrap().revision;
    let mut watcher = store.watch("e", revision).await.unwrap();
    let events = tokio::time::timeout(Duration::from_secs(10), watcher.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(
        matches!(events.as_slice(), [Event::Delete { .. }]),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_second_process_and_a_damaged_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    assert!(matches!(Embedded::open(dir.path()), Err(Error::Io { .. })));
    for round in 0..5 {
        put(&store, "a", &round.to_string()).await;
    }
    drop(store);
    let path = dir.path().join("log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Embedded::open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Corrupt { offset: 8, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_log_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let value = "x".repeat(100_000);
    for _ in 0..200 {
        put(&store, "a", &value).await;
    }
    let length = std::fs::metadata(dir.path().join("log")).unwrap().len();
    assert!(length < 6 << 20, "{length} bytes for one entry of 100 kB");
    drop(store);
    let store = Embedded::open(dir.path()).unwrap();
    assert_eq!(dump(&store, None).await["a"].len(), value.len());
}

#[tokio::test]
async fn records_are_written_into_room_made_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let length = || std::fs::metadata(&path).unwrap().len();
    let store = Embedded::open(dir.path()).unwrap();
    put(&store, "a", "1").await;
    let room = length();
    put(&store, "b", "2").await;
    assert_eq!(length(), room);
    drop(store);
    let store = Embedded::open(dir.path()).unwrap();
    put(&store, "c", "3").await;
    assert_eq!(length(), room, "the room outlives a restart");
    drop(store);

    // Half a record in the room is cut off, and does not come back under what follows.
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes[end..end + 100].fill(7);
    std::fs::write(&path, bytes).unwrap();
    for value in ["4", "5"] {
        let store = Embedded::open(dir.path()).unwrap();
        put(&store, "d", value).await;
        let expected = [("a", "1"), ("b", "2"), ("c", "3"), ("d", value)];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(dump(&store, None).await, expected.into());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Reopen,
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..8_u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        3 => (0..8_u8).prop_map(Step::Delete),
        1 => Just(Step::Reopen),
        1 => Just(Step::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn behaves_like_a_map(steps in proptest::collection::vec(step(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = Embedded::open(dir.path()).unwrap();
            let mut model: BTreeMap<String, String> = BTreeMap::new();
            let mut past: Vec<(Revision, BTreeMap<String, String>)> = Vec::new();
            let mut highest = store.revision();
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        let (key, value) = (key.to_string(), value.to_string());
                        let revision = put(&store, &key, &value).await;
                        assert!(revision > highest);
                        highest = revision;
                        model.insert(key, value);
                    }
                    Step::Delete(key) => {
                        let key = key.to_string();
                        let current = store.get(&key).await.unwrap().0;
                        assert_eq!(current.is_some(), model.remove(&key).is_some());
                        if let Some(entry) = current {
                            highest = store.commit(write(&key, Expect::ModRevision(entry.mod_revision), None)).await.unwrap().revision;
                        }
                    }
                    Step::Reopen => {
                        drop(store);
                        store = Embedded::open(dir.path()).unwrap();
                        assert!(store.revision() >= highest);
                        highest = store.revision();
                        past.clear();
                    }
                    Step::Compact => {
                        store.compact(highest).await.unwrap();
                        past.clear();
                    }
                }
                past.push((store.revision(), model.clone()));
                assert_eq!(dump(&store, None).await, model);
            }
            for (revision, then) in past {
                assert_eq!(dump(&store, Some(revision)).await, then, "at {revision}");
            }
        });
    }
}
