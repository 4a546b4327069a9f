//! What an administrator does with a cluster of several machines: who they are, how they are, and how one leaves.
//! As root.

mod lab;

use std::{
    path::Path,
    process::Output,
    time::{Duration, Instant, SystemTime},
};

use lab::{Cluster, Machine, text, until};
use serde_json::Value;
use vetch::pki::{Leaf, Pki, Request, SigningRequest};

const SERVER: &str = "https://192.168.77.1:6443";

fn token(cluster: &Cluster) -> String {
    let made = cluster.vetch(&["token", "create"]);
    assert!(made.status.success(), "{}", text(&made));
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

fn join(cluster: &Cluster, machine: &Machine, more: &[&str]) {
    let token = token(cluster);
    let words = ["agent", "--server", SERVER, "--token", &token, "--detach"];
    machine.ok(&[&words, more].concat());
}

/// A cluster with one more machine, the node `second`.
fn of_two() -> (Cluster, Machine) {
    let cluster = Cluster::started();
    let machine = Machine::beside(&cluster, 2);
    join(&cluster, &machine, &["--node-name=second"]);
    (cluster, machine)
}

/// The name of the server's own node.
fn first(cluster: &Cluster) -> String {
    let other = ".items[?(@.metadata.name!=\"second\")].metadata.name";
    cluster.field("nodes", other)
}

#[track_caller]
fn fails(output: &Output, code: i32, says: &str) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(says), "{says:?} is not in: {said}");
}

fn daemon_of(root: &Path) -> String {
    let pid = std::fs::read_to_string(root.join("run/vetch.lock")).unwrap();
    pid.trim().to_owned()
}

fn has_ended(machine: &Machine) -> bool {
    let pid = daemon_of(machine.root.path());
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
    !line.is_ok_and(|line| line.contains("agent"))
}

#[test]
#[ignore = "needs root"]
fn nodes_show_their_roles() {
    let (cluster, _machine) = of_two();
    let first = first(&cluster);
    let role = |node: &str| {
        let shown = cluster.ok(&format!("get node {node} --no-headers"));
        shown.split_whitespace().nth(2).unwrap().to_owned()
    };
    assert_eq!(role(&first), "control-plane");
    assert_eq!(role("second"), "<none>");
    assert_eq!(cluster.field(&format!("node/{first}"), ".spec.taints"), "");
    let listed = text(&cluster.vetch(&["node", "ls"]));
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{listed}");
    assert!(
        listed.contains("control-plane") && listed.contains("192.168.77.2"),
        "{listed}"
    );
    // Somebody takes it away, and the Node is made anew.
    let label = "node-role.kubernetes.io/control-plane";
    cluster.ok(&format!("label node {first} {label}-"));
    until("the role is back", || role(&first) == "control-plane");
    let uid = cluster.field(&format!("node/{first}"), ".metadata.uid");
    cluster.ok(&format!("delete node {first}"));
    cluster.wait_for(
        &format!("get node {first} -o jsonpath={{.metadata.uid}}"),
        |got| got.len() == uid.len() && got != uid,
    );
    until("the role is back", || role(&first) == "control-plane");
}

#[test]
#[ignore = "needs root"]
fn a_token_need_not_be_on_the_command_line() {
    let cluster = Cluster::started();
    let [second, third] = [2, 3].map(|number| Machine::beside(&cluster, number));
    let token = token(&cluster);
    let file = second.root.path().join("token");
    let path = file.to_str().unwrap();
    let agent = |more: &[&str]| {
        let words = ["agent", "--server", SERVER, "--node-name=second"];
        second.vetch(&[&words, more].concat())
    };
    fails(
        &agent(&["--token-file", path]),
        1,
        "write into it what `vetch token create` prints",
    );
    std::fs::write(&file, "not one").unwrap();
    fails(&agent(&["--token-file", path]), 1, "holds no token");
    fails(
        &agent(&["--token", &token, "--token-file", path]),
        2,
        "cannot be used with",
    );
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let joined = agent(&["--token-file", path, "--detach"]);
    assert!(joined.status.success(), "{}", text(&joined));
    // It is not needed again.
    second.ok(&["down"]);
    std::fs::remove_file(&file).unwrap();
    let again = agent(&["--token-file", path, "--detach"]);
    assert!(again.status.success(), "{}", text(&again));

    let root = third.root.path().to_str().unwrap();
    let by_variable = |token: &str| {
        let output = third
            .host
            .command(lab::program())
            .env("VETCH_TOKEN", token)
            .args(["agent", "--server", SERVER, "--node-name=third"])
            .args(["--detach", "--root", root])
            .args(["--eviction-hard=memory.available<100Mi"])
            .output();
        output.unwrap()
    };
    fails(&by_variable("x"), 1, "VETCH_TOKEN is no token");
    let joined = by_variable(&token);
    assert!(joined.status.success(), "{}", text(&joined));
    for machine in [&second, &third] {
        let pid = daemon_of(machine.root.path());
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(line.contains("agent") && !line.contains(&token), "{line}");
    }
}

/// One replica of an application, on the second machine, and a budget that wants it there.
const APPLICATION: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: 'busybox:1', command: [sleep, '100000']}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: 'busybox:1', command: [sleep, '100000']}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: always}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
";

#[test]
#[ignore = "needs root"]
fn a_node_is_removed_for_good() {
    let (cluster, machine) = of_two();
    let first = first(&cluster);
    cluster.import("busybox");
    machine.import("busybox");
    // The application starts on the second machine, and finds the first one later.
    cluster.ok(&format!("cordon {first}"));
    cluster.apply(APPLICATION);
    cluster.wait(
        "get deployment web -o jsonpath={.status.readyReplicas}",
        "1",
    );
    cluster.wait(
        "get daemonset everywhere -o jsonpath={.status.numberReady}",
        "2",
    );
    cluster.ok(&format!("uncordon {first}"));
    let remove = |more: &[&str]| cluster.vetch(&[&["node", "rm", "second"], more].concat());

    fails(
        &cluster.vetch(&["node", "rm", "nobody"]),
        1,
        "there is no node nobody",
    );
    fails(
        &cluster.vetch(&["node", "rm", &first]),
        1,
        "has the control plane",
    );
    fails(&cluster.vetch(&["node", "rm"]), 2, "NAME");
    let refused = remove(&["--timeout=2s"]);
    fails(&refused, 1, "The disruption budget always needs 1 healthy");
    fails(&refused, 1, "kubectl uncordon second");
    assert_eq!(cluster.field("node/second", ".spec.unschedulable"), "true");
    let on = ".items[0].spec.nodeName";
    assert_eq!(cluster.field("pods -l app=web", on), "second");

    // One more elsewhere, and the budget allows it: without anybody's asking again.
    let began = Instant::now();
    std::thread::scope(|scope| {
        let removing = scope.spawn(|| remove(&[]));
        cluster.ok("scale deployment web --replicas=2");
        let removed = removing.join().unwrap();
        assert!(removed.status.success(), "{}", text(&removed));
        let said = text(&removed);
        assert!(
            said.contains("has left") && said.contains("node second is removed"),
            "{said}"
        );
    });
    assert!(began.elapsed() < Duration::from_secs(60));
    cluster.wait(
        "get deployment web -o jsonpath={.status.readyReplicas}",
        "2",
    );
    for gone in ["node second", "lease second -n kube-node-lease"] {
        fails(&cluster.kubectl(&format!("get {gone}")), 1, "NotFound");
    }
    let requests = cluster.ok("get csr -o jsonpath={.items[*].spec.username}");
    assert!(!requests.contains("system:node:second"), "{requests}");

    // Its daemon ends, with its pods, and does not come back.
    until("the agent has ended", || has_ended(&machine));
    let log = machine.daemon_log();
    assert!(
        log.contains("the node second was removed from the cluster"),
        "{log}"
    );
    fails(
        &machine.vetch(&["agent", "--detach"]),
        1,
        "run `vetch reset` and then `vetch agent` with a new token",
    );
    let links = machine.host.sh("ip -o link");
    assert!(!links.contains(": veth"), "its pods are gone: {links}");
    fails(
        &machine.vetch(&["status"]),
        1,
        "was removed from the cluster",
    );

    // Whoever has kept its keys gets nothing.
    let kept = std::fs::read(machine.root.path().join("lib/membership.json")).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    for pair in ["client", "proxy"] {
        let [certificate, key] = ["certificate", "key"].map(|part| {
            let path = machine.root.path().join(format!("{pair}.{part}"));
            std::fs::write(&path, kept[pair][part].as_str().unwrap()).unwrap();
            path.display().to_string()
        });
        let answer = machine.host.sh(&format!(
            "curl -sk --cert {certificate} --key {key} {SERVER}/api/v1/services"
        ));
        assert!(
            answer.contains("NodeRemoved") && answer.contains("401"),
            "{pair}: {answer}"
        );
    }
    assert_eq!(
        text(&cluster.kubectl("get node second --ignore-not-found")),
        ""
    );

    // It joins again as any other machine, by its old name too.
    machine.ok(&["reset", "--yes"]);
    join(&cluster, &machine, &["--node-name=second"]);
    cluster.wait(
        "get node second -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
        "True",
    );
    machine.import("busybox");
    cluster.wait(
        "get daemonset everywhere -o jsonpath={.status.numberReady}",
        "2",
    );
}

#[test]
#[ignore = "needs root"]
fn a_machine_that_is_away_is_given_up() {
    let (cluster, machine) = of_two();
    machine.import("busybox");
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: there}, spec: {nodeName: second, containers: \
         [{name: c, image: 'busybox:1', command: [sleep, '100000']}]}}\n",
    );
    cluster.ready("there");
    machine.ok(&["down"]);
    until("nothing is heard of it", || {
        let ready = ".status.conditions[?(@.type==\"Ready\")].status";
        cluster.field("node/second", ready) == "Unknown"
    });
    fails(
        &cluster.vetch(&["node", "rm", "second"]),
        1,
        "vetch node rm second --force",
    );
    let began = Instant::now();
    let removed = cluster.vetch(&["node", "rm", "second", "--force"]);
    assert!(removed.status.success(), "{}", text(&removed));
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "it waits for nobody"
    );
    let said = text(&removed);
    assert!(said.contains("pod default/there goes for good"), "{said}");
    // It comes back, and hears what has happened.
    fails(
        &machine.vetch(&["agent", "--detach"]),
        1,
        "the node second was removed from the cluster",
    );
    until("its pod is gone", || {
        cluster
            .ok("get pods -o name --ignore-not-found")
            .trim()
            .is_empty()
    });
}

fn status(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(output)))
}

#[test]
#[ignore = "needs root"]
fn status_says_what_is_wrong_and_what_to_do() {
    let nothing = Cluster::new();
    fails(&nothing.vetch(&["status"]), 1, "there is no cluster here");
    fails(&nothing.vetch(&["status", "--bad"]), 2, "--bad");
    fails(&nothing.vetch(&["status", "-o", "xml"]), 2, "xml");
    drop(nothing);

    let (cluster, machine) = of_two();
    let first = first(&cluster);
    let well = cluster.vetch(&["status"]);
    let said = text(&well);
    assert!(well.status.success(), "{said}");
    for part in [
        "all is well",
        "control-plane",
        "second",
        "MiB, at revision",
        "front-proxy-ca",
        "made by vetch up",
        "checks are well",
        &first,
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let told = status(&cluster.vetch(&["status", "-o", "json"]));
    assert_eq!(told["healthy"], true);
    assert_eq!(told["machine"]["role"], "server");
    assert_eq!(told["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(told["store"]["quotaBytes"], 256 << 20);
    assert_eq!(told["findings"], serde_json::json!([]));

    let here = machine.vetch(&["status"]);
    let said = text(&here);
    assert!(here.status.success(), "{said}");
    for part in [
        "the node second",
        "all is well",
        "client",
        "serving",
        "proxy",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {nodeName: second, containers: \
         [{name: c, image: 'nowhere.invalid/x:1'}]}}\n",
    );
    until("the pull fails", || {
        let said = text(&cluster.vetch(&["status"]));
        said.contains("the pod default/bad does not run")
            && said.contains("kubectl describe pod bad")
    });
    fails(&machine.vetch(&["status"]), 1, "default/bad");
    cluster.ok("delete pod bad");

    // The server goes: both say so, and nobody hangs.
    assert!(cluster.vetch(&["down"]).status.success());
    let began = Instant::now();
    fails(&cluster.vetch(&["status"]), 1, "vetch up --detach --root");
    fails(
        &machine.vetch(&["status"]),
        1,
        "the API server at https://192.168.77.1:6443 does not answer",
    );
    assert!(began.elapsed() < Duration::from_secs(30));
    let told = status(&cluster.vetch(&["status", "-o", "json"]));
    assert_eq!(told["healthy"], false);
    assert_eq!(told["daemon"], Value::Null);
    machine.ok(&["down"]);
    fails(
        &machine.vetch(&["status"]),
        1,
        "vetch agent --detach --root",
    );
}

#[test]
#[ignore = "needs root"]
fn a_node_is_described_by_its_user() {
    let cluster = Cluster::started();
    let machine = Machine::beside(&cluster, 2);
    for line in [
        "ip address add 192.168.77.202/24 dev host0",
        &format!("mkdir -p {}/etc", machine.root.path().display()),
    ] {
        machine.host.sh(line);
    }
    let bad = |words: &[&str], says: &str| {
        fails(&machine.vetch(&[&["agent"], words].concat()), 1, says);
    };
    bad(&["--node-ip=203.0.113.9"], "this machine does not have it");
    bad(&["--node-taint=gpu"], "KEY=VALUE:EFFECT");
    bad(
        &["--node-label=node-role.kubernetes.io/db="],
        "kubectl label node",
    );
    bad(&["--node-config=/nowhere"], "there is no such file");
    std::fs::write(
        machine.root.path().join("etc/node.yaml"),
        "labels: {rack: r1, disk: hdd}\ntaints: [{key: gpu, effect: NoSchedule}]\n",
    )
    .unwrap();
    // The host's name is one that no node can have.
    let root = machine.root.path().display().to_string();
    let (program, token) = (lab::program(), token(&cluster));
    let host = format!("Rack_07{}", "x".repeat(57));
    machine.host.sh(&format!(
        "unshare --uts sh -c 'echo {host} > /proc/sys/kernel/hostname; exec {} agent --detach --server {SERVER} --token {token} --root {root} \
         --node-label=disk=ssd --node-ip=192.168.77.202 --eviction-hard=\"memory.available<100Mi\"' 2>&1",
        program.display()
    ));
    let name = cluster.field("nodes", ".items[?(@.metadata.labels.rack)].metadata.name");
    assert!(name.starts_with("rack-07xxx") && name.len() == 63, "{name}");
    let node = format!("node/{name}");
    assert_eq!(cluster.field(&node, ".metadata.labels.disk"), "ssd");
    assert_eq!(cluster.field(&node, ".metadata.labels.rack"), "r1");
    assert_eq!(cluster.field(&node, ".spec.taints[0].key"), "gpu");
    let address = ".status.addresses[?(@.type==\"InternalIP\")].address";
    assert_eq!(cluster.field(&node, address), "192.168.77.202");
    cluster.ok(&format!("get --raw /api/v1/nodes/{name}/proxy/healthz"));
    // What was taken away stays away, and another address gets a certificate of its own.
    cluster.ok(&format!("taint node {name} gpu-"));
    machine.ok(&["down"]);
    machine.ok(&["agent", "--detach", "--node-ip=192.168.77.2"]);
    cluster.wait(
        &format!("get {node} -o jsonpath={{{address}}}"),
        "192.168.77.2",
    );
    assert_eq!(cluster.field(&node, ".spec.taints"), "");
    until("its own API is known at the new address", || {
        let asked = cluster.kubectl(&format!("get --raw /api/v1/nodes/{name}/proxy/healthz"));
        asked.status.success()
    });
}

#[test]
#[ignore = "needs root"]
fn a_machine_that_was_off_for_a_year_joins_again() {
    let (cluster, machine) = of_two();
    let range = cluster.field("node/second", ".spec.podCIDR");
    let uid = cluster.field("node/second", ".metadata.uid");
    machine.ok(&["down"]);
    // Its certificates, as they would be after a year.
    let pki = Pki::open(&cluster.root.path().join("lib/pki")).unwrap();
    let path = machine.root.path().join("lib/membership.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    let expire = |kept: &mut Value, pair: &str, leaf: &Leaf, usage: &str| {
        let made = SigningRequest::new(leaf).unwrap();
        let request = Request::parse(made.pem.as_bytes()).unwrap();
        let usages = [usage, "digital signature"];
        let signed = pki.sign(&request, &usages, day, SystemTime::now() - 2 * day);
        kept[pair]["certificate"] = signed.unwrap().into();
        kept[pair]["key"] = made.key.into();
    };
    let own = ["192.168.77.2".parse().unwrap()];
    let proxy = Leaf::client("system:kube-proxy", &["vetch.io:proxy-of:second"]);
    expire(
        &mut kept,
        "client",
        &Leaf::node_client("second"),
        "client auth",
    );
    expire(&mut kept, "proxy", &proxy, "client auth");
    expire(
        &mut kept,
        "serving",
        &Leaf::kubelet_serving("second", &own),
        "server auth",
    );
    std::fs::write(&path, kept.to_string()).unwrap();

    fails(&machine.vetch(&["agent"]), 1, "--token-file FILE");
    fails(&machine.vetch(&["status"]), 1, "has expired");
    // Who has a token alone does not become that node.
    let stranger = Machine::beside(&cluster, 3);
    let token = token(&cluster);
    let words = [
        "agent",
        "--server",
        SERVER,
        "--token",
        &token,
        "--node-name=second",
    ];
    fails(&stranger.vetch(&words), 1, "there is a node second already");

    let file = machine.root.path().join("token");
    std::fs::write(&file, &token).unwrap();
    machine.ok(&["agent", "--detach", "--token-file", file.to_str().unwrap()]);
    assert!(machine.daemon_log().contains("is the node second again"));
    cluster.wait(
        "get node second -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
        "True",
    );
    assert_eq!(cluster.field("node/second", ".spec.podCIDR"), range);
    assert_eq!(cluster.field("node/second", ".metadata.uid"), uid);
    let well = machine.vetch(&["status"]);
    assert!(well.status.success(), "{}", text(&well));
}

#[test]
#[ignore = "needs root"]
fn networks_that_do_not_fit_are_told() {
    let cluster = Cluster::new();
    // All addresses for the first node.
    let up = cluster.vetch(&["up", "--detach", "--pod-cidr=10.9.0.0/16"]);
    assert!(up.status.success(), "{}", text(&up));
    let machine = Machine::beside(&cluster, 2);
    let token = token(&cluster);
    let agent = |more: &[&str]| {
        let words = [
            "agent",
            "--server",
            SERVER,
            "--token",
            &token,
            "--node-name=second",
        ];
        machine.vetch(&[&words, more].concat())
    };
    let idle = machine.host.picture();
    fails(&agent(&[]), 1, "all may be taken");
    assert_eq!(
        machine.host.picture(),
        idle,
        "nothing half-made stays behind"
    );
    drop(machine);
    drop(cluster);

    let cluster = Cluster::started();
    let machine = Machine::beside(&cluster, 2);
    let token = self::token(&cluster);
    let agent = |more: &[&str]| {
        let words = [
            "agent",
            "--server",
            SERVER,
            "--token",
            &token,
            "--node-name=second",
        ];
        machine.vetch(&[&words, more].concat())
    };
    machine.host.sh("ip address add 10.42.255.1/16 dev host0");
    fails(&agent(&[]), 1, "another --pod-cidr");
    machine.host.sh("ip address del 10.42.255.1/16 dev host0");
    machine.host.sh("ip link set host0 mtu 1400");
    let joined = agent(&["--detach"]);
    assert!(joined.status.success(), "{}", text(&joined));
    // Two of them in one folder.
    fails(&agent(&[]), 1, "vetch is already running on this root");
}
