//! The program is replaced by a newer one and then by the older one again while pods serve.
//!
//! `VETCH_TEST_OLD_PROGRAM` names the older program, e.g. that of the last release.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

use crate::lab::{Cluster, text, until};

const PODS: usize = 20;
/// The first of the ports of the node that lead to pods, one each.
const FIRST_PORT: u16 = 18_000;
const PACE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);

type Answered = Result<(), Box<dyn std::error::Error + Send + Sync>>;

const OLD: &str = "the old program";
const NEW: &str = "the new program";
const AGAIN: &str = "the old program again";
const STAGES: [&str; 3] = [OLD, NEW, AGAIN];

/// Clients that ask until the end.
struct Clients {
    stop: Arc<AtomicBool>,
    /// Which of [`STAGES`] it is.
    stage: Arc<AtomicUsize>,
    answers: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Clients {
    fn add(
        &mut self,
        cluster: &Cluster,
        client: String,
        mut ask: impl FnMut() -> Answered + Send + 'static,
    ) {
        let namespace = File::open(format!("/proc/{}/ns/net", cluster.host.pid())).unwrap();
        let (stop, answers) = (self.stop.clone(), Arc::new(AtomicU64::new(0)));
        let stage = self.stage.clone();
        self.answers.push(answers.clone());
        self.threads.push(std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let mut lost = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match ask() {
                    Ok(()) => drop(answers.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => {
                        let stage = STAGES[stage.load(Ordering::Relaxed)];
                        lost.push(format!("{stage}: {client}: {error}"));
                    }
                }
                std::thread::sleep(PACE);
            }
            lost
        }));
    }

    /// Each client has had some more answers.
    fn answered(&self) {
        for answers in &self.answers {
            let want = answers.load(Ordering::Relaxed) + 3;
            until("every client is answered", || {
                answers.load(Ordering::Relaxed) >= want
            });
        }
    }

    fn enter(&self, stage: &str) {
        let at = STAGES.iter().position(|one| *one == stage).unwrap();
        self.stage.store(at, Ordering::Relaxed);
    }

    /// The requests that were lost.
    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self
            .threads
            .into_iter()
            .map(|thread| thread.join().unwrap());
        ended.flatten().collect()
    }
}

fn connect(address: SocketAddr) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

fn ask(stream: &mut BufReader<TcpStream>) -> Answered {
    let request = b"GET /version HTTP/1.1\r\nHost: web\r\n\r\n";
    stream.get_mut().write_all(request)?;
    let (mut length, mut line) = (0, String::new());
    stream.read_line(&mut line)?;
    if !line.contains(" 200 ") {
        return Err(format!("answered {line:?}").into());
    }
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line)?;
        if let Some(text) = line.strip_prefix("Content-Length: ") {
            length = text.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    match body == b"nginx 1\n" {
        true => Ok(()),
        false => Err("another answer".into()),
    }
}

fn on_new_connections(address: SocketAddr) -> impl FnMut() -> Answered + Send {
    move || ask(&mut connect(address)?)
}

/// `vetch up --detach` of any program.
fn up(cluster: &Cluster, program: &Path) {
    let output = cluster
        .host
        .command(program)
        .args(["up", "--detach", "--eviction-hard=memory.available<100Mi"])
        .args(["--image-gc-high-threshold=100", "--root"])
        .arg(cluster.root.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        program.display(),
        text(&output)
    );
}

/// The pods are the same, and can be talked to.
fn check(cluster: &Cluster, stage: &str, before: &str) {
    assert_eq!(identities(cluster), before, "{stage}");
    let names = cluster.ok("get pods -o jsonpath={.items[*].metadata.name}");
    for name in names.split_whitespace().take(3) {
        let said = cluster.ok(&format!("exec {name} -- cat /proc/1/comm"));
        assert_eq!(said.trim(), "nginx", "{stage}");
        let log = cluster.ok(&format!("logs {name} --tail=1"));
        assert!(log.contains("GET /version"), "{stage}: {log:?}");
    }
}

fn identities(cluster: &Cluster) -> String {
    let path = "jsonpath={range .items[*]}{.metadata.name}:{.metadata.uid}:\
                {.status.containerStatuses[0].containerID}:\
                {.status.containerStatuses[0].restartCount}:{.status.podIP},{end}";
    cluster.ok_with(&["get", "pods", "--sort-by=.metadata.name", "-o", path])
}

fn manifest() -> String {
    let pod = |number: usize| {
        let port = FIRST_PORT + u16::try_from(number).unwrap();
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: web-{number}, labels: {{app: web}}}}
spec:
  containers:
  - {{name: web, image: 'nginx:1', ports: [{{containerPort: 80, hostPort: {port}}}]}}
"
        )
    };
    (0..PODS).map(pod).collect()
}

#[test]
#[ignore = "needs root"]
fn pods_live_through_an_upgrade_and_a_downgrade() {
    let Some(old) = std::env::var_os("VETCH_TEST_OLD_PROGRAM").map(PathBuf::from) else {
        eprintln!("skipped: VETCH_TEST_OLD_PROGRAM names no older program to upgrade from");
        return;
    };
    let new = Path::new(env!("CARGO_BIN_EXE_vetch"));
    let cluster = Cluster::new();
    up(&cluster, &old);
    cluster.import("nginx-1");
    cluster.apply(&manifest());
    cluster.ok("expose pod web-0 --name=web --port=80 --selector=app=web");
    cluster.ok("wait pods --all --for=condition=Ready --timeout=60s");
    let before = identities(&cluster);
    assert_eq!(before.matches("://").count(), PODS, "{before}");

    let service = cluster.field("service/web", ".spec.clusterIP");
    let service = SocketAddr::new(service.parse().unwrap(), 80);
    let mut clients = Clients {
        stop: Arc::default(),
        stage: Arc::default(),
        answers: Vec::new(),
        threads: Vec::new(),
    };
    clients.add(&cluster, "the Service".into(), on_new_connections(service));
    for port in (FIRST_PORT..).take(PODS) {
        let address = SocketAddr::from(([192, 168, 77, 1], port));
        // New ones for some, one that is kept for each of the others.
        match port % 4 {
            0 => clients.add(
                &cluster,
                format!("new connections to port {port}"),
                on_new_connections(address),
            ),
            _ => {
                let mut kept = None;
                clients.add(
                    &cluster,
                    format!("one connection to port {port}"),
                    move || {
                        let stream = match &mut kept {
                            Some(stream) => stream,
                            none => none.insert(connect(address)?),
                        };
                        ask(stream)
                    },
                );
            }
        }
    }
    clients.answered();
    check(&cluster, OLD, &before);

    let start = Instant::now();
    clients.enter(NEW);
    assert!(cluster.vetch(&["down"]).status.success());
    up(&cluster, new);
    println!("upgraded in {:?}", start.elapsed());
    clients.answered();
    check(&cluster, NEW, &before);

    clients.enter(AGAIN);
    assert!(cluster.vetch(&["down"]).status.success());
    up(&cluster, &old);
    clients.answered();
    check(&cluster, AGAIN, &before);
    let lost = clients.end();
    assert!(lost.is_empty(), "{lost:#?}");
}
