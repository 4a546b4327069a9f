//! The daemon is killed (SIGKILL) at every step of a pod's start and end: the next one brings the pod to
//! where it shall be, and nothing is left over.
//!
//! What kills it is in test builds only: `cargo test --features test-hooks --test order steps::`.
#![cfg(feature = "test-hooks")]

use std::{fs, path::Path, process::Output};

use vetch::supervision::steps::Step;

use crate::{
    lab::{Cluster, text, until, until_none},
    supervision::provoke,
};

/// All that a pod can have around it: its own network and a port of the node, mounts and files.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: c
    image: 'busybox:1'
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'trap \"exit 0\" TERM; sleep MARK & wait']
    ports: [{containerPort: 80, hostPort: 8088}]
    volumeMounts: [{name: scratch, mountPath: /scratch}, {name: config, mountPath: /config}]
  volumes:
  - {name: scratch, emptyDir: {medium: Memory}}
  - {name: config, configMap: {name: kube-root-ca.crt}}
";

struct Lab {
    cluster: Cluster,
    /// The host with the cluster and no pod.
    idle: Vec<String>,
    pods: u32,
}

/// One that nobody else's process has.
fn mark(number: u32) -> String {
    format!("{}{number:03}", std::process::id())
}

/// How many processes there are whose last argument is that.
fn running(mark: &str) -> usize {
    let is_it = |line: &[u8]| line.ends_with(format!("sleep\0{mark}\0").as_bytes());
    let processes = fs::read_dir("/proc").unwrap();
    let lines = processes.filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok());
    lines.filter(|line| is_it(line)).count()
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// Folders of control groups that bear the UID.
fn groups(uid: &str) -> String {
    let mut roots = String::new();
    for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
        if line.contains(" cgroup") {
            roots.push_str(line.split(' ').nth(1).unwrap());
            roots.push(' ');
        }
    }
    let find = format!("find {roots} -maxdepth 5 -type d -name '*{uid}*' 2>/dev/null || true");
    let output = std::process::Command::new("sh")
        .args(["-c", &find])
        .output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

impl Lab {
    fn new() -> Self {
        let cluster = Cluster::started();
        cluster.import("busybox");
        let mut lab = Self {
            cluster,
            idle: Vec::new(),
            pods: 0,
        };
        // What the first pod brings along stays.
        let uid = lab.start();
        lab.delete();
        lab.gone(&uid, "of the first pod");
        lab.idle = lab.picture();
        lab
    }

    fn name(&self) -> String {
        format!("p{}", self.pods)
    }

    fn create(&mut self) {
        let created = self.ask_to_create();
        assert!(created.status.success(), "{}", text(&created));
    }

    /// The daemon may die before it has answered.
    fn ask_to_create(&mut self) -> Output {
        self.pods += 1;
        let pod = POD.replace("NAME", &self.name());
        let file = self.cluster.root.path().join("pod.yaml");
        fs::write(&file, pod.replace("MARK", &mark(self.pods))).unwrap();
        self.cluster
            .kubectl(&format!("create -f {}", file.display()))
    }

    /// The next pod, which runs; its UID.
    fn start(&mut self) -> String {
        self.create();
        self.cluster.ready(&self.name());
        self.uid()
    }

    fn uid(&self) -> String {
        let pod = format!("pod/{}", self.name());
        self.cluster.field(&pod, ".metadata.uid")
    }

    fn delete(&self) {
        let deleted = self.ask_to_delete();
        assert!(deleted.status.success(), "{}", text(&deleted));
    }

    /// The daemon may die before it has answered.
    fn ask_to_delete(&self) -> Output {
        let line = format!("delete pod {} --wait=false", self.name());
        self.cluster.kubectl(&line)
    }

    /// Orders the daemon's death at the step.
    fn order(&self, step: Step) -> i32 {
        provoke(&self.cluster, &step.name(), "Kill");
        self.cluster.daemon()
    }

    /// The daemon dies where it shall, and another one starts.
    fn resurrect(&self, daemon: i32, step: Step) {
        until(&format!("the daemon dies at {step:?}"), || {
            // Nobody of ours reaps it.
            let status = fs::read_to_string(format!("/proc/{daemon}/stat"));
            status.is_ok_and(|status| status.contains(") Z "))
                || !Path::new(&format!("/proc/{daemon}")).exists()
        });
        self.cluster.up();
    }

    /// The pod runs, once.
    fn runs(&self, step: Step) {
        let name = self.name();
        self.cluster.ready(&name);
        let mark = mark(self.pods);
        until(&format!("{step:?}: its program runs once"), || {
            running(&mark) == 1
        });
        let restarts = format!("pod/{name}");
        let restarts = self
            .cluster
            .field(&restarts, ".status.containerStatuses[0].restartCount");
        assert_eq!(restarts, "0", "{step:?}");
        let ca = self
            .cluster
            .ok(&format!("exec {name} -- cat /config/ca.crt"));
        assert!(ca.contains("CERTIFICATE"), "{step:?}");
    }

    /// The host, but for what each daemon has of its own: the process that supervisors are forked from,
    /// which comes with the first of them, and the port that what comes from loopback addresses is led to.
    fn picture(&self) -> Vec<String> {
        let zygote = |line: &str| line == "vetch:zygote";
        let lasting = |line: &str| match line.split_once("@loopback-ports dnat to ") {
            Some((rule, _)) => format!("{rule}\n"),
            None => format!("{line}\n"),
        };
        let picture = self.cluster.host.picture().into_iter();
        let parts = picture.map(|part| {
            let lines = part.lines().filter(|line| !zygote(line));
            lines.map(lasting).collect()
        });
        parts.collect()
    }

    /// Nothing is left of the pod.
    fn gone(&self, uid: &str, what: &str) {
        let cluster = &self.cluster;
        cluster.wait_for("get pods -o name", |pods| pods.trim().is_empty());
        let mark = mark(self.pods);
        let left = || {
            let below = |folder: &str| names(&cluster.path(folder));
            let mut left = Vec::new();
            for folder in [
                "run/pods/pods",
                "lib/pods",
                "lib/runtime/containers",
                "lib/network/addresses",
                "log/pods",
                "log/containers",
            ] {
                let found = below(folder);
                if !found.is_empty() {
                    left.push(format!("{folder}: {found:?}"));
                }
            }
            if running(&mark) > 0 {
                left.push("a process".into());
            }
            let groups = groups(uid);
            if !groups.is_empty() {
                left.push(groups);
            }
            left
        };
        until_none(&format!("nothing is left {what}"), left);
        if !self.idle.is_empty() {
            until_none(&format!("the host is as it was {what}"), || {
                let now = self.picture();
                let differs = now.iter().zip(&self.idle).filter(|(now, idle)| now != idle);
                differs
                    .map(|(now, idle)| format!("{now} was {idle}"))
                    .collect()
            });
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_pod_survives_the_daemons_death_at_every_step() {
    let mut lab = Lab::new();
    for step in Step::START {
        let daemon = lab.order(step);
        lab.ask_to_create();
        lab.resurrect(daemon, step);
        lab.runs(step);
        let uid = lab.uid();
        lab.delete();
        lab.gone(&uid, &format!("after {step:?}"));
    }
    for step in Step::END {
        let uid = lab.start();
        let daemon = lab.order(step);
        lab.ask_to_delete();
        lab.resurrect(daemon, step);
        lab.gone(&uid, &format!("after {step:?}"));
    }
}
