//! Filling the store.

use crate::{
    harness::{Health, Tenant, daemon_memory},
    lab::{Cluster, text, until},
    limits::script,
};

/// What the daemon holds in memory now, in bytes.
fn resident(cluster: &Cluster) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.daemon())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

/// Creates objects of `size` bytes until one is refused: how many there are, and why no more.
fn fill(tenant: &Tenant<'_>, path: &str, body: &str) -> String {
    script(
        tenant,
        &format!(
            r#"
import http.client
one = http.client.HTTPSConnection("127.0.0.1", 6443, context=context)
headers = {{"Authorization": "Bearer " + os.environ["TOKEN"], "Content-Type": "application/json"}}
namespace = os.environ["NAMESPACE"]
for n in range(2000):
    one.request("POST", "/api/v1/namespaces/" + namespace + "/{path}", {body}, headers)
    got = one.getresponse(); words = got.read().decode()
    if got.status != 201: print(n, got.status, words); break
"#
        ),
    )
}

#[test]
#[ignore = "needs root"]
fn a_full_store_takes_what_is_needed_to_empty_it() {
    let cluster = Cluster::new();
    let up = cluster.vetch(&["up", "--detach", "--store-quota", "48Mi"]);
    assert!(up.status.success(), "{}", text(&up));
    let tenant = Tenant::new(&cluster, "full");
    cluster.wait(
        "get nodes -o jsonpath={.items[0].status.conditions[?(@.type==\"Ready\")].status}",
        "True",
    );
    let before = resident(&cluster);
    let health = Health::watch(&cluster);

    // Events have a share of their own: with it used up there is room for everything else.
    let event = r#"'{"metadata":{"name":"e' + str(n) + '","annotations":{"a":"' + "x" * 200000 + '"}},"involvedObject":{"namespace":"' + namespace + '"}}'"#;
    let said = fill(&tenant, "events", event);
    assert!(
        said.contains("etcdserver: mvcc: database space exceeded"),
        "{said:.500}"
    );
    let map = r#"'{"metadata":{"name":"m' + str(n) + '"},"data":{"a":"' + "x" * 1000000 + '"}}'"#;
    let said = fill(&tenant, "configmaps", map);
    let (count, why) = said.split_once(' ').unwrap();
    assert!((20..48).contains(&count.parse().unwrap()), "{said:.500}");
    assert!(why.starts_with("500 "), "{said:.500}");
    assert!(
        why.contains("\"message\":\"etcdserver: mvcc: database space exceeded\""),
        "{said:.500}"
    );
    let map = r#"'{"metadata":{"name":"s' + str(n) + '"}}'"#;
    let said = fill(&tenant, "configmaps", map);
    assert!(said.contains("database space exceeded"), "{said:.500}");
    let refused = tenant.kubectl("create configmap small");
    assert!(!refused.status.success());
    assert!(
        text(&refused).contains("etcdserver: mvcc: database space exceeded"),
        "{}",
        text(&refused)
    );

    // Heartbeats go on, and what is there can be deleted.
    let lease = "get lease -n kube-node-lease -o jsonpath={.items[0].spec.renewTime}";
    let renewed = cluster.ok(lease);
    cluster.wait_for(lease, |now| now != renewed);
    // At once: kubectl would delete thousands one by one, fifty a second.
    let deleted = tenant.kubectl("delete --raw /api/v1/namespaces/full/configmaps");
    assert!(deleted.status.success(), "{}", text(&deleted));
    let created = tenant.kubectl("create configmap small");
    assert!(created.status.success(), "{}", text(&created));
    assert!(daemon_memory(&cluster) < 300 << 20);
    health.assert();
    // The rest is recent history, for watchers that come back. The heap is tidied every minute.
    let most = before + (60 << 20);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(70);
    while resident(&cluster) > most && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let after = resident(&cluster);
    assert!(
        after < most,
        "{} MiB before, {} MiB after",
        before >> 20,
        after >> 20
    );
    assert!(cluster.vetch(&["down"]).status.success());
    until("the store opens again", || {
        cluster
            .vetch(&["up", "--detach", "--store-quota", "48Mi"])
            .status
            .success()
    });
    cluster.ok("get --raw /readyz");
}
