//! A host of a test's own, and a cluster on it, driven by the commands a user types.
//!
//! A host is a network and a mount namespace, so that tests share no port, link, table or mount
//! and several run at once. `VETCH_TEST_KUBECTL` names kubectl; without it the one on the PATH is
//! used; `VETCH_TEST_PROGRAM` names another vetch than the one that was built with the tests, and
//! `VETCH_TEST_OLD_FLAGS` says that it is from before the flags about eviction. Everything is taken
//! away on drop, also when the test failed, and when it is interrupted or runs out of time.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod interrupted;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

pub const DEADLINE: Duration = Duration::from_secs(60);
/// A cluster's API server, as machines beside it reach it.
pub const SERVER: &str = "https://192.168.77.1:6443";

/// As long as `wanted`, or longer where the machine is emulated: `VETCH_TEST_PATIENCE` times as long.
pub fn patiently(wanted: Duration) -> Duration {
    let times = std::env::var("VETCH_TEST_PATIENCE").map_or(1, |times| times.parse().unwrap());
    wanted * times
}

/// The program to test: `VETCH_TEST_PROGRAM`, by itself the one that was built with the tests.
pub fn program() -> PathBuf {
    std::env::var_os("VETCH_TEST_PROGRAM")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_vetch").into())
        .into()
}

/// Whether the program is slow because nothing in it is optimised.
pub fn is_unoptimised() -> bool {
    cfg!(debug_assertions) && std::env::var_os("VETCH_TEST_PROGRAM").is_none()
}

/// Namespaces held by a sleeping process.
pub struct Host {
    holder: Child,
}

impl Host {
    pub fn new() -> Self {
        let host = Self::bare();
        host.set_up("ip link add host0 type bridge", "192.168.77.1");
        host
    }

    /// Another one, on a link with the first: 192.168.77.NUMBER.
    pub fn beside(first: &Self, number: u8) -> Self {
        let host = Self::bare();
        let (pid, port) = (host.pid(), format!("port{number}"));
        first.sh(&format!(
            "ip link add {port} type veth peer name host0 netns {pid} && ip link set {port} master host0 up"
        ));
        host.set_up("true", &format!("192.168.77.{number}"));
        host
    }

    /// With namespaces and nothing in them.
    fn bare() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "--mount", "sleep", "infinity"])
            .spawn()
            .unwrap();
        let host = Self { holder };
        let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        until("the host has its namespaces", || {
            let command = format!("/proc/{}/comm", host.holder.id());
            link(&host.holder.id().to_string()) != link("self")
                && std::fs::read_to_string(command).is_ok_and(|name| name.trim() == "sleep")
        });
        host
    }

    fn set_up(&self, make_link: &str, address: &str) {
        for line in [
            "ip link set lo up",
            make_link,
            &format!("ip address add {address}/24 dev host0"),
            "ip link set host0 up",
            "ip route add default via 192.168.77.254",
        ] {
            let mut words = line.split(' ');
            let output = self.command(words.next().unwrap()).args(words).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{line}: {}", text(&output));
        }
    }

    /// Has fd77::NUMBER too, on the same link.
    pub fn add_ipv6(&self, number: u8) {
        for line in [
            &format!("ip address add fd77::{number}/64 dev host0 nodad"),
            "ip -6 route add default via fd77::fe dev host0",
        ] {
            self.sh(line);
        }
    }

    /// The process that holds the namespaces.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A program on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.holder.id()))
            .args(["--net", "--mount", "--"])
            .arg(program);
        command
    }

    /// A line of shell on this host; its output.
    pub fn sh(&self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Links, addresses, routes, tables, mounts, settings, and the processes in its namespaces.
    pub fn picture(&self) -> Vec<String> {
        [
            "ip -o link | cut -d: -f2",
            "ip -o address | awk '{print $2, $4}'",
            "ip route; ip rule; ip -6 route; ip -6 rule",
            "nft list ruleset",
            "cut -d' ' -f2,3 /proc/self/mounts",
            "sysctl -a 2>/dev/null | grep -E '^net[.](ipv4|ipv6|bridge|netfilter)[.]' \
             | grep -Ev 'conntrack_count|route.flush|neigh.*|stable_secret|[.]host0[.]'",
        ]
        .map(|line| self.sh(line))
        .into_iter()
        .chain([self.processes()])
        .collect()
    }

    /// Programs in this host's network or mount namespace, the holder among them.
    fn processes(&self) -> String {
        let own = |pid: &str| {
            ["net", "mnt"].map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok())
        };
        let host = own(&self.pid().to_string());
        let mut found: Vec<String> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter(|pid| {
                own(pid)
                    .iter()
                    .zip(&host)
                    .any(|(a, b)| a.is_some() && a == b)
            })
            .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok())
            .collect();
        found.sort();
        found.concat()
    }
}

/// A command below a root on a host. A machine that runs tests may have a full disk, which is nobody's
/// pressure here: `up` and `agent` look at disks as the test says, or else not.
fn vetch(host: &Host, program: &Path, root: &Path, arguments: &[&str]) -> Output {
    let mut more = Vec::new();
    let is_given = |flag: &str| arguments.iter().any(|one| one.starts_with(flag));
    let is_older = std::env::var_os("VETCH_TEST_OLD_FLAGS").is_some();
    if matches!(arguments.first(), Some(&"up" | &"agent")) && !is_older {
        if !is_given("--eviction-hard") {
            more.push("--eviction-hard=memory.available<100Mi");
        }
        if !is_given("--image-gc-high-threshold") {
            more.push("--image-gc-high-threshold=100");
        }
    }
    let mut command = host.command(program);
    if arguments.first() == Some(&"agent") {
        // As on a small machine, without the world's certificate authorities.
        command
            .env("SSL_CERT_FILE", "/dev/null")
            .env("SSL_CERT_DIR", "/nonexistent");
    }
    command
        .args(arguments)
        .args(more)
        .arg("--root")
        .arg(root)
        .output()
        .unwrap()
}

/// Another machine, on a link with a cluster's. Drop it before the cluster.
pub struct Machine {
    pub root: tempfile::TempDir,
    pub host: Host,
    /// Lives as long as the machine does.
    router: Option<Host>,
    program: PathBuf,
}

impl Machine {
    pub fn beside(cluster: &Cluster, number: u8) -> Self {
        Self::on(cluster, Host::beside(&cluster.host, number), None)
    }

    /// One that only a router leads to: 192.168.88.2.
    pub fn behind_a_router(cluster: &Cluster) -> Self {
        let (router, host) = (Host::bare(), Host::bare());
        let (pid, far) = (router.pid(), host.pid());
        cluster.host.sh(&format!(
            "ip link add port254 type veth peer name near netns {pid} && ip link set port254 master host0 up"
        ));
        router.sh(&format!(
            "ip link add far type veth peer name host0 netns {far}"
        ));
        for line in [
            "ip link set lo up",
            "ip address add 192.168.77.254/24 dev near",
            "ip address add 192.168.88.254/24 dev far",
            "ip link set near up",
            "ip link set far up",
            "sysctl -qw net.ipv4.ip_forward=1",
        ] {
            router.sh(line);
        }
        for line in [
            "ip link set lo up",
            "ip address add 192.168.88.2/24 dev host0",
            "ip link set host0 up",
            "ip route add default via 192.168.88.254",
        ] {
            host.sh(line);
        }
        Self::on(cluster, host, Some(router))
    }

    fn on(cluster: &Cluster, host: Host, router: Option<Host>) -> Self {
        let machine = Self {
            root: tempfile::tempdir().unwrap(),
            host,
            router,
            program: cluster.program.clone(),
        };
        interrupted::remove_then(machine.root.path(), machine.host.pid());
        machine
    }

    /// Becomes the node `name` of the cluster.
    pub fn join(&self, cluster: &Cluster, name: &str) {
        self.join_at(SERVER, cluster, name);
    }

    /// The same by another address of the server.
    pub fn join_at(&self, server: &str, cluster: &Cluster, name: &str) {
        self.join_with(server, &cluster.token(), name);
    }

    /// The same by a token that may have let others join.
    pub fn join_by(&self, token: &str, name: &str) {
        self.join_with(SERVER, token, name);
    }

    fn join_with(&self, server: &str, token: &str, name: &str) {
        let (server, token) = (format!("--server={server}"), format!("--token={token}"));
        let name = format!("--node-name={name}");
        self.ok(&["agent", &server, &token, &name, "--detach"]);
    }

    pub fn vetch(&self, arguments: &[&str]) -> Output {
        vetch(&self.host, &self.program, self.root.path(), arguments)
    }

    /// A command that must succeed.
    pub fn ok(&self, arguments: &[&str]) {
        let output = self.vetch(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }

    pub fn import(&self, image: &str) {
        let file = images().join(format!("{image}.tar"));
        self.ok(&["image", "import", file.to_str().unwrap()]);
    }

    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.root.path().join("log/vetch.log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("$ vetch logs (of an agent)\n{}", self.daemon_log());
        }
        let output = self.vetch(&["reset", "--yes"]);
        interrupted::is_removed(self.root.path());
        if !output.status.success() && !std::thread::panicking() {
            panic!("reset: {}", text(&output));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// kubectls of other versions, oldest first: `VETCH_TEST_KUBECTL_OLD`, paths between colons.
pub fn old_kubectls() -> Vec<PathBuf> {
    let paths = std::env::var_os("VETCH_TEST_KUBECTL_OLD").unwrap_or_default();
    let paths: Vec<_> = std::env::split_paths(&paths)
        .filter(|path| path != Path::new(""))
        .collect();
    assert!(
        !paths.is_empty(),
        "VETCH_TEST_KUBECTL_OLD names no kubectl; .ci/test fetches some"
    );
    paths
}

/// A cluster in a folder of its own on a host of its own.
pub struct Cluster {
    pub root: tempfile::TempDir,
    pub host: Host,
    pub kubectl: PathBuf,
    /// As [`program`], unless a test compares two.
    pub program: PathBuf,
    /// Of `vetch up`, beside `--detach`.
    pub flags: Vec<&'static str>,
}

impl Cluster {
    /// Nothing runs yet.
    pub fn new() -> Self {
        let kubectl = std::env::var_os("VETCH_TEST_KUBECTL").unwrap_or_else(|| "kubectl".into());
        Self::with_kubectl(kubectl)
    }

    /// As [`Cluster::new`], with a kubectl of another version.
    pub fn with_kubectl(kubectl: impl Into<PathBuf>) -> Self {
        let cluster = Self {
            root: tempfile::tempdir().unwrap(),
            host: Host::new(),
            kubectl: kubectl.into(),
            program: program(),
            flags: Vec::new(),
        };
        interrupted::remove_then(cluster.root.path(), cluster.host.pid());
        cluster
    }

    /// `vetch up --detach` has returned.
    pub fn started() -> Self {
        let cluster = Self::new();
        cluster.up();
        cluster
    }

    pub fn up(&self) {
        let output = self.vetch(&[&["up", "--detach"], &self.flags[..]].concat());
        assert!(output.status.success(), "{}", text(&output));
    }

    /// A file below the root as the host sees it, where something may be mounted.
    pub fn path(&self, below: &str) -> PathBuf {
        let root = self.root.path().display();
        format!("/proc/{}/root{root}/{below}", self.host.pid()).into()
    }

    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.path("log/vetch.log")).unwrap_or_default()
    }

    pub fn vetch(&self, arguments: &[&str]) -> Output {
        vetch(&self.host, &self.program, self.root.path(), arguments)
    }

    /// By which a machine joins.
    pub fn token(&self) -> String {
        let made = self.vetch(&["token", "create"]);
        assert!(made.status.success(), "{}", text(&made));
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// The daemon's process.
    pub fn daemon(&self) -> i32 {
        let pid = std::fs::read_to_string(self.path("run/vetch.lock")).unwrap();
        pid.trim().parse().unwrap()
    }

    pub fn kill_daemon(&self) {
        use nix::{sys::signal, unistd::Pid};
        signal::kill(Pid::from_raw(self.daemon()), signal::Signal::SIGKILL).unwrap();
    }

    /// Takes one of the images that `tests/images/build` makes: `busybox`, `nginx-1`, ...
    pub fn import(&self, image: &str) {
        let file = images().join(format!("{image}.tar"));
        let output = self.vetch(&["image", "import", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output));
    }

    pub fn kubectl_command(&self) -> Command {
        let mut command = self.host.command(&self.kubectl);
        command
            .env("HOME", self.root.path())
            .env("KUBECONFIG", self.root.path().join("etc/admin.kubeconfig"));
        command
    }

    /// kubectl with words separated by blanks.
    pub fn kubectl(&self, line: &str) -> Output {
        self.kubectl_with(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub fn kubectl_with(&self, arguments: &[&str]) -> Output {
        self.kubectl_command().args(arguments).output().unwrap()
    }

    /// kubectl, which must succeed; its output.
    pub fn ok(&self, line: &str) -> String {
        self.ok_with(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub fn ok_with(&self, arguments: &[&str]) -> String {
        let output = self.kubectl_with(arguments);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            text(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Feeds `manifest` to `kubectl apply`.
    pub fn apply(&self, manifest: &str) -> String {
        let file = self.root.path().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        self.ok(&format!("apply -f {}", file.display()))
    }

    /// Waits until kubectl says `want`.
    pub fn wait(&self, line: &str, want: &str) {
        self.wait_for(line, |got| got == want);
    }

    /// Waits until kubectl says something that suits; returns it.
    pub fn wait_for(&self, line: &str, suits: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + patiently(DEADLINE);
        loop {
            let got = text(&self.kubectl(line));
            if suits(got.trim()) {
                return got.trim().to_owned();
            }
            assert!(Instant::now() < end, "kubectl {line}: {got:?}");
        }
    }

    /// Waits until the pod is ready.
    pub fn ready(&self, pod: &str) {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        self.wait(&format!("get pod {pod} -o {path}"), "True");
    }

    /// One pod's field by JSON path.
    pub fn field(&self, object: &str, path: &str) -> String {
        self.ok(&format!("get {object} -o jsonpath={{{path}}}"))
    }
}

impl Cluster {
    /// What the cluster has and the daemon has said, for who must find out why a test failed.
    fn tell(&self) {
        let what = "get pods,deployments,replicasets,services,endpoints,events -A -o wide";
        for line in [what, "get pods,deployments,replicasets -A -o yaml"] {
            let line = format!("{line} --request-timeout=5s");
            eprintln!("$ kubectl {line}\n{}", text(&self.kubectl(&line)));
        }
        eprintln!("$ vetch logs\n{}", self.daemon_log());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        let output = self.vetch(&["reset", "--yes"]);
        interrupted::is_removed(self.root.path());
        if !output.status.success() && !std::thread::panicking() {
            panic!("reset: {}", text(&output));
        }
    }
}

/// Where the archives of `tests/images/build` lie.
pub fn images() -> PathBuf {
    std::env::var_os("VETCH_TEST_IMAGES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-images"),
        PathBuf::from,
    )
}

/// Debian's docker-registry on a host's loopback, with all test images in it.
pub struct Registry {
    server: Child,
    pub address: String,
}

impl Registry {
    pub fn start(host: &Host) -> Self {
        use std::io::BufRead;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/build");
        let mut server = host
            .command(script)
            .args(["serve", "5000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("ready: "), "{line}");
        Self {
            server,
            address: "127.0.0.1:5000".into(),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        use nix::{sys::signal, unistd::Pid};
        // The script takes the registry and its folder away on SIGTERM.
        let pid = Pid::from_raw(i32::try_from(self.server.id()).unwrap());
        let _ = signal::kill(pid, signal::Signal::SIGTERM);
        let _ = self.server.wait();
    }
}

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + patiently(DEADLINE);
    while !done() {
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As [`until`], for what shall find nothing any more; says what it found last.
pub fn until_none(what: &str, mut find: impl FnMut() -> Vec<String>) {
    let end = Instant::now() + patiently(DEADLINE);
    loop {
        let found = find();
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "timed out: {what}: {found:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The network of a pod, by one of its processes: its control group names the pod, its environment has
/// `POD_PROBED=yes`.
pub fn netns_of(uid: &str) -> std::fs::File {
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let group = std::fs::read_to_string(entry.path().join("cgroup"));
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let is_ours = group.is_ok_and(|group| group.contains(uid))
            && environment
                .windows(14)
                .any(|word| word == b"POD_PROBED=yes");
        let path = entry.path().join("ns/net");
        if is_ours && std::fs::read_link(&path).is_ok_and(|netns| netns != own) {
            return std::fs::File::open(path).unwrap();
        }
    }
    panic!("no process of pod {uid}");
}
