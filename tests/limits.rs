//! What limits do to real processes in pods.

mod lab;

use lab::Cluster;

fn pod(name: &str, command: &str, limits: &str, annotations: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, '{command}']
    resources: {{limits: {{{limits}}}}}
---
"
    )
}

#[test]
#[ignore = "needs root"]
fn memory_over_the_limit_is_said_to_be_so() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    cluster.apply(&pod("greedy", "tail /dev/zero", "memory: 20Mi", ""));
    let state = ".status.containerStatuses[0].state.terminated";
    cluster.wait(
        &format!("get pod greedy -o jsonpath={{{state}.reason}}"),
        "OOMKilled",
    );
    assert_eq!(
        cluster.field("pod/greedy", &format!("{state}.exitCode")),
        "137"
    );
}

#[test]
#[ignore = "needs root"]
fn a_cpu_quota_holds() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    // Half a CPU for four seconds is two seconds of work, or less where the machine is busy: then a
    // pod without a limit gets more than this one does.
    let command = "timeout 4 sh -c \"while true; do :; done\"; times";
    cluster.apply(&format!(
        "{}{}",
        pod("held", command, "cpu: 500m, memory: 20Mi", ""),
        pod("free", command, "memory: 20Mi", "")
    ));
    let worked = |pod: &str| -> f64 {
        cluster.wait(
            &format!("get pod {pod} -o jsonpath={{.status.phase}}"),
            "Succeeded",
        );
        // The last line of figures (the shell says "Terminated" on stderr): user and system time of the children.
        let times = cluster.ok(&format!("logs {pod}"));
        let seconds = times
            .lines()
            .rfind(|line| line.starts_with(|c: char| c.is_ascii_digit()))
            .unwrap()
            .split_whitespace()
            .map(|time| {
                let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
                minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
            });
        seconds.sum()
    };
    let (held, free) = (worked("held"), worked("free"));
    assert!(held <= 2.2, "{held} s of 2");
    assert!(
        held >= 1.8 || free < 3.6,
        "{held} s, and {free} s without a limit"
    );
    assert!(free > held, "{held} s, and {free} s without a limit");
}

#[test]
#[ignore = "needs root"]
fn swap_is_used_to_its_limit_and_no_further() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let _swap = Swap::on(256);
    // tmpfs pages can be swapped: 40 MiB fit into 20 of memory and 32 of swap, 80 do not.
    let fill =
        |megabytes: u32| format!("head -c {megabytes}m /dev/zero > /dev/shm/x && echo filled");
    let annotation = "vetch.dev/swap-limit.c: 32Mi";
    cluster.apply(&format!(
        "{}{}{}",
        pod("fits", &fill(40), "memory: 20Mi", annotation),
        pod("more", &fill(60), "memory: 20Mi", annotation),
        pod("none", &fill(40), "memory: 20Mi", ""),
    ));
    cluster.wait("get pod fits -o jsonpath={.status.phase}", "Succeeded");
    assert_eq!(cluster.ok("logs fits"), "filled\n");
    for pod in ["more", "none"] {
        cluster.wait(
            &format!("get pod {pod} -o jsonpath={{.status.phase}}"),
            "Failed",
        );
        let reason = ".status.containerStatuses[0].state.terminated.reason";
        assert_eq!(cluster.field(&format!("pod/{pod}"), reason), "OOMKilled");
    }
}

/// A swap file, off and removed when dropped.
struct Swap(tempfile::TempDir);

impl Swap {
    fn on(megabytes: usize) -> Self {
        use std::{io::Write, os::unix::fs::PermissionsExt, process::Command};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let mut file = std::fs::File::create(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let block = vec![0; 1 << 20];
        for _ in 0..megabytes {
            file.write_all(&block).unwrap();
        }
        file.sync_all().unwrap();
        for program in ["mkswap", "swapon"] {
            let output = Command::new(program).arg(&path).output().unwrap();
            assert!(output.status.success(), "{program}: {}", lab::text(&output));
        }
        Self(dir)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = std::process::Command::new("swapoff")
            .arg(self.0.path().join("swap"))
            .status();
    }
}
