//! What other machines join the cluster with, by the commands that a user types. As root.

mod lab;

use std::{
    collections::BTreeMap,
    fs::File,
    process::Output,
    time::{Duration, Instant},
};

use futures::StreamExt;
use http::Uri;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams, WatchParams},
};
use lab::{Cluster, Machine, text, until};
use serde_json::json;
use vetch::{
    bootstrap_token::{BootstrapToken, signature},
    joining::{
        certificate::{self, Purpose},
        client, discovery,
    },
    pki::{Held, Leaf, Pki},
};

const SERVER: &str = "https://192.168.77.1:6443";

fn token(cluster: &Cluster, words: &[&str]) -> Output {
    cluster.vetch(&[&["token"], words].concat())
}

fn done(cluster: &Cluster, words: &[&str]) -> String {
    let output = token(cluster, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn made(cluster: &Cluster, words: &[&str]) -> BootstrapToken {
    done(cluster, words).parse().unwrap()
}

/// What `cluster-info` says, as somebody without any credential gets it.
fn cluster_info(cluster: &Cluster) -> BTreeMap<String, String> {
    let path = "api/v1/namespaces/kube-public/configmaps/cluster-info";
    let got = cluster.host.sh(&format!("curl -sk {SERVER}/{path}"));
    let map: ConfigMap = serde_json::from_str(&got).unwrap_or_default();
    map.data.unwrap_or_default()
}

fn is_signed(cluster: &Cluster, token: &BootstrapToken) -> bool {
    signature::verified(&cluster_info(cluster), token).is_ok()
}

/// On the cluster's host, as a machine that joins would be, but for the network between.
fn on_host<T: Send>(cluster: &Cluster, work: impl AsyncFnOnce() -> T + Send) -> T {
    on(cluster.host.pid(), work)
}

/// In the network of that process.
fn on<T: Send>(pid: u32, work: impl AsyncFnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let space = File::open(format!("/proc/{pid}/ns/net")).unwrap();
            nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            vetch::cli::install_crypto();
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(work())
        });
        running.join().unwrap()
    })
}

/// A client of the cluster as it was found, with more credentials.
fn client_of(cluster: &discovery::Cluster, more: impl FnOnce(&mut Config)) -> Client {
    let mut config = Config::new(cluster.server.clone());
    let (_, authority) = x509_parser::pem::parse_x509_pem(cluster.ca_pem.as_bytes()).unwrap();
    config.root_cert = Some(vec![authority.contents]);
    more(&mut config);
    Client::try_from(config).unwrap()
}

fn code<T>(answer: Result<T, kube::Error>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
    }
}

#[test]
#[ignore = "needs root"]
fn a_token_shows_the_cluster_and_gets_a_nodes_certificate() {
    let cluster = Cluster::started();
    let joining = made(&cluster, &["create", "--ttl=1h", "--description=lab"]);
    until("it is signed", || is_signed(&cluster, &joining));
    let server: Uri = SERVER.parse().unwrap();
    let first = cluster.field("nodes", ".items[0].metadata.name");

    let found = on_host(&cluster, async || {
        let found = discovery::discover(&server, &joining).await.unwrap();
        let held = client_of(&found, |config| {
            config.auth_info.token = Some(joining.to_string().into());
        });
        // Nobody takes the name of a node that is there.
        let refused = certificate::request(
            held.clone(),
            &first,
            Purpose::Client,
            Duration::from_secs(60),
        )
        .await;
        let why = refused.err().expect("refused").to_string();
        assert!(why.contains("was denied: there is a node"), "{why}");
        let identity = certificate::request(
            held.clone(),
            "second",
            Purpose::Client,
            Duration::from_secs(60),
        );
        let identity = identity.await.unwrap();
        let node = client_of(&found, |config| {
            let encode = |text: &str| {
                use base64::{Engine, prelude::BASE64_STANDARD};
                Some(BASE64_STANDARD.encode(text))
            };
            config.auth_info.client_certificate_data = encode(&identity.certificate);
            config.auth_info.client_key_data = encode(&identity.key).map(Into::into);
        });
        // It is the node `second`, which gets a range for its pods, and no other.
        let nodes: Api<Node> = Api::all(node.clone());
        let object = |name: &str| serde_json::from_value(json!({"metadata": {"name": name}}));
        let params = PostParams::default();
        nodes
            .create(&params, &object("second").unwrap())
            .await
            .unwrap();
        // Nobody shows a certificate for an address that is not the node's.
        let elsewhere = ["192.0.2.77".parse().unwrap()];
        let purpose = Purpose::Serving(&elsewhere);
        let second = Duration::from_secs(1);
        let pending = certificate::request(node.clone(), "second", purpose, second).await;
        let why = pending.err().expect("nothing is signed").to_string();
        assert!(why.contains("nobody has approved"), "{why}");
        let third = nodes.create(&params, &object("third").unwrap()).await;
        assert_eq!(code(third), 403);
        // Whoever has the token alone is no node and sees no secrets.
        let nodes: Api<Node> = Api::all(held.clone());
        assert_eq!(
            code(nodes.create(&params, &object("fourth").unwrap()).await),
            403
        );
        let secrets: Api<Secret> = Api::all(held.clone());
        assert_eq!(code(secrets.list(&ListParams::default()).await), 403);
        found
    });
    let ca = cluster.ok("get configmap kube-root-ca.crt -o jsonpath={.data.ca\\.crt}");
    assert_eq!(found.ca_pem, ca);
    let range = cluster.wait_for("get node second -o jsonpath={.spec.podCIDRs}", |got| {
        got.starts_with('[')
    });
    let own = cluster.ok("get nodes -o jsonpath={.items[*].spec.podCIDR}");
    let own: Vec<&str> = own.split_whitespace().collect();
    assert_eq!(own.len(), 2, "{own:?}");
    assert_ne!(own[0], own[1]);
    assert!(range.contains("10.42.") && range.contains("/24"), "{range}");

    // Its secret half is not told again.
    let listed = done(&cluster, &["list"]);
    assert!(
        listed.contains(joining.id()) && listed.contains("lab"),
        "{listed}"
    );
    assert!(!listed.contains(joining.secret()), "{listed}");

    let deleted = format!("deleted {}", joining.id());
    assert_eq!(done(&cluster, &["delete", &joining.to_string()]), deleted);
    until("its signature is gone", || {
        signature::verified(&cluster_info(&cluster), &joining)
            == Err(signature::Unverified::UnknownToken(joining.id().into()))
    });
    on_host(&cluster, async || {
        let error = discovery::discover(&server, &joining).await.unwrap_err();
        let why = vetch::causes::causes(&error);
        assert!(why.contains("it knows no token"), "{why}");
        let gone = client_of(&found, |config| {
            config.auth_info.token = Some(joining.to_string().into());
        });
        let nodes: Api<Node> = Api::all(gone);
        assert_eq!(code(nodes.list(&ListParams::default()).await), 401);
    });
}

#[test]
#[ignore = "needs root"]
fn a_server_that_is_gone_without_a_word_is_noticed() {
    let cluster = Cluster::started();
    let machine = Machine::beside(&cluster, 2);
    let pki = Pki::open(&cluster.root.path().join("lib/pki")).unwrap();
    let servers: [Uri; 1] = [SERVER.parse().unwrap()];
    let nodes = || -> Api<Node> {
        let identity = pki.issue(&Leaf::client("root", &["system:masters"]));
        let held = Held::new(identity.unwrap()).unwrap();
        Api::all(client::client(&servers, pki.ca_pem(), held).unwrap())
    };
    on(machine.host.pid(), async || {
        let all = ListParams::default();
        let (busy, fresh) = (nodes(), nodes());
        busy.list(&all).await.unwrap();
        // Who only waits for news.
        let mut watch = busy
            .watch(&WatchParams::default(), "0")
            .await
            .unwrap()
            .boxed();
        watch.next().await.unwrap().unwrap();
        let changes = tokio::spawn(async move { while let Some(Ok(_)) = watch.next().await {} });
        cluster.host.sh("ip link set port2 nomaster");
        let cut = Instant::now();
        assert!(
            fresh.list(&all).await.is_err(),
            "nobody is there to connect to"
        );
        let refused = cut.elapsed();
        assert!(refused < Duration::from_secs(8), "{refused:?}");
        // 10 s of silence, and three questions, each 5 s later.
        let noticed = tokio::time::timeout(Duration::from_secs(45), changes).await;
        noticed.expect("it is noticed").expect("no panic");
        let noticed = cut.elapsed();
        assert!(noticed > Duration::from_secs(9), "{noticed:?}");
    });
}

#[test]
#[ignore = "needs root"]
fn tokens_end_and_cluster_info_comes_back() {
    let cluster = Cluster::started();
    let short = made(&cluster, &["create", "--ttl=4s"]);
    let chosen = "abcdef.0123456789abcdef";
    let lasting = made(&cluster, &["create", chosen, "--ttl=0"]);
    assert_eq!(lasting.to_string(), chosen);
    until("both sign", || {
        is_signed(&cluster, &short) && is_signed(&cluster, &lasting)
    });
    until("the short one has ended", || {
        let name = short.secret_name();
        let secret = cluster.kubectl(&format!("-n kube-system get secret {name}"));
        text(&secret).contains("NotFound") && !is_signed(&cluster, &short)
    });
    assert!(done(&cluster, &["list"]).contains("never"));

    cluster.ok("-n kube-public delete configmap cluster-info");
    until("it is there again", || is_signed(&cluster, &lasting));
    cluster.ok("-n kube-public patch configmap cluster-info -p {\"data\":{\"kubeconfig\":\"x\"}}");
    until("it is as it was", || {
        is_signed(&cluster, &lasting) && cluster_info(&cluster)["kubeconfig"] != "x"
    });

    for (words, want) in [
        (&["create", chosen][..], "there is a token abcdef already"),
        (
            &["create", "abcdef.short"],
            "six characters, a dot and sixteen",
        ),
        (&["create", "--ttl=5"], "invalid duration"),
        (&["delete", "nobody"], "there is no token nobody"),
        (&["delete", "abc"], "six characters, a dot and sixteen"),
    ] {
        let output = token(&cluster, words);
        assert!(!output.status.success(), "{words:?}");
        assert!(text(&output).contains(want), "{words:?}: {}", text(&output));
    }
}
