//! Bytes a second over TCP from one pod to another: what each packet costs in bridge, guard and rules.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams, runtime::wait::await_condition};
use nix::sched::{CloneFlags, setns};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
/// The same for all but the ports.
const PORT: u16 = 5001;

/// Two pods that sleep for so many seconds, which tells their processes from others.
const SLEEPS: [&str; 2] = ["1000001", "1000002"];

pub async fn between_pods(pods: &Api<Pod>) {
    let mut addresses = Vec::new();
    for seconds in SLEEPS {
        let name = format!("throughput-{seconds}");
        let mut pod = super::pod(&name);
        if let Some(spec) = &mut pod.spec {
            spec.containers[0].command = Some(vec!["sleep".into(), seconds.into()]);
        }
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let ready = |pod: Option<&Pod>| pod.is_some_and(super::is_ready);
        let pod = await_condition(pods.clone(), &name, ready).await.unwrap();
        let status = pod.and_then(|pod| pod.status);
        let address = status.and_then(|status| status.pod_ip).unwrap();
        addresses.push(address.parse::<IpAddr>().unwrap());
    }
    let spaces = SLEEPS.map(namespace_of);
    let to = SocketAddr::new(addresses[0], PORT);
    let mut figures: Vec<f64> = (0..ROUNDS).map(|_| round(&spaces, to)).collect();
    figures.sort_by(f64::total_cmp);
    println!(
        "{:<44} p50 {:>8.2} GB/s best {:>8.2} GB/s  n={ROUNDS}",
        "throughput: TCP from pod to pod",
        figures[ROUNDS / 2],
        figures[ROUNDS - 1],
    );
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

fn round([server, client]: &[PathBuf; 2], to: SocketAddr) -> f64 {
    let enter = |space: &PathBuf| {
        let space = fs::File::open(space).unwrap();
        setns(space, CloneFlags::CLONE_NEWNET).unwrap();
    };
    thread::scope(|scope| {
        let listening = scope.spawn(|| {
            enter(server);
            TcpListener::bind(to).unwrap()
        });
        let listener = listening.join().unwrap();
        scope.spawn(|| {
            enter(client);
            let mut stream = TcpStream::connect(to).unwrap();
            let piece = vec![0; 1 << 17];
            let begun = Instant::now();
            while begun.elapsed() < ROUND {
                stream.write_all(&piece).unwrap();
            }
        });
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 17];
        let (begun, mut bytes) = (Instant::now(), 0);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return bytes as f64 / begun.elapsed().as_secs_f64() / 1e9,
                read => bytes += read,
            }
        }
    })
}
