//! Replays what fuzzing once found, and small changes of it, on every run of the tests.

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// Changed copies of each seed.
const CHANGED: usize = 2_000;
/// Any single input must be dealt with in this time, in a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(10);

/// One small change: of a JSON document where a line is one, of bytes otherwise.
fn changed(seed: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = seed
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..lines.len());
        match serde_json::from_slice::<Value>(&lines[at]) {
            Ok(mut value) if random.random_ratio(9, 10) => {
                change_json(&mut value, random);
                lines[at] = value.to_string().into_bytes();
            }
            _ => change_bytes(&mut lines[at], random),
        }
    }
    lines.join(&b'\n')
}

fn change_bytes(bytes: &mut Vec<u8>, random: &mut StdRng) {
    let at = random.random_range(0..=bytes.len());
    match random.random_range(0..4) {
        0 => bytes.insert(at, random.random()),
        1 if at < bytes.len() => bytes[at] = random.random(),
        2 if at < bytes.len() => {
            bytes.remove(at);
        }
        _ => {
            let from = random.random_range(0..=at);
            let part = bytes[from..at].to_vec();
            bytes.splice(at..at, part);
        }
    }
}

/// Drops, doubles, empties or retypes one value somewhere in the document.
fn change_json(value: &mut Value, random: &mut StdRng) {
    let inner = match value {
        Value::Array(list) if !list.is_empty() => {
            let at = random.random_range(0..list.len());
            match random.random_range(0..6) {
                0 => return drop(list.remove(at)),
                1 => return list.push(list[at].clone()),
                2 => return list.swap(0, at),
                _ => list.get_mut(at),
            }
        }
        Value::Object(map) if !map.is_empty() => {
            let at = random.random_range(0..map.len());
            let name = map.keys().nth(at).cloned().unwrap_or_default();
            match random.random_range(0..8) {
                0 => return drop(map.remove(&name)),
                1 => {
                    let taken = map.remove(&name).unwrap_or_default();
                    map.insert(format!("{name}x"), taken);
                    return;
                }
                _ => map.get_mut(&name),
            }
        }
        _ => None,
    };
    match inner {
        Some(inner) if random.random_ratio(7, 8) => change_json(inner, random),
        _ => {
            *value = match random.random_range(0..6) {
                0 => Value::Null,
                1 => json!({}),
                2 => json!([]),
                3 => json!(-1),
                4 => json!([value.clone(), value.clone()]),
                _ => json!("x"),
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn seeds_and_their_neighbours_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
    for (name, target) in targets::ALL {
        let seeds: Vec<_> = fs::read_dir(folder.join(name))
            .unwrap_or_else(|error| panic!("tests/fuzz/seeds/{name}: {error}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(!seeds.is_empty(), "{name} has no seed");
        for path in seeds {
            let seed = fs::read(&path).unwrap();
            let mut random = StdRng::seed_from_u64(1);
            let inputs = (0..CHANGED).map(|_| changed(&seed, &mut random));
            for input in [seed.clone()].into_iter().chain(inputs) {
                let begun = Instant::now();
                target(&input);
                let took = begun.elapsed();
                assert!(took < WITHIN, "{}: {took:?}", path.display());
            }
        }
    }
}
