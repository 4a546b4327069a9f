//! libFuzzer's entry: one binary for all targets; `VETCH_FUZZ_TARGET` names the one to run.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("VETCH_FUZZ_TARGET").unwrap_or_default();
    let known = targets::ALL.iter().find(|(known, _)| *known == name);
    known.expect("VETCH_FUZZ_TARGET must name a target").1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (*TARGET)(data));
