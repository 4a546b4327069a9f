//! A container of `true` from create to removal: our runtime beside crun and runc, in turns, with
//! one OCI spec and one root filesystem for all.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use serde_json::json;
use vetch::runtime::{
    Config, ContainerConfig, Identity, Io, Phase, PodConfig, Rootfs, Runtime, remove_all,
};

use super::{
    lab::{Host, text},
    median, print,
};

const RUNS: usize = 40;

pub fn compare(host: &Host) {
    let folder = tempfile::tempdir().unwrap();
    let spec = match bundle(folder.path()) {
        Ok(spec) => spec,
        Err(error) => return println!("true: skipped, runc cannot be run: {error}"),
    };
    // The runtime's own threads are on the host, as the peers are.
    let enter = host.pid();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(move || enter_network(enter))
        .enable_all()
        .build()
        .unwrap();
    let ours = runtime.block_on(Ours::open(folder.path(), spec));
    let peers = ["crun", "runc"].map(|name| (name, installed(name)));
    let (mut inside, mut whole) = (Vec::new(), Vec::new());
    let mut figures = peers.map(|(name, _)| (name, Vec::new()));
    for round in 0..RUNS {
        inside.push(runtime.block_on(ours.container()));
        whole.push(runtime.block_on(ours.pod_and_container(round)));
        for ((program, figures), (_, installed)) in figures.iter_mut().zip(&peers) {
            if *installed {
                figures.push(peer(host, program, round, folder.path()));
            }
        }
    }
    drop(ours);
    // What the shell around the peers costs.
    let around = (0..RUNS).map(|_| in_shell(host, "true")).collect();
    let around = median(around).0;
    print(
        "true/vetch: in a pod that exists",
        inside,
        "goal 0.7 of crun",
    );
    print(
        "true/vetch: with its pod",
        whole,
        "now not slower than crun",
    );
    for (program, figures) in figures {
        if figures.is_empty() {
            println!("true/{program}: skipped, not installed");
            continue;
        }
        let net = figures
            .into_iter()
            .map(|figure| figure.saturating_sub(around));
        let name = format!("true/{program}: run, without its shell");
        print(&name, net.collect(), "the peer");
    }
}

fn enter_network(pid: u32) {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).unwrap();
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
}

fn installed(program: &str) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

/// An OCI bundle as runc writes it, that runs `true`; gives its spec.
fn bundle(folder: &Path) -> Result<serde_json::Value, String> {
    let rootfs = folder.join("rootfs");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::copy("/bin/busybox", rootfs.join("bin/true")).unwrap();
    let output = Command::new("runc")
        .arg("spec")
        .current_dir(folder)
        .output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(text(&output));
    }
    let path = folder.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    spec["process"]["args"] = json!(["/bin/true"]);
    spec["process"]["terminal"] = json!(false);
    fs::write(&path, spec.to_string()).unwrap();
    Ok(spec)
}

fn peer(host: &Host, program: &str, round: usize, bundle: &Path) -> Duration {
    in_shell(
        host,
        &format!("{program} run -b {} bench-{round}", bundle.display()),
    )
}

/// On the host, in a mount namespace without the empty v2 tree: crun takes that for the whole.
fn in_shell(host: &Host, line: &str) -> Duration {
    let line = format!("umount /sys/fs/cgroup/unified 2>/dev/null; exec {line}");
    let mut command = host.command("unshare");
    command
        .args(["--mount", "sh", "-c", &line])
        .stdin(Stdio::null());
    let started = Instant::now();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", text(&output));
    started.elapsed()
}

/// Our runtime over folders and control groups of its own.
struct Ours {
    config: Config,
    runtime: Runtime,
    folder: PathBuf,
    spec: oci_spec::runtime::Spec,
}

impl Ours {
    async fn open(folder: &Path, spec: serde_json::Value) -> Self {
        let config = Config {
            state_dir: folder.join("state"),
            run_dir: folder.join("run"),
            cgroup_root: format!("vetch-bench-{}", std::process::id()),
        };
        fs::create_dir(folder.join("log")).unwrap();
        let program = env!("CARGO_BIN_EXE_vetch").into();
        let runtime = Runtime::open_with_program(config.clone(), program).await;
        let ours = Self {
            config,
            runtime: runtime.unwrap(),
            folder: folder.to_owned(),
            spec: serde_json::from_value(spec).unwrap(),
        };
        ours.pod("there").await;
        ours
    }

    async fn pod(&self, uid: &str) {
        let config = PodConfig {
            identity: Identity {
                uid: uid.into(),
                namespace: "default".into(),
                name: uid.into(),
            },
            annotations: Default::default(),
            hostname: uid.into(),
            host_network: false,
            host_pid: false,
            host_ipc: false,
            share_processes: false,
            sysctls: Default::default(),
            cgroup: format!("besteffort/pod{uid}"),
            resources: None,
        };
        self.runtime.create_pod(config).await.unwrap();
    }

    /// Create, run, wait for the end, remove.
    async fn run(&self, pod: &str) {
        let mut events = self.runtime.events();
        let config = ContainerConfig {
            name: "main".into(),
            attempt: 0,
            annotations: Default::default(),
            rootfs: Rootfs::Layers(vec![self.folder.join("rootfs")]),
            oci: self.spec.clone(),
            io: Io {
                tty: false,
                stdin: false,
                stdin_once: false,
                log_path: self.folder.join("log/0.log"),
            },
            user: None,
            must_not_be_root: false,
        };
        let id = self.runtime.run_container(pod, config).await.unwrap();
        loop {
            let state = self.runtime.pod(pod).await.unwrap();
            let found = state.containers.into_iter().find(|one| one.id == id);
            if let Phase::Exited { exit, .. } = found.unwrap().phase {
                assert_eq!(exit.code, 0, "{}", exit.error);
                break;
            }
            events.recv().await.unwrap();
        }
        self.runtime.remove_container(&id).await.unwrap();
    }

    async fn container(&self) -> Duration {
        let started = Instant::now();
        self.run("there").await;
        started.elapsed()
    }

    async fn pod_and_container(&self, round: usize) -> Duration {
        let name = format!("p{round}");
        let started = Instant::now();
        self.pod(&name).await;
        self.run(&name).await;
        self.runtime.remove_pod(&name).await.unwrap();
        started.elapsed()
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        remove_all(&self.config).unwrap();
    }
}
