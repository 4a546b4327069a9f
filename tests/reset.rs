//! `vetch reset`: the host is as it was before `vetch up`, and what is not ours was not touched.

mod lab;

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
};

use lab::{Cluster, text};

/// Pods of every shape: limits, volumes, a port of the host's, the host's network, a service.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: limited, labels: {app: limited}}
spec:
  containers:
  - name: c
    image: busybox:1
    command: [sleep, '987654']
    resources: {limits: {memory: 32Mi, cpu: 100m}}
    ports: [{containerPort: 80, hostPort: 8088}]
    volumeMounts: [{name: scratch, mountPath: /scratch}, {name: config, mountPath: /config}]
  volumes:
  - {name: scratch, emptyDir: {medium: Memory}}
  - {name: config, configMap: {name: kube-root-ca.crt}}
---
apiVersion: v1
kind: Pod
metadata: {name: onhost}
spec:
  hostNetwork: true
  containers: [{name: c, image: 'busybox:1', command: [sleep, '987654']}]
---
apiVersion: v1
kind: Service
metadata: {name: limited}
spec: {type: NodePort, selector: {app: limited}, ports: [{port: 80}]}
";

/// The cluster's folder in every control group hierarchy, as the processes of its pods show it.
fn group(cluster: &Cluster) -> String {
    let id = cluster.field("pod/limited", ".metadata.uid");
    let is_ours = |text: &String| text.contains(&id);
    let groups = fs::read_dir("/proc").unwrap().find_map(|entry| {
        let text = fs::read_to_string(entry.unwrap().path().join("cgroup"));
        text.ok().filter(is_ours)
    });
    let groups = groups.expect("the pod has a process");
    let line = groups.lines().find(|line| line.contains(&id)).unwrap();
    let path = line.splitn(3, ':').nth(2).unwrap();
    path.trim_start_matches('/')
        .split('/')
        .next()
        .unwrap()
        .into()
}

fn folders(group: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .filter(|line| line.contains(" cgroup"))
        .map(|line| PathBuf::from(line.split(' ').nth(1).unwrap()).join(group))
        .filter(|folder| folder.exists())
        .collect()
}

fn full(cluster: &Cluster) -> String {
    cluster.up();
    cluster.import("busybox");
    cluster.apply(PODS);
    cluster.ready("limited");
    cluster.ready("onhost");
    let group = group(cluster);
    assert!(!folders(&group).is_empty(), "{group}");
    group
}

/// A process in a control group, neither of them ours; they go with the test.
struct Foreign {
    sleeper: Child,
    limits: cgroups::Group,
}

impl Foreign {
    fn start(cluster: &Cluster, group: &str) -> Self {
        let hierarchy = cgroups::Hierarchy::detect().unwrap();
        let limits = cgroups::Group::create(&hierarchy, group).unwrap();
        let sleeper = cluster.host.command("sleep").arg("1000").spawn().unwrap();
        let foreign = Self { sleeper, limits };
        let id = foreign.sleeper.id();
        lab::until("the foreign program runs", || {
            fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "sleep")
        });
        foreign.limits.add_process(id).unwrap();
        foreign
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.sleeper.kill();
        let _ = self.sleeper.wait();
        let removed = self.limits.remove();
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

#[test]
#[ignore = "needs root"]
fn everything_of_ours_goes_and_nothing_else() {
    let cluster = Cluster::new();
    // Foreign, and named much like ours.
    let foreign = format!("vetch-foreign-{}", std::process::id());
    let mut theirs = Foreign::start(&cluster, &foreign);
    cluster.host.sh(
        "nft 'add table ip vetch_foreign; add chain ip vetch_foreign c; \
              add rule ip vetch_foreign c counter accept'; \
         ip link add vetchforeign type bridge; ip address add 10.99.0.1/24 dev vetchforeign; \
         ip link set vetchforeign up",
    );
    let kept = cluster.root.path().join("kept");
    fs::write(&kept, "mine").unwrap();
    let before = cluster.host.picture();

    let group = full(&cluster);
    let reset = cluster.vetch(&["reset", "--yes"]);
    assert!(reset.status.success(), "{}", text(&reset));
    assert_eq!(cluster.host.picture(), before);
    assert_eq!(folders(&group), Vec::<PathBuf>::new());
    for ours in ["etc", "lib", "run", "log"] {
        assert!(!cluster.root.path().join(ours).exists(), "{ours}");
    }

    // The same when the daemon was killed before.
    let group = full(&cluster);
    cluster.kill_daemon();
    let reset = cluster.vetch(&["reset", "--yes"]);
    assert!(reset.status.success(), "{}", text(&reset));
    assert_eq!(cluster.host.picture(), before);
    assert_eq!(folders(&group), Vec::<PathBuf>::new());
    assert_eq!(fs::read_to_string(&kept).unwrap(), "mine");

    assert!(!folders(&foreign).is_empty());
    let ended = theirs.sleeper.try_wait().unwrap();
    assert!(ended.is_none(), "it was killed");
}

/// The uids of the pods whose runtime records are there.
fn recorded_pods(cluster: &Cluster) -> Vec<PathBuf> {
    let pods = fs::read_dir(cluster.path("run/pods/pods")).unwrap();
    pods.map(|entry| entry.unwrap().path()).collect()
}

/// The same key, with a certificate that ended long ago.
fn expire_authority(cluster: &Cluster) {
    let key = fs::read_to_string(cluster.path("lib/pki/ca.key")).unwrap();
    let key = rcgen::KeyPair::from_pem(&key).unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.not_before = rcgen::date_time_ymd(1999, 1, 1);
    authority.not_after = rcgen::date_time_ymd(2000, 1, 1);
    let certificate = authority.self_signed(&key).unwrap().pem();
    fs::write(cluster.path("lib/pki/ca.crt"), certificate).unwrap();
}

fn damage_keys(cluster: &Cluster) {
    fs::write(cluster.path("lib/pki/ca.key"), "nonsense").unwrap();
    fs::write(cluster.path("lib/pki/sa.key"), "nonsense").unwrap();
    fs::remove_file(cluster.path("lib/pki/front-proxy-ca.key")).unwrap();
}

fn damage_records(cluster: &Cluster) {
    for pod in recorded_pods(cluster) {
        fs::write(pod.join("pod.json"), "{").unwrap();
    }
}

fn damage_network(cluster: &Cluster) {
    fs::write(cluster.path("lib/node.json"), "{").unwrap();
    for record in fs::read_dir(cluster.path("lib/network/addresses")).unwrap() {
        fs::write(record.unwrap().path(), "").unwrap();
    }
}

/// It may be for the damage that the cluster is removed.
#[test]
#[ignore = "needs root"]
fn what_is_damaged_or_has_expired_goes_too() {
    let cluster = Cluster::new();
    let before = cluster.host.picture();
    type Damage = fn(&Cluster);
    let damages: [(&str, Damage); 5] = [
        ("an expired authority", expire_authority),
        ("damaged keys", damage_keys),
        ("records that cannot be read", damage_records),
        ("no record of the node", |cluster| {
            fs::remove_file(cluster.path("lib/node.json")).unwrap();
        }),
        ("damaged records of the network", damage_network),
    ];
    for (name, damage) in damages {
        let group = full(&cluster);
        cluster.kill_daemon();
        damage(&cluster);
        let reset = cluster.vetch(&["reset", "--yes"]);
        assert!(reset.status.success(), "{name}: {}", text(&reset));
        assert_eq!(cluster.host.picture(), before, "{name}");
        assert_eq!(folders(&group), Vec::<PathBuf>::new(), "{name}");
        for ours in ["etc", "lib", "run", "log"] {
            assert!(!cluster.root.path().join(ours).exists(), "{name}: {ours}");
        }
    }
}

#[test]
#[ignore = "needs root, to cease to be it"]
fn a_host_without_root_is_told_and_not_touched() {
    let cluster = Cluster::new();
    let root = cluster.root.path();
    let program = root.join("vetch");
    fs::copy(lab::program(), &program).unwrap();
    cluster.host.sh(&format!("chmod 777 {}", root.display()));
    let commands = [
        "up",
        "check",
        "down",
        "reset --yes",
        "image ls",
        "image pull a",
        "lab up",
        "lab down",
        "lab list",
    ];
    for command in commands {
        let mut as_nobody = cluster.host.command("setpriv");
        as_nobody
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(command.split(' '))
            .stdin(Stdio::null());
        if command != "check" {
            as_nobody.arg("--root").arg(root.join("cluster"));
        }
        let output = as_nobody.output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("root"), "{command}: {said}");
        assert!(!said.contains("panicked"), "{command}: {said}");
        assert!(!root.join("cluster").exists(), "{command}");
    }
}
