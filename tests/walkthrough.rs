//! The control plane as a person uses it: `vetch up`, then stock kubectl.

mod lab;

use std::process::Output;

use lab::{Cluster, text};

/// What was applied by the client goes on being applied by the server, without a conflict.
#[test]
#[ignore = "needs root"]
fn kubectl_moves_from_client_side_apply() {
    let cluster = Cluster::started();
    let manifest = cluster.root.path().join("web.yaml");
    let manifest = manifest.to_str().unwrap();
    let write = |replicas: u32| {
        let yaml = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec: {{containers: [{{name: c, image: nothing.invalid/x, imagePullPolicy: Never}}]}}\n"
        );
        std::fs::write(manifest, yaml).unwrap();
    };
    let owners = || {
        let path = "{range .metadata.managedFields[*]}{.manager} {.operation} {.subresource};{end}";
        let path = format!("jsonpath={path}");
        cluster.ok_with(&[
            "get",
            "deployment",
            "web",
            "--show-managed-fields",
            "-o",
            &path,
        ])
    };
    write(0);
    cluster.ok_with(&["apply", "-f", manifest]);
    assert!(
        owners().contains("kubectl-client-side-apply Update ;"),
        "{}",
        owners()
    );
    write(1);
    cluster.ok_with(&["apply", "--server-side", "-f", manifest]);
    let after = owners();
    assert!(after.starts_with("kubectl Apply ;"), "{after}");
    assert!(!after.contains("kubectl-client-side-apply"), "{after}");
    // Another's change is a conflict from then on.
    cluster.ok("scale deployment web --replicas=2");
    let refused = cluster.kubectl_with(&["apply", "--server-side", "-f", manifest]);
    assert!(!refused.status.success());
    let said = text(&refused);
    assert!(
        said.contains(
            "conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas"
        ),
        "{said}"
    );
    cluster.ok_with(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        manifest,
    ]);
    assert!(!owners().contains("scale"), "{}", owners());
    // And back.
    write(0);
    cluster.ok_with(&["apply", "-f", manifest]);
    let replicas = cluster.ok("get deployment web -o jsonpath={.spec.replicas}");
    assert_eq!(replicas, "0");
    assert!(cluster.ok("get componentstatuses").contains("Healthy"));
}

#[test]
#[ignore = "needs root"]
fn objects_through_kubectl() {
    let cluster = Cluster::started();
    assert_eq!(
        cluster.ok_with(&["get", "--raw", "/readyz"]),
        "ok\n".trim_end()
    );
    cluster.ok_with(&["get", "namespaces"]);
    let manifest = cluster.root.path().join("cm.yaml");
    let apply = |value: &str| {
        let yaml = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{k: {value}}}\n"
        );
        std::fs::write(&manifest, yaml).unwrap();
        cluster.ok_with(&["apply", "-f", manifest.to_str().unwrap()])
    };
    assert!(apply("one").contains("created"));
    assert!(apply("two").contains("configured"));
    assert!(apply("two").contains("unchanged"));
    cluster.ok_with(&["patch", "configmap", "a", "-p", r#"{"data":{"z":"1"}}"#]);
    cluster.ok_with(&["label", "configmap", "a", "x=y"]);
    assert_eq!(
        cluster.ok_with(&[
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
            .ok("explain pod.spec.containers")
            .contains("[]Container")
    );
    // kubectl checks fields against OpenAPI; the server must too.
    let bad = cluster.kubectl_with(&["create", "--validate=strict", "-f", {
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
    let missing = cluster.kubectl_with(&["get", "pod", "nope"]);
    assert!(text(&missing).contains(r#"pods "nope" not found"#));
    cluster.ok_with(&["delete", "configmap", "a"]);
}

#[test]
#[ignore = "needs root"]
fn a_deployment_has_its_replica_sets_and_its_history() {
    let cluster = Cluster::started();
    cluster.ok_with(&[
        "create",
        "deployment",
        "web",
        "--image=nginx",
        "--replicas=2",
    ]);
    let pods = "get pods -l app=web -o jsonpath={.items[*].status.phase}";
    cluster.wait(pods, "Pending Pending");
    cluster.ok_with(&["scale", "deployment", "web", "--replicas=3"]);
    cluster.wait(pods, "Pending Pending Pending");
    cluster.ok_with(&["set", "image", "deployment/web", "nginx=nginx:2"]);
    let revision = r"{.items[*].metadata.annotations.deployment\.kubernetes\.io/revision}";
    let line = format!("get rs -o jsonpath={revision} --sort-by=.metadata.creationTimestamp");
    cluster.wait(&line, "1 2");
    cluster.ok_with(&["rollout", "undo", "deployment/web"]);
    cluster.ok_with(&["delete", "deployment", "web"]);
    cluster.wait("get rs,pods -o jsonpath={.items}", "[]");
    cluster.ok_with(&["create", "namespace", "n"]);
    cluster.ok_with(&["create", "configmap", "c", "-n", "n"]);
    cluster.ok_with(&["delete", "namespace", "n", "--timeout=20s"]);
    assert!(
        !cluster
            .kubectl_with(&["get", "namespace", "n"])
            .status
            .success()
    );
}

#[test]
#[ignore = "needs root"]
fn who_may_do_what() {
    let cluster = Cluster::started();
    cluster.wait(
        "get serviceaccount default -o name",
        "serviceaccount/default",
    );
    let token = cluster.ok_with(&["create", "token", "default"]);
    let server = "--server=https://127.0.0.1:6443";
    let as_account = |token: &str| {
        let kubeconfig = cluster.root.path().join("empty");
        std::fs::write(&kubeconfig, "").unwrap();
        let mut command = cluster.kubectl_command();
        command.arg("--kubeconfig").arg(kubeconfig).args([
            server,
            "--insecure-skip-tls-verify",
            "--token",
            token,
            "get",
            "pods",
        ]);
        text(&command.output().unwrap())
    };
    assert!(
        as_account(token.trim()).contains(
            r#"User "system:serviceaccount:default:default" cannot list resource "pods""#
        )
    );
    cluster.ok_with(&[
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
    let cluster = Cluster::started();
    cluster.ok_with(&["create", "configmap", "kept", "--from-literal=k=v"]);
    cluster.kill_daemon();
    cluster.up();
    assert_eq!(
        cluster.ok_with(&["get", "configmap", "kept", "-o", "jsonpath={.data.k}"]),
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
    let mut taken = cluster
        .host
        .command("busybox")
        .args(["nc", "-l", "-p", "7000"])
        .spawn()
        .unwrap();
    lab::until("the port is taken", || {
        cluster.host.sh("ss -Hltn 'sport = 7000'").contains("7000")
    });
    said(
        cluster.vetch(&["up", "--detach", "--port", "7000"]),
        "port 7000 is taken",
    );
    taken.kill().unwrap();
    taken.wait().unwrap();
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
    said(cluster.vetch(&["up", "--detach"]), "corrupt at byte");
}
