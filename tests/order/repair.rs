//! What others break of the host's state is restored within seconds, and records of another version are
//! left alone.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::lab::{Cluster, DEADLINE, text, until};

/// Who breaks something sooner after a repair is taken for one who keeps undoing it, and waited for.
const CALM: Duration = Duration::from_millis(2500);
/// How long something of ours may stay broken.
const RESTORED_WITHIN: Duration = Duration::from_secs(5);
const NODE: &str = "192.168.77.1";

/// nginx on a port of the node and as a service, and a client in a pod of its own.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - {name: web, image: 'nginx:1', ports: [{containerPort: 80, hostPort: 8080}]}
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
  containers:
  - {name: client, image: 'busybox:1', command: [sleep, infinity]}
";

fn started() -> Cluster {
    let cluster = Cluster::started();
    for image in ["nginx-1", "busybox"] {
        cluster.import(image);
    }
    cluster.apply(PODS);
    for pod in ["web", "client"] {
        cluster.ready(pod);
    }
    cluster
}

/// What must answer: the service and the ports of the node from the node, names from a pod.
fn probes(cluster: &Cluster, service: &str) -> Vec<(String, Command)> {
    let addresses = [
        service.to_owned(),
        "127.0.0.1:8080".into(),
        format!("{NODE}:8080"),
    ];
    let names = ["web", "web.default.svc.cluster.local"];
    let from_node = addresses.into_iter().map(|address| {
        let mut curl = cluster.host.command("curl");
        curl.args(["-sf", "--max-time", "0.5"]);
        curl.arg(format!("http://{address}/version"));
        (address, curl)
    });
    let from_pod = names.into_iter().map(|name| {
        let mut wget = cluster.kubectl_command();
        wget.args(["exec", "client", "--", "timeout", "1", "wget", "-qO-"]);
        wget.arg(format!("http://{name}/version"));
        (format!("{name} from a pod"), wget)
    });
    from_node.chain(from_pod).collect()
}

/// Everything answers, `within` of `start`.
fn works(cluster: &Cluster, service: &str, line: &str, start: Instant, within: Duration) {
    for (name, mut probe) in probes(cluster, service) {
        loop {
            let output = text(&probe.output().unwrap());
            let elapsed = start.elapsed();
            assert!(
                elapsed < within,
                "{line}: {name} after {elapsed:?}: {output}"
            );
            if output.ends_with("nginx 1\n") {
                break;
            }
        }
    }
}

fn restored(cluster: &Cluster) -> String {
    let path =
        "jsonpath={range .items[?(@.reason==\"HostStateRestored\")]}{.message}{\"\\n\"}{end}";
    cluster.ok_with(&["get", "events", "-o", path])
}

fn restorations(cluster: &Cluster) -> usize {
    cluster
        .daemon_log()
        .matches("restored what something else had changed")
        .count()
}

#[test]
#[ignore = "needs root"]
fn what_others_break_works_again_within_seconds() {
    let cluster = started();
    let service = cluster.field("service/web", ".spec.clusterIP");
    works(&cluster, &service, "at first", Instant::now(), DEADLINE);
    let bridge = cluster
        .host
        .sh("ip -o link show type bridge | grep -o 'vetch[0-9a-f]*' | head -1");
    let bridge = bridge.trim();
    let tag = bridge.trim_start_matches("vetch");
    let foreign = "nft list table ip foreign; ip route show 198.51.100.0/24";
    cluster.host.sh(
        "nft 'table ip foreign { chain c { type filter hook input priority 0; accept; }; }'
         ip route add 198.51.100.0/24 dev host0",
    );
    let others = cluster.host.sh(foreign);
    assert_eq!(restorations(&cluster), 0, "{}", cluster.daemon_log());

    // What is done, and what the event names.
    let wire = format!("ip -o link show master {bridge} | grep -o 'veth[0-9a-f]*' | head -1");
    let table = |family: &str, name: &str| format!("the nf_tables table {family} {name}");
    for (line, named) in [
        (
            format!("nft delete table ip vetch-proxy-{tag}"),
            table("ip", &format!("vetch-proxy-{tag}")),
        ),
        (
            format!("nft flush chain ip vetch-proxy-{tag} services"),
            table("ip", &format!("vetch-proxy-{tag}")),
        ),
        (
            format!("nft delete table ip vetch-{tag}-ports"),
            table("ip", &format!("vetch-{tag}-ports")),
        ),
        (
            format!("nft delete element bridge vetch-{tag} ports {{ $({wire}) }}"),
            table("bridge", &format!("vetch-{tag}")),
        ),
        (
            format!("nft delete table ip vetch-{tag}"),
            table("ip", &format!("vetch-{tag}")),
        ),
        (
            "sysctl -qw net.ipv4.ip_forward=0".into(),
            "the setting net.ipv4.ip_forward".into(),
        ),
        (
            format!("sysctl -qw net.ipv4.conf.{bridge}.route_localnet=0"),
            format!("the setting net.ipv4.conf.{bridge}.route_localnet"),
        ),
        (
            format!("ip route flush dev {bridge}"),
            "the route to ".into(),
        ),
        (
            format!("ip address flush dev {bridge}"),
            format!("of {bridge}"),
        ),
        (
            format!("ip link set {bridge} down"),
            format!("the bridge {bridge}"),
        ),
        (
            format!("for wire in $({wire}); do ip link set $wire nomaster; done"),
            "the links of 1 pods".into(),
        ),
        (
            format!("for wire in $({wire}); do ip link delete $wire; done"),
            "the link of pod ".into(),
        ),
        (
            format!("ip link delete {bridge}"),
            format!("the bridge {bridge}"),
        ),
    ] {
        std::thread::sleep(CALM);
        let before = restorations(&cluster);
        let start = Instant::now();
        cluster.host.sh(&line);
        works_within(&cluster, &service, &line, start, before);
        until(&format!("the event names {named}"), || {
            restored(&cluster).contains(&named)
        });
        assert_eq!(cluster.host.sh(foreign), others, "{line}");
    }
    std::thread::sleep(CALM);
    let before = restorations(&cluster);
    let start = Instant::now();
    cluster.host.sh("nft flush ruleset");
    works_within(&cluster, &service, "nft flush ruleset", start, before);
    assert!(!cluster.host.sh("nft list tables").contains("foreign"));

    // Our own changes are not taken for somebody else's.
    let before = restorations(&cluster);
    cluster.ok("run more --image=nginx:1 --port=80 --expose --labels=app=more");
    cluster.ready("more");
    cluster.ok("delete pod more --grace-period=1");
    cluster.ok("delete service more");
    assert_eq!(restorations(&cluster), before, "{}", cluster.daemon_log());
}

fn works_within(cluster: &Cluster, service: &str, line: &str, start: Instant, before: usize) {
    // First of all: what answers before the damage is noticed says nothing.
    while restorations(cluster) == before {
        assert!(start.elapsed() < RESTORED_WITHIN, "{line}: not noticed");
        std::thread::sleep(Duration::from_millis(5));
    }
    works(cluster, service, line, start, RESTORED_WITHIN);
}

#[test]
#[ignore = "needs root"]
fn pods_with_records_of_another_version_are_left_alone() {
    let cluster = started();
    let service = cluster.field("service/web", ".spec.clusterIP");
    let uid = cluster.field("pod/web", ".metadata.uid");
    let identity = "{.status.phase}:{.status.containerStatuses[0].containerID}:\
                    {.status.containerStatuses[0].restartCount}:{.status.podIP}";
    let identity = format!("get pod web -o jsonpath={identity}");
    let before = cluster.ok(&identity);
    let record = cluster.path(&format!("run/pods/pods/{uid}/pod.json"));
    let aside = record.with_file_name("pod.json.unreadable");
    let version = |path: &std::path::Path, version: u32| {
        let mut record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        record["version"] = version.into();
        record["later"] = serde_json::json!({"added": true});
        std::fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
    };
    let restart = |change: &dyn Fn()| {
        assert!(cluster.vetch(&["down"]).status.success());
        change();
        cluster.up();
    };
    let answers = || {
        let curl =
            format!("curl -sf --max-time 5 http://{service}/version http://{NODE}:8080/version");
        assert_eq!(cluster.host.sh(&curl), "nginx 1\nnginx 1\n");
    };

    // Something was added by a later version: it is passed over.
    restart(&|| version(&record, 1));
    assert_eq!(cluster.ok("exec web -- echo there").trim(), "there");
    assert_eq!(cluster.ok(&identity), before);

    // A later version that we would misunderstand; damage is the same to us.
    for damage in [&(|| version(&record, 7)) as &dyn Fn(), &|| {
        std::fs::write(&aside, b"{\"version\": 1, \"con").unwrap()
    }] {
        let good = std::fs::read(&record)
            .or_else(|_| std::fs::read(&aside))
            .unwrap();
        restart(damage);
        answers();
        assert_eq!(cluster.ok(&identity), before);
        cluster.wait_for(
            "get events --field-selector=reason=RecordSetAside",
            |events| events.contains("pod/web") && events.contains("node/"),
        );
        assert!(aside.exists() && !record.exists());
        cluster.ok("exec client -- true"); // the others are as ever
        std::fs::write(&aside, good).unwrap();
    }
    // Whoever wrote it is back.
    restart(&|| version(&aside, 1));
    answers();
    assert_eq!(cluster.ok("exec web -- echo there").trim(), "there");
    assert_eq!(cluster.ok(&identity), before);
    assert!(record.exists() && !aside.exists());
}
