//! What claims of the class `local` hold: kept over pods, restarts and crashes of the daemon, gone with
//! the claim, and nobody else's.

mod lab;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use lab::{Cluster, text};

fn cluster(images: &[&str]) -> Cluster {
    let cluster = Cluster::started();
    for image in images {
        cluster.import(image);
    }
    cluster.wait(
        "get serviceaccount default -o name",
        "serviceaccount/default",
    );
    cluster
}

fn claim(name: &str, more: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: \
         {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}{more}}}}}\n---\n"
    )
}

/// A pod with that claim, which runs `script` and then sleeps; ready when the script has ended.
fn pod(name: &str, claim: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, '{script}; exec sleep 100000']
    readinessProbe: {{exec: {{command: [grep, -q, ^sleep, /proc/1/cmdline]}}, periodSeconds: 1}}
    volumeMounts: [{{name: v, mountPath: /data}}]
  volumes: [{{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}]
{more}
---
"
    )
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.collect()
}

/// The folders of a cluster's volumes.
fn folders(cluster: &Cluster) -> BTreeSet<String> {
    names(&cluster.root.path().join("lib/volumes"))
}

/// That volumes have the folders and the records that are theirs, and there are no others.
fn told_apart(cluster: &Cluster) {
    let volumes = "get pv -o jsonpath={range.items[*]}{.spec.local.path}{\"\\n\"}{end}";
    lab::until_none("folders and volumes agree", || {
        let paths = cluster.ok(volumes);
        let paths = paths.split_whitespace().map(Path::new);
        let wanted: BTreeSet<String> = paths
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        let records = names(&cluster.root.path().join("lib/volumes-made"));
        let differ = |found: &BTreeSet<String>| -> Vec<String> {
            found.symmetric_difference(&wanted).cloned().collect()
        };
        [differ(&folders(cluster)), differ(&records)].concat()
    });
}

fn folder_of(cluster: &Cluster, claim: &str) -> PathBuf {
    let volume = cluster.field(&format!("pvc/{claim}"), ".spec.volumeName");
    PathBuf::from(cluster.field(&format!("pv/{volume}"), ".spec.local.path"))
}

/// Deletes a pod and waits until the node has let go of its volumes: without a grace period the object goes
/// first, and what another pod still has keeps its group.
fn let_go(cluster: &Cluster, pod: &str) {
    let uid = cluster.field(&format!("pod/{pod}"), ".metadata.uid");
    cluster.ok(&format!("delete pod {pod}"));
    let folder = cluster.root.path().join("lib/pods").join(uid);
    lab::until("the pod's folder is gone", || !folder.exists());
}

/// That the kubelet tells of the claim's volume, as the pod has it, by the filesystem that it lies on.
fn measured(cluster: &Cluster, pod: &str, claim: &str) {
    let node = cluster.field(&format!("pod/{pod}"), ".spec.nodeName");
    let path = format!("get --raw /api/v1/nodes/{node}/proxy");
    let summary: serde_json::Value =
        serde_json::from_str(&cluster.ok(&format!("{path}/stats/summary"))).unwrap();
    let pods = summary["pods"].as_array().unwrap();
    let found = pods.iter().find(|one| one["podRef"]["name"] == pod);
    let volumes = found.unwrap()["volume"].as_array().unwrap();
    let of_claim = volumes.iter().find(|one| one["pvcRef"]["name"] == claim);
    let volume = of_claim.unwrap();
    assert_eq!(volume["name"], "v");
    let capacity = volume["capacityBytes"].as_u64().unwrap();
    assert!(capacity > 0, "{volume}");
    let series = format!(
        "kubelet_volume_stats_capacity_bytes{{namespace=\"default\",persistentvolumeclaim=\"{claim}\"}} {capacity}"
    );
    let metrics = cluster.ok(&format!("{path}/metrics"));
    assert!(metrics.lines().any(|line| line == series), "{metrics}");
}

#[test]
#[ignore = "needs root"]
fn data_outlives_pods_and_daemons_and_is_the_groups() {
    let cluster = cluster(&["busybox"]);
    let user = "  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}";
    let script = "id >> /data/log";
    let manifest = pod("p", "data", script, user);
    cluster.apply(&format!("{}{manifest}", claim("data", "")));
    cluster.ready("p");
    let folder = folder_of(&cluster, "data");
    let seen = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!(seen(&folder), (0, 2000, 0o2777));
    let log = folder.join("log");
    assert_eq!(seen(&log).1, 2000, "what is made there is the group's too");
    let lines = || fs::read_to_string(&log).unwrap().lines().count();
    assert_eq!(lines(), 1);
    measured(&cluster, "p", "data");

    let_go(&cluster, "p");
    // A file that the group may not read, by somebody else.
    let secret = folder.join("secret");
    fs::write(&secret, "s").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    cluster.apply(&manifest);
    cluster.ready("p");
    assert_eq!(lines(), 2);
    assert_eq!(seen(&secret), (0, 2000, 0o660));
    assert_eq!(cluster.ok("exec p -- cat /data/secret"), "s");

    assert!(cluster.vetch(&["down"]).status.success());
    cluster.up();
    cluster.ready("p");
    cluster.ok("exec p -- sh -c id>>/data/log");
    cluster.kill_daemon();
    cluster.up();
    cluster.ready("p");
    let_go(&cluster, "p");
    cluster.apply(&manifest);
    cluster.ready("p");
    assert_eq!(lines(), 4);
    // Another group at the same time is told, and changes nothing.
    let other = "  securityContext: {fsGroup: 3000}";
    cluster.apply(&pod("other", "data", "true", other));
    cluster.ready("other");
    cluster.wait(
        "get events --field-selector reason=AlreadyMountedVolume -o jsonpath={.items[*].involvedObject.name}",
        "other",
    );
    assert_eq!(seen(&folder).1, 2000);
    cluster.ok("delete pod p other");
    cluster.ok("delete pvc data");
    cluster.wait("get pv -o name", "");
    told_apart(&cluster);
    assert!(!folder.exists());
}

/// How often the daemon is killed: more by hand.
fn rounds() -> u64 {
    let rounds = std::env::var("VETCH_TEST_ROUNDS").ok();
    rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

const CLAIMS: usize = 10;

#[test]
#[ignore = "needs root"]
fn nothing_is_lost_or_left_when_the_daemon_is_killed() {
    let cluster = cluster(&["busybox"]);
    // Written once for each claim, however often a pod starts.
    let script = "[ -s /data/born ] || cat /proc/sys/kernel/random/uuid > /data/born; sync";
    let ready = "get pods -o jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    let born = |cluster: &Cluster| -> Vec<(PathBuf, String)> {
        let all = folders(cluster).into_iter();
        let all = all.map(|name| cluster.root.path().join("lib/volumes").join(name));
        all.map(|folder| {
            let text = fs::read_to_string(folder.join("born")).unwrap_or_default();
            (folder, text)
        })
        .collect()
    };
    for round in 0..rounds() {
        let manifest: String = (0..CLAIMS)
            .map(|index| {
                let name = format!("c{index}");
                format!("{}{}", claim(&name, ""), pod(&name, &name, script, ""))
            })
            .collect();
        let file = cluster.root.path().join("many.yaml");
        fs::write(&file, manifest).unwrap();
        let apply = format!("apply -f {}", file.display());
        let mut applying = cluster
            .kubectl_command()
            .args(apply.split(' '))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Each round elsewhere: first claims, volumes, bindings, folders.
        let most = 1 + round * 3 % CLAIMS as u64;
        match round % 3 {
            0 => cluster.wait_for("get pvc -o name", |got| got.lines().count() as u64 >= most),
            1 => cluster.wait_for("get pv -o name", |got| {
                got.matches("persistentvolume/").count() as u64 >= most
            }),
            _ => {
                lab::until("some folders are there", || {
                    folders(&cluster).len() as u64 >= most
                });
                String::new()
            }
        };
        cluster.kill_daemon();
        let before = born(&cluster);
        let _ = applying.wait();
        cluster.up();
        cluster.ok(&apply);
        let all = ["True"; CLAIMS].join(" ");
        cluster.wait(ready, &all);
        told_apart(&cluster);
        let after = born(&cluster);
        assert_eq!(after.len(), CLAIMS);
        assert!(after.iter().all(|(_, text)| text.len() == 37), "{after:?}");
        for (folder, text) in before.into_iter().filter(|(_, text)| text.len() == 37) {
            assert!(after.contains(&(folder.clone(), text)), "{folder:?}");
        }

        // And killed while all of it goes.
        cluster.ok("delete pods --all --wait=false");
        cluster.ok("delete pvc --all --wait=false");
        let left = CLAIMS - 1 - (round as usize * 4) % CLAIMS;
        lab::until("some folders are gone", || folders(&cluster).len() <= left);
        cluster.kill_daemon();
        cluster.up();
        for kind in ["pods", "pvc", "pv"] {
            cluster.wait_for(&format!("get {kind} -o name"), |got| {
                !got.contains('/') && !got.contains("rror")
            });
        }
        told_apart(&cluster);
        assert_eq!(folders(&cluster).len(), 0);
    }
}

const DATABASE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 1
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete, whenDeleted: Retain}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 10
      securityContext: {runAsUser: 999, runAsGroup: 999, fsGroup: 999, runAsNonRoot: true}
      containers:
      - name: db
        image: postgres:1
        env: [{name: PGDATA, value: /var/lib/postgresql/data}]
        command: [sh, -ec]
        args:
        - |
          if [ -s $PGDATA/PG_VERSION ]; then chmod 700 $PGDATA; else initdb -A trust; fi
          exec postgres -c listen_addresses='*' -c fsync=on
        ports: [{containerPort: 5432}]
        readinessProbe: {exec: {command: [pg_isready, -q]}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
        volumeMounts: [{name: data, mountPath: /var/lib/postgresql}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#;

#[test]
#[ignore = "needs root"]
fn a_database_keeps_its_rows() {
    let cluster = cluster(&["postgres"]);
    let sql = |pod: &str, words: &str| {
        let arguments = ["exec", pod, "--", "psql", "-qAtX", "postgres", "-c", words];
        cluster.ok_with(&arguments).trim().to_owned()
    };
    cluster.apply(DATABASE);
    cluster.ready("db-0");
    sql(
        "db-0",
        "create table rows as select n from generate_series(1, 1000) n",
    );
    let count = || sql("db-0", "select count(*) from rows");
    let before = folder_of(&cluster, "data-db-0");
    let uid = cluster.field("pod/db-0", ".metadata.uid");
    cluster.ok("delete pod db-0");
    cluster.wait_for("get pod db-0 -o jsonpath={.metadata.uid}", |got| {
        got.len() == uid.len() && got != uid
    });
    cluster.ready("db-0");
    assert_eq!(count(), "1000");
    sql("db-0", "insert into rows values (1001)");
    cluster.kill_daemon();
    cluster.up();
    cluster.ready("db-0");
    assert_eq!(count(), "1001");
    // The pod as after a crash of the machine: nothing was shut down.
    let uid = cluster.field("pod/db-0", ".metadata.uid");
    cluster.ok("delete pod db-0 --grace-period=0 --force");
    cluster.wait_for("get pod db-0 -o jsonpath={.metadata.uid}", |got| {
        got.len() == uid.len() && got != uid
    });
    cluster.ready("db-0");
    assert_eq!(count(), "1001");

    cluster.ok("scale statefulset db --replicas=2");
    cluster.ready("db-1");
    let second = folder_of(&cluster, "data-db-1");
    sql("db-1", "create table own (n int)");
    assert!(second.exists() && second != before);
    cluster.ok("scale statefulset db --replicas=1");
    cluster.wait("get pvc -o jsonpath={.items[*].metadata.name}", "data-db-0");
    lab::until("the second's folder goes with its claim", || {
        !second.exists()
    });
    cluster.ok("delete statefulset db");
    cluster.wait("get pods -o name", "");
    assert!(before.join("data/PG_VERSION").exists());
    cluster.apply(DATABASE);
    cluster.ready("db-0");
    assert_eq!(count(), "1001");
    assert_eq!(folder_of(&cluster, "data-db-0"), before);
    told_apart(&cluster);
}

#[test]
#[ignore = "needs root"]
fn a_tenant_gets_nothing_of_the_node_or_of_others() {
    let cluster = cluster(&["busybox"]);
    let outside = cluster.root.path().join("outside");
    fs::create_dir(&outside).unwrap();
    cluster.ok("create namespace shop");
    cluster.wait(
        "-n shop get serviceaccount default -o name",
        "serviceaccount/default",
    );
    // Links of every kind, and a tree that is deep and wide.
    let script = format!(
        "ln -s {} /data/out; ln -s ../../.. /data/up; ln -s /proc/self/root /data/magic; \
         d=/data; for i in $(seq 1500); do d=$d/d; done; mkdir -p $d; \
         mkdir /data/wide; cd /data/wide; seq 3000 | xargs touch; touch /data/done",
        outside.display()
    );
    cluster.apply(&format!(
        "{}{}",
        claim("mine", ""),
        pod("writes", "mine", &script, "")
    ));
    cluster.ready("writes");
    let folder = folder_of(&cluster, "mine");
    lab::until("all is written", || folder.join("done").exists());
    let group = fs::metadata(&outside).unwrap().gid();
    let mut all = String::new();
    for (name, part) in [("out", "out/new"), ("up", "up/etc"), ("magic", "magic/etc")] {
        let mount = format!("volumeMounts: [{{name: v, mountPath: /data, subPath: {part}}}]");
        let group = "  securityContext: {fsGroup: 4321}";
        all += &pod(name, "mine", "true", group)
            .replace("volumeMounts: [{name: v, mountPath: /data}]", &mount);
    }
    let_go(&cluster, "writes");
    cluster.apply(&all);
    for name in ["out", "up", "magic"] {
        let reason = ".status.containerStatuses[0].state.waiting";
        let got = cluster.wait_for(&format!("get pod {name} -o jsonpath={{{reason}}}"), |got| {
            got.contains("CreateContainerConfigError")
        });
        assert!(got.contains("failed to prepare subPath"), "{got}");
    }
    assert_eq!(names(&outside), BTreeSet::new());
    assert_eq!(fs::metadata(&outside).unwrap().gid(), group);
    assert_eq!(fs::metadata(folder.join("wide/7")).unwrap().gid(), 4321);

    // Another tenant names that volume, also with the marks of one that has it.
    let volume = cluster.field("pvc/mine", ".spec.volumeName");
    for (name, forged) in [
        ("asks", ""),
        ("forged", "pv.kubernetes.io/bind-completed: \"yes\""),
    ] {
        let of = claim(name, &format!(", volumeName: {volume}")).replace(
            &format!("name: {name}"),
            &format!("name: {name}, namespace: shop, annotations: {{{forged}}}"),
        );
        let thief = pod(name, name, "cat /data/done", "").replace(
            &format!("name: {name}}}"),
            &format!("name: {name}, namespace: shop}}"),
        );
        cluster.apply(&format!("{of}{thief}"));
    }
    cluster.wait(
        "-n shop get pvc asks -o jsonpath={.status.phase}",
        "Pending",
    );
    cluster.wait("-n shop get pvc forged -o jsonpath={.status.phase}", "Lost");
    for name in ["asks", "forged"] {
        cluster.wait_for(
            &format!("-n shop get pod {name} -o jsonpath={{.status.conditions[0].reason}}"),
            |got| got == "Unschedulable",
        );
    }
    // Not even a pod that needs no scheduler.
    let node = cluster.ok("get nodes -o jsonpath={.items[0].metadata.name}");
    let direct = pod(
        "direct",
        "forged",
        "cat /data/done",
        &format!("  nodeName: {node}"),
    )
    .replace("name: direct}", "name: direct, namespace: shop}");
    cluster.apply(&direct);
    cluster.wait_for(
        "-n shop get events --field-selector reason=FailedMount -o jsonpath={.items[*].message}",
        |got| got.contains("is not bound to a volume"),
    );
    assert_eq!(cluster.field("pvc/mine", ".status.phase"), "Bound");

    cluster.ok("-n shop delete pods,pvc --all --force --grace-period=0");
    // A node that is not there is taken back, and a volume's owner mistakes nothing for good.
    cluster.apply(&format!(
        "{}{}",
        claim("placed", "").replace(
            "name: placed",
            "name: placed, annotations: {volume.kubernetes.io/selected-node: nowhere}"
        ),
        pod("placed", "placed", "true", "")
    ));
    cluster.ready("placed");
    let refused = cluster.kubectl_with(&[
        "patch",
        "pv",
        &volume,
        "-p",
        "{\"spec\":{\"local\":{\"path\":\"/etc\"}}}",
    ]);
    assert!(text(&refused).contains("immutable"), "{}", text(&refused));
    for patch in [
        "{\"metadata\":{\"annotations\":{\"pv.kubernetes.io/provisioned-by\":null}}}",
        "{\"spec\":{\"claimRef\":null}}",
    ] {
        cluster.ok_with(&["patch", "pv", &volume, "-p", patch]);
    }
    cluster.wait(
        &format!("get pv {volume} -o jsonpath={{.spec.claimRef.name}}"),
        "mine",
    );

    // Files are open in a pod that was never told to end; the claim comes again under its name.
    let holds = "(i=0; while true; do i=$((i+1)); echo $i > /data/$i; done) & true";
    cluster.ok("delete pod out up magic --force --grace-period=0");
    cluster.apply(&pod("holds", "mine", holds, ""));
    cluster.ready("holds");
    cluster.ok("delete pvc mine --wait=false");
    cluster.ok("delete pod holds --force --grace-period=0");
    cluster.wait_for("get pvc mine -o name", |got| got.contains("NotFound"));
    cluster.apply(&format!(
        "{}{}",
        claim("mine", ""),
        pod("again", "mine", "true", "")
    ));
    cluster.ready("again");
    let again = folder_of(&cluster, "mine");
    assert_ne!(again, folder);
    assert_eq!(names(&again), BTreeSet::new());
    cluster.wait_for(&format!("get pv {volume} -o name"), |got| {
        got.contains("NotFound")
    });
    assert!(!folder.exists());
    told_apart(&cluster);
    assert!(outside.exists());
}

#[test]
#[ignore = "needs root"]
fn a_huge_tree_goes_while_others_come() {
    let cluster = cluster(&["busybox"]);
    cluster.apply(&format!(
        "{}{}",
        claim("huge", ""),
        pod("p", "huge", "true", "")
    ));
    cluster.ready("p");
    let folder = folder_of(&cluster, "huge");
    for wide in 0..20 {
        let wide = folder.join(wide.to_string());
        fs::create_dir(&wide).unwrap();
        for file in 0..1000 {
            fs::write(wide.join(file.to_string()), "").unwrap();
        }
    }
    cluster.ok("delete pod p");
    cluster.ok("delete pvc huge");
    // Nobody waits for it.
    cluster.apply(&format!(
        "{}{}",
        claim("next", ""),
        pod("q", "next", "true", "")
    ));
    cluster.ready("q");
    lab::until("the tree is gone", || !folder.exists());
    cluster.wait_for("get pv -o name", |got| got.lines().count() == 1);
    told_apart(&cluster);
}
