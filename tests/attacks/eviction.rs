//! Pods that fill disks and memory.

use std::time::{Duration, Instant};

use crate::{
    harness::{Health, Tenant},
    lab::{Cluster, text},
};

/// A cluster with settings of its own.
fn up(cluster: &Cluster, flags: &[&str]) {
    let words = [&["up", "--detach"], flags].concat();
    let output = cluster.vetch(&words);
    assert!(output.status.success(), "{}", text(&output));
}

/// Applies a manifest that lies on another disk than the cluster.
fn apply(cluster: &Cluster, manifest: &str) {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(file.path(), manifest).unwrap();
    cluster.ok(&format!("apply -f {}", file.path().display()));
}

/// Waits until the pod was evicted; what it was told.
fn evicted(cluster: &Cluster, pod: &str) -> String {
    let path = "jsonpath={.status.phase}/{.status.reason}/{.status.message}";
    let told = cluster.wait_for(&format!("get pod {pod} -o {path}"), |told| {
        told.starts_with("Failed/")
    });
    let message = told.strip_prefix("Failed/Evicted/");
    message
        .unwrap_or_else(|| panic!("{pod}: {told}"))
        .to_owned()
}

fn condition(kind: &str) -> String {
    format!("get nodes -o jsonpath={{.items[0].status.conditions[?(@.type==\"{kind}\")].status}}")
}

fn pod(name: &str, more: &str, containers: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}{more}\
         containers: {containers}, terminationGracePeriodSeconds: 1}}}}\n"
    )
}

/// One container with a limit of its disk.
fn limited(name: &str, limit: &str, command: &str) -> String {
    format!(
        "{{name: {name}, image: busybox:1, command: [sh, -c, '{command}; sleep 1000'], \
         resources: {{limits: {{ephemeral-storage: {limit}}}}}}}"
    )
}

#[test]
#[ignore = "needs root"]
fn a_pod_gets_no_more_disk_than_its_limits_say() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let tenant = Tenant::new(&cluster, "greedy");
    let health = Health::watch(&cluster);
    let fill = |path: &str| format!("head -c 4000000 /dev/zero >{path}");
    // What a tenant says about where the pod comes from protects it from nothing.
    let forged = ", annotations: {kubernetes.io/config.source: file}}, spec: {";
    let plain = "}, spec: {";
    let volume = "}, spec: {volumes: [{name: x, emptyDir: {sizeLimit: 1Mi}}], ";
    let mounted = "[{name: c, image: busybox:1, volumeMounts: [{name: x, mountPath: /x}], \
         command: [sh, -c, 'head -c 4000000 /dev/zero >/x/f; sleep 1000']}]";
    let layer = limited("c", "2Mi", &fill("/f"));
    let other = limited("d", "20Mi", "true");
    tenant.create(
        &[
            pod("volume", volume, mounted),
            pod("layer", forged, &format!("[{layer}, {other}]")),
            pod(
                "log",
                plain,
                &format!("[{}]", limited("c", "2Mi", "yes | head -c 4000000")),
            ),
            pod(
                "hosts",
                plain,
                &format!("[{}]", limited("c", "2Mi", &fill("/etc/hosts"))),
            ),
            pod(
                "modest",
                plain,
                &format!("[{}]", limited("c", "20Mi", &fill("/f"))),
            ),
        ]
        .concat(),
    );
    for (name, want) in [
        (
            "volume",
            "Usage of EmptyDir volume \"x\" exceeds the limit \"1Mi\".",
        ),
        (
            "layer",
            "Container c exceeded its local ephemeral storage limit \"2Mi\".",
        ),
        (
            "log",
            "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi.",
        ),
        (
            "hosts",
            "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi.",
        ),
    ] {
        assert_eq!(evicted(&cluster, &format!("{name} -n greedy")).trim(), want);
        let events = cluster.ok(&format!(
            "get events -n greedy --field-selector=reason=Evicted,involvedObject.name={name}"
        ));
        assert!(events.contains(want), "{events}");
    }
    cluster.ready("modest -n greedy");

    // Isolation that the node cannot give is refused, not left out.
    let handler = |name: &str, handler: &str| {
        format!(
            "---\n{{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {{name: {name}}}, \
             handler: {handler}}}\n"
        )
    };
    apply(
        &cluster,
        &[handler("safe", "gvisor"), handler("native", "vetch")].concat(),
    );
    let class = |name: &str| format!("}}, spec: {{runtimeClassName: {name}, ");
    let sleep = "[{name: c, image: busybox:1, command: [sleep, \"1000\"], \
         securityContext: {seLinuxOptions: {level: s0}}}]";
    tenant.create(
        &[
            pod("isolated", &class("safe"), sleep),
            pod("native", &class("native"), sleep),
        ]
        .concat(),
    );
    let about =
        |pod: &str| format!("get events -n greedy --field-selector=involvedObject.name={pod}");
    let refused = "no runtime for \"gvisor\" is configured";
    let events = cluster.wait_for(&about("isolated"), |events| events.contains(refused));
    assert!(events.contains("FailedCreatePodSandBox"), "{events}");
    cluster.ready("native -n greedy");
    cluster.wait_for(&about("native"), |events| {
        events.contains("seLinuxOptions are not applied")
    });
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn pods_without_limits_do_not_take_the_node() {
    let number = |path: &str| -> u64 {
        let text = std::fs::read_to_string(path).unwrap();
        text.trim().parse().unwrap()
    };
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().next().unwrap();
    let total: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    let processes = number("/proc/sys/kernel/pid_max").min(number("/proc/sys/kernel/threads-max"));
    // All pods together get 400 MiB and 300 processes.
    let reserved = format!(
        "--kube-reserved=memory={}Ki,pid={}",
        total - 400 * 1024,
        processes - 300
    );
    let cluster = Cluster::new();
    up(
        &cluster,
        &[&reserved, "--eviction-pressure-transition-period=15s"],
    );
    cluster.import("busybox");
    let allocatable = cluster.field("nodes", ".items[0].status.allocatable.memory");
    // Without what is reserved, and without the threshold of eviction.
    assert_eq!(allocatable, "300Mi");
    let health = Health::watch(&cluster);
    let one = |name: &str, command: &str| {
        let containers = format!("[{{name: c, image: busybox:1, command: [sh, -c, '{command}']}}]");
        pod(name, "}, spec: {restartPolicy: Never, ", &containers)
    };

    // Faster than anybody looks: the kernel ends it, and nobody else.
    apply(&cluster, &one("hog", "tail /dev/zero"));
    cluster.wait_for("get pod hog -o jsonpath={.status.phase}", |phase| {
        phase == "Failed"
    });

    // Forks without end: it gets no further than all pods may, the rest of the node does not notice.
    apply(&cluster, &one("bomb", "while :; do sleep 1000 & done"));
    cluster.wait_for("logs bomb", |log| log.contains("fork"));
    let began = Instant::now();
    cluster.ok("delete pod bomb");
    assert!(began.elapsed() < Duration::from_secs(30), "a slow deletion");

    // Slowly: it is evicted before the kernel has to.
    apply(&cluster, &one("quiet", "sleep 1000"));
    cluster.ready("quiet");
    apply(
        &cluster,
        &one("large", "(head -c 335544320 /dev/zero; sleep 1000) | tail"),
    );
    let message = evicted(&cluster, "large");
    assert!(
        message.starts_with(
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: "
        ) && message.contains("Container c was using ")
            && message.contains(", request is 0, has larger consumption of memory."),
        "{message}"
    );
    let disruption = ".status.conditions[?(@.type==\"DisruptionTarget\")].reason";
    assert_eq!(
        cluster.field("pod/large", disruption),
        "TerminationByKubelet"
    );
    let event = cluster.ok(
        "get events --field-selector=reason=Evicted -o jsonpath={.items[0].metadata.annotations}",
    );
    assert!(event.contains("\"starved_resource\":\"memory\""), "{event}");
    assert!(event.contains("\"offending_containers\":\"c\""), "{event}");
    cluster.wait(&condition("MemoryPressure"), "True");
    cluster.wait_for("get nodes -o jsonpath={.items[0].spec.taints}", |taints| {
        taints.contains("node.kubernetes.io/memory-pressure")
    });
    let node = cluster.field("nodes", ".items[0].metadata.name");
    let late = format!("}}, spec: {{nodeName: {node}, ");
    let sleep = "[{name: c, image: busybox:1, command: [sleep, \"1000\"]}]";
    apply(&cluster, &pod("late", &late, sleep));
    let message = evicted(&cluster, "late");
    assert_eq!(message.trim(), "The node had condition: [MemoryPressure].");
    cluster.ready("quiet");

    // It passes, and everything goes on.
    cluster.wait(&condition("MemoryPressure"), "False");
    apply(&cluster, &one("after", "sleep 1000"));
    cluster.ready("after");
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_is_emptied_by_whoever_filled_it() {
    let cluster = Cluster::new();
    let root = cluster.root.path().display();
    cluster
        .host
        .sh(&format!("mount -t tmpfs -o size=160m small {root}"));
    // The defaults of the disk, which the tests' own clusters go without.
    let disk = "--eviction-hard=nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%";
    up(
        &cluster,
        &["--eviction-pressure-transition-period=15s", disk],
    );
    cluster.import("busybox");
    cluster.import("nginx-1");
    let node_events = "get events -o jsonpath={range.items[*]}{.reason}:{.message}{\"\\n\"}{end} \
         --field-selector=involvedObject.kind=Node";
    let health = Health::watch(&cluster);
    let one = |name: &str, command: &str| {
        let command = format!("{command}; sleep 1000");
        let containers = format!("[{{name: c, image: busybox:1, command: [sh, -c, '{command}']}}]");
        pod(name, "}, spec: {", &containers)
    };
    apply(&cluster, &one("modest", "head -c 4000000 /dev/zero >/f"));
    cluster.ready("modest");
    // To the last byte, so that nothing can be written any more.
    apply(&cluster, &one("greedy", "cat /dev/zero >/f"));
    let message = evicted(&cluster, "greedy");
    assert!(
        message
            .starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: ")
            && message.contains("Container c was using ")
            && message.contains(", request is 0, has larger consumption of ephemeral-storage."),
        "{message}"
    );
    cluster.wait_for(node_events, |events| {
        events.contains("EvictionThresholdMet:Attempting to reclaim ephemeral-storage")
            && events.contains("NodeHasDiskPressure")
    });
    cluster.wait(&condition("DiskPressure"), "False");
    cluster.ready("modest");
    apply(&cluster, &one("after", "true"));
    cluster.ready("after");
    health.assert();

    // Images that nobody uses go when their disk fills up, the others stay.
    let images = || text(&cluster.vetch(&["image", "ls"]));
    assert!(images().contains("nginx") && images().contains("busybox"));
    assert!(cluster.vetch(&["down"]).status.success());
    up(
        &cluster,
        &[
            disk,
            "--image-gc-high-threshold=1",
            "--image-gc-low-threshold=0",
            "--minimum-image-ttl-duration=0",
        ],
    );
    crate::lab::until("unused images are gone", || !images().contains("nginx"));
    assert!(images().contains("busybox"), "{}", images());
    cluster.ready("modest");
}

#[test]
#[ignore = "needs root"]
fn settings_that_make_no_sense_are_refused_in_words() {
    let cluster = Cluster::new();
    for (flag, want) in [
        (
            "--eviction-hard=memory.free<1Gi",
            "unsupported eviction signal memory.free",
        ),
        ("--eviction-soft=memory.available<1Gi", "grace period must"),
        ("--kube-reserved=gpu=1", "cannot be reserved"),
        ("--kube-reserved=memory=1000Ti", "leaves no memory for pods"),
        ("--image-gc-low-threshold=100", "must be lower than"),
    ] {
        let output = cluster.vetch(&["up", "--detach", flag]);
        let told = text(&output);
        assert!(!output.status.success() && told.contains(want), "{told}");
    }
}
