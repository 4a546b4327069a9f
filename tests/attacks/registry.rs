//! Registries and archives that lie, never end, and send us elsewhere.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    harness::{Health, Tenant, daemon_memory},
    lab::{Cluster, Host, text},
};

const ADDRESS: &str = "127.0.0.1:5001";
/// What pulls may cost the daemon at most, next to everything else that it does meanwhile.
const MEMORY_OF_PULLS: u64 = 80 << 20;

fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn layer() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    let mut builder = tar::Builder::new(Vec::new());
    let content = b"hi".as_slice();
    builder.append_data(&mut header, "file", content).unwrap();
    builder.into_inner().unwrap()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The configuration of an image; some do not end well.
fn config(image: &str) -> Vec<u8> {
    let mut config = json!({"os": "linux", "architecture": architecture(),
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer())]}});
    match image {
        "million" => config["config"] = json!({"Env": vec!["a=b"; 500_000]}),
        "volumes" => config["config"] = json!({"Volumes": {"/../../x": {}, "/etc": {}}}),
        "more-diffs" => {
            config["rootfs"]["diff_ids"] = json!([digest(&layer()), digest(&layer())]);
        }
        "diff-path" => config["rootfs"]["diff_ids"] = json!(["sha256:../../../etc"]),
        _ => {}
    }
    if image == "deep" {
        return "[".repeat(1 << 20).into_bytes();
    }
    config.to_string().into_bytes()
}

fn manifest(image: &str) -> Vec<u8> {
    let (config, layer) = (config(image), layer());
    let layer = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": digest(&layer), "size": layer.len()});
    let mut manifest = json!({"schemaVersion": 2, "layers": [layer],
        "config": {"digest": digest(&config), "size": config.len()}});
    match image {
        "both" => manifest["manifests"] = json!([layer]),
        "lie" => manifest["mediaType"] = json!("application/vnd.oci.image.index.v1+json"),
        "digest" => manifest["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd"),
        "many-layers" => manifest["layers"] = json!(vec![layer; 1000]),
        "terabytes" => manifest["layers"][0]["size"] = json!(1_u64 << 40),
        "longer" => manifest["layers"][0]["size"] = json!(100),
        "shorter" => manifest["layers"][0]["size"] = json!(100_000),
        "other-layer" => manifest["layers"][0]["digest"] = json!(digest(b"other")),
        "config-size" => manifest["config"]["size"] = json!(10),
        _ => {}
    }
    manifest.to_string().into_bytes()
}

fn say(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

/// Sends the same until the other side has had enough.
fn endless(stream: &mut TcpStream, start: &str, piece: &[u8], pause: Duration) {
    let _ = stream.write_all(start.as_bytes());
    while stream.write_all(piece).is_ok() {
        std::thread::sleep(pause);
    }
}

fn answer(path: &str, head: &[String], stream: &mut TcpStream) {
    const OPEN_END: &str = "HTTP/1.1 200 OK\r\n\r\n";
    let mut parts = path.split('/').skip(2);
    let (image, kind) = (parts.next().unwrap(), parts.next().unwrap_or_default());
    let zeros = vec![b'0'; 1 << 20];
    let redirect = |stream: &mut TcpStream, to: &str| {
        let location = format!("Location: {to}\r\n");
        say(stream, "307 Temporary Redirect", &location, b"");
    };
    let challenge = |stream: &mut TcpStream, realm: &str| {
        let header = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n");
        say(stream, "401 Unauthorized", &header, b"");
    };
    let let_in = head.iter().any(|line| line.ends_with("Bearer t0k"));
    match (image, kind) {
        ("endless", _) | ("endless-config", "blobs") => {
            endless(stream, OPEN_END, &zeros, Duration::ZERO);
        }
        ("endless-layer", "blobs") if path.ends_with(&digest(&layer())) => {
            endless(stream, OPEN_END, &zeros, Duration::ZERO);
        }
        ("trickle", _) => endless(stream, OPEN_END, b" ", Duration::from_millis(200)),
        ("head", _) => endless(stream, "HTTP/1.1 200 OK\r\nx: ", &zeros, Duration::ZERO),
        ("error", _) => endless(stream, "HTTP/1.1 500 No\r\n\r\n", &zeros, Duration::ZERO),
        ("loop", _) => redirect(stream, path),
        ("port", _) => redirect(stream, "http://127.0.0.1:10248/healthz"),
        ("tls", _) => redirect(stream, "https://127.0.0.1:6443/"),
        ("mapped", _) => redirect(stream, "https://[::ffff:127.0.0.1]:6443/"),
        ("metadata", _) => redirect(stream, "https://169.254.169.254/latest/"),
        ("realm", _) => challenge(stream, "https://127.0.0.1:6443/token"),
        ("token", _) => challenge(stream, &format!("http://{ADDRESS}/v2/endless/x")),
        ("closed", _) if !let_in => challenge(stream, &format!("http://{ADDRESS}/v2/give/x")),
        ("give", _) => {
            // u:p
            let knows = head.iter().any(|line| line.ends_with("Basic dTpw"));
            let status = if knows { "200 OK" } else { "401 Unauthorized" };
            say(stream, status, "", br#"{"access_token":"t0k"}"#);
        }
        (_, "manifests") => {
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let header = format!("Content-Type: {kind}\r\n");
            say(stream, "200 OK", &header, &manifest(image));
        }
        (_, "blobs") if path.ends_with(&digest(&config(image))) => {
            say(stream, "200 OK", "", &config(image));
        }
        (_, "blobs") => say(stream, "200 OK", "", &layer()),
        _ => say(stream, "404 Not Found", "", b"{}"),
    }
}

/// Serves on the host's loopback; its threads end with their connections, or with the tests.
fn serve(host: &Host) {
    let namespace = File::open(format!("/proc/{}/ns/net", host.pid())).unwrap();
    let (ready, listening) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind(ADDRESS).unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let lines = lines.map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                if let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) {
                    answer(path, &head, &mut stream);
                }
            });
        }
    });
    listening.recv().unwrap();
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  \
         - {{name: c, image: '{image}', imagePullPolicy: Always}}\n---\n"
    )
}

/// Waits for a pod's event that says `want`; returns what it says.
fn event(cluster: &Cluster, namespace: &str, pod: &str, reason: &str, want: &str) -> String {
    let line = format!(
        "get events -n {namespace} --field-selector involvedObject.name={pod},reason={reason} \
         -o jsonpath={{.items[*].message}}"
    );
    cluster.wait_for(&line, |said| said.contains(want))
}

#[test]
#[ignore = "needs root"]
fn a_hostile_registry_gets_nowhere() {
    let cluster = Cluster::started();
    serve(&cluster.host);
    let tenant = Tenant::new(&cluster, "tenant");
    let health = Health::watch(&cluster);
    let before = daemon_memory(&cluster);
    let of_pods = [
        ("endless", "it sends more than 4194304 bytes"),
        ("endless-layer", "that it announced"),
        ("tls", "a loopback address, which is refused"),
        ("both", "as an index and as a manifest"),
        ("million", "more than 65536 values"),
        ("closed", "access denied"),
    ];
    let pods = of_pods.map(|(name, _)| pod(name, &format!("{ADDRESS}/{name}:1")));
    tenant.create(&pods.concat());
    for (name, want) in of_pods {
        event(&cluster, "tenant", name, "Failed", want);
    }
    // The daemon pulls for this command too.
    for (name, want) in [
        ("endless-config", "that it announced"),
        ("head", "head"),
        ("error", "the registry answers 500"),
        ("token", "it sends more than 1048576 bytes"),
        ("loop", "redirects more than 5 times"),
        ("port", "only HTTPS is allowed there"),
        ("mapped", "a loopback address, which is refused"),
        ("metadata", "a link-local address, which is refused"),
        ("realm", "a loopback address, which is refused"),
        ("lie", "it is a manifest, but its mediaType says"),
        ("digest", "is not a sha256, sha384 or sha512 digest"),
        ("many-layers", "1000 layers, more than 127"),
        ("terabytes", "its layers have 1099511627776 bytes"),
        ("longer", "sends more than the 100 bytes"),
        ("shorter", "fewer than it announced"),
        ("other-layer", "it sends other content than the digest says"),
        ("config-size", "sends more than the 10 bytes"),
        ("deep", "nested deeper than 32"),
        ("more-diffs", "1 layers, but its configuration names 2"),
        ("diff-path", "is not named by a sha256 digest"),
    ] {
        let image = format!("{ADDRESS}/{name}:1");
        let pulled = cluster.vetch(&["image", "pull", &image]);
        let said = text(&pulled);
        assert!(
            !pulled.status.success() && said.contains(want),
            "{name}: {said}"
        );
    }
    let grown = daemon_memory(&cluster) - before;
    assert!(grown < MEMORY_OF_PULLS, "pulls took {grown} bytes");
    // Nothing of them stays, and what is good is taken: with a password, and with odd metadata.
    assert!(!text(&cluster.vetch(&["image", "ls"])).contains(ADDRESS));
    for (image, more) in [
        ("good", &[][..]),
        ("volumes", &[]),
        ("closed", &["--username", "u", "--password", "p"]),
    ] {
        let name = format!("{ADDRESS}/{image}:1");
        let pulled = cluster.vetch(&[&["image", "pull", &name], more].concat());
        assert!(pulled.status.success(), "{}", text(&pulled));
    }
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn a_slow_registry_is_the_trouble_of_its_own_namespace() {
    let cluster = Cluster::started();
    serve(&cluster.host);
    let slow = Tenant::new(&cluster, "slow");
    let other = Tenant::new(&cluster, "other");
    let pods = (0..20).map(|number| {
        pod(
            &format!("p{number}"),
            &format!("{ADDRESS}/trickle:{number}"),
        )
    });
    slow.create(&pods.collect::<String>());
    for number in 0..20 {
        event(
            &cluster,
            "slow",
            &format!("p{number}"),
            "Pulling",
            "Pulling image",
        );
    }
    other.create(&pod("p", &format!("{ADDRESS}/good:1")));
    event(
        &cluster,
        "other",
        "p",
        "Pulled",
        "Successfully pulled image",
    );
    // A name of 200 KB is told in short.
    other.create(&pod("long", &format!("a/{}", "b".repeat(200_000))));
    let said = event(
        &cluster,
        "other",
        "long",
        "InspectFailed",
        "longer than 255 characters",
    );
    assert!(said.len() < 1500, "{}", said.len());
}

#[test]
#[ignore = "needs root"]
fn what_is_no_archive_is_not_shown() {
    let cluster = Cluster::started();
    let before = daemon_memory(&cluster);
    cluster
        .host
        .sh(&format!("mkfifo {}/pipe", cluster.root.path().display()));
    let pipe = cluster.root.path().join("pipe");
    for (file, want) in [
        ("/etc/passwd", "not an image archive"),
        ("/etc/shadow", "not an image archive"),
        ("/dev/zero", "neither a file nor a folder"),
        (pipe.to_str().unwrap(), "neither a file nor a folder"),
        (
            "/etc",
            "neither a docker-archive (manifest.json) nor an OCI layout",
        ),
    ] {
        let output = cluster.vetch(&["image", "import", file]);
        let said = text(&output);
        assert!(
            !output.status.success() && said.contains(want),
            "{file}: {said}"
        );
        assert!(!said.contains("root"), "{file}: {said}");
    }
    let grown = daemon_memory(&cluster) - before;
    assert!(grown < MEMORY_OF_PULLS, "imports took {grown} bytes");
}
