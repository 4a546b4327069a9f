//! A runtime with folders and control groups of its own, and the questions tests ask of it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use oci_spec::runtime::{
    Capability, LinuxCapabilitiesBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    Mount, MountBuilder, Process, ProcessBuilder, Spec, get_default_maskedpaths,
    get_default_mounts, get_default_readonly_paths,
};
use vetch::runtime::{
    Config, ContainerConfig, Error, ExecConfig, Exit, Identity, Io, Phase, PodConfig, Rootfs,
    Runtime,
};

pub type TestResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

pub const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Lab {
    pub root: tempfile::TempDir,
    pub runtime: Runtime,
    config: Config,
    attempts: AtomicU32,
    done: bool,
}

impl Lab {
    pub async fn new() -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let root = tempfile::tempdir()?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let config = Config {
            state_dir: root.path().join("state"),
            run_dir: root.path().join("run"),
            cgroup_root: format!("vetch-test-{}-{number}", std::process::id()),
        };
        make_image(&root.path().join("layer"))?;
        fs::create_dir(root.path().join("log"))?;
        let runtime = open(&config).await?;
        Ok(Self {
            root,
            runtime,
            config,
            attempts: AtomicU32::new(0),
            done: false,
        })
    }

    /// A second daemon in place of the first.
    pub async fn reopen(&mut self) -> TestResult {
        self.runtime = open(&self.config).await?;
        Ok(())
    }

    /// Only the daemon goes; one over empty folders takes its place.
    pub async fn drop_runtime(&mut self) -> TestResult {
        let config = Config {
            state_dir: self.root.path().join("other/state"),
            run_dir: self.root.path().join("other/run"),
            cgroup_root: self.config.cgroup_root.clone(),
        };
        self.runtime = open(&config).await?;
        Ok(())
    }

    pub async fn create_pod(
        &self,
        uid: &str,
        edit: impl FnOnce(&mut PodConfig),
    ) -> Result<(), Error> {
        let mut config = PodConfig {
            identity: Identity {
                uid: uid.into(),
                namespace: "default".into(),
                name: uid.into(),
            },
            annotations: Default::default(),
            hostname: format!("pod-{uid}"),
            host_network: false,
            host_pid: false,
            host_ipc: false,
            share_processes: false,
            sysctls: [("net.ipv4.ip_unprivileged_port_start".into(), "0".into())].into(),
            cgroup: format!("burstable/pod{uid}"),
            resources: None,
        };
        edit(&mut config);
        if config.host_network {
            config.sysctls.clear();
        }
        self.runtime.create_pod(config).await
    }

    pub async fn run(
        &self,
        pod: &str,
        script: &str,
        edit: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String, Error> {
        self.run_argv(pod, &["sh", "-c", script], edit).await
    }

    pub async fn run_argv(
        &self,
        pod: &str,
        argv: &[&str],
        edit: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String, Error> {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let mut config = ContainerConfig {
            name: "main".into(),
            attempt,
            annotations: Default::default(),
            rootfs: Rootfs::Layers(vec![self.root.path().join("layer")]),
            oci: spec(argv),
            io: Io {
                tty: false,
                stdin: false,
                stdin_once: false,
                log_path: self.root.path().join(format!("log/{attempt}.log")),
            },
            user: None,
            must_not_be_root: false,
        };
        edit(&mut config);
        self.runtime.run_container(pod, config).await
    }

    pub async fn phase(&self, id: &str) -> Result<Phase> {
        for pod in self.runtime.pods().await {
            if let Some(found) = pod.containers.into_iter().find(|one| one.id == id) {
                return Ok(found.phase);
            }
        }
        Err(format!("no container {id}").into())
    }

    /// Waits for the container's end.
    pub async fn exit(&self, id: &str) -> Result<Exit> {
        self.wait_until("the end of a container", async || {
            Ok(matches!(self.phase(id).await?, Phase::Exited { .. }))
        })
        .await?;
        match self.phase(id).await? {
            Phase::Exited { exit, .. } => Ok(exit),
            other => Err(format!("{other:?}").into()),
        }
    }

    pub async fn log(&self, id: &str) -> Result<String> {
        for pod in self.runtime.pods().await {
            if let Some(found) = pod.containers.into_iter().find(|one| one.id == id) {
                return Ok(fs::read_to_string(found.log_path)?);
            }
        }
        Err(format!("no container {id}").into())
    }

    /// The log without times and streams.
    pub async fn text(&self, id: &str) -> Result<String> {
        let mut text = String::new();
        for line in self.log(id).await?.lines() {
            text += line.splitn(4, ' ').nth(3).unwrap_or("");
            text.push('\n');
        }
        Ok(text)
    }

    pub async fn exec(&self, id: &str, argv: &[&str], input: &str) -> Result<(String, Exit)> {
        let mut session = self.runtime.exec(id, exec_config(argv)).await?;
        write_all(session.stdin.take().ok_or("no stdin")?, input.as_bytes())?;
        let output = read_all(session.stdout.take().ok_or("no stdout")?).await?;
        Ok((output, session.exit.await??))
    }

    pub async fn exec_tty(
        &self,
        id: &str,
        script: &str,
        size: (u16, u16),
    ) -> Result<(String, Exit)> {
        let config = ExecConfig {
            argv: ["sh", "-c", &format!("read go; {script}")]
                .map(str::to_owned)
                .to_vec(),
            tty: true,
            stdin: true,
            stdout: true,
            stderr: false,
        };
        let mut session = self.runtime.exec(id, config).await?;
        let resize = session.resize.take().ok_or("no resize")?;
        resize.send(size).await?;
        resize.reserve_many(resize.max_capacity()).await?; // it was taken
        write_all(session.stdin.take().ok_or("no stdin")?, b"\n")?;
        let output = read_all(session.stdout.take().ok_or("no stdout")?).await?;
        Ok((output, session.exit.await??))
    }

    pub async fn wait_until(
        &self,
        what: &str,
        mut condition: impl AsyncFnMut() -> Result<bool>,
    ) -> TestResult {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if condition().await? {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("waited {PATIENCE:?} for {what}").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn supervisor(&self, uid: &str) -> Result<i32> {
        let group = format!("{}/supervisors/pod{uid}", self.config.cgroup_root);
        let hierarchy = cgroups::Hierarchy::detect()?;
        let pids = cgroups::Group::open(&hierarchy, &group)?.processes()?;
        Ok(*pids.first().ok_or("no supervisor")?)
    }

    /// How many processes all of the pod's containers may have.
    pub fn pids_limit(&self, uid: &str) -> Result<String> {
        let hierarchy = cgroups::Hierarchy::detect()?;
        let roots = hierarchy.v1.get("pids").or(hierarchy.v2.as_ref());
        let group = roots.ok_or("no control groups")?;
        let group = group.join(format!("{}/burstable/pod{uid}", self.config.cgroup_root));
        Ok(fs::read_to_string(group.join("pids.max"))?)
    }

    pub fn remove_pod_group(&self, uid: &str) -> TestResult {
        let hierarchy = cgroups::Hierarchy::detect()?;
        let name = format!("{}/burstable/pod{uid}", self.config.cgroup_root);
        Ok(cgroups::Group::open(&hierarchy, &name)?.remove()?)
    }

    pub fn kill_supervisor(&self, uid: &str) -> TestResult {
        let pid = nix::unistd::Pid::from_raw(self.supervisor(uid)?);
        Ok(nix::sys::signal::kill(
            pid,
            nix::sys::signal::Signal::SIGKILL,
        )?)
    }

    pub fn supervisor_memory(&self, uid: &str) -> Result<String> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.supervisor(uid)?))?;
        let lines = rollup
            .lines()
            .filter(|line| ["Rss", "Pss"].iter().any(|name| line.starts_with(name)));
        Ok(lines.collect::<Vec<_>>().join(", "))
    }

    /// Removes all pods and looks whether anything is left.
    pub async fn end(mut self) -> TestResult {
        for pod in self.runtime.pods().await {
            self.runtime.remove_pod(&pod.config.identity.uid).await?;
        }
        let left = |dir: PathBuf| -> Result<usize> { Ok(fs::read_dir(dir)?.count()) };
        assert_eq!(left(self.config.run_dir.join("pods"))?, 0, "records");
        assert_eq!(left(self.config.state_dir.join("containers"))?, 0, "roots");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = self.root.path().to_string_lossy().into_owned();
        assert!(!mounts.contains(&own), "mounts");
        let hierarchy = cgroups::Hierarchy::detect()?;
        let group = cgroups::Group::open(&hierarchy, &self.config.cgroup_root)?;
        assert!(group.processes()?.is_empty(), "processes");
        for point in hierarchy.v1.values().chain(&hierarchy.v2) {
            let groups = point.join(&self.config.cgroup_root).join("burstable");
            let names: Vec<_> = fs::read_dir(groups)
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir()))
                .collect();
            assert!(names.is_empty(), "groups: {names:?}");
        }
        vetch::runtime::remove_all(&self.config)?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.done {
            let _ = vetch::runtime::remove_all(&self.config);
        }
    }
}

async fn open(config: &Config) -> Result<Runtime, Error> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_vetch"));
    Runtime::open_with_program(config.clone(), program).await
}

/// A layer with busybox and a few users.
fn make_image(layer: &Path) -> TestResult {
    for dir in ["bin", "etc", "srv", "root"] {
        fs::create_dir_all(layer.join(dir))?;
    }
    fs::copy("/bin/busybox", layer.join("bin/busybox"))
        .map_err(|error| format!("these tests need a static /bin/busybox: {error}"))?;
    let list = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()?;
    for name in String::from_utf8(list.stdout)?
        .lines()
        .filter(|name| *name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(name))?;
    }
    fs::write(
        layer.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
    )?;
    fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:34:\n")?;
    std::os::unix::fs::symlink("/../../../outside", layer.join("link"))?;
    fs::create_dir(layer.join("outside"))?;
    Ok(())
}

fn spec(argv: &[&str]) -> Spec {
    let caps = [
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fsetid,
        Capability::Fowner,
        Capability::Mknod,
        Capability::NetRaw,
        Capability::Setgid,
        Capability::Setuid,
        Capability::Setfcap,
        Capability::Setpcap,
        Capability::NetBindService,
        Capability::SysChroot,
        Capability::Kill,
        Capability::AuditWrite,
    ];
    let caps = LinuxCapabilitiesBuilder::default()
        .bounding(caps)
        .effective(caps)
        .permitted(caps)
        .inheritable([])
        .ambient([])
        .build()
        .unwrap();
    let process = ProcessBuilder::default()
        .args(argv.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
        .env(vec!["PATH=/bin".to_owned()])
        .cwd("/")
        .capabilities(caps)
        .no_new_privileges(false)
        .build()
        .unwrap();
    let mut spec = Spec::default();
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_namespaces(None);
    linux.set_resources(None);
    linux.set_masked_paths(Some(get_default_maskedpaths()));
    linux.set_readonly_paths(Some(get_default_readonly_paths()));
    spec.set_linux(Some(linux));
    let mut root = oci_spec::runtime::Root::default();
    root.set_readonly(Some(false));
    spec.set_root(Some(root));
    spec.set_mounts(Some(get_default_mounts()));
    spec.set_process(Some(process));
    spec
}

pub fn edit_process(config: &mut ContainerConfig, edit: impl FnOnce(&mut Process)) {
    let mut process = config.oci.process().clone().unwrap();
    edit(&mut process);
    config.oci.set_process(Some(process));
}

pub fn limit(config: &mut ContainerConfig, memory: Option<i64>, pids: Option<i64>) {
    let mut resources = LinuxResources::default();
    if let Some(bytes) = memory {
        let memory = LinuxMemoryBuilder::default()
            .limit(bytes)
            .swap(bytes)
            .build()
            .unwrap();
        resources.set_memory(Some(memory));
    }
    if let Some(limit) = pids {
        resources.set_pids(Some(
            LinuxPidsBuilder::default().limit(limit).build().unwrap(),
        ));
    }
    let mut linux = config.oci.linux().clone().unwrap();
    linux.set_resources(Some(resources));
    config.oci.set_linux(Some(linux));
}

pub fn add_mount(config: &mut ContainerConfig, source: &Path, destination: &str, options: &[&str]) {
    let mount: Mount = MountBuilder::default()
        .source(source)
        .destination(destination)
        .typ("bind")
        .options(
            options
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>(),
        )
        .build()
        .unwrap();
    let mut mounts = config.oci.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    config.oci.set_mounts(Some(mounts));
}

pub fn exec_config(argv: &[&str]) -> ExecConfig {
    ExecConfig {
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

/// Writes and closes.
pub fn write_all(fd: OwnedFd, data: &[u8]) -> TestResult {
    Ok(File::from(fd).write_all(data)?)
}

/// Reads to the end, which a terminal tells as an error.
async fn read_all(fd: OwnedFd) -> Result<String> {
    let bytes = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        let _ = File::from(fd).read_to_end(&mut bytes);
        bytes
    })
    .await?;
    Ok(String::from_utf8(bytes)?)
}

/// How many processes of this machine have such a command line.
pub fn running(words: &str) -> usize {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    entries
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| line.replace('\0', " ").starts_with(words))
        .count()
}
