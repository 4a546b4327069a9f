//! Pods' lives, volumes, images and static manifests on a node.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::lab::{self, Cluster, text, until};

/// Sooner than any back-off, slower than any machine that runs tests.
const AT_ONCE: Duration = Duration::from_secs(6);

fn cluster() -> Cluster {
    let cluster = Cluster::started();
    cluster.import("busybox");
    cluster
}

fn node(cluster: &Cluster) -> String {
    let name = cluster.ok("get nodes -o jsonpath={.items[0].metadata.name}");
    name.trim().to_owned()
}

/// Static pods that write down when they start and when they are told to stop, which takes a second.
struct Manifests<'a> {
    cluster: &'a Cluster,
    log: PathBuf,
}

impl<'a> Manifests<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let folder = cluster.root.path().join("out");
        std::fs::create_dir(&folder).unwrap();
        let log = folder.join("said");
        Self { cluster, log }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.path("etc/manifests").join(name)
    }

    fn manifest(&self, namespace: &str, name: &str, word: &str) -> String {
        let (out, log) = (self.log.parent().unwrap().display(), self.log.display());
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{{name: out, hostPath: {{path: {out}}}}}]
  containers:
  - name: c
    image: busybox:1
    imagePullPolicy: Never
    volumeMounts: [{{name: out, mountPath: {out}}}]
    command: [sh, -c, "trap 'sleep 1; echo {word} ended >> {log}; exit 0' TERM; echo {word} began >> {log}; while :; do sleep 0.1; done"]
"#
        )
    }

    fn put(&self, name: &str, word: &str) {
        self.put_in("default", name, word);
    }

    /// In one step, as an editor does.
    fn put_in(&self, namespace: &str, name: &str, word: &str) {
        let aside = self.cluster.path("etc").join("aside.yaml");
        std::fs::write(&aside, self.manifest(namespace, name, word)).unwrap();
        std::fs::rename(aside, self.file(&format!("{name}.yaml"))).unwrap();
    }

    fn said(&self) -> Vec<String> {
        let path = self.cluster.path("out/said");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn wait(&self, want: &[&str]) {
        until(&format!("{want:?} was said"), || {
            self.said().len() >= want.len()
        });
        assert_eq!(self.said(), want);
    }

    fn forget(&self) {
        std::fs::write(self.cluster.path("out/said"), "").unwrap();
    }
}

fn mirror_uid(cluster: &Cluster, pod: &str) -> String {
    text(&cluster.kubectl(&format!("get pod {pod} -o jsonpath={{.metadata.uid}}")))
}

#[test]
#[ignore = "needs root"]
fn static_pods_follow_their_manifests_one_after_another() {
    let cluster = cluster();
    let manifests = Manifests::new(&cluster);
    let pod = format!("web-{}", node(&cluster));

    // Away and back while it stops.
    manifests.put("web", "a");
    manifests.wait(&["a began"]);
    cluster.ready(&pod);
    let first = mirror_uid(&cluster, &pod);
    let aside = cluster.path("etc/web.aside");
    std::fs::rename(manifests.file("web.yaml"), &aside).unwrap();
    std::thread::sleep(Duration::from_millis(300)); // it is noticed, and the pod takes a second
    std::fs::rename(&aside, manifests.file("web.yaml")).unwrap();
    manifests.wait(&["a began", "a ended", "a began"]);
    until("the new run has a mirror of its own", || {
        let uid = mirror_uid(&cluster, &pod);
        uid != first && !uid.contains(' ') && !uid.is_empty()
    });
    cluster.ready(&pod);
    let restarts = ".status.containerStatuses[0].restartCount";
    assert_eq!(cluster.field(&format!("pod/{pod}"), restarts), "0");

    // Changed twice, back to what it was.
    manifests.forget();
    manifests.put("web", "b");
    std::thread::sleep(Duration::from_millis(300));
    manifests.put("web", "a");
    manifests.wait(&["a ended", "a began"]);

    // Changed while no daemon runs: the old one goes first, and has its time.
    cluster.ready(&pod);
    manifests.forget();
    let daemon = cluster.daemon();
    cluster.kill_daemon();
    until("the daemon is gone", || {
        !Path::new(&format!("/proc/{daemon}")).exists()
    });
    manifests.put("web", "c");
    cluster.up();
    manifests.wait(&["a ended", "c began"]);
    cluster.ready(&pod);

    // The folder is replaced; then removed, and made again.
    manifests.forget();
    let folder = cluster.path("etc/manifests");
    let other = cluster.path("etc/other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(
        other.join("web.yaml"),
        manifests.manifest("default", "web", "d"),
    )
    .unwrap();
    std::fs::rename(&folder, cluster.path("etc/before")).unwrap();
    std::fs::rename(&other, &folder).unwrap();
    manifests.wait(&["c ended", "d began"]);
    std::fs::remove_dir_all(&folder).unwrap();
    manifests.wait(&["c ended", "d began", "d ended"]);
    std::fs::create_dir(&folder).unwrap();
    manifests.put("web", "e");
    manifests.wait(&["c ended", "d began", "d ended", "e began"]);

    // A mirror that is refused at first.
    manifests.forget();
    manifests.put_in("later", "late", "f");
    manifests.wait(&["f began"]);
    until("the mirror was refused", || {
        cluster.daemon_log().contains("mirror pod, will retry")
    });
    cluster.ok("create namespace later");
    let late = format!("late-{} -n later", node(&cluster));
    cluster.ready(&late);
}

#[test]
#[ignore = "needs root"]
fn volumes_and_containers_of_pods_that_change_meanwhile() {
    let cluster = cluster();
    parts_of_a_config_map_that_changes_while_pods_start(&cluster);
    hooks_and_probes_end_with_their_own_process(&cluster);
    a_refused_pod_takes_no_room(&cluster);
    the_younger_pod_of_a_name_is_reached(&cluster);
    conditions_of_others_are_kept(&cluster);
    a_log_that_went_is_opened_anew(&cluster);
}

fn parts_of_a_config_map_that_changes_while_pods_start(cluster: &Cluster) {
    cluster.ok("create configmap part --from-literal=k=0");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Acquire) {
                number += 1;
                let patch = format!(r#"{{"data":{{"k":"{number}"}}}}"#);
                cluster.ok_with(&["patch", "configmap", "part", "-p", &patch]);
            }
        });
        let names: Vec<String> = (0..8).map(|number| format!("part-{number}")).collect();
        let pods: String = names
            .iter()
            .map(|name| {
                format!(
                    r#"
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{of: part}}}}
spec:
  restartPolicy: Never
  volumes: [{{name: m, configMap: {{name: part}}}}]
  containers:
  - {{name: c, image: "busybox:1", imagePullPolicy: Never, command: [cat, /k],
      volumeMounts: [{{name: m, mountPath: /k, subPath: k}}]}}
"#
                )
            })
            .collect();
        cluster.apply(&pods);
        for name in &names {
            cluster.wait(
                &format!("get pod {name} -o jsonpath={{.status.phase}}"),
                "Succeeded",
            );
        }
        done.store(true, Ordering::Release);
    });
    let failed = cluster.ok("get events --field-selector reason=Failed -o name");
    assert_eq!(failed, "", "{}", cluster.ok("get events"));
    cluster.ok("delete pod -l of=part --wait=false");
}

fn hooks_and_probes_end_with_their_own_process(cluster: &Cluster) {
    let began = Instant::now();
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: agents}
spec:
  terminationGracePeriodSeconds: 60
  containers:
  - name: c
    image: busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    readinessProbe: {timeoutSeconds: 20, exec: {command: [sh, -c, "sleep 1000 & true"]}}
    lifecycle:
      postStart: {exec: {command: [sh, -c, "sleep 1000 & true"]}}
      preStop: {exec: {command: [sh, -c, "sleep 1000 & true"]}}
"#,
    );
    cluster.ready("agents");
    cluster.ok("delete pod agents");
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
}

fn bound(name: &str, node: &str, cpu: &str) -> String {
    format!(
        r#"
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: c, image: "busybox:1", imagePullPolicy: Never, command: [sleep, "1000"],
      resources: {{requests: {{cpu: {cpu}}}}}}}
"#
    )
}

fn a_refused_pod_takes_no_room(cluster: &Cluster) {
    let node = node(cluster);
    for round in 0..4 {
        let names = [format!("large-{round}"), format!("small-{round}")];
        let large = bound(&names[0], &node, "1000");
        cluster.apply(&(large + &bound(&names[1], &node, "100m")));
        let phase = |name: &str| format!("get pod {name} -o jsonpath={{.status.phase}}");
        cluster.wait(&phase(&names[0]), "Failed");
        let small = cluster.wait_for(&phase(&names[1]), |got| got != "Pending" && !got.is_empty());
        assert_eq!(small, "Running");
        cluster.ok_with(&["delete", "pod", &names[0], &names[1], "--wait=false"]);
    }
}

fn the_younger_pod_of_a_name_is_reached(cluster: &Cluster) {
    let pod = |word: &str| {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: twin}}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - {{name: c, image: "busybox:1", imagePullPolicy: Never, env: [{{name: WORD, value: {word}}}],
      command: [sh, -c, "trap '' TERM; echo $WORD; while :; do sleep 0.1; done"]}}
"#
        )
    };
    for round in 0..4 {
        let (old, new) = (format!("old-{round}"), format!("new-{round}"));
        cluster.apply(&pod(&old));
        cluster.ready("twin");
        cluster.ok("delete pod twin --force --wait=false --grace-period=0");
        until("its object is gone", || {
            text(&cluster.kubectl("get pod twin")).contains("NotFound")
        });
        cluster.apply(&pod(&new));
        // From the first answer on it is the new one's.
        let first = cluster.wait_for("logs twin", |got| {
            ["old", "new"].iter().any(|word| got.starts_with(word))
        });
        assert_eq!(first, new);
        let word = ["exec", "twin", "--", "sh", "-c", "echo $WORD"];
        assert_eq!(cluster.ok_with(&word).trim(), new);
        cluster.ok("delete pod twin --force --grace-period=0");
    }
}

fn conditions_of_others_are_kept(cluster: &Cluster) {
    let node = node(cluster);
    for number in 1..=15 {
        // The first has the kubelet write a status, the second is written at the same time.
        let capacity = format!(r#"{{"status":{{"capacity":{{"example.com/x":"{number}"}}}}}}"#);
        let condition = format!(
            r#"{{"status":{{"conditions":[{{"type":"Mine","status":"True","reason":"R{number}"}}]}}}}"#
        );
        for patch in [&capacity, &condition] {
            cluster.ok_with(&["patch", "node", &node, "--subresource=status", "-p", patch]);
        }
        let allocatable =
            format!("get node {node} -o jsonpath={{.status.allocatable.example\\.com/x}}");
        cluster.wait(&allocatable, &number.to_string());
        let reason = "get node NODE -o jsonpath={.status.conditions[?(@.type==\"Mine\")].reason}";
        let reason = cluster.ok(&reason.replace("NODE", &node));
        assert_eq!(reason, format!("R{number}"));
    }
    let addresses = cluster.ok(&format!(
        "get node {node} -o jsonpath={{.status.addresses[*].type}}"
    ));
    assert_eq!(addresses, "InternalIP Hostname");
}

fn a_log_that_went_is_opened_anew(cluster: &Cluster) {
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: talks}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "busybox:1", imagePullPolicy: Never, command: [sh, -c, "while :; do echo word; sleep 0.2; done"]}
"#,
    );
    cluster.ready("talks");
    let uid = cluster.field("pod/talks", ".metadata.uid");
    let log = cluster.path(&format!("log/pods/default_talks_{uid}/c/0.log"));
    // As a daemon does that dies before it has the log opened anew.
    std::fs::rename(&log, log.with_extension("log.aside")).unwrap();
    until("the log is there again", || {
        std::fs::metadata(&log).is_ok_and(|file| file.len() > 0)
    });
}

#[test]
#[ignore = "needs root"]
fn images_that_come_and_go_while_pods_use_them() {
    let cluster = cluster();
    // One that waits for its image has it at once when it is there.
    cluster.ok("run waits --image=busybox:user --image-pull-policy=Never -- sleep 1000");
    cluster.wait(
        "get pod waits -o jsonpath={.status.containerStatuses[0].state.waiting.reason}",
        "ErrImageNeverPull",
    );
    cluster.import("user");
    let began = Instant::now();
    cluster.ready("waits");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());

    // The image that a container uses goes; the container goes on, with all of its files.
    cluster.ok("run keeps --image=busybox:1 --image-pull-policy=Never -- sleep 1000");
    cluster.ready("keeps");
    for image in ["busybox:1", "busybox:user"] {
        let removed = cluster.vetch(&["image", "rm", image]);
        assert!(removed.status.success(), "{}", text(&removed));
    }
    let files = cluster.ok("exec keeps -- ls /bin");
    assert!(files.contains("busybox"), "{files}");
    let listed = text(&cluster.vetch(&["image", "ls"]));
    assert!(!listed.contains("busybox"), "{listed}");
    // Without users nothing stays of it.
    cluster.ok("delete pod keeps waits --force --grace-period=0");
    let layers = cluster.path("lib/images/layers");
    let count = || std::fs::read_dir(&layers).unwrap().count();
    assert!(count() > 0);
    until("no container is left", || {
        let containers = cluster.path("lib/runtime/containers");
        std::fs::read_dir(containers).unwrap().count() == 0
    });
    let file = lab::images().join("hostname.tar");
    let imported = cluster.vetch(&["image", "import", file.to_str().unwrap()]);
    assert!(imported.status.success(), "{}", text(&imported));
    let removed = cluster.vetch(&["image", "rm", "hostname:1"]);
    assert!(removed.status.success(), "{}", text(&removed));
    assert_eq!(count(), 0);
}
