//! What pods are configured with, seen from inside: variables, volumes, managed files, users,
//! capabilities, filters.

mod lab;

use std::path::PathBuf;

use lab::Cluster;

/// A pod of busybox with the rest of its spec; `script` must not hold double quotes.
fn pod(name: &str, script: &str, container: &str, spec: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: x}}, annotations: {{note: 'a b'}}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  tolerations: [{{operator: Exists}}] # a test machine's disk may be nearly full
  {spec}
  containers:
  - name: c
    image: busybox:1
    command: [sh, -c, \"{script}\"]
    {container}
---
"
    )
}

/// What the pod printed until it ended.
fn output(cluster: &Cluster, name: &str) -> String {
    cluster.wait_for(
        &format!("get pod {name} -o jsonpath={{.status.phase}}"),
        |phase| matches!(phase, "Succeeded" | "Failed"),
    );
    cluster.ok(&format!("logs {name}"))
}

fn assert_lines(output: &str, lines: &[&str]) {
    for line in lines {
        assert!(
            output.lines().any(|one| one.trim_end() == *line),
            "{line:?} in\n{output}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn pods_see_what_they_are_given() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    cluster.ok("create configmap m --from-literal=key=value --from-literal=other=thing");
    cluster.ok("create secret generic s --from-literal=password=geheim");
    cluster.apply(&pod(
        "given",
        "echo $A $B $C $D $E $F; id; hostname; cat /etc/hosts /etc/resolv.conf; \
         cat /cfg/key /one/renamed /sec/password; echo; stat -Lc %a,%g /sec/password; \
         cat /down/labels; echo; df /mem | tail -1; touch /cfg/x || echo cfg is read-only; \
         cat /single; echo; ls /sub; ls /var/run/secrets/kubernetes.io/serviceaccount; \
         wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token; grep -E 'Cap|NoNew|Seccomp:' /proc/self/status; \
         unshare -U true || echo no user namespace; mount -t tmpfs x /mem || echo no mount; \
         echo -n the end > /dev/termination-log; cat /proc/self/oom_score_adj",
        "workingDir: /tmp
    env:
    - {name: A, value: 'a-$(B)-$$(B)'}
    - {name: B, valueFrom: {configMapKeyRef: {name: m, key: key}}}
    - {name: C, valueFrom: {secretKeyRef: {name: s, key: password}}}
    - {name: D, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: E, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: F, value: 'b-$(B)'}
    securityContext: {runAsUser: 1000, runAsGroup: 3000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi, cpu: 500m}}
    volumeMounts:
    - {name: cfg, mountPath: /cfg}
    - {name: one, mountPath: /one}
    - {name: sec, mountPath: /sec}
    - {name: down, mountPath: /down}
    - {name: mem, mountPath: /mem}
    - {name: cfg, mountPath: /single, subPath: other}
    - {name: dir, mountPath: /sub, subPathExpr: $(D)/deep}
    - {name: host, mountPath: /host, readOnly: true}",
        "securityContext: {fsGroup: 4000, supplementalGroups: [5000]}
  hostAliases: [{ip: 1.2.3.4, hostnames: [alias]}]
  hostname: called
  volumes:
  - {name: cfg, configMap: {name: m}}
  - {name: one, configMap: {name: m, items: [{key: key, path: renamed, mode: 0600}]}}
  - {name: sec, secret: {secretName: s, defaultMode: 0400}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: dir, emptyDir: {}}
  - {name: host, hostPath: {path: /etc, type: Directory}}",
    ));
    let seen = output(&cluster, "given");
    println!("{seen}");
    let address = cluster.field("pod/given", ".status.podIP");
    assert_lines(
        &seen,
        &[
            "a-$(B)-$(B) value geheim given 64 b-value", // only what came before is known
            "uid=1000 gid=3000 groups=3000,4000,5000",
            "called",
            &format!("{address}\tcalled"),
            "1.2.3.4\talias",
            "options ndots:5",
            "440,4000", // for the group too
            "valuevaluegeheim",
            "app=\"x\"",
            "cfg is read-only",
            "thing",
            "ca.crt",
            "CapBnd:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "no user namespace",
            "no mount",
        ],
    );
    assert_eq!(
        cluster.field(
            "pod/given",
            ".status.containerStatuses[0].state.terminated.message"
        ),
        "the end"
    );

    cluster.apply(&pod(
        "privileged",
        "grep -E 'CapEff|NoNew|Seccomp:' /proc/self/status; mkdir -p /mnt; mount -t tmpfs x /mnt && echo mounted; \
         test -b /dev/loop0 && echo a disk; echo 1 > /proc/sys/net/ipv4/ip_forward && echo written",
        "securityContext: {privileged: true}",
        "",
    ));
    assert_lines(
        &output(&cluster, "privileged"),
        &["Seccomp:\t0", "mounted", "written", "NoNewPrivs:\t0"],
    );
}

#[test]
#[ignore = "needs root"]
fn running_pods_see_changes_and_missing_things_are_waited_for() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    cluster.apply(&pod(
        "waits",
        "echo `cat /cfg/key`; until grep -q new /cfg/key; do sleep 0.1; done; echo `cat /cfg/key`",
        "volumeMounts: [{name: cfg, mountPath: /cfg}]",
        "volumes: [{name: cfg, configMap: {name: late}}]",
    ));
    cluster.wait_for("get events", |events| {
        events
            .contains("MountVolume.SetUp failed for volume \"cfg\" : configmap \"late\" not found")
    });
    cluster.ok("create configmap late --from-literal=key=old");
    cluster.wait("logs waits", "old");
    let patch = "{\"data\":{\"key\":\"new\"}}";
    cluster.ok_with(&["patch", "configmap", "late", "--type=merge", "-p", patch]);
    assert_eq!(output(&cluster, "waits"), "old\nnew\n");

    for (name, container, spec, want) in [
        (
            "root",
            "",
            "securityContext: {runAsNonRoot: true}",
            "image will run as root",
        ),
        (
            "absent",
            "env: [{name: X, valueFrom: {secretKeyRef: {name: none, key: k}}}]",
            "",
            "secret \\\"none\\\" not found",
        ),
        (
            "nfs",
            "",
            "volumes: [{name: v, nfs: {server: s, path: /}}]",
            "nfs volumes are not supported",
        ),
        (
            "odd",
            "",
            "securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}",
            "not allowlisted",
        ),
    ] {
        cluster.apply(&pod(name, "true", container, spec));
        cluster.wait_for("get pods,events -o json", |all| all.contains(want));
        cluster.ok(&format!("delete pod {name} --wait=false"));
    }
}

/// A volume in a folder of the cluster's; the folder.
fn disk(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = cluster.root.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    cluster.apply(&format!(
        "
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  hostPath: {{path: {}}}
",
        folder.display()
    ));
    folder
}

#[test]
#[ignore = "needs root"]
fn a_claim_keeps_what_a_pod_wrote() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let mount = "volumeMounts: [{name: v, mountPath: /data}]";
    let claim = |read_only: bool| {
        format!(
            "volumes: [{{name: v, persistentVolumeClaim: {{claimName: c, readOnly: {read_only}}}}}]"
        )
    };
    // The pod comes first, and waits for its claim; the claim waits for a volume.
    cluster.apply(&pod(
        "writer",
        "echo kept >/data/file",
        mount,
        &claim(false),
    ));
    cluster.wait_for("get events", |events| {
        events.contains("persistentvolumeclaim \\\"c\\\" not found")
            || events.contains("persistentvolumeclaim \"c\" not found")
    });
    cluster.apply(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: c}
spec: {storageClassName: '', accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
",
    );
    let disk = disk(&cluster, "disk");
    cluster.wait("get pvc c -o jsonpath={.status.phase}", "Bound");
    assert_eq!(output(&cluster, "writer"), "");
    let script = "cat /data/file; touch /data/x || echo not to be written";
    cluster.apply(&pod("reader", script, mount, &claim(true)));
    let said = output(&cluster, "reader");
    assert_lines(&said, &["kept", "not to be written"]);
    assert_eq!(
        std::fs::read_to_string(disk.join("file")).unwrap(),
        "kept\n"
    );
    cluster.ok("delete pod writer reader");
    cluster.ok("delete pvc c");
    cluster.wait("get pv disk -o jsonpath={.status.phase}", "Released");
}

#[test]
#[ignore = "needs root"]
fn a_stateful_set_keeps_its_claims() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    disk(&cluster, "one");
    disk(&cluster, "two");
    cluster.apply(
        "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: w}
spec:
  serviceName: w
  replicas: 2
  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete, whenDeleted: Retain}
  selector: {matchLabels: {app: w}}
  template:
    metadata: {labels: {app: w}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}] # a test machine's disk may be nearly full
      containers:
      - name: c
        image: busybox:1
        command: [sh, -c, 'hostname >>/data/file; sleep 1000']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {storageClassName: '', accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
",
    );
    let ready = "get statefulset w -o jsonpath={.status.readyReplicas}";
    cluster.wait(ready, "2");
    // A pod made anew has the folder of the one before it.
    cluster.ok("delete pod w-1");
    cluster.wait(ready, "2");
    let file = "exec w-1 -- cat /data/file";
    cluster.wait_for(file, |lines| lines.trim() == "w-1\nw-1");

    cluster.ok("scale statefulset w --replicas=1");
    cluster.ok("wait pvc/data-w-1 --for=delete --timeout=60s");
    cluster.ok("delete statefulset w --cascade=foreground");
    assert_eq!(cluster.field("pvc/data-w-0", ".status.phase"), "Bound");
}
