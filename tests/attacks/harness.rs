//! What the attacks share: a tenant, and a watch on the cluster's health.
#![allow(dead_code, reason = "each kind of attack uses its own part")]

use std::{
    process::{Child, Output, Stdio},
    time::{Duration, Instant},
};

use crate::{
    lab::{Cluster, is_unoptimised, patiently, text},
    pod::script,
};

/// `/readyz` must answer within this, always. An unoptimised daemon is several times as slow as one that
/// people use.
fn ready_within() -> Duration {
    patiently(Duration::from_secs(if is_unoptimised() { 3 } else { 1 }))
}
/// The daemon must stay below this.
pub const DAEMON_MEMORY: u64 = 300 << 20;

/// A service account with the role `edit` in a namespace of its own, and nothing else.
pub struct Tenant<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
    token: String,
}

impl<'a> Tenant<'a> {
    pub fn new(cluster: &'a Cluster, namespace: &str) -> Self {
        cluster.ok(&format!("create namespace {namespace}"));
        cluster.ok(&format!("create serviceaccount tenant -n {namespace}"));
        cluster.ok(&format!(
            "create rolebinding tenant --clusterrole=edit --serviceaccount={namespace}:tenant -n {namespace}"
        ));
        let token = cluster.ok(&format!("create token tenant -n {namespace} --duration=2h"));
        Self {
            cluster,
            namespace: namespace.to_owned(),
            token: token.trim().to_owned(),
        }
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// kubectl as the tenant, in its namespace; words separated by blanks.
    pub fn kubectl(&self, line: &str) -> Output {
        self.kubectl_with(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// As [`Tenant::kubectl`]. The administrator's certificate is not sent: a token would not count
    /// beside it.
    pub fn kubectl_with(&self, arguments: &[&str]) -> Output {
        let mut command = self.cluster.host.command(&self.cluster.kubectl);
        command
            .env("HOME", self.cluster.root.path())
            .env("KUBECONFIG", "/dev/null")
            .arg("--server=https://127.0.0.1:6443")
            .arg("--insecure-skip-tls-verify")
            .arg(format!("--token={}", self.token))
            .arg(format!("--namespace={}", self.namespace))
            .args(arguments);
        command.output().unwrap()
    }

    /// Applies a manifest as the tenant.
    pub fn apply(&self, manifest: &str) -> Output {
        let file = self
            .cluster
            .root
            .path()
            .join(format!("{}.yaml", self.namespace));
        std::fs::write(&file, manifest).unwrap();
        self.kubectl(&format!("apply -f {}", file.display()))
    }

    /// Applies a manifest, which must be accepted.
    pub fn create(&self, manifest: &str) {
        let output = self.apply(manifest);
        assert!(output.status.success(), "{}", text(&output));
    }
}

/// Asks `/readyz` all the time from the moment it is made, and says at its end whether the cluster
/// stayed healthy.
pub struct Health<'a> {
    cluster: &'a Cluster,
    asking: Child,
}

impl<'a> Health<'a> {
    pub fn watch(cluster: &'a Cluster) -> Self {
        // One line of seconds and status for each answer.
        let script = "while :; do curl -sk -o /dev/null -m 10 \
             -w '%{time_total} %{http_code}\\n' https://127.0.0.1:6443/readyz; sleep 0.05; done";
        let asking = cluster
            .host
            .command("sh")
            .args(["-c", script])
            .stdout(Stdio::from(
                std::fs::File::create(cluster.root.path().join("readyz")).unwrap(),
            ))
            .spawn()
            .unwrap();
        Self { cluster, asking }
    }

    /// Every answer was "ready" and in time, and the daemon is small.
    pub fn assert(self) {
        self.assert_below(DAEMON_MEMORY);
    }

    /// As [`Health::assert`], where the daemon may hold more than it should one day.
    pub fn assert_below(mut self, most: u64) {
        self.stop();
        let answers = std::fs::read_to_string(self.cluster.root.path().join("readyz")).unwrap();
        assert!(!answers.is_empty(), "/readyz was never asked");
        for answer in answers.lines() {
            let (seconds, code) = answer.split_once(' ').unwrap();
            assert_eq!(code, "200", "/readyz after {seconds} s");
            let took = Duration::from_secs_f64(seconds.parse().unwrap());
            assert!(took < ready_within(), "/readyz took {took:?}");
        }
        let memory = daemon_memory(self.cluster);
        println!("the daemon held {memory} bytes at most");
        assert!(memory < most, "the daemon holds {memory} bytes");
    }

    fn stop(&mut self) {
        let _ = self.asking.kill();
        let _ = self.asking.wait();
    }
}

impl Drop for Health<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The most that the daemon ever held in memory (`VmHWM`), in bytes.
pub fn daemon_memory(cluster: &Cluster) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.daemon())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}

/// The cluster still works after an attack: it restarts, answers, and runs a new pod.
pub fn assert_restarts(cluster: &Cluster) {
    let begun = Instant::now();
    let down = cluster.vetch(&["down"]);
    assert!(down.status.success(), "{}", text(&down));
    cluster.up();
    assert!(begun.elapsed() < Duration::from_secs(30), "a slow restart");
    cluster.ok("get --raw /readyz");
}

/// Another tenant that creates and lists all the time, and says at its end how long it took.
pub struct Neighbour<'a> {
    tenant: Tenant<'a>,
    working: Child,
}

impl<'a> Neighbour<'a> {
    /// 99 of 100 of its requests must be answered within this. An unoptimised daemon on a busy
    /// machine is several times as slow as one that people use.
    fn p99() -> Duration {
        Duration::from_millis(if is_unoptimised() { 1000 } else { 200 })
    }

    pub fn works(cluster: &'a Cluster, namespace: &str) -> Self {
        let tenant = Tenant::new(cluster, namespace);
        let answers = std::fs::File::create(cluster.root.path().join(namespace)).unwrap();
        let working = cluster
            .host
            .command("python3")
            .arg(script("neighbour.py"))
            .arg(namespace)
            .env("TOKEN", tenant.token())
            .stdout(Stdio::from(answers))
            .spawn()
            .unwrap();
        Self { tenant, working }
    }

    /// Everything it asked for was done, and in time.
    pub fn assert(mut self) {
        self.stop();
        let root = self.tenant.cluster.root.path();
        let answers = std::fs::read_to_string(root.join(&self.tenant.namespace)).unwrap();
        let mut times: Vec<f64> = Vec::new();
        for answer in answers.lines() {
            let (seconds, code) = answer.split_once(' ').unwrap();
            assert!(matches!(code, "200" | "201"), "{code} after {seconds} s");
            times.push(seconds.parse().unwrap());
        }
        assert!(times.len() > 10, "the neighbour did almost nothing");
        times.sort_by(f64::total_cmp);
        let p99 = Duration::from_secs_f64(times[times.len() * 99 / 100]);
        let slowest = &times[times.len().saturating_sub(8)..];
        println!(
            "a neighbour's p99: {p99:?} of {}; slowest: {slowest:.3?}",
            times.len()
        );
        assert!(p99 < Self::p99(), "p99 {p99:?} of {}", times.len());
    }

    fn stop(&mut self) {
        let _ = self.working.kill();
        let _ = self.working.wait();
    }
}

impl Drop for Neighbour<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}
