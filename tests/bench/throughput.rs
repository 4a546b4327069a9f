//! Bytes a second over TCP from one pod to another: what each packet costs in bridge, guard and rules.
#![allow(dead_code, reason = "each bench uses its own part")]

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams, runtime::wait::await_condition};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    unistd::Pid,
};

use super::pods;

/// The same for all but the ports.
const PORT: u16 = 5001;

/// Two pods between which bytes go.
pub struct Ends {
    pub server: PathBuf,
    pub client: PathBuf,
    pub to: SocketAddr,
}

impl Ends {
    /// Starts two pods that sleep for so many seconds, which tells their processes from all others.
    pub async fn start(api: &Api<Pod>, sleeps: [&str; 2]) -> Self {
        let [server, client] = sleeps;
        let (server, address) = sleeper(api, server, None).await;
        let (client, _) = sleeper(api, client, None).await;
        Self::between(server, client, address)
    }

    /// Between two network namespaces, of which the first has the address.
    pub fn between(server: PathBuf, client: PathBuf, address: IpAddr) -> Self {
        let to = SocketAddr::new(address, PORT);
        Self { server, client, to }
    }

    /// Gigabytes a second over one connection that is used for `long`. Either end has a processor of its
    /// own, if there are two: the scheduler's choices differ by more than rules do.
    pub fn round(&self, long: Duration) -> f64 {
        thread::scope(|scope| {
            let listening = scope.spawn(|| {
                enter(&self.server);
                TcpListener::bind(self.to).unwrap()
            });
            let listener = listening.join().unwrap();
            scope.spawn(|| {
                enter(&self.client);
                stay_on(0);
                let mut stream = TcpStream::connect(self.to).unwrap();
                let piece = vec![0; 1 << 17];
                let begun = Instant::now();
                while begun.elapsed() < long {
                    stream.write_all(&piece).unwrap();
                }
            });
            let received = scope.spawn(move || {
                stay_on(1);
                let (mut stream, _) = listener.accept().unwrap();
                let mut buffer = vec![0; 1 << 17];
                let (begun, mut bytes) = (Instant::now(), 0);
                loop {
                    match stream.read(&mut buffer).unwrap() {
                        0 => return bytes as f64 / begun.elapsed().as_secs_f64() / 1e9,
                        read => bytes += read,
                    }
                }
            });
            received.join().unwrap()
        })
    }
}

/// A pod that sleeps for so many seconds, on this node or any: its network namespace and its address.
pub async fn sleeper(api: &Api<Pod>, seconds: &str, node: Option<&str>) -> (PathBuf, IpAddr) {
    let name = format!("sleeps-{seconds}");
    let mut pod = pods::pod(&name);
    if let Some(spec) = &mut pod.spec {
        spec.containers[0].command = Some(vec!["sleep".into(), seconds.into()]);
        let selector = node.map(|node| ("kubernetes.io/hostname".to_owned(), node.to_owned()));
        spec.node_selector = selector.map(|selector| [selector].into());
    }
    api.create(&PostParams::default(), &pod).await.unwrap();
    let ready = |pod: Option<&Pod>| pod.is_some_and(pods::is_ready);
    let pod = await_condition(api.clone(), &name, ready).await.unwrap();
    let status = pod.and_then(|pod| pod.status);
    let address = status.and_then(|status| status.pod_ip).unwrap();
    (namespace_of(seconds), address.parse().unwrap())
}

/// The network namespace of the process that sleeps for so long.
fn namespace_of(seconds: &str) -> PathBuf {
    let wanted = format!("sleep\0{seconds}\0");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let found = processes.map(|entry| entry.path()).find(|process| {
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        arguments == wanted.as_bytes()
    });
    found.expect("the pod's process").join("ns/net")
}

pub fn enter(space: &Path) {
    let space = fs::File::open(space).unwrap();
    setns(space, CloneFlags::CLONE_NEWNET).unwrap();
}

pub fn stay_on(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor).unwrap();
    // There may be one alone.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}
