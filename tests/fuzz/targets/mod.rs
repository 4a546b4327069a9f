//! What is fuzzed. Each target takes any bytes and panics where a property does not hold; running
//! out of time or memory is found by the runner.
//!
//! Shared by `tests/fuzz/run`, which searches, and `tests/fuzz_seeds.rs`, which replays.

mod definitions;
mod expressions;
mod images;
mod patches;
mod requests;

use vetch::apiserver::registry::{Resource, kinds};

pub type Target = fn(&[u8]);

pub const ALL: &[(&str, Target)] = &[
    ("strategic_merge", patches::strategic_merge),
    ("server_side_apply", patches::server_side_apply),
    ("json_patch", patches::json_patch),
    ("expression", expressions::expression),
    ("definition", definitions::definition),
    ("request", requests::request),
    ("selector", requests::selector),
    ("manifest", images::manifest),
    ("layer", images::layer),
];

/// The JSON documents of an input, one a line.
fn documents<const N: usize>(data: &[u8]) -> Option<[&[u8]; N]> {
    let mut parts = data.splitn(N, |byte| *byte == b'\n');
    let mut found = [&[][..]; N];
    for place in &mut found {
        *place = parts.next()?;
    }
    Some(found)
}

fn pods() -> &'static Resource {
    let found = kinds::ALL.iter().find(|row| row.plural == "pods");
    found.expect("pods are served")
}
