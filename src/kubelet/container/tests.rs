use std::path::Path;

use oci_spec::runtime::Mount;
use serde_json::{Value, json};

use super::*;

fn image(config: Value) -> Image {
    let whole = json!({"architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": []}});
    Image {
        id: "sha256:1".into(),
        names: vec![],
        digests: vec![],
        size_bytes: 0,
        config: serde_json::from_value(whole).unwrap(),
        layers: vec!["/layers/a".into()],
    }
}

/// A pod of one container `c`, with the rest of its spec.
fn pod(container: Value, mut spec: Value) -> Pod {
    let mut container = container;
    container["name"] = json!("c");
    spec["containers"] = json!([container]);
    serde_json::from_value(json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "u-1"},
        "spec": spec,
        "status": {"podIP": "10.0.0.7"},
    }))
    .unwrap()
}

fn config(pod: &Pod, image: &Image, env: &[(&str, &str)]) -> Result<ContainerConfig, Refused> {
    container_config(Inputs {
        pod,
        container: &pod.spec.as_ref().unwrap().containers[0],
        attempt: 0,
        image,
        env: env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        mounts: vec![],
        log_path: "/log".into(),
        facts: &Facts {
            cpu_milli: 2000,
            memory_bytes: 1 << 30,
            ..Facts::default()
        },
        seccomp_dir: "/nonexistent".into(),
    })
}

fn environment_of(container: Value, referenced: &Referenced) -> Result<Environment, Refused> {
    let pod = pod(container, json!({}));
    let services = [("SVC_SERVICE_HOST".to_owned(), "10.96.0.9".to_owned())].into();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    environment(&pod, container, &services, referenced, &Facts::default())
}

#[test]
fn variables_in_order() {
    let data = |pairs: &[(&str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(key, value)| (key.to_string(), value.as_bytes().to_vec()));
        Some(pairs.collect())
    };
    let referenced = Referenced {
        config_maps: [
            (
                "m".into(),
                data(&[("A", "map"), ("a=b", "bad"), ("K", "key")]),
            ),
            ("gone".into(), None),
        ]
        .into(),
        secrets: [("s".into(), data(&[("TOKEN", "t")]))].into(),
        ..Referenced::default()
    };
    let got = environment_of(
        json!({
            "envFrom": [
                {"configMapRef": {"name": "m"}},
                {"secretRef": {"name": "s"}, "prefix": "P_"},
                {"configMapRef": {"name": "gone", "optional": true}},
            ],
            "env": [
                {"name": "A", "value": "own $(SVC_SERVICE_HOST) $(LATER) $$(A)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "BOTH", "value": "$(IP)-$(P_TOKEN)-$(A)"},
                {"name": "LATER", "value": "x"},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "K"}}},
                {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": true}}},
                {"name": "EMPTY"},
            ],
        }),
        &referenced,
    )
    .unwrap();
    let lines: Vec<_> = got
        .variables
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(
        lines,
        [
            "SVC_SERVICE_HOST=10.96.0.9",
            "A=own 10.96.0.9 $(LATER) $(A)",
            "K=key",
            "P_TOKEN=t",
            "IP=10.0.0.7",
            "BOTH=10.0.0.7-t-own 10.96.0.9 $(LATER) $(A)",
            "LATER=x",
            "KEY=key",
            "EMPTY=",
        ]
    );
    assert_eq!(got.skipped, ["a=b"]);
}

#[test]
fn variables_that_are_missing() {
    let referenced = Referenced {
        config_maps: [("m".into(), Some(BTreeMap::new())), ("gone".into(), None)].into(),
        secrets: [("raw".into(), Some([("k".into(), vec![0xff])].into()))].into(),
        ..Referenced::default()
    };
    let key = |kind: &str, name: &str, key: &str| json!({"env": [{"name": "X", "valueFrom": {kind: {"name": name, "key": key}}}]});
    for (container, want) in [
        (
            key("configMapKeyRef", "gone", "k"),
            "configmap \"gone\" not found",
        ),
        (
            key("configMapKeyRef", "m", "k"),
            "couldn't find key k in ConfigMap shop/m",
        ),
        (
            key("secretKeyRef", "raw", "other"),
            "couldn't find key other in Secret shop/raw",
        ),
        (
            key("secretKeyRef", "raw", "k"),
            "key k of secret shop/raw is not UTF-8 and cannot be a variable",
        ),
        (
            json!({"envFrom": [{"secretRef": {"name": "gone"}}]}),
            "secret \"gone\" not found",
        ),
    ] {
        let refused = environment_of(container, &referenced).unwrap_err();
        assert_eq!(refused.reason, "CreateContainerConfigError");
        assert_eq!(refused.message, want);
    }
}

#[test]
fn variables_from_a_file() {
    let file = |content: Option<&str>| Referenced {
        files: [(
            ("v".into(), "env".into()),
            content.map(|text| text.as_bytes().to_vec()),
        )]
        .into(),
        ..Referenced::default()
    };
    let container = |optional: bool| {
        json!({"env": [{"name": "X", "valueFrom": {"fileKeyRef":
            {"volumeName": "v", "path": "env", "key": "K", "optional": optional}}}]})
    };
    let got = environment_of(container(false), &file(Some("# c\nA='1'\nK='two words'\n"))).unwrap();
    assert_eq!(got.variables[1], ("X".into(), "two words".into()));
    assert!(environment_of(container(false), &file(Some("K=two"))).is_err());
    assert!(environment_of(container(false), &file(None)).is_err());
    assert_eq!(
        environment_of(container(true), &file(None))
            .unwrap()
            .variables
            .len(),
        1
    );
}

#[test]
fn commands() {
    let with = image(json!({"Entrypoint": ["/entry", "$(V)"], "Cmd": ["cmd"]}));
    let bare = image(json!({}));
    for (image, container, want) in [
        (&with, json!({}), Some(vec!["/entry", "$(V)", "cmd"])),
        (
            &with,
            json!({"args": ["a", "$(V)"]}),
            Some(vec!["/entry", "$(V)", "a", "1"]),
        ),
        (&with, json!({"command": ["/x"]}), Some(vec!["/x"])),
        (
            &with,
            json!({"command": ["/x"], "args": ["$$(V)"]}),
            Some(vec!["/x", "$(V)"]),
        ),
        (&bare, json!({"args": ["sh"]}), Some(vec!["sh"])),
        (&bare, json!({}), None),
    ] {
        let got = config(&pod(container.clone(), json!({})), image, &[("V", "1")]);
        match want {
            Some(want) => {
                let oci = got.unwrap().oci;
                assert_eq!(
                    oci.process().as_ref().unwrap().args().as_ref().unwrap(),
                    &want,
                    "{container}"
                );
            }
            None => assert_eq!(got.unwrap_err().reason, "CreateContainerError"),
        }
    }
}

#[test]
fn the_process_environment() {
    let image = image(json!({"Cmd": ["sh"], "Env": ["PATH=/bin", "X=image", "Y=image"]}));
    let got = config(
        &pod(json!({"tty": true}), json!({})),
        &image,
        &[("X", "pod"), ("Z", "pod")],
    )
    .unwrap();
    let process = got.oci.process().clone().unwrap();
    assert_eq!(
        process.env().as_ref().unwrap(),
        &[
            "PATH=/bin",
            "X=pod",
            "Y=image",
            "TERM=xterm",
            "HOSTNAME=web-0",
            "Z=pod"
        ]
    );
    assert_eq!(process.cwd(), Path::new("/"));
}

#[test]
fn users() {
    let run = |user: &str, container: Value, shared: Value| {
        let image = image(json!({"Cmd": ["sh"], "User": user}));
        config(
            &pod(
                json!({"securityContext": container}),
                json!({"securityContext": shared}),
            ),
            &image,
            &[],
        )
    };
    for (image_user, container, shared, want) in [
        ("", json!({}), json!({}), "0"),
        ("nginx", json!({}), json!({}), "nginx"),
        ("nginx:www", json!({}), json!({}), "nginx:www"),
        ("nginx:www", json!({"runAsGroup": 5}), json!({}), "nginx:5"),
        (
            "nginx:www",
            json!({"runAsUser": 1000}),
            json!({"runAsUser": 7}),
            "1000",
        ),
        (
            "",
            json!({}),
            json!({"runAsUser": 7, "runAsGroup": 8}),
            "7:8",
        ),
        ("1001", json!({"runAsNonRoot": true}), json!({}), "1001"),
    ] {
        let got = run(image_user, container.clone(), shared).unwrap();
        assert_eq!(got.user.as_deref(), Some(want), "{image_user} {container}");
    }
    for (image_user, container, want) in [
        (
            "",
            json!({"runAsNonRoot": true}),
            "container has runAsNonRoot and image will run as root (pod: \"web-0_shop(u-1)\", container: c)",
        ),
        (
            "0:0",
            json!({"runAsNonRoot": true}),
            "container has runAsNonRoot and image will run as root (pod: \"web-0_shop(u-1)\", container: c)",
        ),
        (
            "nginx",
            json!({"runAsNonRoot": true}),
            "container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root (pod: \"web-0_shop(u-1)\", container: c)",
        ),
        (
            "nginx",
            json!({"runAsNonRoot": true, "runAsUser": 0}),
            "container's runAsUser breaks non-root policy (pod: \"web-0_shop(u-1)\", container: c)",
        ),
        (
            "",
            json!({"runAsUser": 3_000_000_000_i64}),
            "id 3000000000 is not between 0 and 2147483647",
        ),
    ] {
        assert_eq!(
            run(image_user, container, json!({})).unwrap_err().message,
            want
        );
    }
    let groups = run(
        "",
        json!({}),
        json!({"supplementalGroups": [4, 5], "fsGroup": 5}),
    )
    .unwrap();
    let process = groups.oci.process().clone().unwrap();
    assert_eq!(
        process.user().additional_gids().as_deref(),
        Some(&[4, 5][..])
    );
    let strict = json!({"supplementalGroupsPolicy": "Strict", "runAsUser": 1, "runAsGroup": 2});
    let strict = run("", json!({}), strict).unwrap();
    assert_eq!(strict.user, None);
    assert_eq!(strict.oci.process().as_ref().unwrap().user().gid(), 2);
}

#[test]
fn capabilities_add_and_drop() {
    use oci_spec::runtime::Capability::{self, *};
    let run = |security: Value| {
        let image = image(json!({"Cmd": ["sh"]}));
        let got = config(
            &pod(json!({"securityContext": security}), json!({})),
            &image,
            &[],
        )?;
        let process = got.oci.process().clone().unwrap();
        let capabilities = process.capabilities().clone().unwrap();
        assert_eq!(
            capabilities.inheritable().as_ref().map(|set| set.len()),
            Some(0)
        );
        Ok::<_, Refused>(capabilities.effective().clone().unwrap())
    };
    let has =
        |security: Value, capability: Capability| run(security).unwrap().contains(&capability);
    assert_eq!(run(json!({})).unwrap().len(), 14);
    assert_eq!(run(json!({"privileged": true})).unwrap().len(), 41);
    assert_eq!(
        run(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}})).unwrap(),
        [NetBindService].into()
    );
    assert_eq!(
        run(json!({"capabilities": {"add": ["ALL"], "drop": ["SYS_ADMIN"]}}))
            .unwrap()
            .len(),
        40
    );
    assert!(has(
        json!({"capabilities": {"add": ["CAP_NET_ADMIN"]}}),
        NetAdmin
    ));
    assert!(has(
        json!({"capabilities": {"add": ["net_admin"], "drop": ["KILL"]}}),
        NetAdmin
    ));
    assert!(!has(json!({"capabilities": {"drop": ["KILL"]}}), Kill));
    assert!(run(json!({"capabilities": {"add": ["NOTHING"]}})).is_err());
}

#[test]
fn confinement() {
    let image = image(json!({"Cmd": ["sh"]}));
    let linux = |container: Value, spec: Value| {
        let got = config(
            &pod(json!({"securityContext": container}), spec),
            &image,
            &[],
        )?;
        Ok::<_, Refused>(got.oci.linux().clone().unwrap())
    };
    let masks = |linux: &Linux| linux.masked_paths().as_ref().map_or(0, Vec::len);
    let plain = linux(json!({}), json!({})).unwrap();
    assert!(plain.seccomp().is_some());
    assert!(masks(&plain) > 10);
    let privileged = linux(json!({"privileged": true}), json!({})).unwrap();
    assert_eq!(
        (privileged.seccomp().is_some(), masks(&privileged)),
        (false, 0)
    );
    let unconfined = json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}});
    assert!(
        linux(json!({}), unconfined.clone())
            .unwrap()
            .seccomp()
            .is_none()
    );
    let own = json!({"seccompProfile": {"type": "RuntimeDefault"}});
    assert!(linux(own, unconfined).unwrap().seccomp().is_some());
    for path in ["missing.json", "../x", ""] {
        let profile = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": path}});
        assert_eq!(
            linux(profile, json!({})).unwrap_err().reason,
            "CreateContainerError"
        );
    }
}

#[test]
fn pods() {
    let guaranteed = json!({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}});
    let facts = Facts {
        cluster_domain: "cluster.local".into(),
        ..Facts::default()
    };
    for (container, spec, cgroup, hostname) in [
        (json!({}), json!({}), "kubepods/besteffort/podu-1", "web-0"),
        (guaranteed, json!({"hostname": "h"}), "kubepods/podu-1", "h"),
        (
            json!({"resources": {"requests": {"cpu": "1"}}}),
            json!({"subdomain": "sub", "setHostnameAsFQDN": true}),
            "kubepods/burstable/podu-1",
            "web-0.sub.shop.svc.cluster.local",
        ),
        (
            json!({}),
            json!({"hostname": "h", "hostnameOverride": "o.p"}),
            "kubepods/besteffort/podu-1",
            "o.p",
        ),
    ] {
        let got = pod_config(&pod(container, spec), &facts).unwrap();
        assert_eq!(
            (got.cgroup.as_str(), got.hostname.as_str()),
            (cgroup, hostname)
        );
    }
    let long =
        json!({"hostname": "h".repeat(50), "subdomain": "s".repeat(20), "setHostnameAsFQDN": true});
    assert!(pod_config(&pod(json!({}), long), &facts).is_err());
    assert!(pod_config(&pod(json!({}), json!({"hostUsers": false})), &facts).is_err());
}

#[test]
fn own_mounts_replace_defaults() {
    let at = |path: &str| {
        let mut mount = Mount::default();
        mount.set_destination(path.into());
        mount
    };
    let names = |own: Vec<Mount>| -> Vec<String> {
        let all = mounts::all(&pod(json!({}), json!({})), false, own);
        all.iter()
            .map(|mount| mount.destination().display().to_string())
            .collect()
    };
    assert_eq!(
        names(vec![at("/data/deep"), at("/dev/shm/"), at("/data")]),
        [
            "/proc",
            "/dev",
            "/sys",
            "/data",
            "/dev/pts",
            "/dev/mqueue",
            "/data/deep",
            "/dev/shm/",
            "/sys/fs/cgroup"
        ]
    );
    assert_eq!(
        names(vec![at("/dev")]),
        ["/proc", "/sys", "/dev", "/sys/fs/cgroup"]
    );
}
