//! Output without end: into logs, to clients that went away.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::{
    harness::{Health, Tenant, daemon_memory},
    lab::{Cluster, until},
};

/// Of one container: five files of 10 MiB, and one being compressed.
const MOST_OF_A_LOG: u64 = 6 * (10 << 20);
const MEMORY_OF_OUTPUT: u64 = 60 << 20;

fn pod(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  restartPolicy: Never\n  containers:\n  \
         - {{name: c, image: 'busybox:1', imagePullPolicy: Never, command: [sh, -c, '{script}']}}\n"
    )
}

/// The log files of a pod's only container.
fn log_folder(cluster: &Cluster, namespace: &str, pod: &str) -> PathBuf {
    let line = format!("get pod {pod} -n {namespace} -o jsonpath={{.metadata.uid}}");
    let uid = cluster.ok(&line);
    cluster.path(&format!("log/pods/{namespace}_{pod}_{uid}/c"))
}

/// Names, sizes and modes; a file that goes meanwhile is left out.
fn files(folder: &Path) -> Vec<(String, u64, u32)> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries
        .filter_map(|entry| {
            let found = entry.metadata().ok()?;
            let name = entry.file_name().into_string().ok()?;
            Some((name, found.len(), found.permissions().mode() & 0o777))
        })
        .collect()
}

#[test]
#[ignore = "needs root"]
fn a_flood_of_logs_is_bounded_by_who_writes_them() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let tenant = Tenant::new(&cluster, "tenant");
    let health = Health::watch(&cluster);
    tenant.create(&pod(
        "flood",
        "yes 0123456789012345678901234567890123456789",
    ));
    cluster.ok("wait pod/flood -n tenant --for=condition=Ready --timeout=60s");
    let folder = log_folder(&cluster, "tenant", "flood");
    // So many files come and go that more than the limit was written.
    let flooded = || {
        let mut seen = std::collections::BTreeSet::new();
        until("files are moved aside", || {
            let found = files(&folder);
            let size: u64 = found.iter().map(|(_, size, _)| size).sum();
            assert!(size <= MOST_OF_A_LOG, "{found:?}");
            assert!(found.iter().all(|(_, _, mode)| *mode == 0o600), "{found:?}");
            seen.extend(found.into_iter().map(|(name, ..)| name.replace(".gz", "")));
            seen.len() > 12
        });
    };
    flooded();
    let mode = std::fs::metadata(folder.parent().unwrap())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    // Logs are read meanwhile.
    let last = cluster.ok("logs flood -n tenant --tail=3");
    assert_eq!(last.lines().count(), 3, "{last}");
    health.assert();
    // There is no daemon, and still a limit.
    cluster.kill_daemon();
    flooded();
    cluster.up();
    let last = cluster.ok("logs flood -n tenant --since=1h --tail=1");
    assert_eq!(last.lines().count(), 1, "{last}");
    tenant.kubectl("delete pod flood --force --grace-period=0");
    until("the logs are gone", || !folder.exists());
}

#[test]
#[ignore = "needs root"]
fn followers_miss_nothing_when_files_are_moved_aside() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    const LINES: usize = 600_000;
    let script = format!("until [ -e /go ]; do sleep 0.05; done; seq 1 {LINES}");
    cluster.apply(&pod("count", &script));
    cluster.ready("count");
    let out = cluster.root.path().join("followed");
    let mut following = cluster.kubectl_command();
    following
        .args(["logs", "-f", "count"])
        .stdout(std::fs::File::create(&out).unwrap());
    let mut following = following.spawn().unwrap();
    cluster.ok("exec count -- touch /go");
    assert!(following.wait().unwrap().success());
    let text = std::fs::read_to_string(out).unwrap();
    let mut expected = (1..=LINES).map(|number| number.to_string());
    let wrong = text
        .lines()
        .find(|line| expected.next().as_deref() != Some(line));
    assert_eq!((wrong, expected.next()), (None, None));
    let aside = files(&log_folder(&cluster, "default", "count"));
    assert!(aside.len() > 2, "{aside:?}");
}

#[test]
#[ignore = "needs root"]
fn output_without_end_does_not_stay_in_memory() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let tenant = Tenant::new(&cluster, "tenant");
    tenant.create(&pod("p", "sleep 1000"));
    cluster.ok("wait pod/p -n tenant --for=condition=Ready --timeout=60s");
    let health = Health::watch(&cluster);
    let before = daemon_memory(&cluster);
    let mut much = cluster.kubectl_command();
    much.args([
        "exec",
        "-n",
        "tenant",
        "p",
        "--",
        "head",
        "-c",
        "300000000",
        "/dev/zero",
    ])
    .stdout(Stdio::null());
    assert!(much.status().unwrap().success());
    // Clients that start something without end, do not read, and die.
    let abandoned: Vec<_> = (0..20)
        .map(|_| {
            let mut exec = cluster.kubectl_command();
            exec.args(["exec", "-n", "tenant", "p", "--", "cat", "/dev/zero"])
                .stdout(Stdio::piped());
            exec.spawn().unwrap()
        })
        .collect();
    let running = || {
        let found = cluster.kubectl("exec -n tenant p -- pidof cat");
        String::from_utf8_lossy(&found.stdout)
            .split_whitespace()
            .count()
    };
    until("all run", || running() == 20);
    for mut client in abandoned {
        client.kill().unwrap();
        client.wait().unwrap();
    }
    until("none is left", || running() == 0);
    let grown = daemon_memory(&cluster) - before;
    assert!(grown < MEMORY_OF_OUTPUT, "output took {grown} bytes");
    health.assert();
}
