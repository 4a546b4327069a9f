//! An application on the cluster as a person runs one: stock kubectl, nginx from a registry.
//!
//! The images are made by `tests/images/build`.

mod lab;

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
    time::{Duration, Instant},
};

use lab::{Cluster, Registry, text};

fn controller(registry: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ReplicationController
metadata: {{name: nginx}}
spec:
  replicas: 2
  selector: {{app: nginx}}
  template:
    metadata: {{labels: {{app: nginx}}}}
    spec:
      containers:
      - name: nginx
        image: {registry}/nginx:1
        ports: [{{containerPort: 80}}]
"
    )
}

#[test]
#[ignore = "needs root"]
fn nginx_from_a_registry() {
    nginx_from_a_registry_on(&Cluster::new());
}

fn nginx_from_a_registry_on(cluster: &Cluster) {
    let registry = Registry::start(&cluster.host);
    cluster.up();
    cluster.wait(
        "get nodes -o jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}",
        "True",
    );
    cluster.ok(&format!(
        "run alone --image={}/nginx:1 --port=80",
        registry.address
    ));
    cluster.ready("alone");
    let pulled = cluster.wait_for("get events", |events| events.contains("Pulled"));
    assert!(pulled.contains("Successfully pulled image"), "{pulled}");

    let file = cluster.root.path().join("rc.yaml");
    std::fs::write(&file, controller(&registry.address)).unwrap();
    cluster.ok(&format!("create -f {}", file.display()));
    cluster.ok("expose rc nginx --port=80");
    cluster.wait("get rc nginx -o jsonpath={.status.readyReplicas}", "2");
    let address = cluster.ok("get svc nginx --template={{.spec.clusterIP}}");
    let page = format!("curl -sf --max-time 5 --retry 5 --retry-connrefused http://{address}/");
    assert!(cluster.host.sh(&page).contains("Welcome to nginx!"));

    cluster.ok(&format!(
        "run client --image={}/busybox:1 -- sleep 1000",
        registry.address
    ));
    cluster.ready("client");
    let by_name = cluster.ok("exec client -- wget -qO- http://nginx/version");
    assert_eq!(by_name.trim(), "nginx 1");
    let full = cluster.ok("exec client -- nslookup nginx.default.svc.cluster.local");
    assert!(full.contains(&address), "{full}");
    assert!(
        cluster
            .ok("exec client -- env")
            .contains(&format!("NGINX_SERVICE_HOST={address}"))
    );

    // A pod of a controller that is deleted is replaced.
    let first = cluster.ok("get pods -l app=nginx -o jsonpath={.items[0].metadata.name}");
    cluster.ok(&format!("delete pod {first} --wait=false"));
    cluster.wait_for(
        "get pods -l app=nginx -o jsonpath={.items[*].metadata.name}",
        |names| !names.contains(&first) && names.split(' ').count() == 2,
    );
    cluster.ok("delete rc,svc,pod --all --grace-period=1");
    cluster.wait("get pods -o jsonpath={.items}", "[]");
}

#[test]
#[ignore = "needs root"]
fn a_deployment_rolls_and_is_rolled_back() {
    a_deployment_rolls_and_is_rolled_back_on(&Cluster::new());
}

fn a_deployment_rolls_and_is_rolled_back_on(cluster: &Cluster) {
    cluster.up();
    for image in ["nginx-1", "nginx-2"] {
        cluster.import(image);
    }
    cluster.ok("create deployment web --image=nginx:1 --replicas=2 --port=80");
    cluster.ok("expose deployment web --port=80");
    cluster.ok("rollout status deployment/web --timeout=60s");
    let address = cluster.field("service/web", ".spec.clusterIP");
    let version =
        format!("curl -sf --max-time 5 --retry 5 --retry-connrefused http://{address}/version");
    assert_eq!(cluster.host.sh(&version).trim(), "nginx 1");
    cluster.ok("scale deployment web --replicas=3");
    cluster.wait(
        "get deployment web -o jsonpath={.status.readyReplicas}",
        "3",
    );
    cluster.ok("set image deployment/web nginx=nginx:2");
    cluster.ok("rollout status deployment/web --timeout=60s");
    assert_eq!(cluster.host.sh(&version).trim(), "nginx 2");
    let history = cluster.ok("rollout history deployment/web");
    assert!(history.contains('1') && history.contains('2'), "{history}");
    cluster.ok("rollout undo deployment/web");
    cluster.ok("rollout status deployment/web --timeout=60s");
    assert_eq!(cluster.host.sh(&version).trim(), "nginx 1");
    let described = cluster.ok("describe deployment web");
    assert!(described.contains("ScalingReplicaSet"), "{described}");
}

#[test]
#[ignore = "needs root"]
fn the_same_with_older_kubectls() {
    for kubectl in lab::old_kubectls() {
        println!("with {}", kubectl.display());
        nginx_from_a_registry_on(&Cluster::with_kubectl(&kubectl));
        a_deployment_rolls_and_is_rolled_back_on(&Cluster::with_kubectl(&kubectl));
        logs_exec_copy_and_forward_on(&Cluster::with_kubectl(&kubectl));
    }
}

#[test]
#[ignore = "needs root"]
fn every_endpoint_gets_its_share() {
    const CALLS: usize = 100;
    let cluster = Cluster::started();
    for image in ["hostname", "busybox"] {
        cluster.import(image);
    }
    cluster.ok("create deployment web --image=hostname:1 --replicas=4");
    cluster.ok("expose deployment web --port=80 --target-port=8080");
    cluster.ok("run client --image=busybox:1 -- sleep 1000");
    cluster.ok("rollout status deployment/web --timeout=60s");
    cluster.ready("client");
    cluster.wait_for(
        "get endpointslices -l kubernetes.io/service-name=web -o jsonpath={.items[*].endpoints[*].conditions.ready}",
        |ready| ready == "true true true true",
    );
    let url = format!(
        "http://{}/cgi-bin/name",
        cluster.field("service/web", ".spec.clusterIP")
    );
    let host = cluster.host.sh(&format!(
        "for i in $(seq {CALLS}); do curl -sf --max-time 5 {url}; done"
    ));
    let script = format!("for i in $(seq {CALLS}); do wget -qO- {url}; done");
    let pod = cluster.ok_with(&["exec", "client", "--", "sh", "-c", &script]);
    for (from, answers) in [("host", host), ("pod", pod)] {
        let mut counts = std::collections::BTreeMap::new();
        for line in answers.lines() {
            *counts.entry(line).or_insert(0) += 1;
        }
        assert_eq!(answers.lines().count(), CALLS, "from the {from}");
        assert_eq!(counts.len(), 4, "from the {from}: {counts:?}");
        // A quarter is 25; five standard deviations are 22.
        let fair = counts.values().all(|count| (3..=47).contains(count));
        assert!(fair, "from the {from}: {counts:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn endpoints_share_the_load_and_a_canary_gets_its_part() {
    let cluster = Cluster::started();
    for image in ["nginx-1", "nginx-2"] {
        cluster.import(image);
    }
    let deployment = |name: &str, version: u8, replicas: u8| {
        format!(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web, track: {name}}}}}
  template:
    metadata: {{labels: {{app: web, track: {name}}}}}
    spec:
      containers:
      - {{name: c, image: 'nginx:{version}', ports: [{{containerPort: 80}}]}}
---
"
        )
    };
    cluster.apply(&format!(
        "{}{}
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}
",
        deployment("stable", 1, 3),
        deployment("canary", 2, 1)
    ));
    cluster.ok("rollout status deployment/stable --timeout=60s");
    cluster.ok("rollout status deployment/canary --timeout=60s");
    cluster.wait_for(
        "get endpointslices -l kubernetes.io/service-name=web -o jsonpath={.items[*].endpoints[*].conditions.ready}",
        |ready| ready == "true true true true",
    );
    let address = cluster.field("service/web", ".spec.clusterIP");
    let answers = cluster.host.sh(&format!(
        "for i in $(seq 200); do curl -sf --max-time 5 http://{address}/version; done"
    ));
    let canary = answers.lines().filter(|line| *line == "nginx 2").count();
    assert_eq!(answers.lines().count(), 200);
    // A quarter is 50; five standard deviations are 31.
    assert!((19..=81).contains(&canary), "{canary} of 200");
}

#[test]
#[ignore = "needs root"]
fn logs_exec_copy_and_forward() {
    logs_exec_copy_and_forward_on(&Cluster::new());
}

fn logs_exec_copy_and_forward_on(cluster: &Cluster) {
    cluster.up();
    for image in ["nginx-1", "busybox"] {
        cluster.import(image);
    }
    cluster.ok("run web --image=nginx:1 --port=80");
    cluster.ok_with(&[
        "run",
        "talker",
        "--image=busybox:1",
        "--",
        "sh",
        "-c",
        "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done",
    ]);
    cluster.ready("web");
    cluster.ready("talker");

    // Followed: lines come as they are written.
    let mut follow = cluster
        .kubectl_command()
        .args(["logs", "-f", "talker"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<String> = BufReader::new(follow.stdout.take().unwrap())
        .lines()
        .take(10)
        .map(Result::unwrap)
        .collect();
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert_eq!(lines[9], "line 9");
    assert_eq!(cluster.ok("logs talker --tail=1").lines().count(), 1);

    // Input, exit codes, a terminal.
    let mut exec = cluster
        .kubectl_command()
        .args(["exec", "-i", "talker", "--", "sh", "-c", "cat; exit 7"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    exec.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = exec.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    let script = format!(
        "script -qec '{} exec -it talker -- sh -c \"tty; stty size\"' /dev/null",
        cluster.kubectl.display()
    );
    let terminal = cluster
        .host
        .command("sh")
        .args(["-c", &script])
        .env(
            "KUBECONFIG",
            cluster.root.path().join("etc/admin.kubeconfig"),
        )
        .output()
        .unwrap();
    assert!(text(&terminal).contains("/dev/pts/"), "{}", text(&terminal));

    // Both ways.
    let (there, back) = (
        cluster.root.path().join("there"),
        cluster.root.path().join("back"),
    );
    std::fs::write(&there, "copied").unwrap();
    cluster.ok(&format!("cp {} talker:/tmp/file", there.display()));
    cluster.ok(&format!("cp talker:/tmp/file {}", back.display()));
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "copied");

    let mut forward = cluster
        .kubectl_command()
        .args(["port-forward", "pod/web", "8081:80"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // Kept open: kubectl says more with each connection.
    let mut said = BufReader::new(forward.stdout.take().unwrap());
    said.read_line(&mut line).unwrap();
    assert!(line.contains("Forwarding from"), "{line}");
    let page = cluster
        .host
        .sh("curl -sf --max-time 5 http://127.0.0.1:8081/version");
    forward.kill().unwrap();
    forward.wait().unwrap();
    assert_eq!(page.trim(), "nginx 1");

    let described = cluster.ok("describe pod web");
    assert!(described.contains("Started"), "{described}");
    cluster.ok("delete pod web talker --grace-period=1");
}

#[test]
#[ignore = "needs root"]
fn what_ends_comes_back_and_a_job_completes() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    cluster.ok_with(&[
        "run",
        "again",
        "--image=busybox:1",
        "--",
        "sh",
        "-c",
        "sleep 1000 & wait; exit 5",
    ]);
    cluster.ready("again");
    let killed = Instant::now();
    // The container may end before killall does, which then ends with it.
    cluster.kubectl("exec again -- killall sleep");
    cluster.wait(
        "get pod again -o jsonpath={.status.containerStatuses[0].restartCount}",
        "1",
    );
    cluster.ready("again");
    assert!(
        killed.elapsed() < Duration::from_secs(3),
        "{:?}",
        killed.elapsed()
    );
    let last = cluster.field(
        "pod/again",
        ".status.containerStatuses[0].lastState.terminated.exitCode",
    );
    assert_eq!(last, "5");
    cluster.apply(
        "
apiVersion: batch/v1
kind: Job
metadata: {name: five}
spec:
  completions: 5
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: 'busybox:1', command: ['true']}]
",
    );
    cluster.ok("wait --for=condition=complete job/five --timeout=60s");
    assert_eq!(cluster.field("job/five", ".status.succeeded"), "5");
}

#[test]
#[ignore = "needs root"]
fn mistakes_in_pods_are_told() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    cluster.ok("run unknown --image=127.0.0.1:9/nothing:1");
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: secretless}
spec:
  containers: [{name: c, image: 'busybox:1', command: [sleep, '1000']}]
  volumes: [{name: v, secret: {secretName: missing}}]
---
apiVersion: v1
kind: Pod
metadata: {name: envless}
spec:
  containers:
  - name: c
    image: busybox:1
    command: [sleep, '1000']
    env: [{name: A, valueFrom: {secretKeyRef: {name: missing, key: k}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: commandless}
spec:
  restartPolicy: Never
  containers: [{name: c, image: 'busybox:1', command: [/no/such/program]}]
",
    );
    let reason = ".status.containerStatuses[0].state.waiting.reason";
    cluster.wait_for(
        &format!("get pod unknown -o jsonpath={{{reason}}}"),
        |got| got == "ErrImagePull" || got == "ImagePullBackOff",
    );
    cluster.wait(
        &format!("get pod envless -o jsonpath={{{reason}}}"),
        "CreateContainerConfigError",
    );
    cluster.wait_for("get events", |events| {
        events.contains("FailedMount") && events.contains("secret \"missing\" not found")
    });
    cluster.wait_for("describe pod commandless", |text| {
        text.contains("/no/such/program") && text.contains("StartError")
    });
    // Once the secret is there, both go on.
    cluster.ok("create secret generic missing --from-literal=k=v");
    cluster.ready("envless");
    let end = Instant::now();
    cluster.ready("secretless");
    assert!(end.elapsed() < Duration::from_secs(30));
}

#[test]
#[ignore = "needs root"]
fn the_demo_answers() {
    let cluster = Cluster::new();
    let before = cluster.host.picture();
    let output = cluster.vetch(&["up", "--detach", "--demo"]);
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output),
        cluster.daemon_log()
    );
    assert!(
        text(&output).contains("Hello from pod demo-"),
        "{}",
        text(&output)
    );
    assert!(cluster.vetch(&["reset", "--yes"]).status.success());
    assert_eq!(cluster.host.picture(), before);
}
