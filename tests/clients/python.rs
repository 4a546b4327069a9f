//! The Python client, old and new, and kopf, which writes to objects as it pleases.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Instant,
};

use nix::{sys::signal, unistd::Pid};

use crate::{
    churn, file, installed,
    lab::{Cluster, text},
};

/// Python with the packages of `client`, as the cluster's administrator.
fn python(cluster: &Cluster, client: &str) -> Command {
    let mut command = cluster.host.command("python3");
    command
        .env("PYTHONPATH", installed(client))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HOME", cluster.root.path())
        .env(
            "KUBECONFIG",
            cluster.root.path().join("etc/admin.kubeconfig"),
        );
    command
}

fn all_calls_work(client: &str) {
    let cluster = Cluster::started();
    let output = python(&cluster, client)
        .arg(file("python/objects.py"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
#[ignore = "needs root"]
fn client_29_reads_writes_applies_and_watches() {
    all_calls_work("python-29");
}

#[test]
#[ignore = "needs root"]
fn client_37_reads_writes_applies_and_watches() {
    all_calls_work("python-37");
}

/// An operator that runs until it is dropped or told to stop.
struct Operator {
    process: Child,
    log: PathBuf,
}

impl Operator {
    fn start(cluster: &Cluster) -> Self {
        let log = cluster.root.path().join("operator.log");
        let output = std::fs::File::create(&log).unwrap();
        let process = python(cluster, "python-37")
            .args(["-m", "kopf", "run", "--namespace=default"])
            .args(["--peering=default", "--verbose"])
            .arg(file("python/operator.py"))
            .stdout(Stdio::from(output.try_clone().unwrap()))
            .stderr(output)
            .spawn()
            .unwrap();
        Self { process, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it as an operator's pod is ended; everything that it said.
    fn stop(&mut self) -> String {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        signal::kill(pid, signal::Signal::SIGTERM).unwrap();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
        self.log()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Creation, changes, timers, a daemon, deletion behind a finalizer, events: each leaves its mark in
/// the status, and nothing has to be tried twice.
#[test]
#[ignore = "needs root"]
fn an_operator_of_kopf_handles_an_objects_whole_life() {
    let cluster = Cluster::started();
    cluster.apply(include_str!("python/operator.yaml"));
    cluster.ok("wait --for=condition=Established crd --all --timeout=30s");
    cluster.ok_with(&["apply", "-f", file("python/peering.yaml").to_str().unwrap()]);
    let mut operator = Operator::start(&cluster);

    let end = Instant::now() + churn();
    loop {
        one_life(&cluster);
        if Instant::now() >= end {
            break;
        }
    }

    let log = operator.stop();
    for bad in ["ERROR", "WARNING", "Traceback"] {
        assert!(!log.contains(bad), "{log}");
    }
}

/// A gadget comes, changes and goes.
fn one_life(cluster: &Cluster) {
    cluster.ok_with(&["apply", "-f", file("python/gadget.yaml").to_str().unwrap()]);
    let status = |path: &str| format!("get gadget one -o jsonpath={{.status{path}}}");
    cluster.wait(&status(".created.size"), "1");
    assert_eq!(
        cluster.field("gadget/one", ".metadata.finalizers[*]"),
        "kopf.zalando.org/KopfFinalizerMarker"
    );
    cluster.ok_with(&[
        "patch",
        "gadget",
        "one",
        "--type=merge",
        "-p",
        r#"{"spec":{"size":2}}"#,
    ]);
    cluster.wait(&status(".changed"), r#"["change",["spec","size"],1,2]"#);
    cluster.wait(&status(".daemon"), "running");
    cluster.wait_for(&status(".ticks"), |ticks| {
        ticks.parse::<u32>().is_ok_and(|ticks| ticks >= 3)
    });
    cluster.wait_for("get events -o jsonpath={.items[*].reason}", |reasons| {
        reasons.contains("Created")
    });
    // kubectl waits until the operator has let go.
    cluster.ok("delete gadget one --timeout=30s");
    cluster.wait_for("get configmap farewell -o jsonpath={.data.size}", |size| {
        size == "2"
    });
    cluster.ok("delete configmap farewell");
}
