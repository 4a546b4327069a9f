//! Pods whose records the program does not understand: they run on as long as somebody wants them.

use std::{fs, path::Path};

use crate::lab::{Cluster, until};

/// It takes a moment to end, and says so.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: c
    image: 'busybox:1'
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'trap \"echo bye >/words/said; exit 0\" TERM; sleep infinity & wait']
    volumeMounts: [{name: words, mountPath: /words}, {name: scratch, mountPath: /scratch}]
  volumes:
  - {name: words, hostPath: {path: WORDS}}
  - {name: scratch, emptyDir: {medium: Memory}}
";

/// Its supervisor and its container's first process.
fn processes(uid: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap();
    let paths = processes.map(|entry| entry.unwrap().path());
    let is_of = |path: &Path| {
        let groups = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        groups.contains(uid)
    };
    let found = paths.filter(|path| is_of(path));
    found.map(|path| path.display().to_string()).collect()
}

/// What is on disk of the pod, and of its address.
fn files(cluster: &Cluster, uid: &str) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["run/pods/pods", "lib/pods"] {
        if cluster.path(folder).join(uid).exists() {
            found.push(folder.to_owned());
        }
    }
    let addresses = fs::read_dir(cluster.path("lib/network/addresses")).unwrap();
    for address in addresses.map(|entry| entry.unwrap().path()) {
        if fs::read_to_string(&address).is_ok_and(|owner| owner == uid) {
            found.push(address.display().to_string());
        }
    }
    found
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_is_not_understood_ends_when_nobody_wants_it() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let words = tempfile::tempdir().unwrap();
    let names = ["forced", "asked"];
    for name in names {
        let folder = words.path().join(name);
        fs::create_dir(&folder).unwrap();
        let pod = POD.replace("NAME", name);
        cluster.apply(&pod.replace("WORDS", &folder.display().to_string()));
        cluster.ready(name);
    }
    let uids = names.map(|name| cluster.field(&format!("pod/{name}"), ".metadata.uid"));
    cluster.kill_daemon();
    for uid in &uids {
        let record = cluster.path("run/pods/pods").join(uid).join("pod.json");
        fs::write(record, "{").unwrap();
    }
    cluster.up();
    for uid in &uids {
        assert!(!processes(uid).is_empty(), "it runs on");
    }

    cluster.ok("delete pod forced --force --grace-period=0");
    cluster.ok("delete pod asked --wait=false");
    for (name, uid) in names.iter().zip(&uids) {
        until(&format!("{name} ends"), || processes(uid).is_empty());
        until(&format!("nothing is left of {name}"), || {
            files(&cluster, uid).is_empty()
        });
    }
    cluster.wait_for("get pods -o name", |pods| pods.trim().is_empty());
    // It was asked, not killed.
    let said = fs::read_to_string(words.path().join("asked/said"));
    assert_eq!(said.unwrap(), "bye\n");
    let mounts = cluster.host.sh("cat /proc/self/mounts");
    for uid in &uids {
        assert!(!mounts.contains(uid.as_str()), "{mounts}");
    }
}

/// As programs from before the version of address records leave and find them.
#[test]
#[ignore = "needs root"]
fn addresses_outlive_an_upgrade_and_a_downgrade() {
    let cluster = Cluster::started();
    let format = cluster.path("lib/network/format.json");
    assert_eq!(fs::read_to_string(&format).unwrap(), r#"{"version":1}"#);
    assert!(cluster.vetch(&["down"]).status.success());
    fs::remove_file(&format).unwrap();
    cluster.up();
    assert!(format.exists());
    assert!(cluster.vetch(&["down"]).status.success());
    // Of a later program: the addresses of its pods must not be given out a second time.
    fs::write(&format, r#"{"version":7}"#).unwrap();
    let refused = cluster.vetch(&["up", "--detach"]);
    let said = crate::lab::text(&refused);
    assert!(!refused.status.success());
    assert!(said.contains("the record has the format 7"), "{said}");
    let reset = cluster.vetch(&["reset", "--yes"]);
    assert!(reset.status.success(), "{}", crate::lab::text(&reset));
}

/// Its manifest goes, or becomes another, while no daemon runs.
const STATIC: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: c
    image: 'busybox:1'
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'trap \"echo VERSION ends >>/words/said; exit 0\" TERM; sleep infinity & wait']
    lifecycle:
      preStop: {exec: {command: [sh, -c, 'echo VERSION is about to end >>/words/said']}}
    volumeMounts: [{name: words, mountPath: /words}]
  volumes:
  - {name: words, hostPath: {path: WORDS}}
";

#[test]
#[ignore = "needs root"]
fn hooks_of_static_pods_run_though_their_manifests_are_gone() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let words = tempfile::tempdir().unwrap();
    let write = |name: &str, version: &str| {
        let folder = words.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        let pod = STATIC.replace("NAME", name).replace("VERSION", version);
        let pod = pod.replace("WORDS", &folder.display().to_string());
        let manifest = cluster.path("etc/manifests").join(format!("{name}.yaml"));
        fs::write(manifest, pod).unwrap();
    };
    let node = cluster.ok("get nodes -o jsonpath={.items[0].metadata.name}");
    for name in ["goes", "changes"] {
        write(name, "first");
        let pod = format!("{name}-{node}");
        let phase = format!("get pod {pod} --ignore-not-found -o jsonpath={{.status.phase}}");
        cluster.wait(&phase, "Running");
    }
    cluster.kill_daemon();
    fs::remove_file(cluster.path("etc/manifests/goes.yaml")).unwrap();
    write("changes", "second");
    cluster.up();
    for name in ["goes", "changes"] {
        let said = words.path().join(name).join("said");
        let want = "first is about to end\nfirst ends\n";
        until(&format!("{name}: the hook, then the signal"), || {
            fs::read_to_string(&said).is_ok_and(|said| said == want)
        });
    }
}
