//! A rolling update under load, on two machines: no request is lost, though no pod has a preStop hook. As root.

mod lab;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use lab::{Cluster, Machine, netns_of, text};

const SERVER: &str = "https://192.168.77.1:6443";
const CLIENTS: usize = 4;
const UPDATES: usize = 4;
const WITHIN: Duration = Duration::from_secs(2);

/// A server that ends at once when it is told to, and the pod that asks it.
const OBJECTS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: busybox:1
        command: [sh, -c, 'trap "exit 0" TERM; mkdir /w; echo hello >/w/index.html; httpd -f -p 80 -h /w & wait']
        readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: 'busybox:1', command: [sleep, '3600'], env: [{name: POD_PROBED, value: 'yes'}]}]
"#;

fn ask(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.ends_with("hello\n") {
        true => Ok(()),
        false => Err(std::io::Error::other(answer)),
    }
}

/// Ends the clients, also when an update fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs root"]
fn a_rolling_update_loses_no_request() {
    let cluster = Cluster::started();
    let machine = Machine::beside(&cluster, 2);
    let token = cluster.vetch(&["token", "create"]);
    assert!(token.status.success(), "{}", text(&token));
    let token = String::from_utf8(token.stdout).unwrap();
    let words = [
        format!("--server={SERVER}"),
        format!("--token={}", token.trim()),
    ];
    machine.ok(&[
        "agent",
        &words[0],
        &words[1],
        "--node-name=second",
        "--detach",
    ]);
    cluster.import("busybox");
    machine.import("busybox");
    cluster.wait(
        "get serviceaccount default -o name",
        "serviceaccount/default",
    );
    cluster.apply(OBJECTS);
    cluster.ok("rollout status deployment web --timeout 60s");
    cluster.ready("client");
    let address = cluster.field("service web", ".spec.clusterIP");
    let to = SocketAddr::new(address.parse().unwrap(), 80);
    let netns = netns_of(&cluster.field("pod client", ".metadata.uid"));
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let lost = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let work = || {
                        let mut lost = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            match ask(to) {
                                Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
                                Err(error) => lost.push(error.to_string()),
                            }
                        }
                        lost
                    };
                    netns::namespace::run_in(netns.as_fd(), work).unwrap()
                })
            })
            .collect();
        let _stops = Stops(&stop);
        for round in 0..UPDATES {
            let template = format!(
                r#"{{"spec":{{"template":{{"metadata":{{"annotations":{{"round":"{round}"}}}}}}}}}}"#
            );
            cluster.ok_with(&["patch", "deployment", "web", "-p", &template]);
            cluster.ok("rollout status deployment web --timeout 60s");
        }
        stop.store(true, Ordering::Relaxed);
        let lost = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        lost.collect::<Vec<String>>()
    });
    let done = done.into_inner();
    println!("{done} requests, {} lost", lost.len());
    assert!(done > 500, "{done}");
    assert!(lost.is_empty(), "{} of {done}: {lost:#?}", lost.len());
}
