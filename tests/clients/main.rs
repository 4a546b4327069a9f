//! Programs that others wrote, unchanged, against a whole cluster: what people build on a cluster and
//! install into it must find what they know.

mod helm;
mod kube_rs;
#[path = "../lab/mod.rs"]
mod lab;
mod python;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A file of this folder.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

/// Where the client lies that `tests/clients/install` knows by this name.
fn installed(client: &str) -> PathBuf {
    let output = Command::new(file("install")).arg(client).output().unwrap();
    assert!(output.status.success(), "{}", lab::text(&output));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// How long objects come, change and go: `VETCH_TEST_CHURN_S`, by itself a few seconds.
fn churn() -> Duration {
    let seconds = std::env::var("VETCH_TEST_CHURN_S");
    Duration::from_secs(seconds.map_or(4, |seconds| seconds.parse().unwrap()))
}
