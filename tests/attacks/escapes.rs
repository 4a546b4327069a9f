//! The classes of container escapes: by number as in reports, each tried from inside.
//!
//! Others are tried where their parts are: paths below volumes (`kubelet/volumes/subpath.rs`), users
//! and groups of images (`runtime/users.rs`), mount points that are exchanged (`tests/runtime.rs`),
//! archives and managed files (`files.rs`), redirects (`registry.rs`), node ports (`network.rs`).

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    harness::{Health, Tenant},
    images::{self, Layer},
    lab::{self, Cluster, text},
};

/// A pod of the image with the rest of its container and its spec.
fn pod(name: &str, image: &str, container: &str, spec: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  tolerations: [{{operator: Exists}}]
  {spec}
  containers:
  - name: c
    image: {image}
    {container}
---
"
    )
}

/// A line of shell in a container; all it said.
fn inside(cluster: &Cluster, pod: &str, line: &str) -> String {
    let arguments = [
        "exec", "-n", "escapes", pod, "-c", "c", "--", "sh", "-c", line,
    ];
    text(&cluster.kubectl_with(&arguments))
}

/// Why the pod's container does not run, when that is known.
fn refusal(cluster: &Cluster, pod: &str) -> String {
    let line = format!("get pod {pod} -n escapes -o json");
    cluster.wait_for(&line, |pod| {
        let pod: serde_json::Value = serde_json::from_str(pod).unwrap_or_default();
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        let state = &pod["status"]["containerStatuses"][0]["state"];
        let waiting = state["waiting"]["reason"].as_str().unwrap_or_default();
        phase == "Failed" || waiting.ends_with("Error")
    })
}

const SLEEP: &str = "command: [sleep, '10000']";

#[test]
#[ignore = "needs root"]
fn from_inside_a_container() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let tenant = Tenant::new(&cluster, "escapes");
    let health = Health::watch(&cluster);
    tenant.create(&pod("plain", "busybox:1", SLEEP, ""));
    tenant.create(&pod(
        "user",
        "busybox:1",
        &format!("{SLEEP}\n    securityContext: {{runAsUser: 1000, runAsGroup: 3000}}"),
        "securityContext: {fsGroup: 4000, supplementalGroups: [5000]}",
    ));
    tenant.create(&pod("host", "busybox:1", SLEEP, "hostNetwork: true"));
    cluster.ok("wait pod --all -n escapes --for=condition=Ready --timeout=60s");
    // Class, pod, what is tried, what must be said (words in their order) and what must not.
    for (class, pod, line, said, never) in [
        (
            "H02",
            "plain",
            "echo 0 >/proc/sys/kernel/yama/ptrace_scope; echo b >/proc/sysrq-trigger; echo done",
            "done",
            "success",
        ),
        (
            "H02",
            "plain",
            "mount -t proc p /mnt; mount -o remount,rw /proc/sys; umount /proc/kcore; echo done",
            "denied",
            "success",
        ),
        (
            "H03",
            "plain",
            "cat /proc/kcore /proc/keys /proc/timer_list | wc -c",
            "0",
            "error",
        ),
        (
            "H07",
            "plain",
            "ls /proc/1/fd | tr '\\n' ' '; ls -l /proc/1/fd | grep -c vetch",
            "0 1 2 0",
            "vetch",
        ),
        (
            "H07",
            "plain",
            "ls /proc/self/fd | tr '\\n' ' '; readlink /proc/1/cwd",
            "0 1 2 3 /",
            "vetch",
        ),
        (
            "H07",
            "plain",
            "for i in $(seq 3 40); do ls /proc/self/fd/$i/ /proc/1/fd/$i/ 2>/dev/null; done; echo done",
            "done",
            "etc",
        ),
        (
            "H09",
            "plain",
            "grep -h CapInh /proc/1/status /proc/self/status | sort -u",
            "CapInh:\t0000000000000000\n",
            "1",
        ),
        (
            "H09",
            "user",
            "grep -h -E 'Cap(Inh|Eff|Prm|Amb)' /proc/1/status /proc/self/status | cut -f2 | sort -u",
            "0000000000000000\n",
            "8",
        ),
        (
            "H10",
            "user",
            "id -G; id -u",
            "3000 4000 5000\n1000\n",
            " 0 ",
        ),
        (
            "H12",
            "host",
            "grep -i vetch /proc/net/unix | grep @; echo done",
            "done",
            "@",
        ),
        (
            "H13",
            "plain",
            "echo '|/x' >/proc/sys/kernel/core_pattern; echo 1 >/proc/sys/kernel/modprobe",
            "Read-only",
            "success",
        ),
        (
            "H13",
            "host",
            "echo 1 >/proc/sys/net/ipv4/ip_forward",
            "Read-only",
            "success",
        ),
        (
            "H15",
            "plain",
            "cd /sys/fs/cgroup; for f in release_agent */release_agent memory/memory.limit_in_bytes memory.max; do echo x >$f && echo written; done; mkdir memory/x x && echo made; echo done",
            "done",
            "written",
        ),
        (
            "H15",
            "plain",
            "mount -t cgroup -o memory c /mnt && echo mounted; unshare -C true && echo unshared; unshare -Ur true && echo unshared; echo done",
            "done",
            "unshared",
        ),
        (
            "H15",
            "user",
            "unshare -Ur sh -c 'mount -t cgroup c /mnt' && echo mounted; echo done",
            "done",
            "mounted",
        ),
        (
            "devices",
            "plain",
            "mknod /d b 254 0; head -c 1 /d | wc -c; mknod /k c 1 1; head -c 1 /k | wc -c; mknod /m c 10 237; head -c1 /m | wc -c",
            "0",
            "1\n",
        ),
        (
            "keys",
            "plain",
            "cat /proc/keys | wc -l; nsenter -t 1 -m true && nsenter --net=/proc/1/ns/net true; echo done",
            "done",
            "vetch",
        ),
    ] {
        let got = inside(&cluster, pod, line);
        assert!(
            got.contains(said),
            "{class}: {line}\n{got}\nhas no {said:?}"
        );
        let got = got.replace(said, "");
        assert!(
            !got.contains(never),
            "{class}: {line}\n{got}\nhas {never:?}"
        );
    }
    // H16: what nobody reads is not kept.
    let flood = cluster.kubectl("exec -n escapes plain -- head -c 50000000 /dev/zero");
    assert_eq!(flood.stdout.len(), 50_000_000);
    // H20: there is no checkpoint to be had, hence none to be restored.
    let node = cluster.ok("get nodes -o jsonpath={.items[0].metadata.name}");
    let checkpoint =
        format!("create --raw /api/v1/nodes/{node}/proxy/checkpoint/escapes/plain/c -f /dev/null");
    let refused = text(&cluster.kubectl(&checkpoint));
    assert!(
        refused.contains("NotFound") || refused.contains("could not find"),
        "{refused}"
    );
    // H17: nobody else on the host gets at anything.
    for folder in [
        "lib",
        "lib/images",
        "lib/containers",
        "lib/pods",
        "run",
        "run/pods",
        "log",
    ] {
        let Ok(found) = fs::metadata(cluster.path(folder)) else {
            continue;
        };
        let mode = found.permissions().mode();
        let above = Path::new(folder).components().next().unwrap();
        let above = fs::metadata(cluster.path(&above.as_os_str().to_string_lossy())).unwrap();
        let closed = mode & 0o007 == 0 || above.permissions().mode() & 0o007 == 0;
        assert!(closed, "{folder} is {mode:o}");
    }
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn by_what_is_asked_for() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let tenant = Tenant::new(&cluster, "escapes");
    let health = Health::watch(&cluster);
    let marker = cluster.root.path().join("outside");
    fs::create_dir(&marker).unwrap();
    let up = format!("../../../../../../../..{}", marker.display());
    let mount = |path: &str| format!("{SLEEP}\n    volumeMounts: [{{name: v, mountPath: {path}}}]");
    let empty = "volumes: [{name: v, emptyDir: {}}]";
    let sysctl = |value: &str| {
        format!("securityContext: {{sysctls: [{{name: net.ipv4.tcp_rmem, value: {value:?}}}]}}")
    };
    let filter = |profile: &str| {
        format!(
            "securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: {profile}}}}}"
        )
    };
    let place = |path: &str| format!("{SLEEP}\n    workingDir: {path}");
    let mut wanted = Vec::new();
    for (class, name, container, spec, want) in [
        ("H02", "proc", mount("/proc"), empty.into(), "inside /proc"),
        (
            "H02",
            "attr",
            mount("/proc/self/attr"),
            empty.into(),
            "inside /proc",
        ),
        (
            "H02",
            "sys",
            mount("/proc/sys/kernel"),
            empty.into(),
            "inside /proc",
        ),
        (
            "H07",
            "fd3",
            place("/proc/self/fd/3"),
            String::new(),
            "/proc/self/fd/3",
        ),
        (
            "H07",
            "fd7",
            place("/proc/self/fd/7"),
            String::new(),
            "/proc/self/fd/7",
        ),
        (
            "H07",
            "fd8",
            place("/proc/1/fd/8/../../.."),
            String::new(),
            "/proc/1/fd/8",
        ),
        (
            "H13",
            "newline",
            SLEEP.into(),
            sysctl("1\nkernel.core_pattern=|/x"),
            "forbidden sysctl",
        ),
        (
            "H13",
            "plus",
            SLEEP.into(),
            sysctl("1+kernel.core_pattern=x"),
            "forbidden sysctl",
        ),
        (
            "H18",
            "missing",
            SLEEP.into(),
            filter("none.json"),
            "failed to load seccomp profile",
        ),
        (
            "H18",
            "unnamed",
            SLEEP.into(),
            filter("''"),
            "failed to load seccomp profile",
        ),
    ] {
        tenant.create(&pod(name, "busybox:1", &container, &spec));
        wanted.push((class, name, want));
    }
    for (class, name, want) in wanted {
        let events =
            format!("get events -n escapes --field-selector=involvedObject.name={name} -o json");
        let why = refusal(&cluster, name) + &cluster.ok(&events);
        assert!(why.contains(want), "{class} {name}: {why}");
    }
    // Refused before they reach the node.
    for (class, container, spec, want) in [
        (
            "H08",
            format!("{SLEEP}\n    volumeMounts: [{{name: v, mountPath: /v, subPath: ../x}}]"),
            empty.to_owned(),
            "must not contain '..'",
        ),
        (
            "H11",
            SLEEP.into(),
            "securityContext: {runAsUser: 4294967296}".into(),
            "must be between 0 and 2147483647",
        ),
        (
            "H11",
            SLEEP.into(),
            "securityContext: {runAsUser: -1}".into(),
            "must be between 0 and 2147483647",
        ),
        (
            "H13",
            SLEEP.into(),
            "securityContext: {sysctls: [{name: \"net.ipv4.tcp_rmem=1\\nkernel.core_pattern\", value: '|/x'}]}".into(),
            "must have at most 253 characters and match regex",
        ),
        (
            "H18",
            SLEEP.into(),
            filter(""),
            "localhostProfile: Required value",
        ),
        (
            "H18",
            SLEEP.into(),
            filter("../../x"),
            "must not contain '..'",
        ),
        (
            "H18",
            SLEEP.into(),
            filter("/etc/passwd"),
            "must be a relative path",
        ),
    ] {
        let refused = tenant.apply(&pod("never", "busybox:1", &container, &spec));
        let said = text(&refused);
        assert!(
            !refused.status.success() && said.contains(want),
            "{class}: {said}"
        );
    }
    // H04: what stands for the terminal and its streams is made by another container of the pod.
    let devices = format!(
        "cd /d; ln -s {up}/console console; ln -s {up}/null null; ln -s {up}/pts pts; ln -s {up}/ptmx ptmx; ln -s {up}/log termination-log"
    );
    let init = format!(
        "{empty}
  initContainers:
  - name: make
    image: busybox:1
    command: [sh, -c, '{devices}']
    volumeMounts: [{{name: v, mountPath: /d}}]"
    );
    let terminal = format!("tty: true\n    {}", mount("/dev"));
    tenant.create(&pod("terminal", "busybox:1", &terminal, &init));
    tenant.create(&pod("streams", "busybox:1", &mount("/dev"), &init));
    for name in ["terminal", "streams"] {
        let line = format!(
            "get pod {name} -n escapes -o jsonpath={{.status.initContainerStatuses[0].ready}},{{.status.containerStatuses[0].state}}"
        );
        let state = cluster.wait_for(&line, |state| {
            state.starts_with("true")
                && ["running", "terminated", "Error"]
                    .iter()
                    .any(|one| state.contains(one))
        });
        if state.contains("running") {
            // H03: masks are made of the real null device.
            let said = inside(&cluster, name, "cat /proc/kcore | wc -c");
            assert!(said.starts_with('0'), "{said}");
        }
    }
    assert_eq!(
        fs::read_dir(&marker).unwrap().count(),
        0,
        "made on the host"
    );
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn by_images() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let tenant = Tenant::new(&cluster, "escapes");
    let health = Health::watch(&cluster);
    let marker = cluster.root.path().join("outside");
    fs::create_dir(&marker).unwrap();
    let up = format!("../../../..{}", marker.display());
    // H02, H05, H14: the places that the runtime fills are links to the host.
    let links =
        ["proc", "dev", "sys", "etc", "data"]
            .iter()
            .fold(Layer::default(), |layer, name| {
                layer
                    .symlink(&format!(".wh.{name}"), "x")
                    .symlink(name, &up)
            });
    let volumes =
        json!({"Volumes": {"/../../../x": {}, "/etc": {}, format!("{}", marker.display()): {}}});
    images::import(&cluster, "links:1", links, volumes);
    let volume = format!("{SLEEP}\n    volumeMounts: [{{name: v, mountPath: /data/deep}}]");
    tenant.create(&pod(
        "links",
        "links:1",
        &volume,
        "volumes: [{name: v, emptyDir: {}}]",
    ));
    cluster.wait_for(
        "get pod links -n escapes -o jsonpath={.status.containerStatuses[0].state}",
        |state| {
            ["running", "terminated", "Error"]
                .iter()
                .any(|one| state.contains(one))
        },
    );
    assert_eq!(
        fs::read_dir(&marker).unwrap().count(),
        0,
        "made on the host"
    );

    // H11: users that would be taken for root.
    for (name, user, want) in [
        ("huge", "4294967296", "4294967296"),
        ("negative", "-1", "-1"),
        ("unknown", "nobody-here", "nobody-here"),
    ] {
        let image = format!("{name}:1");
        images::import(
            &cluster,
            &image,
            Layer::default().folder("x"),
            json!({"User": user}),
        );
        tenant.create(&pod(name, &image, SLEEP, ""));
        let why = refusal(&cluster, name);
        assert!(why.contains(want), "H11 {name}: {why}");
    }
    // An empty group is no group; the user remains.
    let half = Layer::default().folder("x");
    images::import(&cluster, "half:1", half, json!({"User": "1000:"}));
    tenant.create(&pod("half", "half:1", SLEEP, ""));
    cluster.ok("wait pod half -n escapes --for=condition=Ready --timeout=60s");
    assert_eq!(inside(&cluster, "half", "id -u; id -g").trim(), "1000\n0");

    // H01: a container whose program is the runtime's own.
    let program = lab::program();
    let sum = || Sha256::digest(fs::read(&program).unwrap());
    let (before, inode) = (sum(), fs::metadata(&program).unwrap().ino());
    let overwrite = "for i in $(seq 100); do for p in /proc/[0-9]*; do case $(readlink $p/exe) in *vetch*|*memfd*) \
        echo found; (exec 5<$p/exe && for j in $(seq 50); do echo x >/proc/self/fd/5; done);; esac; done; done 2>&1 | sort | uniq -c";
    tenant.create(&pod(
        "own",
        "busybox:1",
        &format!(
            "command: [sh, -c, '{overwrite}']
  - name: runtime
    image: busybox:1
    command: [/proc/self/exe, demo-server]"
        ),
        "shareProcessNamespace: true",
    ));
    cluster.wait_for(
        "get pod own -n escapes -o jsonpath={.status.containerStatuses[?(@.name==\"c\")].state}",
        |state| state.contains("terminated"),
    );
    let said = cluster.ok("logs own -n escapes -c c");
    println!("{said}");
    assert_eq!(
        (sum(), fs::metadata(&program).unwrap().ino()),
        (before, inode),
        "{said}"
    );
    health.assert();
}
