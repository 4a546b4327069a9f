//! Pods on networks of plugins that write down what they are told. As root, since namespaces are mounted.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    process::Command,
    time::Instant,
};

use ::netns::Namespace;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{kubelet::network::Forward, runtime::config::Identity};

const LONG: Duration = Duration::from_secs(20);

/// What every plugin of the tests does. `$D/fail-VERB-NAME` makes it fail, `$D/hang-VERB-NAME` hang.
const PLUGIN: &str = r#"#!/bin/sh
D=FOLDER
name=${0##*/}
input=$(cat)
if [ $CNI_COMMAND = VERSION ]; then
    cat $D/versions
    exit
fi
if [ $CNI_COMMAND = STATUS ]; then
    echo "$name $input" >>$D/asked
    [ -e $D/fail-STATUS-$name ] || exit 0
    echo '{"code": 50, "msg": "the plugin is not available", "details": "no route reflector"}'
    exit 1
fi
previous=no
case $input in *prevResult*) previous=yes;; esac
netns=no
[ -n "$CNI_NETNS" ] && [ -e "$CNI_NETNS" ] && netns=yes
echo "$CNI_COMMAND $name id=$CNI_CONTAINERID previous=$previous netns=$netns" >>$D/log
echo "$input" >$D/input-$CNI_COMMAND-$name
[ -e $D/hang-$CNI_COMMAND-$name ] && sleep 1000
if [ -e $D/fail-$CNI_COMMAND-$name ]; then
    echo '{"code": 100, "msg": "no more addresses", "details": "all are taken"}'
    exit 1
fi
[ $CNI_COMMAND = ADD ] && cat $D/result
exit 0
"#;

/// A node of its own.
struct Node {
    folder: TempDir,
}

impl Node {
    fn new(version: &str) -> Self {
        let node = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for folder in ["conf", "bin", "state"] {
            fs::create_dir(node.at(folder)).unwrap();
        }
        for name in ["first", "second"] {
            let (path, root) = (node.at(&format!("bin/{name}")), node.at(""));
            let script = PLUGIN.replace("FOLDER", root.to_str().unwrap());
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let versions =
            json!({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]});
        node.write("versions", &versions.to_string());
        node.answer(version, "10.9.0.2/24");
        node.configure(version, "net");
        node
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn answer(&self, version: &str, address: &str) {
        let result = json!({
            "cniVersion": version,
            "interfaces": [{"name": "eth0", "sandbox": "/x"}],
            "ips": [{"address": address, "interface": 0}],
        });
        self.write("result", &result.to_string());
    }

    fn configure(&self, version: &str, name: &str) {
        let list = json!({"cniVersion": version, "name": name, "plugins": [
            {"type": "first"}, {"type": "second", "capabilities": {"portMappings": true}},
        ]});
        self.write("conf/10-net.conflist", &list.to_string());
    }

    fn config(&self) -> Config {
        Config {
            folders: Folders {
                configurations: self.at("conf"),
                programs: vec![self.at("bin")],
            },
            state_dir: self.at("state/cni"),
            netns_dir: self.at("netns"),
            ranges: "10.9.0.0/24".parse().unwrap(),
        }
    }

    async fn open(&self) -> CniNetwork {
        CniNetwork::open(self.config()).await.unwrap()
    }

    /// What plugins were told since this was asked last, with short names for pods' ids.
    fn told(&self) -> Vec<String> {
        let log = fs::read_to_string(self.at("log")).unwrap_or_default();
        let _ = fs::remove_file(self.at("log"));
        let mut ids: Vec<&str> = Vec::new();
        log.lines()
            .map(|line| {
                let (verb, rest) = line.split_once(" id=").unwrap();
                let (id, rest) = rest.split_once(' ').unwrap();
                if !ids.contains(&id) {
                    ids.push(id);
                }
                let number = ids.iter().position(|one| *one == id).unwrap();
                format!("{verb} {number} {rest}")
            })
            .collect()
    }

    /// Nothing is left of any pod.
    fn is_empty(&self) -> bool {
        let is_empty = |name: &str| fs::read_dir(self.at(name)).is_ok_and(|all| all.count() == 0);
        is_empty("state/cni") && (is_empty("netns") || !self.at("netns").exists())
    }
}

fn identity(uid: &str) -> Identity {
    Identity {
        uid: uid.to_owned(),
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
    }
}

async fn attach(
    network: &CniNetwork,
    uid: &str,
    netns: &Namespace,
    forwards: &[Forward],
) -> Result<Attached, String> {
    let request = PodRequest {
        identity: &identity(uid),
        forwards,
        bandwidth: Default::default(),
    };
    let attached = network.attach(&request, netns.as_fd()).await;
    attached.map_err(|error| causes(&error))
}

/// With what keeps the network, as long as `work` takes.
async fn kept<T>(network: &CniNetwork, work: impl Future<Output = T>) -> T {
    let shutdown = CancellationToken::new();
    tokio::select! {
        () = network.keep(|_| {}, shutdown) => panic!("it has ended"),
        done = work => done,
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn becomes(network: &CniNetwork, is_it: impl Fn(&Readiness) -> bool) -> Readiness {
    let mut readiness = network.readiness();
    let told = tokio::time::timeout(LONG, readiness.wait_for(|now| is_it(now))).await;
    told.expect("in time").unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_pod_comes_and_goes() {
    let (node, netns) = (Node::new("1.0.0"), Namespace::create().unwrap());
    let network = node.open().await;
    kept(&network, async {
        let forwards = [Forward {
            address: crate::kubelet::network::HostAddress::Every,
            protocol: 6,
            port: 8080,
            to: 80,
        }];
        let got = attach(&network, "one", &netns, &forwards).await.unwrap();
        assert_eq!(got.addresses.to_string(), "10.9.0.2");
        assert_eq!(got.unmet, []);
        assert_eq!(network.addresses("one"), Some(got.addresses));
        let input = fs::read_to_string(node.at("input-ADD-second")).unwrap();
        assert!(input.contains("\"hostPort\":8080"), "{input}");
        // Once more, and by the next daemon: it keeps what it has.
        attach(&network, "one", &netns, &forwards).await.unwrap();
        let next = node.open().await;
        assert_eq!(next.addresses("one"), Some(got.addresses));
        assert_eq!(
            node.told(),
            [
                "ADD first 0 previous=no netns=yes",
                "ADD second 0 previous=yes netns=yes",
            ]
        );
        // DEL knows what ADD was told, whatever the configuration says by now.
        node.configure("0.4.0", "other");
        network.detach("one").await.unwrap();
        network.detach("one").await.unwrap();
        assert_eq!(
            node.told(),
            [
                "DEL second 0 previous=yes netns=yes",
                "DEL first 0 previous=yes netns=yes",
            ]
        );
        let input = fs::read_to_string(node.at("input-DEL-second")).unwrap();
        assert!(
            input.contains("\"name\":\"net\"") && input.contains("hostPort"),
            "{input}"
        );
        assert!(node.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_failed_add_leaves_nothing() {
    let (node, netns) = (Node::new("1.0.0"), Namespace::create().unwrap());
    let network = node.open().await;
    kept(&network, async {
        node.write("fail-ADD-second", "");
        let why = attach(&network, "one", &netns, &[]).await.unwrap_err();
        assert!(
            why.starts_with("failed to setup network for sandbox \""),
            "{why}"
        );
        let want =
            "\": plugin type=\"second\" failed (add): no more addresses; all are taken (code 100)";
        assert!(why.ends_with(want), "{why}");
        assert_eq!(
            node.told(),
            [
                "ADD first 0 previous=no netns=yes",
                "ADD second 0 previous=yes netns=yes",
                "DEL second 0 previous=no netns=yes",
                "DEL first 0 previous=no netns=yes",
            ]
        );
        assert!(node.is_empty() && network.addresses("one").is_none());
        // What it has answered is no result.
        fs::remove_file(node.at("fail-ADD-second")).unwrap();
        node.write("result", "{\"cniVersion\": \"1.0.0\"}");
        let why = attach(&network, "one", &netns, &[]).await.unwrap_err();
        assert!(
            why.contains("type=\"second\" failed (add): the pod has no address on eth0"),
            "{why}"
        );
        assert!(node.is_empty());
        // One that cannot be taken back stays on record, and the next ADD begins with that.
        node.write("fail-DEL-first", "");
        attach(&network, "one", &netns, &[]).await.unwrap_err();
        assert!(!node.is_empty());
        node.told();
        fs::remove_file(node.at("fail-DEL-first")).unwrap();
        node.answer("1.0.0", "10.9.0.3/24");
        let got = attach(&network, "one", &netns, &[]).await.unwrap();
        assert_eq!(got.addresses.to_string(), "10.9.0.3");
        let told = node.told();
        let verbs: Vec<&str> = told.iter().map(|line| &line[..12]).collect();
        let verbs: Vec<&str> = verbs.iter().map(|verb| verb.trim()).collect();
        assert_eq!(
            verbs,
            ["DEL second 0", "DEL first 0", "ADD first 1", "ADD second 1"]
        );
        network.detach("one").await.unwrap();
        assert!(node.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn what_was_cut_off_is_taken_back() {
    let (node, netns) = (Node::new("1.0.0"), Namespace::create().unwrap());
    let network = node.open().await;
    node.write("hang-ADD-second", "");
    kept(&network, async {
        tokio::select! {
            got = attach(&network, "one", &netns, &[]) => panic!("{got:?}"),
            () = until("it hangs", || {
                fs::read_to_string(node.at("log")).is_ok_and(|log| log.contains("ADD second"))
            }) => {}
        }
    })
    .await;
    let id = lock(&network.shared.known)["one"].pod.container_id.clone();
    drop(network);
    fs::remove_file(node.at("hang-ADD-second")).unwrap();
    node.told();
    // As if the daemon had been killed, and its plugin went on.
    let mut plugin = Command::new("sleep")
        .arg("1000")
        .env("CNI_CONTAINERID", id)
        .spawn()
        .unwrap();
    // Nobody has gone on with it: the pod is still there, and begins anew.
    let network = node.open().await;
    assert_eq!(network.addresses("one"), None);
    assert!(!plugin.wait().unwrap().success());
    kept(&network, async {
        attach(&network, "one", &netns, &[]).await.unwrap();
        let told = node.told();
        assert_eq!(
            told,
            [
                "DEL second 0 previous=no netns=yes",
                "DEL first 0 previous=no netns=yes",
                "ADD first 1 previous=no netns=yes",
                "ADD second 1 previous=yes netns=yes",
            ]
        );
        // The machine was started anew: the namespace is gone, what plugins keep on disk is not.
        let netns_file = fs::read_dir(node.at("netns")).unwrap().next().unwrap();
        holding::release(&netns_file.unwrap().path()).unwrap();
    })
    .await;
    let network = node.open().await;
    network.detach_all_but(&[]).await.unwrap();
    assert_eq!(
        node.told(),
        [
            "DEL second 0 previous=yes netns=no",
            "DEL first 0 previous=yes netns=no",
        ]
    );
    assert!(node.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn who_is_gone_is_taken_back_at_last() {
    let node = Node::new("1.0.0");
    let spaces = [Namespace::create().unwrap(), Namespace::create().unwrap()];
    let network = node.open().await;
    kept(&network, async {
        attach(&network, "stays", &spaces[0], &[]).await.unwrap();
        attach(&network, "goes", &spaces[1], &[]).await.unwrap();
        let next = node.open().await;
        node.write("fail-DEL-second", "");
        let failed = next.detach_all_but(&["stays".to_owned()]).await;
        let failed = causes(&failed.unwrap_err());
        assert!(failed.contains("no more addresses"), "{failed}");
        assert_eq!(next.addresses("goes"), None);
        node.told();
        next.adopt(&["stays".to_owned()]);
        kept(&next, async {
            until("it is tried", || {
                fs::read_to_string(node.at("log")).is_ok_and(|log| log.contains("DEL second"))
            })
            .await;
            assert_eq!(next.owners(), ["goes", "stays"]);
            fs::remove_file(node.at("fail-DEL-second")).unwrap();
            until("it is taken back", || next.owners() == ["stays"]).await;
        })
        .await;
        assert_eq!(next.addresses("stays").unwrap().to_string(), "10.9.0.2");
        // All of it goes, and what a plugin does not take back is forgotten.
        node.write("fail-DEL-first", "");
        let last = CniNetwork::open_to_remove(node.config()).await.unwrap();
        last.detach_all_but(&[]).await.unwrap();
        assert!(node.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn plugins_of_today_are_told_who_is_there() {
    for (version, gc) in [("1.0.0", false), ("1.1.0", true)] {
        let (node, netns) = (Node::new(version), Namespace::create().unwrap());
        let network = node.open().await;
        kept(&network, async {
            attach(&network, "one", &netns, &[]).await.unwrap();
            node.told();
            network.adopt(&["one".to_owned()]);
            if gc {
                until("both have cleaned up", || {
                    fs::read_to_string(node.at("log"))
                        .is_ok_and(|log| log.matches("GC ").count() == 2)
                })
                .await;
                let input = fs::read_to_string(node.at("input-GC-first")).unwrap();
                assert!(input.contains("cni.dev/valid-attachments"), "{input}");
                let id = lock(&network.shared.known)["one"].pod.container_id.clone();
                assert!(input.contains(&id), "{input}");
                node.told();
            }
            network.detach("one").await.unwrap();
            let told = node.told();
            assert!(told.iter().all(|line| line.starts_with("DEL ")), "{told:?}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn there_is_a_network_as_soon_as_its_files_are_there() {
    let (node, netns) = (Node::new("1.0.0"), Namespace::create().unwrap());
    fs::remove_dir_all(node.at("conf")).unwrap();
    fs::rename(node.at("bin/second"), node.at("second")).unwrap();
    let network = node.open().await;
    kept(&network, async {
        let lacks = |why: &'static str| {
            move |now: &Readiness| matches!(now, Readiness::NotReady(text) if text.contains(why))
        };
        becomes(&network, lacks("cni config uninitialized: there is no *.conflist")).await;
        let why = attach(&network, "one", &netns, &[]).await.unwrap_err();
        let want = "container runtime network not ready: NetworkReady=false \
                    reason:NetworkPluginNotReady message:cni config uninitialized";
        assert!(why.starts_with(want), "{why}");
        assert!(node.is_empty());
        fs::create_dir(node.at("conf")).unwrap();
        node.configure("1.0.0", "net");
        becomes(&network, lacks("failed to find plugin \"second\" in path [")).await;
        fs::rename(node.at("second"), node.at("bin/second")).unwrap();
        becomes(&network, |now| *now == Readiness::Ready).await;
        // The first by its name counts, whatever it is.
        node.write("conf/05-broken.conf", "{");
        becomes(&network, lacks("05-broken.conf: it is no JSON")).await;
        fs::remove_file(node.at("conf/05-broken.conf")).unwrap();
        becomes(&network, |now| *now == Readiness::Ready).await;
        node.configure("0.3.1", "net");
        becomes(&network, lacks("speaks CNI 0.4.0, 1.0.0, 1.1.0 and none of 0.3.1")).await;
        // Who waits for it gets it.
        let waits = attach(&network, "one", &netns, &[]);
        let comes = async { node.configure("1.0.0", "net") };
        let (got, ()) = tokio::join!(waits, comes);
        got.unwrap();
        network.detach("one").await.unwrap();
    })
    .await;
    assert!(node.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn plugins_say_whether_they_can_take_pods() {
    let (node, netns) = (Node::new("1.1.0"), Namespace::create().unwrap());
    node.write("fail-STATUS-second", "");
    let network = node.open().await;
    kept(&network, async {
        let why = becomes(&network, |now| matches!(now, Readiness::NotReady(_))).await;
        let want = "Network plugin returns error: plugin type=\"second\" failed (status): \
                    the plugin is not available; no route reflector (code 50)";
        assert_eq!(why, Readiness::NotReady(want.to_owned()));
        let found = look(&node.config().folders).await.unwrap_err();
        assert_eq!(causes(&found), want);
        let why = attach(&network, "one", &netns, &[]).await.unwrap_err();
        assert!(why.ends_with(want), "{why}");
        assert!(node.is_empty());
        // They are asked again, though nothing changes in the folders.
        fs::remove_file(node.at("fail-STATUS-second")).unwrap();
        becomes(&network, |now| *now == Readiness::Ready).await;
        look(&node.config().folders).await.unwrap();
        attach(&network, "one", &netns, &[]).await.unwrap();
        // Pods that are there stay.
        node.write("fail-STATUS-first", "");
        becomes(&network, |now| *now != Readiness::Ready).await;
        attach(&network, "one", &netns, &[]).await.unwrap();
        network.detach("one").await.unwrap();
        let asked = fs::read_to_string(node.at("asked")).unwrap();
        assert!(
            asked.contains("first {\"cniVersion\":\"1.1.0\",\"name\":\"net\""),
            "{asked}"
        );
    })
    .await;
    assert!(node.is_empty());
    // Nobody asks who cannot answer.
    let node = Node::new("1.0.0");
    node.write("fail-STATUS-first", "");
    let network = node.open().await;
    kept(&network, becomes(&network, |now| *now == Readiness::Ready)).await;
    assert!(!node.at("asked").exists());
}

#[test]
fn records_are_where_they_are_looked_for() {
    let node = Node::new("1.0.0");
    assert!(!CniNetwork::has_records(&node.config()));
    fs::create_dir_all(node.at("state/cni")).unwrap();
    node.write("state/cni/one.json", "{}");
    assert!(CniNetwork::has_records(&node.config()));
}
