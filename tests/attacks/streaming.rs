//! Exec, attach, port-forward and the proxies: what is passed on, where to, and what comes back.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{
    authorization::Account,
    harness::Health,
    lab::{Cluster, text, until},
};

/// `hostile_backend.py` on the host's own address, behind Services.
struct Backend {
    server: Child,
    log: PathBuf,
}

const HOST: &str = "192.168.77.1";

impl Backend {
    /// `tls`: a PEM file with certificate and key.
    fn start(cluster: &Cluster, port: u16, tls: Option<&str>) -> Self {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/attacks/hostile_backend.py"
        );
        let log = cluster.root.path().join(format!("heads-{port}"));
        let mut command = cluster.host.command("python3");
        command
            .arg(script)
            .arg(HOST)
            .arg(port.to_string())
            .arg(&log);
        let mut server = command.args(tls).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let said = server.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { server, log }
    }

    /// The heads of all requests so far.
    fn heard(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{ports: [{{port: 443}}]}}}}\n---\n\
         {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, namespace: shop, labels: \
         {{kubernetes.io/service-name: {name}}}}}, addressType: IPv4, ports: [{{name: '', port: {port}}}], \
         endpoints: [{{addresses: [{HOST}]}}]}}\n"
    )
}

const SOCKET: [&str; 6] = [
    "-H",
    "Connection: Upgrade",
    "-H",
    "Upgrade: websocket",
    "-H",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

#[test]
#[ignore = "needs root"]
fn backends_learn_and_say_only_what_they_may() {
    let cluster = Cluster::started();
    let health = Health::watch(&cluster);
    cluster.ok("create namespace shop");
    let backend = Backend::start(&cluster, 8099, None);
    cluster.apply(&service("hostile", 8099));
    let rules =
        "[{apiGroups: [''], resources: [services/proxy, pods/proxy, nodes/proxy], verbs: ['*']}]";
    let account = Account::new(&cluster, "shop", "proxying", true, rules);
    credentials_stay_here(&cluster, &account, &backend);
    answers_are_bounded(&cluster, &account);
    health.assert();
    addresses_inside(&cluster, &account);
    cluster.ok("get --raw /readyz");
}

const PROXY: &str = "/api/v1/namespaces/shop/services/hostile/proxy";

fn credentials_stay_here(cluster: &Cluster, account: &Account<'_>, backend: &Backend) {
    let encoded = BASE64_URL_SAFE_NO_PAD.encode(&account.token);
    let protocol =
        format!("Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{encoded}, chat");
    let more = [
        "-H",
        "Cookie: session=COOKIE",
        "-H",
        "Proxy-Authorization: Basic PROXYAUTH",
        "-H",
        "X-Remote-User: REMOTE",
        "-H",
        "X-Remote-Extra-A: REMOTE",
        "-H",
        "Connection: X-Named",
        "-H",
        "X-Named: NAMED",
        "-H",
        "X-Kept: yes",
        "-H",
        &protocol,
    ];
    let (code, body) = account.ask("GET", &format!("{PROXY}/heads/a?b=c"), &more);
    assert_eq!((code, body.contains("heard")), (200, true), "{body}");
    // The token in the protocol alone, and the connection upgraded.
    let alone = [&SOCKET[..], &["-H", &protocol, "-m", "2"]].concat();
    crate::authorization::curl(cluster, "GET", &format!("{PROXY}/socket"), &alone);
    until("the backend heard of the WebSocket", || {
        backend.heard().contains("/socket")
    });
    let heard = backend.heard();
    for secret in [
        &account.token,
        &encoded,
        "COOKIE",
        "PROXYAUTH",
        "REMOTE",
        "NAMED",
        "authorization",
        "impersonate",
        "bearer",
    ] {
        assert!(
            !heard.to_lowercase().contains(&secret.to_lowercase()),
            "{secret}: {heard}"
        );
    }
    for said in [
        "GET /heads/a?b=c HTTP/1.1",
        "x-kept: yes",
        "sec-websocket-protocol: chat",
        "upgrade: websocket",
    ] {
        assert!(heard.contains(said), "{said}: {heard}");
    }
    let (_, head) = account.ask("GET", &format!("{PROXY}/origin"), &["-i"]);
    let head = head.to_lowercase();
    assert!(head.contains("x-own: 1"), "{head}");
    for taken in [
        "set-cookie",
        "alt-svc",
        "strict-transport",
        "access-control",
        "forged",
    ] {
        assert!(!head.contains(taken), "{taken}: {head}");
    }
}

fn answers_are_bounded(cluster: &Cluster, account: &Account<'_>) {
    for path in [
        "interim",
        "huge",
        "many",
        "endless-head",
        "split",
        "nonsense",
        "switch",
    ] {
        let more: &[&str] = if path == "switch" { &SOCKET } else { &[] };
        let (code, body) = account.ask("GET", &format!("{PROXY}/{path}"), more);
        assert_eq!(code, 503, "{path}: {body}");
        assert!(
            body.contains("error trying to reach service"),
            "{path}: {body}"
        );
    }
    // Unasked, and not followed.
    assert_eq!(account.ask("GET", &format!("{PROXY}/switch"), &[]).0, 503);
    let (code, head) = account.ask("GET", &format!("{PROXY}/redirect"), &["-i"]);
    assert_eq!(code, 302, "{head}");
    // Who reads slowly is sent slowly: nothing piles up here.
    let url = format!("https://127.0.0.1:6443{PROXY}/endless");
    let bearer = format!("Authorization: Bearer {}", account.token);
    let mut readers: Vec<Child> = (0..8)
        .map(|_| {
            let mut curl = cluster.host.command("curl");
            curl.args([
                "-sk",
                "-m",
                "4",
                "--limit-rate",
                "1k",
                "-o",
                "/dev/null",
                "-H",
                &bearer,
                &url,
            ]);
            curl.spawn().unwrap()
        })
        .collect();
    for reader in &mut readers {
        let _ = reader.wait();
    }
    let (code, page) = account.ask("GET", &format!("{PROXY}/page"), &[]);
    assert_eq!((code, page.len()), (200, 200_009));
}

fn addresses_inside(cluster: &Cluster, account: &Account<'_>) {
    for (family, address) in [
        ("IPv4", "127.0.0.1"),
        ("IPv6", "::1"),
        ("IPv6", "::ffff:127.0.0.1"),
        ("IPv4", "169.254.169.254"),
        ("IPv4", "0.0.0.0"),
        ("IPv6", "fe80::1"),
        ("IPv4", "224.0.0.1"),
        ("FQDN", "localhost"),
        ("FQDN", "127.0.0.1"),
    ] {
        let slice = format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: inside, namespace: shop}}, \
             addressType: {family}, endpoints: [{{addresses: ['{address}']}}]}}"
        );
        assert_refused(cluster, &slice, address);
        let endpoints = format!(
            "{{apiVersion: v1, kind: Endpoints, metadata: {{name: inside, namespace: shop}}, \
             subsets: [{{addresses: [{{ip: '{address}'}}], ports: [{{port: 80}}]}}]}}"
        );
        assert_refused(cluster, &endpoints, address);
    }
    // Where a pod is, is said by its node.
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: liar, namespace: shop}, \
         spec: {nodeName: nowhere, containers: [{name: a, image: b}]}}",
    );
    for address in [
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
    ] {
        let status =
            format!(r#"{{"status":{{"podIP":"{address}","podIPs":[{{"ip":"{address}"}}]}}}}"#);
        patch_status(cluster, &["pod", "liar", "-n", "shop"], &status);
        let path = "/api/v1/namespaces/shop/pods/liar:10248/proxy/healthz";
        let (code, body) = account.ask("GET", path, &[]);
        assert_eq!(code, 400, "{address}: {body}");
        assert!(body.contains("address not allowed"), "{address}: {body}");
    }
    // And a node by itself. The API server must not be led to itself, nor inside.
    cluster.apply("{apiVersion: v1, kind: Node, metadata: {name: liar}}");
    for (kind, address, said) in [
        ("Hostname", "localhost", "address not allowed"),
        ("InternalIP", "127.0.0.1", "address not allowed"),
        ("InternalIP", "::ffff:127.0.0.1", "address not allowed"),
        ("InternalIP", HOST, "not a kubelet's"),
    ] {
        let status = format!(
            r#"{{"status":{{"addresses":[{{"type":"{kind}","address":"{address}"}}],"daemonEndpoints":{{"kubeletEndpoint":{{"Port":6443}}}}}}}}"#
        );
        patch_status(cluster, &["node", "liar"], &status);
        let (_, body) = account.ask("GET", "/api/v1/nodes/liar/proxy/api/v1/secrets", &[]);
        assert!(body.contains(said), "{kind} {address}: {body}");
        let (_, body) = account.ask("GET", "/api/v1/nodes/liar:10248/proxy/healthz", &[]);
        assert!(!body.trim().ends_with("ok"), "{kind} {address}: {body}");
    }
    cluster.ok("delete node liar");
    // A name behind a Service, of which the API server makes use itself.
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: named, namespace: shop}, \
         spec: {type: ExternalName, externalName: localhost}}\n---\n\
         {apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: inside}, \
         webhooks: [{name: a.example.com, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {service: \
         {namespace: shop, name: named, port: 10250}}, rules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], \
         resources: [configmaps]}], namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}]}\n",
    );
    let refused = text(&cluster.kubectl("create configmap x -n shop"));
    assert!(refused.contains("address not allowed"), "{refused}");
    cluster.ok("delete validatingwebhookconfiguration inside");
}

fn assert_refused(cluster: &Cluster, manifest: &str, address: &str) {
    let file = cluster.root.path().join("inside.yaml");
    std::fs::write(&file, manifest).unwrap();
    let refused = text(&cluster.kubectl(&format!("create -f {}", file.display())));
    assert!(refused.contains("is invalid"), "{address}: {refused}");
}

fn patch_status(cluster: &Cluster, object: &[&str], patch: &str) {
    let line = [
        &["patch"],
        object,
        &["--subresource=status", "--type=merge", "-p", patch],
    ]
    .concat();
    cluster.ok_with(&line);
}

#[test]
#[ignore = "needs root"]
fn aggregated_servers_hear_who_asks_from_us() {
    let cluster = Cluster::started();
    cluster.ok("create namespace shop");
    let pem = cluster.root.path().join("partner.pem");
    let pem = pem.to_str().unwrap();
    cluster.host.sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x \
         -keyout {pem} -out {pem}.crt 2>/dev/null && cat {pem}.crt >> {pem}"
    ));
    let backend = Backend::start(&cluster, 8443, Some(pem));
    cluster.apply(&service("partner", 8443));
    cluster.apply(
        "{apiVersion: apiregistration.k8s.io/v1, kind: APIService, metadata: {name: v1.x.example}, spec: {group: x.example, \
         version: v1, insecureSkipTLSVerify: true, groupPriorityMinimum: 10, versionPriority: 10, \
         service: {namespace: shop, name: partner}}}",
    );
    let path = "jsonpath={.status.conditions[0].reason}";
    cluster.wait(&format!("get apiservice v1.x.example -o {path}"), "Passed");
    let rules = "[{apiGroups: [x.example], resources: [tabs], resourceNames: [public], verbs: [list, get]}]";
    let account = Account::new(&cluster, "shop", "jane", false, rules);
    let list = "/apis/x.example/v1/namespaces/shop/tabs";
    let encoded = BASE64_URL_SAFE_NO_PAD.encode(&account.token);
    let protocol =
        format!("Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{encoded}, chat");
    let more = [
        "-H",
        "Connection: X-Remote-User, X-Remote-Group",
        "-H",
        "X-Remote-User: FORGED",
        "-H",
        "X-Remote-Group: FORGED",
        "-H",
        "X-Remote-Extra-Scopes: FORGED",
        "-H",
        "Impersonate-Nobody: FORGED",
        "-H",
        "Cookie: FORGED",
        "-H",
        &protocol,
    ];
    let (code, body) = account.ask(
        "GET",
        &format!("{list}?fieldSelector=metadata.name%3Dpublic"),
        &more,
    );
    assert_eq!(code, 200, "{body}");
    let heard = backend.heard();
    let head = heard
        .split("----")
        .find(|head| head.contains("/tabs"))
        .unwrap();
    assert!(
        head.starts_with(&format!(
            "\nGET {list}?fieldSelector=metadata.name%3Dpublic HTTP/1.1"
        )),
        "{head}"
    );
    for said in [
        "x-remote-user: system:serviceaccount:shop:jane",
        "x-remote-group: system:serviceaccounts:shop",
        "sec-websocket-protocol: chat",
    ] {
        assert!(head.contains(said), "{said}: {head}");
    }
    for secret in ["FORGED", &account.token, &encoded, "authorization"] {
        assert!(!head.contains(secret), "{secret}: {head}");
    }
    // What would be read there otherwise than here is not allowed, or does not arrive.
    for (query, code) in [
        (
            "fieldSelector=metadata.name%3Dpublic,metadata.namespace!%3Da;b",
            403,
        ),
        (
            "fieldSelector=metadata.name%3Dpublic,metadata.namespace!%3D%zz",
            403,
        ),
        (
            "fieldSelector=a%3Db&fieldSelector=metadata.name%3Dpublic",
            403,
        ),
        ("x=1;y&fieldSelector=metadata.name%3Dpublic&z=%zz", 200),
    ] {
        let (got, body) = account.ask("GET", &format!("{list}?{query}"), &[]);
        assert_eq!(got, code, "{query}: {body}");
    }
    for path in [
        "/apis/x.example/v1/namespaces/shop/tabs%2F..",
        "/apis/x.example/v1/namespaces/shop/tabs/public/../private",
        "/apis/x.example/v1/namespaces/shop%2Ftabs",
        "/apis/x.example/v1/namespaces//tabs",
        "/apis/x.example//v1/tabs",
    ] {
        let (code, body) = account.ask("GET", path, &[]);
        assert!((400..405).contains(&code), "{path}: {code} {body}");
    }
    let heard = backend.heard();
    for never in ["..", "%zz", ";", "%2e"] {
        let lines = heard.lines().filter(|line| line.starts_with("GET "));
        assert!(
            !{ lines }.any(|line| line.contains(never)),
            "{never}: {heard}"
        );
    }
}
