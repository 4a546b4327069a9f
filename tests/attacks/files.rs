//! Trees and files that pods and images make.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    harness::{Health, Tenant, assert_restarts},
    images::{self, Layer},
    lab::{self, Cluster, Registry, text},
};

/// `nest FOLDER N`: N times 250 folders one in the other, far longer than a path may be: what is
/// there already goes to the bottom of the next 250.
const NEST: &str = "nest() { cd $1; p=d; while [ ${#p} -lt 497 ]; do p=$p/d; done; n=0; \
     while [ $n -lt $2 ]; do mkdir -p e/$p && { [ ! -e d ] || mv d e/$p; } && mv e d || exit 1; \
     n=$((n+1)); done; cd /; }";

fn nested(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{{operator: Exists}}]
  securityContext: {{fsGroup: 4000}}
  volumes: [{{name: v, emptyDir: {{}}}}]
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, '{NEST}; mkdir /w; nest /v 16; nest /w 48; touch /done; exec sleep 10000']
    readinessProbe: {{exec: {{command: [test, -e, /done]}}, periodSeconds: 1}}
    volumeMounts: [{{name: v, mountPath: /v}}]
"
    )
}

/// What is left of pods' files.
fn remains(cluster: &Cluster) -> String {
    let root = cluster.root.path().display();
    cluster.host.sh(&format!(
        "ls {root}/lib/pods {root}/lib/runtime/containers {root}/run/pods 2>/dev/null || true"
    ))
}

#[test]
#[ignore = "needs root"]
fn folders_nested_deeper_than_any_stack() {
    let cluster = Cluster::new();
    // In memory: what a disk needs for so many folders is no matter of this test.
    let lib = cluster.root.path().join("lib");
    let mount = format!("mkdir {0} && mount -t tmpfs deep {0}", lib.display());
    cluster.host.sh(&mount);
    cluster.up();
    cluster.import("busybox");
    let tenant = Tenant::new(&cluster, "deep");
    tenant.create(&nested("gone"));
    tenant.create(&nested("stays"));
    let ready = || cluster.ok("wait pod --all -n deep --for=condition=Ready --timeout=120s");
    ready();
    let health = Health::watch(&cluster);
    let node = cluster.ok("get nodes -o jsonpath={.items[0].metadata.name}");
    let summary = cluster.ok(&format!(
        "get --raw /api/v1/nodes/{node}/proxy/stats/summary"
    ));
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let pods = summary["pods"].as_array().unwrap();
    let used = |name: &str| {
        let pod = pods.iter().find(|pod| pod["podRef"]["name"] == name);
        let pod = pod.unwrap();
        let volumes = pod["volume"].as_array().unwrap().iter();
        let folders = volumes.chain([&pod["containers"][0]["rootfs"]]);
        let inodes = folders.map(|folder| folder["inodesUsed"].as_u64().unwrap());
        inodes.sum::<u64>()
    };
    assert!(used("gone") > 16_000, "{}", used("gone"));

    let uid = cluster.ok("get pod gone -n deep -o jsonpath={.metadata.uid}");
    let path = "{.status.containerStatuses[0].containerID}";
    let container = cluster.ok(&format!("get pod gone -n deep -o jsonpath={path}"));
    let container = container.trim_start_matches("vetch://");
    let there = remains(&cluster);
    assert!(there.contains(&uid) && there.contains(container), "{there}");
    let output = tenant.kubectl("delete pod gone");
    assert!(output.status.success(), "{}", text(&output));
    lab::until("the deleted pod leaves nothing", || {
        let there = remains(&cluster);
        !there.contains(&uid) && !there.contains(container)
    });
    health.assert();

    assert_restarts(&cluster);
    cluster.kill_daemon();
    cluster.up();
    ready();
    let down = cluster.vetch(&["down", "--pods"]);
    assert!(down.status.success(), "{}", text(&down));
    cluster.up();
    cluster.ok("get --raw /readyz");
    // The pod is started anew, and `reset` finds it as it is.
    ready();
    let reset = cluster.vetch(&["reset", "--yes"]);
    assert!(reset.status.success(), "{}", text(&reset));
    assert_eq!(remains(&cluster), "");
}

#[test]
#[ignore = "needs root"]
fn layers_made_to_hurt() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let registry = Registry::start(&cluster.host);
    let tenant = Tenant::new(&cluster, "images");
    // Each link leads through the last one and further down.
    let deepening = (0..60).fold(Layer::default().folder("a/b/c/d/e/f"), |layer, number| {
        let to = match number {
            0 => "a/b/c/d/e/f".to_owned(),
            _ => format!("l{}/a/b/c/d/e/f", number - 1),
        };
        let name = format!("l{number}");
        layer
            .symlink(&name, &to)
            .folder(&format!("{name}/a/b/c/d/e/f"))
    });
    let layer = Layer::default;
    let bad = [
        ("deepening", deepening, "too many links on the path"),
        (
            "circle",
            layer().symlink("a", "b").symlink("b", "a").file("a/x", ""),
            "\"a/x\": too many links on the path",
        ),
        (
            "deep",
            layer().long_file(&"d/".repeat(2000)),
            "more than 255 folders deep",
        ),
        (
            "upwards",
            layer().file("a/../../../../x", ""),
            "a path with `..`",
        ),
        (
            "itself",
            layer().file("a/.wh.", ""),
            "invalid whiteout name: \".wh.\"",
        ),
        (
            "above",
            layer().file(".wh...", ""),
            "invalid whiteout name: \".wh...\"",
        ),
        (
            "attributes",
            layer().announce_attributes(5 << 30),
            "take more than 1048576 bytes",
        ),
    ];
    let health = Health::watch(&cluster);
    let mut wanted = Vec::new();
    for (name, layer, want) in bad {
        images::push(&cluster, &registry.address, &format!("{name}:1"), layer);
        let image = format!("{}/{name}:1", registry.address);
        let output = tenant.kubectl(&format!("run {name} --image={image} --restart=Never"));
        assert!(output.status.success(), "{}", text(&output));
        wanted.push((name, want));
    }
    for (name, want) in wanted {
        let line =
            format!("get events -n images --field-selector=involvedObject.name={name} -o json");
        let events = cluster.wait_for(&line, |events| events.contains("Failed to pull image"));
        let events: Value = serde_json::from_str(&events).unwrap();
        let said = events["items"].as_array().unwrap().iter();
        let said: Vec<_> = said.filter_map(|event| event["message"].as_str()).collect();
        let clear = |message: &&str| {
            message.contains("layer sha256:")
                && message.contains("unpack ")
                && message.contains(want)
        };
        // What describes an entry comes before its name.
        let named =
            name == "attributes" || said.iter().any(|message| message.contains("unpack \""));
        assert!(said.iter().any(clear) && named, "{name}: {said:?}");
    }
    health.assert();
    tenant.kubectl("delete pods --all --wait=false");
    let tmp = cluster.root.path().join("lib/images/tmp");
    lab::until("nothing of them is left", || {
        std::fs::read_dir(&tmp).unwrap().count() == 0
    });
    assert_restarts(&cluster);
}

#[test]
#[ignore = "needs root"]
fn managed_files_are_never_read_whole() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let tenant = Tenant::new(&cluster, "managed");
    let health = Health::watch(&cluster);
    tenant.create(
        "
apiVersion: v1
kind: Pod
metadata: {name: large}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, 'wc -c </etc/hosts; [ -e /v/second ] && exec sleep 10000; touch /v/second;
      for f in /etc/hosts /etc/hostname /etc/resolv.conf /dev/termination-log; do truncate -s 5G $f || exit 3; done;
      exit 1']
    volumeMounts: [{name: v, mountPath: /v}]
---
apiVersion: v1
kind: Pod
metadata: {name: odd}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - name: make
    image: busybox:1
    command: [sh, -c, 'cd /v; mkfifo pipe && mknod zero c 1 5 && truncate -s 5G huge && ln -s /etc/passwd link &&
      mkdir folder && echo \"K=''good''\" >good']
    volumeMounts: [{name: v, mountPath: /v}]
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, 'echo [$A$B$C$D$E$F]']
    env:
    - {name: A, valueFrom: {fileKeyRef: {volumeName: v, path: pipe, key: K, optional: true}}}
    - {name: B, valueFrom: {fileKeyRef: {volumeName: v, path: zero, key: K, optional: true}}}
    - {name: C, valueFrom: {fileKeyRef: {volumeName: v, path: huge, key: K, optional: true}}}
    - {name: D, valueFrom: {fileKeyRef: {volumeName: v, path: link, key: K, optional: true}}}
    - {name: E, valueFrom: {fileKeyRef: {volumeName: v, path: folder, key: K, optional: true}}}
    - {name: F, valueFrom: {fileKeyRef: {volumeName: v, path: good, key: K, optional: true}}}
---
apiVersion: v1
kind: Pod
metadata: {name: filler}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, 'head -c 30000000 /dev/zero >>/etc/hosts; touch /done; exec sleep 10000']
    readinessProbe: {exec: {command: [test, -e, /done]}, periodSeconds: 1}
",
    );
    let status = "jsonpath={.status.containerStatuses[0]";
    cluster.wait(
        &format!("get pod large -n managed -o {status}.restartCount}}"),
        "1",
    );
    cluster.wait_for(
        &format!("get pod large -n managed -o {status}.state}}"),
        |state| state.contains("running"),
    );
    let code = format!("get pod large -n managed -o {status}.lastState.terminated.exitCode}}");
    assert_eq!(cluster.ok(&code), "1", "all four files were made large");
    let hosts: u64 = cluster.ok("logs large -n managed").trim().parse().unwrap();
    assert!(hosts < 1000, "the file is as it was: {hosts}");

    cluster.wait(
        "get pod odd -n managed -o jsonpath={.status.phase}",
        "Succeeded",
    );
    assert_eq!(cluster.ok("logs odd -n managed"), "[good]\n");

    cluster.ok("wait pod filler -n managed --for=condition=Ready --timeout=60s");
    let node = cluster.ok("get nodes -o jsonpath={.items[0].metadata.name}");
    let summary = cluster.ok(&format!(
        "get --raw /api/v1/nodes/{node}/proxy/stats/summary"
    ));
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let pods = summary["pods"].as_array().unwrap();
    let pod = pods
        .iter()
        .find(|pod| pod["podRef"]["name"] == "filler")
        .unwrap();
    let used = pod["ephemeral-storage"]["usedBytes"].as_u64().unwrap();
    assert!(used >= 30_000_000, "/etc/hosts counts: {used}");
    let begun = Instant::now();
    cluster.ok("delete pods --all -n managed");
    assert!(begun.elapsed() < Duration::from_secs(30));
    health.assert();
    assert_restarts(&cluster);
}
