//! Clients that send too much, too slowly or too often.

use std::time::{Duration, Instant};

use crate::{
    harness::{Health, Neighbour, Tenant},
    lab::{Cluster, text, until},
};

/// What the scripts share: a TLS connection, and a request of the tenant with a body to come.
const PRELUDE: &str = r#"
import os, resource, socket, ssl, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
context = ssl._create_unverified_context()
def connect(alpn=None):
    plain = socket.create_connection(("127.0.0.1", 6443), 10)
    if alpn:
        c = ssl._create_unverified_context(); c.set_alpn_protocols([alpn])
        return c.wrap_socket(plain)
    return context.wrap_socket(plain)
def post(path, length):
    return (f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {os.environ['TOKEN']}\r\nContent-Length: {length}\r\n\r\n").encode()
def answer(connection, seconds):
    connection.settimeout(seconds)
    got = b""
    try:
        while b"\r\n\r\n" not in got or got.endswith(b"\r\n\r\n"):
            more = connection.recv(65536)
            if not more: break
            got += more
    except (socket.timeout, OSError): pass
    return got.decode("latin1")
configmaps = "/api/v1/namespaces/" + os.environ["NAMESPACE"] + "/configmaps"
"#;

/// Runs a script as the tenant; what it printed.
pub fn script(tenant: &Tenant<'_>, lines: &str) -> String {
    let output = tenant
        .cluster
        .host
        .command("timeout")
        .args(["60", "python3", "-c", &format!("{PRELUDE}{lines}")])
        .env("TOKEN", tenant.token())
        .env("NAMESPACE", &tenant.namespace)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Sends a body as the tenant: `METHOD`, path below the namespace, content type. The code and the answer.
pub fn send(tenant: &Tenant<'_>, request: [&str; 3], body: &[u8]) -> (String, String) {
    let [method, path, content_type] = request;
    let root = tenant.cluster.root.path();
    let (body_file, answer_file) = (root.join("body"), root.join("answer"));
    std::fs::write(&body_file, body).unwrap();
    let namespace = &tenant.namespace;
    let output = tenant
        .cluster
        .host
        .command("curl")
        .args(["-sk", "-m", "30", "-X", method, "-w", "%{http_code}", "-o"])
        .arg(&answer_file)
        .arg("-H")
        .arg(format!("Authorization: Bearer {}", tenant.token()))
        .arg("-H")
        .arg(format!("Content-Type: {content_type}"))
        .arg("--data-binary")
        .arg(format!("@{}", body_file.display()))
        .arg(format!(
            "https://127.0.0.1:6443{}",
            path.replace("NS", namespace)
        ))
        .output()
        .unwrap();
    let answer = std::fs::read_to_string(&answer_file).unwrap_or_default();
    assert!(
        answer.len() < 1 << 20,
        "an answer of {} bytes",
        answer.len()
    );
    (String::from_utf8(output.stdout).unwrap(), answer)
}

const JSON: &str = "application/json";
const PODS: &str = "/api/v1/namespaces/NS/pods";
pub const CONFIGMAPS: &str = "/api/v1/namespaces/NS/configmaps";

fn descriptors(cluster: &Cluster) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", cluster.daemon()))
        .unwrap()
        .count()
}

#[test]
#[ignore = "needs root"]
fn silent_and_slow_clients_hold_nothing_up() {
    let cluster = Cluster::started();
    let tenant = Tenant::new(&cluster, "slow");
    let before = descriptors(&cluster);
    let health = Health::watch(&cluster);
    let neighbour = Neighbour::works(&cluster, "neighbour");
    // Connections that say nothing, more than there are places; and half of a head in some.
    let said = script(
        &tenant,
        r#"
silent = [socket.create_connection(("127.0.0.1", 6443), 10) for _ in range(3000)]
half = [connect() for _ in range(100)]
for one in half: one.sendall(b"GET /api HTTP/1.1\r\nHost: a\r\nX-A: ")
fine = connect(); fine.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
print(answer(fine, 5)[:15])
"#,
    );
    assert_eq!(said, "HTTP/1.1 200 OK\n");
    // Requests whose body does not come: of one tenant so many are in flight and no more.
    let said = script(
        &tenant,
        r#"
waiting = []
for _ in range(60):
    one = connect(); one.sendall(post(configmaps, 1000) + b"{"); waiting.append(one)
answers = [answer(one, 15) for one in waiting]
refused = [a for a in answers if a.startswith("HTTP/1.1 429 ")]
for word in ["retry-after: 1\r\n", "content-type: text/plain", "\r\n\r\nToo many requests, please try again later.\n"]:
    assert all(word in a for a in refused), refused[:1]
stalled = [a for a in answers if a.startswith("HTTP/1.1 400 ") and "nothing came for" in a]
print(len(refused), len(stalled))
"#,
    );
    assert_eq!(said, "10 50\n");
    // Large bodies of which the end does not come.
    let said = script(
        &tenant,
        r#"
many, part = [], b"x" * 65536
for _ in range(45):
    one = connect(); one.settimeout(1); many.append(one)
    one.sendall(post(configmaps, 3000000))
    try:
        for _ in range(44): one.sendall(part)
    except (socket.timeout, OSError): pass
print(sum(answer(one, 12).startswith("HTTP/1.1 429 ") for one in many) > 20)
"#,
    );
    assert_eq!(said, "True\n");
    neighbour.assert();
    health.assert();
    until("the connections are gone", || {
        descriptors(&cluster) < before + 50
    });
}

#[test]
#[ignore = "needs root"]
fn an_http2_reset_flood_is_cut_off() {
    let cluster = Cluster::started();
    let tenant = Tenant::new(&cluster, "flood");
    let health = Health::watch(&cluster);
    let said = script(
        &tenant,
        r#"
one = connect("h2")
frame = lambda kind, flags, stream, body: len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
head = bytes([0x82, 0x87, 0x84, 0x41, 0x01]) + b"a"
cut = False
try:
    for batch in range(200):
        one.sendall(b"".join(frame(1, 5, n, head) + frame(3, 0, n, (8).to_bytes(4, "big"))
            for n in range(batch * 200 + 1, batch * 200 + 200, 2)))
    one.settimeout(5)
    while one.recv(65536): pass
    cut = True
except (ConnectionError, ssl.SSLError, OSError): cut = True
print(cut)
"#,
    );
    assert_eq!(said, "True\n");
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn objects_that_grow_are_refused_early() {
    let cluster = Cluster::started();
    let tenant = Tenant::new(&cluster, "large");
    let health = Health::watch(&cluster);
    let neighbour = Neighbour::works(&cluster, "neighbour");
    let pod = |containers: usize| {
        let list = vec!["{}"; containers].join(",");
        format!(r#"{{"metadata":{{"name":"p"}},"spec":{{"containers":[{list}]}}}}"#)
    };
    let deep = "[".repeat(100_000);
    let heavy = vec![r#"{"a":1}"#; 350_000].join(",");
    let heavy = format!(r#"{{"metadata":{{"name":"p"}},"spec":{{"x":[{heavy}]}}}}"#);
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n\
        c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n\
        e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
        g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    // A Pod whose spec holds a million empty containers, in two bytes each.
    let mut protobuf = b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12".to_vec();
    let containers = [0x12, 0x00].repeat(1_400_000);
    let varint = |mut n: usize| {
        let mut out = Vec::new();
        while n >= 0x80 {
            out.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out
    };
    let mut raw = vec![0x12];
    raw.extend(varint(containers.len()));
    raw.extend(&containers);
    protobuf.extend(varint(raw.len()));
    protobuf.extend(&raw);
    let big = "x".repeat(3_200_000);
    let cases: [(&str, &[u8], &str, &str); 8] = [
        (
            JSON,
            pod(990_000).as_bytes(),
            "422",
            "Too many: 990000: must have at most 20000 items",
        ),
        (
            JSON,
            pod(19_000).as_bytes(),
            "422",
            "too many errors, only the first 100 are shown",
        ),
        (
            JSON,
            heavy.as_bytes(),
            "413",
            "more than 67108864 bytes of memory",
        ),
        (JSON, deep.as_bytes(), "400", "recursion limit"),
        (
            JSON,
            big.as_bytes(),
            "413",
            "Request entity too large: limit is 3145728",
        ),
        ("application/yaml", bomb.as_bytes(), "400", "not YAML"),
        ("application/yaml", deep.as_bytes(), "400", "not YAML"),
        (
            "application/vnd.kubernetes.protobuf",
            &protobuf,
            "413",
            "bytes of memory",
        ),
    ];
    for (content_type, body, code, words) in cases {
        let begun = Instant::now();
        let (got, answer) = send(&tenant, ["POST", PODS, content_type], body);
        assert_eq!(got, code, "{words}: {answer:.500}");
        assert!(answer.contains(words), "{words}: {answer:.500}");
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{words}: {:?}",
            begun.elapsed()
        );
    }
    let wide = (0..2000)
        .map(|at| format!("k{at}"))
        .collect::<Vec<_>>()
        .join(",");
    let (code, answer) = send(
        &tenant,
        ["GET", &format!("{CONFIGMAPS}?labelSelector={wide}"), JSON],
        b"",
    );
    assert_eq!(code, "400", "{answer:.500}");
    assert!(answer.contains("at most 1000 are allowed"), "{answer:.500}");
    defaults_of_a_custom_resource(&cluster);
    neighbour.assert();
    health.assert();
}

/// 100 KB of default in each of ten thousand items.
fn defaults_of_a_custom_resource(cluster: &Cluster) {
    let create = |manifest: &serde_json::Value| {
        let file = cluster.root.path().join("custom.json");
        std::fs::write(&file, manifest.to_string()).unwrap();
        cluster.kubectl(&format!("create -f {}", file.display()))
    };
    let items = serde_json::json!({"type": "object", "properties":
        {"a": {"type": "string", "default": "x".repeat(100_000)}}});
    let made = create(&serde_json::json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "tabs.a.example.com"},
        "spec": {"group": "a.example.com", "scope": "Namespaced",
            "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "properties": {"list": {"type": "array", "items": items}}}}}]},
    }));
    assert!(made.status.success(), "{}", text(&made));
    cluster.ok("wait --for condition=established crd/tabs.a.example.com");
    let tab = serde_json::json!({"apiVersion": "a.example.com/v1", "kind": "Tab",
        "metadata": {"name": "t", "namespace": "default"}, "list": vec![serde_json::json!({}); 10_000]});
    let refused = create(&tab);
    assert!(!refused.status.success());
    let words = text(&refused);
    assert!(
        words.contains("its defaults add more than 16777216 bytes"),
        "{words:.500}"
    );
}
