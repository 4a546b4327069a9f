//! Volumes of pods whose objects are in a real API server.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use vetch::{
    apiserver,
    kubelet::{
        container::{Environment, Facts},
        volumes::{Config, Error, Mounts, News, PodVolumes, Volumes},
    },
    pki::Pki,
    store::embedded::Embedded,
};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PATIENCE: Duration = Duration::from_secs(10);

/// A control plane without controllers, and volumes in a folder that goes with it.
struct Lab {
    folder: tempfile::TempDir,
    _api: apiserver::start::Handle,
    volumes: Volumes,
    /// Volumes are kept up to date until it is dropped.
    _refreshing: DropGuard,
    client: Client,
}

impl Lab {
    async fn new() -> TestResult<Self> {
        let folder = tempfile::tempdir()?;
        let pki = Pki::open(&folder.path().join("pki"))?;
        let store = Arc::new(Embedded::open(&folder.path().join("store"))?);
        let config = apiserver::start::Config {
            advertise: "127.0.0.1".parse()?,
            port: 6443,
            services: "10.96.0.0/12".parse()?,
        };
        let api = apiserver::start::Handle::new(config, store, &pki, Vec::new()).await?;
        api.start(Vec::new()).await?;
        let client = api.client(apiserver::start::own_user());
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let shop = serde_json::from_value(json!({"metadata": {"name": "shop"}}))?;
        namespaces.create(&PostParams::default(), &shop).await?;
        let config = Config {
            pods_dir: folder.path().join("pods"),
            local_volumes: folder.path().join("volumes"),
            node: "a".into(),
            cluster_dns: vec!["10.96.0.10".parse()?],
            cluster_domain: "cluster.local".into(),
            resolv_conf: folder.path().join("resolv.conf"),
            facts: Facts {
                cpu_milli: 1000,
                memory_bytes: 1 << 30,
                ..Facts::default()
            },
        };
        let volumes = Volumes::new(config, client.clone());
        let (refreshed, stop) = (volumes.clone(), CancellationToken::new());
        let until = stop.clone();
        tokio::spawn(async move { refreshed.run(until).await });
        Ok(Self {
            volumes,
            _refreshing: stop.drop_guard(),
            folder,
            _api: api,
            client,
        })
    }

    fn objects<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "shop")
    }

    async fn create<K>(&self, object: Value) -> TestResult<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let object = serde_json::from_value(object)?;
        Ok(self
            .objects()
            .create(&PostParams::default(), &object)
            .await?)
    }

    fn path(&self, volume: &str) -> PathBuf {
        self.folder.path().join("pods/u-1/volumes").join(volume)
    }

    async fn mounts(&self, pod: &Pod, environment: &Environment) -> Result<Mounts, Error> {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let ips: [IpAddr; 1] = ["10.0.0.7".parse().unwrap()];
        self.volumes
            .of_pod("u-1")
            .mounts(pod, &ips, container, 0, environment)
            .await
    }

    /// The pod's volumes, as wanted from now on.
    fn of(&self, pod: &Pod) -> PodVolumes {
        let volumes = self
            .volumes
            .of_pod(pod.metadata.uid.as_deref().unwrap_or_default());
        volumes.want(Arc::new(pod.clone()));
        volumes
    }

    async fn patch_map(&self, name: &str, data: Value) -> TestResult {
        let patch = Patch::Merge(json!({"data": data}));
        let maps = self.objects::<ConfigMap>();
        maps.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn close(self) -> TestResult {
        self.volumes.of_pod("u-1").release().await?;
        assert!(self.volumes.known().await?.is_empty());
        Ok(())
    }
}

fn pod(container: Value, volumes: Value, context: Value) -> Pod {
    let mut container = container;
    container["name"] = json!("c");
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "shop", "uid": "u-1", "labels": {"app": "x"}},
        "spec": {"containers": [container], "volumes": volumes, "securityContext": context,
            "serviceAccountName": "default"},
    }))
    .unwrap()
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether a file system of its own begins there.
fn is_mount_point(path: &Path) -> TestResult<bool> {
    Ok(fs::metadata(path)?.dev() != fs::metadata(path.join(".."))?.dev())
}

async fn news(receiver: &mut watch::Receiver<News>) -> TestResult<News> {
    tokio::time::timeout(PATIENCE, receiver.changed()).await??;
    Ok(receiver.borrow_and_update().clone())
}

async fn until(what: &str, mut suits: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !suits() {
        assert!(std::time::Instant::now() < end, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn refreshed(failures: &[&str]) -> News {
    News::Refreshed {
        failures: failures.iter().map(|text| (*text).to_owned()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn config_maps_are_followed() -> TestResult {
    let lab = Lab::new().await?;
    let pod = pod(
        json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "a"}}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
        json!([{"name": "v", "configMap": {"name": "m", "defaultMode": 0o440}},
            {"name": "w", "configMap": {"name": "none", "optional": true}},
            {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]),
        json!({}),
    );
    let volumes = lab.of(&pod);
    let mut heard = volumes.news();
    let error = volumes.set_up().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found"
    );
    lab.create::<ConfigMap>(json!({"metadata": {"name": "m"}, "data": {"a": "1", "b": "2"}}))
        .await?;
    assert_eq!(news(&mut heard).await?, News::Changed);
    volumes.set_up().await?;
    let volume = lab.path("kubernetes.io~configmap/v");
    assert_eq!(read(volume.join("a")), "1");
    assert_eq!(fs::metadata(volume.join("a"))?.mode() & 0o777, 0o440);
    assert_eq!(
        read(lab.path("kubernetes.io~downward-api/d/labels")),
        "app=\"x\""
    );
    assert!(lab.path("kubernetes.io~configmap/w/..data").exists());

    lab.patch_map("m", json!({"a": "changed", "b": null}))
        .await?;
    assert_eq!(news(&mut heard).await?, refreshed(&[]));
    assert_eq!(read(volume.join("a")), "changed");
    assert!(!volume.join("b").exists());
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let referenced = volumes.referenced(&pod, container).await?;
    assert_eq!(
        referenced.config_maps["m"].as_ref().unwrap()["a"],
        b"changed"
    );

    // What is gone stays on disk: only a new pod needs it.
    let maps = lab.objects::<ConfigMap>();
    maps.delete("m", &DeleteParams::default()).await?;
    let failure = "MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found";
    assert_eq!(news(&mut heard).await?, refreshed(&[failure]));
    assert_eq!(read(volume.join("a")), "changed");
    // The labels that a volume shows follow, also while another cannot be had.
    let mut labelled = pod.clone();
    labelled.metadata.labels = Some([("app".to_owned(), "y".to_owned())].into());
    lab.of(&labelled);
    let labels = lab.path("kubernetes.io~downward-api/d/labels");
    until("labels follow", || read(labels.clone()) == "app=\"y\"").await;
    lab.close().await
}

/// Whatever is changed while volumes are refreshed is there at the end.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_content_is_written_last() -> TestResult {
    let lab = Lab::new().await?;
    let map = |name: &str| json!({"name": name, "configMap": {"name": name}});
    let names = ["a", "b", "c"];
    for name in names {
        lab.create::<ConfigMap>(json!({"metadata": {"name": name}, "data": {"k": "0"}}))
            .await?;
    }
    let pod = pod(json!({}), json!(names.map(map)), json!({}));
    lab.of(&pod).set_up().await?;
    for round in 1..=40 {
        for part in 0..3 {
            let text = format!("{round}-{part}");
            let patches = names.map(|name| lab.patch_map(name, json!({"k": text})));
            futures::future::try_join_all(patches).await?;
        }
        let want = format!("{round}-2");
        for name in names {
            let file = lab.path("kubernetes.io~configmap").join(name).join("k");
            until(&format!("{name} holds {want}"), || {
                read(file.clone()) == want
            })
            .await;
        }
    }
    lab.close().await
}

/// One volume that cannot be had holds up no other, at first and later.
#[tokio::test(flavor = "multi_thread")]
async fn each_volume_is_made_by_itself() -> TestResult {
    let lab = Lab::new().await?;
    let map = |name: &str| json!({"name": name, "configMap": {"name": name}});
    lab.create::<ConfigMap>(json!({"metadata": {"name": "here"}, "data": {"k": "1"}}))
        .await?;
    let pod = pod(json!({}), json!(["here", "missing"].map(map)), json!({}));
    let volumes = lab.of(&pod);
    assert!(volumes.set_up().await.is_err());
    let file = lab.path("kubernetes.io~configmap/here/k");
    assert_eq!(read(file.clone()), "1");
    lab.create::<ConfigMap>(json!({"metadata": {"name": "missing"}, "data": {"k": "1"}}))
        .await?;
    until("the object is known", || {
        matches!(*volumes.news().borrow(), News::Changed)
    })
    .await;
    volumes.set_up().await?;
    let maps = lab.objects::<ConfigMap>();
    maps.delete("missing", &DeleteParams::default()).await?;
    lab.patch_map("here", json!({"k": "2"})).await?;
    until("the other follows", || read(file.clone()) == "2").await;
    let kept = lab.path("kubernetes.io~configmap/missing/k");
    assert_eq!(read(kept), "1");
    lab.close().await
}

/// Whatever was on its way when a pod is released: nothing is made again, nobody watches for it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_set_up_after_release() -> TestResult {
    let lab = Lab::new().await?;
    lab.create::<ConfigMap>(json!({"metadata": {"name": "m"}, "data": {"k": "1"}}))
        .await?;
    let pod = pod(
        json!({}),
        json!([{"name": "m", "configMap": {"name": "m"}}]),
        json!({}),
    );
    for _ in 0..40 {
        let volumes = lab.of(&pod);
        // A set-up at every stage, a container that is being made, and a refresh.
        let set_up = tokio::spawn({
            let volumes = volumes.clone();
            async move { volumes.set_up().await }
        });
        if rand::random::<bool>() {
            tokio::task::yield_now().await;
        }
        volumes.adopt();
        volumes.release().await?;
        let _ = set_up.await?;
        assert!(lab.volumes.known().await?.is_empty());
        assert!(matches!(volumes.set_up().await, Err(Error::Released)));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let environment = Environment::default();
        let mounts = volumes.mounts(&pod, &[], container, 0, &environment).await;
        assert!(matches!(mounts, Err(Error::Released)), "{mounts:?}");
        assert!(lab.volumes.known().await?.is_empty());
    }
    lab.close().await
}

/// Containers of a pod start side by side, and share its files.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_file_of_the_pod_is_written_by_one_of_its_containers() -> TestResult {
    let lab = Lab::new().await?;
    for round in 0..50 {
        let uid = format!("u-{round}");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "shop", "uid": uid},
            "spec": {
                "containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}],
                "dnsConfig": {"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3"]},
            },
        }))?;
        let volumes = lab.of(&pod);
        volumes.set_up().await?;
        let starts = pod.spec.iter().flat_map(|spec| &spec.containers);
        let starts: Vec<_> = starts
            .map(|container| {
                let (volumes, pod, container) = (volumes.clone(), pod.clone(), container.clone());
                tokio::spawn(async move {
                    let environment = Environment::default();
                    let mounts = volumes.mounts(&pod, &[], &container, 0, &environment);
                    mounts.await.map(|mounts| mounts.resolver_limits.len())
                })
            })
            .collect();
        let mut told = 0;
        for start in starts {
            told += start.await??;
        }
        assert_eq!(told, 1, "round {round}");
        volumes.release().await?;
    }
    lab.close().await
}

/// What a container is being made of stays until it has it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_part_that_is_being_mounted_is_not_replaced() -> TestResult {
    let lab = Lab::new().await?;
    lab.create::<ConfigMap>(json!({"metadata": {"name": "m"}, "data": {"k": "1"}}))
        .await?;
    let pod = pod(
        json!({"volumeMounts": [{"name": "m", "mountPath": "/k", "subPath": "k"}]}),
        json!([{"name": "m", "configMap": {"name": "m"}}]),
        json!({}),
    );
    let volumes = lab.of(&pod);
    volumes.set_up().await?;
    let mut heard = volumes.news();
    let mounts = lab.mounts(&pod, &Environment::default()).await?;
    let source = mounts.list[0].source().clone().unwrap();
    lab.patch_map("m", json!({"k": "2"})).await?;
    // The kernel mounts nothing that is unlinked.
    let early = tokio::time::timeout(Duration::from_millis(300), heard.changed()).await;
    assert!(early.is_err(), "it was replaced meanwhile");
    let target = lab.folder.path().join("target");
    fs::write(&target, "")?;
    let none = None::<&str>;
    nix::mount::mount(
        Some(&source),
        &target,
        none,
        nix::mount::MsFlags::MS_BIND,
        none,
    )?;
    assert_eq!(read(target.clone()), "1");
    nix::mount::umount(&target)?;
    drop(mounts);
    assert_eq!(news(&mut heard).await?, refreshed(&[]));
    let mounts = lab.mounts(&pod, &Environment::default()).await?;
    assert_eq!(read(mounts.list[0].source().clone().unwrap()), "2");
    drop(mounts);
    lab.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn managed_files() -> TestResult {
    let lab = Lab::new().await?;
    fs::write(
        lab.folder.path().join("resolv.conf"),
        "search corp\nnameserver 9.9.9.9\n",
    )?;
    let pod = pod(
        json!({"securityContext": {"readOnlyRootFilesystem": true}, "terminationMessagePath": "/tmp/end"}),
        json!([]),
        json!({}),
    );
    lab.of(&pod).set_up().await?;
    let mounts = lab.mounts(&pod, &Environment::default()).await?.list;
    let shown: Vec<_> = mounts
        .iter()
        .map(|mount| {
            format!(
                "{} {}",
                mount.destination().display(),
                mount.options().as_ref().unwrap().join(",")
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "/etc/hosts rbind,rprivate,ro",
            "/etc/hostname rbind,rprivate,ro",
            "/etc/resolv.conf rbind,rprivate,ro",
            "/tmp/end rbind,rprivate,rw",
        ]
    );
    let folder = lab.folder.path().join("pods/u-1");
    assert!(read(folder.join("etc-hosts")).ends_with("10.0.0.7\tp\n"));
    assert_eq!(read(folder.join("hostname")), "p\n");
    assert_eq!(
        read(folder.join("resolv.conf")),
        "search shop.svc.cluster.local svc.cluster.local cluster.local corp\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
    let log = mounts[3].source().clone().unwrap();
    assert_eq!(fs::metadata(&log)?.mode() & 0o777, 0o666);
    fs::write(&log, "x".repeat(5000))?;
    let message = async |uid, attempt| {
        let volumes = lab.volumes.of_pod(uid);
        volumes.termination_message("c", attempt).await
    };
    assert_eq!(message("u-1", 0).await.len(), 4096);
    assert_eq!(message("u-1", 1).await, "");
    assert_eq!(message("../u-1", 0).await, "");
    lab.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_says_so() -> TestResult {
    let lab = Lab::new().await?;
    for (source, want) in [
        (
            json!({"name": "v", "nfs": {"server": "s", "path": "/"}}),
            "nfs volumes are not supported by this version",
        ),
        (
            json!({"name": "v", "ephemeral": {}}),
            "ephemeral volumes are not supported by this version",
        ),
        (
            json!({"name": "v", "gitRepo": {"repository": "r"}}),
            "gitRepo volumes are refused: they run a program on the node",
        ),
    ] {
        let pod = pod(json!({}), json!([source]), json!({}));
        match lab.of(&pod).set_up().await {
            Err(Error::Volume { volume, message }) => {
                assert_eq!((volume.as_str(), message.as_str()), ("v", want))
            }
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn the_default_token_volume() -> TestResult {
    let lab = Lab::new().await?;
    lab.create::<ServiceAccount>(json!({"metadata": {"name": "default"}}))
        .await?;
    lab.create::<ConfigMap>(
        json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "CA"}}),
    )
    .await?;
    lab.create::<Secret>(json!({"metadata": {"name": "s"}, "stringData": {"k": "secret"}}))
        .await?;
    let volumes = json!([{"name": "t", "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        {"secret": {"name": "s"}},
    ]}}]);
    let mut wanted = pod(json!({}), volumes, json!({"fsGroup": 4711}));
    let pods = lab.objects::<Pod>();
    let mut given = wanted.clone();
    given.metadata.uid = None;
    given.spec.as_mut().unwrap().containers[0].image = Some("i".into());
    let made = pods.create(&PostParams::default(), &given).await?;
    // The token is bound to the pod, so the API must know it by this UID.
    wanted.metadata.uid = made.metadata.uid.clone();
    let uid = wanted.metadata.uid.clone().unwrap();
    let began = std::time::Instant::now();
    lab.of(&wanted).set_up().await?;
    println!("first set-up {:?}", began.elapsed());
    let began = std::time::Instant::now();
    lab.of(&wanted).set_up().await?;
    println!("second set-up {:?}", began.elapsed());

    let volume = lab
        .folder
        .path()
        .join("pods")
        .join(&uid)
        .join("volumes/kubernetes.io~projected/t");
    assert!(is_mount_point(&volume)?);
    assert_eq!(read(volume.join("ca.crt")), "CA");
    assert_eq!(read(volume.join("namespace")), "shop");
    assert_eq!(read(volume.join("k")), "secret");
    let token = read(volume.join("token"));
    assert_eq!(token.split('.').count(), 3, "{token}");
    let meta = fs::metadata(volume.join("token"))?;
    assert_eq!((meta.mode() & 0o777, meta.gid()), (0o640, 4711));
    lab.volumes.of_pod(&uid).release().await?;
    assert!(!volume.exists());
    lab.close().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn scratch_folders_and_parts_of_them() -> TestResult {
    let lab = Lab::new().await?;
    let host = tempfile::tempdir()?;
    fs::write(host.path().join("keep"), "me")?;
    let pod = pod(
        json!({"volumeMounts": [
            {"name": "d", "mountPath": "/d"},
            {"name": "d", "mountPath": "/part", "subPathExpr": "$(NAME)/deep", "readOnly": true},
            {"name": "d", "mountPath": "/away", "subPath": "away"},
            {"name": "h", "mountPath": "h"},
        ]}),
        json!([
            {"name": "d", "emptyDir": {}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "h", "hostPath": {"path": host.path(), "type": "Directory"}},
        ]),
        json!({"fsGroup": 4711}),
    );
    lab.of(&pod).set_up().await?;
    let disk = lab.path("kubernetes.io~empty-dir/d");
    let memory = lab.path("kubernetes.io~empty-dir/m");
    let meta = fs::metadata(&disk)?;
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o2777, 4711));
    assert!(is_mount_point(&memory)?);
    assert!(
        fs::write(memory.join("big"), vec![0; 2 << 20]).is_err(),
        "its size is limited"
    );
    // What the pod changed is left alone.
    fs::write(disk.join("file"), "x")?;
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o700))?;
    lab.of(&pod).set_up().await?;
    assert_eq!(fs::metadata(&disk)?.mode() & 0o777, 0o700);

    std::os::unix::fs::symlink(host.path(), disk.join("away"))?;
    let environment = Environment {
        variables: vec![("NAME".into(), "sub".into())],
        skipped: vec![],
    };
    let refused = lab
        .mounts(&pod, &environment)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("failed to prepare subPath \"away\""),
        "{refused}"
    );
    let unknown = lab
        .mounts(&pod, &Environment::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(unknown.contains("no variable NAME"), "{unknown}");
    fs::remove_file(disk.join("away"))?;
    for _ in 0..2 {
        let mounts = lab.mounts(&pod, &environment).await?.list;
        let part = &mounts[1];
        assert_eq!(
            part.options().as_ref().unwrap().join(","),
            "rbind,rprivate,ro"
        );
        fs::write(disk.join("sub/deep/seen"), "y")?;
        assert_eq!(read(part.source().as_ref().unwrap().join("seen")), "y");
        assert_eq!(mounts[3].source().as_deref(), Some(host.path()));
        assert_eq!(mounts[3].destination(), Path::new("/h"));
    }
    // Links that lead out are removed, not followed, and files under mounts stay.
    std::os::unix::fs::symlink(host.path(), disk.join("out"))?;
    let bound = disk.join("bo und");
    fs::create_dir(&bound)?;
    let none = None::<&str>;
    nix::mount::mount(
        Some(host.path()),
        &bound,
        none,
        nix::mount::MsFlags::MS_BIND,
        none,
    )?;
    let pods = lab.folder.path().join("pods");
    lab.volumes.of_pod("u-1").release().await?;
    assert_eq!(read(host.path().join("keep")), "me");
    assert_eq!(fs::read_dir(pods)?.count(), 0);
    lab.close().await
}
