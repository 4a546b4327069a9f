//! `kill -9` of the daemon while pods run and serve: they and their clients do not notice, and the
//! next daemon finds everything.

mod lab;

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use lab::{Cluster, Host};
use nix::sched::{CloneFlags, setns};

const PODS: usize = 20;
/// Between two requests on one connection: nginx ends a connection after a thousand.
const PACE: Duration = Duration::from_millis(50);

/// Clients on a host that ask until they are told to stop.
struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn new() -> Self {
        Self {
            stop: Arc::default(),
            answers: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// One more client, which must never fail; its name is for the panic.
    fn add(&mut self, host: &Host, name: String, mut ask: impl FnMut() + Send + 'static) {
        let namespace = File::open(format!("/proc/{}/ns/net", host.pid())).unwrap();
        let (stop, answers) = (self.stop.clone(), self.answers.clone());
        let run = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            while !stop.load(Ordering::Relaxed) {
                ask();
                answers.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PACE);
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(run).unwrap();
        self.threads.push(thread);
    }

    /// Each client has had some more answers.
    fn answered(&self) {
        let before = self.answers.load(Ordering::Relaxed);
        let want = before + 5 * self.threads.len() as u64;
        lab::until("the clients are answered", || {
            assert!(!self.threads.iter().any(JoinHandle::is_finished));
            self.answers.load(Ordering::Relaxed) >= want
        });
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            assert!(thread.join().is_ok(), "{name} failed");
        }
        self.answers.load(Ordering::Relaxed)
    }
}

fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    BufReader::new(stream)
}

/// One request and its whole answer, on a connection that stays open.
fn ask(stream: &mut BufReader<TcpStream>) {
    let request = b"GET /version HTTP/1.1\r\nHost: web\r\n\r\n";
    stream.get_mut().write_all(request).unwrap();
    let mut length = 0;
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.contains(" 200 "), "{line:?}");
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
        if let Some(text) = line.strip_prefix("Content-Length: ") {
            length = text.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    assert_eq!(body, b"nginx 1\n");
}

/// Runs for a while, unseen, and then ends in its own way.
fn short(cluster: &Cluster, name: &str, end: &str) {
    let script = format!(
        "echo started; while [ ! -e /tmp/go ]; do sleep 0.1; done; sleep 1; echo ended; {end}"
    );
    let run = ["run", name, "--image=busybox:1", "--restart=Never"];
    let command = ["--", "sh", "-c", &script];
    cluster.ok_with(&[&run[..], &command[..]].concat());
    cluster.ready(name);
}

#[test]
#[ignore = "needs root"]
fn pods_and_their_clients_do_not_notice() {
    let cluster = Cluster::started();
    for image in ["nginx-1", "busybox"] {
        cluster.import(image);
    }
    cluster.ok(&format!(
        "create deployment web --image=nginx:1 --replicas={PODS} --port=80"
    ));
    cluster.ok("expose deployment web --port=80");
    cluster.ok("rollout status deployment/web --timeout=60s");
    short(&cluster, "coded", "exit 3");
    // A first process cannot kill itself; `$$` in a container's arguments stands for `$`.
    short(&cluster, "killed", "sh -c 'kill -9 $$$$'; exit $?");
    let identities = "get pods -l app=web -o jsonpath={range.items[*]}{.metadata.name}:\
                      {.status.containerStatuses[0].containerID}:\
                      {.status.containerStatuses[0].restartCount}:{.status.podIP},{end}";
    let before = cluster.ok(identities);
    assert_eq!(before.matches("://").count(), PODS, "{before}");

    let mut clients = Clients::new();
    let address = cluster.field("service/web", ".spec.clusterIP");
    let service = SocketAddr::new(address.parse().unwrap(), 80);
    let pods = cluster.ok("get pods -l app=web -o jsonpath={.items[*].status.podIP}");
    for pod in pods.split(' ') {
        let address = SocketAddr::new(pod.parse().unwrap(), 80);
        let mut stream = None;
        clients.add(&cluster.host, format!("to pod {pod}"), move || {
            ask(stream.get_or_insert_with(|| connect(address)));
        });
    }
    let mut stream = None;
    clients.add(&cluster.host, "kept, by the service".into(), move || {
        ask(stream.get_or_insert_with(|| connect(service)));
    });
    clients.add(&cluster.host, "new, by the service".into(), move || {
        ask(&mut connect(service));
    });
    clients.answered();
    for name in ["coded", "killed"] {
        cluster.ok(&format!("exec {name} -- touch /tmp/go"));
    }
    cluster.kill_daemon();
    clients.answered();
    // The short ones end while nobody watches.
    let root = cluster.root.path().display().to_string();
    let logs = format!("grep -l ' ended' {root}/log/pods/*/*/*.log | wc -l");
    lab::until("both have ended", || cluster.host.sh(&logs).trim() == "2");
    clients.answered();
    cluster.up();
    clients.answered();

    let ended = ".status.containerStatuses[0].state.terminated";
    for (name, code, reason) in [("coded", "3", "Error"), ("killed", "137", "Error")] {
        let code_of = format!("get pod {name} -o jsonpath={{{ended}.exitCode}}");
        cluster.wait(&code_of, code);
        assert_eq!(
            cluster.field(&format!("pod/{name}"), &format!("{ended}.reason")),
            reason
        );
        let log = cluster.ok(&format!("logs {name}"));
        assert!(log.starts_with("started\nended\n"), "{log}");
    }
    assert_eq!(cluster.ok(identities), before);

    // And the cluster goes on.
    let victim = before.split(':').next().unwrap();
    cluster.ok("create deployment more --image=nginx:1 --replicas=2");
    cluster.ok("rollout status deployment/more --timeout=60s");
    clients.answered();
    assert!(clients.end() > 100);
    cluster.ok(&format!("delete pod {victim} --grace-period=1"));
    cluster.wait(
        "get deployment web -o jsonpath={.status.readyReplicas}",
        &PODS.to_string(),
    );
    assert!(cluster.vetch(&["down"]).status.success());
    let get = format!("curl -sf --max-time 5 http://{address}/version");
    assert_eq!(cluster.host.sh(&get).trim(), "nginx 1");
}
