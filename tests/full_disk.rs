//! A disk that fills up: what is refused says why, nothing acknowledged is lost, nothing half-made
//! stays, and everything goes on by itself once there is room again.

mod lab;

use lab::{Cluster, Registry, text};

const SIZE: &str = "48m";

/// A cluster whose root is a small filesystem of its own, which goes with the host.
fn cluster_on_a_small_disk() -> Cluster {
    let cluster = Cluster::new();
    let root = cluster.root.path().display();
    cluster
        .host
        .sh(&format!("mount -t tmpfs -o size={SIZE} small {root}"));
    cluster
}

/// Leaves `megabytes` of the disk. Where none shall be left, whoever else writes meanwhile is welcome to it.
fn fill(cluster: &Cluster, megabytes: u32) {
    let root = cluster.root.path().display();
    cluster.host.sh(&format!(
        "free=$(df --output=avail -k {root} | tail -1); \
         head -c $(((free - {megabytes} * 1024) * 1024)) /dev/zero >{root}/filler || [ {megabytes} = 0 ]"
    ));
}

fn free(cluster: &Cluster) {
    let filler = cluster.root.path().join("filler");
    cluster.host.sh(&format!("rm {}", filler.display()));
}

/// More than the room that the store's file has before it must grow.
fn large_config_map(cluster: &Cluster, name: &str) -> std::process::Output {
    let value = "v".repeat(100_000);
    let literals = ["a", "b", "c", "d"].map(|key| format!("--from-literal={key}={value}"));
    let [a, b, c, d] = &literals;
    cluster.kubectl_with(&["create", "configmap", name, a, b, c, d])
}

#[test]
#[ignore = "needs root"]
fn the_store_takes_no_writes_and_then_does_again() {
    let cluster = cluster_on_a_small_disk();
    cluster.up();
    cluster.ok("create configmap before --from-literal=k=v");
    fill(&cluster, 0);
    let refused = large_config_map(&cluster, "during");
    assert!(
        !refused.status.success() && text(&refused).contains("No space left on device"),
        "{}",
        text(&refused)
    );
    // Reads go on, and show what is there and no more.
    assert_eq!(cluster.field("configmap/before", ".data.k"), "v");
    let missing = text(&cluster.kubectl("get configmap during"));
    assert!(missing.contains("not found"), "{missing}");
    free(&cluster);
    let taken = large_config_map(&cluster, "after");
    assert!(taken.status.success(), "{}", text(&taken));

    // The same after a restart, in which the file is read anew.
    cluster.kill_daemon();
    cluster.up();
    for name in ["before", "after"] {
        cluster.ok(&format!("get configmap {name}"));
    }
    let missing = text(&cluster.kubectl("get configmap during"));
    assert!(missing.contains("not found"), "{missing}");

    // A start on a full disk fails with a word on why, and harms nothing.
    assert!(cluster.vetch(&["down"]).status.success());
    fill(&cluster, 0);
    let failed = cluster.vetch(&["up", "--detach"]);
    assert!(
        !failed.status.success() && text(&failed).contains("No space left on device"),
        "{}",
        text(&failed)
    );
    free(&cluster);
    cluster.up();
    cluster.ok("get configmap before after");
}

#[test]
#[ignore = "needs root"]
fn a_pull_that_does_not_fit_goes_on_when_it_does() {
    let cluster = cluster_on_a_small_disk();
    let registry = Registry::start(&cluster.host);
    cluster.up();
    // Enough for the node to be well, too little for the image.
    fill(&cluster, 12);
    cluster.ok(&format!("run web --image={}/nginx:1", registry.address));
    let events = cluster.wait_for("get events", |events| {
        events.contains("No space left on device")
    });
    assert!(events.contains("Failed to pull image"), "{events}");
    let root = cluster.root.path().display();
    let used = |folder: &str| -> u64 {
        let line = format!("du -sk {root}/{folder} | cut -f1");
        cluster.host.sh(&line).trim().parse().unwrap()
    };
    lab::until("nothing of a pull is left", || used("lib/images") < 100);
    free(&cluster);
    cluster.ready("web");
}
