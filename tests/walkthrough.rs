//! The control plane as a person uses it: `vetch up`, then stock kubectl.
//!
//! Each test has a root folder and a port of its own and leaves nothing. `VETCH_TEST_KUBECTL`
//! names kubectl; without it the one on the PATH is used.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(30);

struct Cluster {
    root: tempfile::TempDir,
    port: u16,
}

impl Cluster {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        // Free a moment ago; nobody else picks ports here.
        let port = TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self { root, port }
    }

    fn vetch(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vetch"));
        command.args(arguments).arg("--root").arg(self.root.path());
        command.output().unwrap()
    }

    fn up(&self) {
        let port = self.port.to_string();
        let output = self.vetch(&["up", "--detach", "--port", &port]);
        assert!(output.status.success(), "{}", text(&output));
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        let program = std::env::var_os("VETCH_TEST_KUBECTL").unwrap_or_else(|| "kubectl".into());
        let mut command = Command::new(program);
        command
            .arg("--kubeconfig")
            .arg(self.root.path().join("etc/admin.kubeconfig"));
        command
            .env("HOME", self.root.path())
            .args(arguments)
            .output()
            .unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            text(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn wait(&self, arguments: &[&str], want: &str) {
        let end = Instant::now() + DEADLINE;
        loop {
            let got = text(&self.kubectl(arguments));
            if got.trim() == want {
                return;
            }
            assert!(
                Instant::now() < end,
                "kubectl {arguments:?}: {got:?}, not {want:?}"
            );
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.vetch(&["reset", "--yes"]);
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
#[ignore = "needs root"]
fn objects_through_kubectl() {
    let cluster = Cluster::new();
    cluster.up();
    assert_eq!(cluster.ok(&["get", "--raw", "/readyz"]), "ok\n".trim_end());
    cluster.ok(&["get", "namespaces"]);
    let manifest = cluster.root.path().join("cm.yaml");
    let apply = |value: &str| {
        let yaml = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{k: {value}}}\n"
        );
        std::fs::write(&manifest, yaml).unwrap();
        cluster.ok(&["apply", "-f", manifest.to_str().unwrap()])
    };
    assert!(apply("one").contains("created"));
    assert!(apply("two").contains("configured"));
    assert!(apply("two").contains("unchanged"));
    cluster.ok(&["patch", "configmap", "a", "-p", r#"{"data":{"z":"1"}}"#]);
    cluster.ok(&["label", "configmap", "a", "x=y"]);
    assert_eq!(
        cluster.ok(&[
            "get",
            "configmap",
            "a",
            "-o",
            "jsonpath={.data.k}{.data.z}{.metadata.labels.x}"
        ]),
        "two1y"
    );
    assert!(
        cluster
            .ok(&["explain", "pod.spec.containers"])
            .contains("[]Container")
    );
    // kubectl checks fields against OpenAPI; the server must too.
    let bad = cluster.kubectl(&["create", "--validate=strict", "-f", {
        std::fs::write(
            &manifest,
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\nfoo: 1\n",
        )
        .unwrap();
        manifest.to_str().unwrap()
    }]);
    assert!(
        !bad.status.success() && text(&bad).contains("foo"),
        "{}",
        text(&bad)
    );
    let missing = cluster.kubectl(&["get", "pod", "nope"]);
    assert!(text(&missing).contains(r#"pods "nope" not found"#));
    cluster.ok(&["delete", "configmap", "a"]);
}

#[test]
#[ignore = "needs root"]
fn a_deployment_has_its_replica_sets_and_its_history() {
    let cluster = Cluster::new();
    cluster.up();
    cluster.ok(&[
        "create",
        "deployment",
        "web",
        "--image=nginx",
        "--replicas=2",
    ]);
    let pods = &[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={.items[*].status.phase}",
    ];
    cluster.wait(pods, "Pending Pending");
    cluster.ok(&["scale", "deployment", "web", "--replicas=3"]);
    cluster.wait(pods, "Pending Pending Pending");
    cluster.ok(&["set", "image", "deployment/web", "nginx=nginx:2"]);
    cluster.wait(&["get", "rs", "-o", "jsonpath={range .items[*]}{.metadata.annotations.deployment\\.kubernetes\\.io/revision} {end}", "--sort-by=.metadata.creationTimestamp"], "1 2");
    cluster.ok(&["rollout", "undo", "deployment/web"]);
    cluster.ok(&["delete", "deployment", "web"]);
    cluster.wait(&["get", "rs,pods", "-o", "jsonpath={.items}"], "[]");
    cluster.ok(&["create", "namespace", "n"]);
    cluster.ok(&["create", "configmap", "c", "-n", "n"]);
    cluster.ok(&["delete", "namespace", "n", "--timeout=20s"]);
    assert!(!cluster.kubectl(&["get", "namespace", "n"]).status.success());
}

#[test]
#[ignore = "needs root"]
fn who_may_do_what() {
    let cluster = Cluster::new();
    cluster.up();
    cluster.wait(
        &["get", "serviceaccount", "default", "-o", "name"],
        "serviceaccount/default",
    );
    let token = cluster.ok(&["create", "token", "default"]);
    let server = format!("--server=https://127.0.0.1:{}", cluster.port);
    let as_account = |token: &str| {
        let kubeconfig = cluster.root.path().join("empty");
        std::fs::write(&kubeconfig, "").unwrap();
        let program = std::env::var_os("VETCH_TEST_KUBECTL").unwrap_or_else(|| "kubectl".into());
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(kubeconfig).args([
            &server,
            "--insecure-skip-tls-verify",
            "--token",
            token,
            "get",
            "pods",
        ]);
        text(&command.env("HOME", cluster.root.path()).output().unwrap())
    };
    assert!(
        as_account(token.trim()).contains(
            r#"User "system:serviceaccount:default:default" cannot list resource "pods""#
        )
    );
    cluster.ok(&[
        "create",
        "rolebinding",
        "see",
        "--clusterrole=view",
        "--serviceaccount=default:default",
    ]);
    assert!(as_account(token.trim()).contains("No resources found"));
    assert!(
        as_account("nonsense").contains("Unauthorized")
            || as_account("nonsense").contains("logged in")
    );
}

#[test]
#[ignore = "needs root"]
fn a_killed_daemon_comes_back_with_everything() {
    let cluster = Cluster::new();
    cluster.up();
    cluster.ok(&["create", "configmap", "kept", "--from-literal=k=v"]);
    let pid = std::fs::read_to_string(cluster.root.path().join("run/vetch.lock")).unwrap();
    let pid: i32 = pid.trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    cluster.up();
    assert_eq!(
        cluster.ok(&["get", "configmap", "kept", "-o", "jsonpath={.data.k}"]),
        "v"
    );
}

#[test]
#[ignore = "needs root"]
fn mistakes_get_a_clear_answer() {
    let cluster = Cluster::new();
    let said = |output: Output, want: &str| {
        assert!(!output.status.success());
        assert!(text(&output).contains(want), "{}", text(&output));
    };
    said(
        cluster.vetch(&["kubeconfig"]),
        "start the cluster with `vetch up",
    );
    let taken = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    said(
        cluster.vetch(&["up", "--detach", "--port", &port]),
        &format!("port {port} is taken"),
    );
    cluster.up();
    said(
        cluster.vetch(&["up", "--detach", "--port", "1"]),
        "already running on this root",
    );
    assert!(cluster.vetch(&["down"]).status.success());
    let log = cluster.root.path().join("lib/store/log");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    said(
        cluster.vetch(&["up", "--detach", "--port", &cluster.port.to_string()]),
        "corrupt at byte",
    );
}

#[test]
#[ignore = "needs root"]
fn reset_leaves_nothing() {
    let cluster = Cluster::new();
    let before = picture();
    cluster.up();
    assert!(cluster.vetch(&["reset", "--yes"]).status.success());
    assert_eq!(picture(), before);
    assert!(!Path::new(cluster.root.path()).join("lib").exists());
}

/// Links, mounts and nf_tables of the host.
fn picture() -> Vec<String> {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let links = run("ip", &["-o", "link"])
        .lines()
        .filter_map(|line| line.split(':').nth(1))
        .collect::<Vec<_>>()
        .join(" ");
    let tables = run("nft", &["list", "tables"]);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    vec![links, tables, mounts]
}
