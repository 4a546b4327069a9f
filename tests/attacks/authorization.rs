//! Requests that authorization could understand otherwise than the handler, and rights that could
//! grow.

use crate::{harness::Health, lab::Cluster};

/// A service account with the rights of one role, asking with curl: paths go as they are.
pub struct Account<'a> {
    cluster: &'a Cluster,
    pub token: String,
}

/// Status code and body.
pub type Answer = (u16, String);

impl<'a> Account<'a> {
    /// `rules`: of a Role in `namespace`, or of a ClusterRole for everywhere if `wide`.
    pub fn new(cluster: &'a Cluster, namespace: &str, name: &str, wide: bool, rules: &str) -> Self {
        let kind = if wide { "ClusterRole" } else { "Role" };
        let place = if wide {
            String::new()
        } else {
            format!("namespace: {namespace}, ")
        };
        cluster.ok(&format!("create serviceaccount {name} -n {namespace}"));
        cluster.apply(&format!(
            "{{apiVersion: rbac.authorization.k8s.io/v1, kind: {kind}, metadata: {{{place}name: {name}}}, rules: {rules}}}\n---\n\
             {{apiVersion: rbac.authorization.k8s.io/v1, kind: {kind}Binding, metadata: {{{place}name: {name}}},\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: {name}}},\n\
             subjects: [{{kind: ServiceAccount, namespace: {namespace}, name: {name}}}]}}\n"
        ));
        Self::known(cluster, namespace, name)
    }

    pub fn known(cluster: &'a Cluster, namespace: &str, name: &str) -> Self {
        let token = cluster.ok(&format!("create token {name} -n {namespace}"));
        Self {
            cluster,
            token: token.trim().to_owned(),
        }
    }

    pub fn ask(&self, method: &str, path: &str, more: &[&str]) -> Answer {
        let bearer = format!("Authorization: Bearer {}", self.token);
        let mut arguments = vec!["-H", &*bearer];
        arguments.extend(more);
        curl(self.cluster, method, path, &arguments)
    }

    fn code(&self, method: &str, path: &str) -> u16 {
        self.ask(method, path, &[]).0
    }
}

pub fn curl(cluster: &Cluster, method: &str, path: &str, more: &[&str]) -> Answer {
    at(
        cluster,
        &format!("https://127.0.0.1:6443{path}"),
        method,
        more,
    )
}

pub fn at(cluster: &Cluster, url: &str, method: &str, more: &[&str]) -> Answer {
    let mut curl = cluster.host.command("curl");
    curl.args([
        "-sk",
        "--http1.1",
        "--path-as-is",
        "-m",
        "10",
        "-w",
        "\n%{http_code}",
    ]);
    match method {
        "HEAD" => curl.arg("-I"),
        method => curl.args(["-X", method]),
    };
    let output = curl.args(more).arg(url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = said.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
}

#[test]
#[ignore = "needs root"]
fn what_is_authorized_is_what_is_served() {
    let cluster = Cluster::started();
    let health = Health::watch(&cluster);
    cluster.ok("create namespace shop");
    cluster.ok("create namespace other");
    for (namespace, name) in [
        ("shop", "public"),
        ("shop", "private"),
        ("other", "private"),
    ] {
        let line = format!(
            "create secret generic {name} -n {namespace} --from-literal=key=TOPSECRET-{namespace}-{name}"
        );
        cluster.ok(&line);
    }
    lists_of_one_name(&cluster);
    spellings(&cluster);
    sessions(&cluster);
    kubelets(&cluster);
    creating_by_other_means(&cluster);
    reviews_agree(&cluster);
    health.assert();
}

/// `TOPSECRET-shop-private` in base64, as it would be seen.
const PRIVATE: &str = "VE9QU0VDUkVULXNob3AtcHJpdmF0ZQ==";

fn lists_of_one_name(cluster: &Cluster) {
    let rules = "[{apiGroups: [''], resources: [secrets], resourceNames: [public], \
                 verbs: [get, list, watch, delete, deletecollection]}]";
    let reader = Account::new(cluster, "shop", "reader", false, rules);
    let list = "/api/v1/namespaces/shop/secrets";
    for (query, code) in [
        ("", 403),
        ("fieldSelector=metadata.name%3Dpublic", 200),
        ("fieldSelector=metadata.name%3D%3Dpublic", 200),
        (
            "fieldSelector=metadata.name%3Dpublic&watch=true&timeoutSeconds=1",
            200,
        ),
        // The comma is escaped: one term, that is none.
        (
            "fieldSelector=metadata.namespace!%3Dx%5C,metadata.name%3Dpublic",
            403,
        ),
        (
            "fieldSelector=metadata.namespace!%3Dx%5C,metadata.name%3Dpublic&watch=1&timeoutSeconds=1",
            403,
        ),
        (
            "fieldSelector=metadata.namespace!%3Dx%5C,y,metadata.name%3Dpublic",
            200,
        ),
        (
            "fieldSelector=metadata.name%3Dpublic,metadata.name%3Dprivate",
            200,
        ), // of nothing
        (
            "fieldSelector=metadata.name%3Dprivate,metadata.name%3Dpublic",
            403,
        ),
        ("fieldSelector=metadata.name!%3Dpublic", 403),
        ("fieldSelector=metadata.name%3D", 403),
        (
            "fieldSelector=x%3Dy&fieldSelector=metadata.name%3Dpublic",
            403,
        ), // the first counts
        ("fieldSelector=&fieldSelector=metadata.name%3Dpublic", 403),
        ("fieldSelector=metadata.name%3Dpublic&fieldSelector=", 200),
        ("a=b;fieldSelector=metadata.name%3Dpublic", 403), // no parameter of that name
        ("fieldselector=metadata.name%3Dpublic", 403),
        ("labelSelector=metadata.name%3Dpublic", 403),
    ] {
        let (got, body) = reader.ask("GET", &format!("{list}?{query}"), &[]);
        assert_eq!(got, code, "{query}: {body}");
        assert!(!body.contains(PRIVATE), "{query}: {body}");
    }
    // A name in a selector makes no deletion of many one of one.
    let all = format!("{list}?fieldSelector=metadata.name%3Dpublic");
    assert_eq!(reader.code("DELETE", &all), 403);
    assert_eq!(reader.code("GET", &format!("{list}/public")), 200);
    assert_eq!(reader.code("GET", &format!("{list}/private")), 403);
}

fn spellings(cluster: &Cluster) {
    let rules = "[{apiGroups: [''], resources: [secrets], verbs: [list]}, \
                 {apiGroups: [''], resources: [pods, configmaps], verbs: ['*']}]";
    let lister = Account::new(cluster, "shop", "lister", false, rules);
    let secrets = "/api/v1/namespaces/shop/secrets";
    // Who may list may not watch, however it is asked for.
    for query in [
        "watch=1",
        "watch=true",
        "watch=True",
        "watch",
        "watch=yes",
        "watch=1&watch=0",
        "wat%63h=1",
    ] {
        let path = format!("{secrets}?{query}&timeoutSeconds=1");
        let (code, body) = lister.ask("GET", &path, &[]);
        assert_eq!(code, 403, "{query}: {body}");
        assert!(body.contains("cannot watch resource"), "{query}: {body}");
    }
    for query in [
        "watch=0",
        "watch=false",
        "watch=FALSE",
        "watch=0&watch=1",
        "Watch=1",
    ] {
        let (code, body) = lister.ask("GET", &format!("{secrets}?{query}"), &[]);
        assert_eq!(code, 200, "{query}: {body}");
        assert!(
            body.contains("\"kind\":\"SecretList\"") || body.contains("\"kind\": \"SecretList\""),
            "{body}"
        );
    }
    for (method, path) in [
        ("GET", "/api/v1/watch/namespaces/shop/secrets"),
        ("GET", "/api/v1/namespaces/shop/secrets/private"),
        ("GET", "/api/v1/namespaces/shop%2Fsecrets%2Fprivate"),
        ("GET", "/api/v1/namespaces/shop/secrets%2Fprivate"),
        ("GET", "/api/v1/namespaces/shop/secrets/%70rivate"),
        ("GET", "/api/v1/namespaces/shop/pods/..%2Fsecrets%2Fprivate"),
        (
            "GET",
            "/api/v1/namespaces/shop/configmaps/..%2f..%2fsecrets%2fshop%2fprivate",
        ),
        (
            "GET",
            "/api/v1/namespaces/shop/configmaps/%2e%2e/secrets/private",
        ),
        ("GET", "/api/v1/namespaces/shop/pods/../secrets/private"),
        ("GET", "/api/v1/namespaces/shop/pods/%2e%2e/secrets/private"),
        ("GET", "/api/v1/namespaces/shop/../other/secrets"),
        ("GET", "/api/v1/namespaces/shop%2F..%2Fother/secrets"),
        ("GET", "/api/v1/namespaces/shop%252F..%252Fother/secrets"),
        ("GET", "/api/v1/namespaces/other/secrets"),
        ("GET", "/api/v1/namespaces/Shop/secrets"),
        ("GET", "/api/v1/namespaces/shop%00/secrets"),
        ("GET", "/api/v1/namespaces//secrets"),
        ("GET", "/api/v1//namespaces/shop/secrets/private"),
        ("GET", "//api/v1/namespaces/shop/secrets/private"),
        ("GET", "/api//v1/namespaces/shop/secrets/private"),
        ("GET", "/api/v1/namespaces/shop/secrets//private"),
        ("GET", "/api/v1/namespaces/shop/secrets/private/"),
        ("GET", "/api/v1/namespaces/shop/secrets/private;x"),
        ("GET", "/api/v1/namespaces/shop/pods;/../secrets/private"),
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/secrets/private"),
        ("GET", "/apis//v1/namespaces/shop/secrets/private"),
        ("GET", "/apis/core/v1/namespaces/shop/secrets/private"),
        ("HEAD", "/api/v1/namespaces/shop/secrets/private"),
        ("OPTIONS", "/api/v1/namespaces/shop/secrets/private"),
        ("TRACE", "/api/v1/namespaces/shop/secrets/private"),
        ("BREW", "/api/v1/namespaces/shop/secrets/private"),
        ("get", "/api/v1/namespaces/shop/secrets/private"),
        ("POST", "/api/v1/namespaces/shop/secrets/private"),
        ("GET", "/metrics/../api/v1/secrets"),
        ("GET", "/api/../metrics"),
        ("GET", "/metrics"),
        ("GET", "/metrics/"),
        ("GET", "//metrics"),
        ("GET", "/%6detrics"),
        ("GET", "/metrics%2f"),
        ("GET", "/openapi/../metrics"),
        ("GET", "/openapi/..%2fmetrics"),
        ("GET", "/healthz/../metrics"),
    ] {
        let (code, body) = lister.ask(method, path, &[]);
        assert!(
            (400..=405).contains(&code),
            "{method} {path}: {code} {body}"
        );
        assert!(
            !body.contains("TOPSECRET") && !body.contains("apiserver_request"),
            "{path}"
        );
        assert!(!body.contains("\"data\""), "{method} {path}: {body}");
    }
    // Once more as who may do everything: nothing but what the path says.
    let rules = "[{apiGroups: ['*'], resources: ['*'], verbs: ['*']}, {nonResourceURLs: ['*'], verbs: ['*']}]";
    let everything = Account::new(cluster, "shop", "everything", true, rules);
    for path in [
        "/api/v1/namespaces/shop/configmaps/..%2f..%2fsecrets%2fshop%2fprivate",
        "/api/v1/namespaces/shop/pods/../secrets/private",
        "/api/v1/namespaces//secrets",
        "/metrics/../api/v1/secrets",
        "//api/v1/namespaces/shop/secrets/private",
    ] {
        let (code, body) = everything.ask("GET", path, &[]);
        assert_eq!(code, 404, "{path}: {body}");
        assert!(!body.contains(PRIVATE), "{path}: {body}");
    }
}

fn sessions(cluster: &Cluster) {
    let rules = "[{apiGroups: [''], resources: [pods, pods/exec, pods/attach, pods/portforward], verbs: [get]}]";
    let viewer = Account::new(cluster, "shop", "viewer", false, rules);
    let socket = [
        "-H",
        "Sec-WebSocket-Version: 13",
        "-H",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    for part in [
        "exec?command=id&stdout=1",
        "attach?stdout=1",
        "portforward?ports=80",
    ] {
        for upgrade in ["websocket", "foo, websocket", "SPDY/3.1", ""] {
            for method in ["GET", "POST", "PUT"] {
                let upgrade = format!("Upgrade: {upgrade}");
                let more = [&socket[..], &["-H", "Connection: Upgrade", "-H", &upgrade]].concat();
                let path = format!("/api/v1/namespaces/shop/pods/any/{part}");
                let (code, body) = viewer.ask(method, &path, &more);
                assert_eq!(code, 403, "{method} {part} {upgrade}: {body}");
                if method == "GET" {
                    assert!(body.contains("cannot create resource"), "{upgrade}: {body}");
                }
            }
        }
    }
}

fn kubelets(cluster: &Cluster) {
    let node = cluster.ok("get nodes -o jsonpath={.items[0].metadata.name}");
    let rules = |resource: &str, verbs: &str| {
        format!("[{{apiGroups: [''], resources: [{resource}], verbs: [{verbs}]}}]")
    };
    let make = |name: &str, resource: &str, verbs: &str| {
        Account::new(cluster, "shop", name, true, &rules(resource, verbs))
    };
    let getter = make("getter", "nodes/proxy", "get");
    let upgrade = [
        "-H",
        "Connection: Upgrade",
        "-H",
        "Upgrade: websocket",
        "-H",
        "Sec-WebSocket-Version: 13",
        "-H",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let proxy = format!("/api/v1/nodes/{node}/proxy");
    assert_eq!(getter.code("GET", &format!("{proxy}/pods")), 200);
    assert_eq!(getter.code("GET", &format!("{proxy}/healthz")), 200);
    for path in [
        "exec/a/b/c?command=id&output=1",
        "attach/a/b/c?output=1",
        "portForward/a/b",
        "run/a/b/c?cmd=id",
        "/exec/a/b/c",
        "//exec/a/b/c",
        "%65xec/a/b/c",
        "/%2fexec/a/b/c",
        "cri/exec/x",
        "pods",
    ] {
        let (code, body) = getter.ask("GET", &format!("{proxy}/{path}"), &upgrade);
        assert_eq!(code, 403, "{path}: {body}");
        assert!(
            body.contains("cannot create resource \\\"nodes/proxy\\\""),
            "{path}: {body}"
        );
    }
    assert_eq!(
        getter.code("POST", &format!("{proxy}/run/a/b/c?cmd=id")),
        403
    );
    // The kubelet's own port, by the same table.
    let address = cluster.ok("get nodes -o jsonpath={.items[0].status.addresses[0].address}");
    let direct = |account: &Account, method: &str, path: &str| {
        let bearer = format!("Authorization: Bearer {}", account.token);
        let more = [&upgrade[..], &["-H", &bearer]].concat();
        let more = if path.starts_with("/exec") {
            more
        } else {
            vec!["-H", &bearer]
        };
        at(
            cluster,
            &format!("https://{address}:10250{path}"),
            method,
            &more,
        )
        .0
    };
    let (metrics, pods, health) = (
        make("metering", "nodes/metrics", "get"),
        make("listing", "nodes/pods", "get"),
        make("probing", "nodes/healthz", "get"),
    );
    let poster = make("poster", "nodes/proxy", "create");
    for (account, name, allowed) in [
        (
            &getter,
            "get nodes/proxy",
            &[
                "/pods",
                "/healthz",
                "/runningpods/",
                "/configz",
                "/containerLogs/a/b/c",
            ][..],
        ),
        (&metrics, "get nodes/metrics", &["/metrics/resource"]),
        (&pods, "get nodes/pods", &["/pods", "/runningpods/"]),
        (&health, "get nodes/healthz", &["/healthz"]),
        (
            &poster,
            "create nodes/proxy",
            &["/exec/a/b/c?command=id&output=1"],
        ),
    ] {
        for path in [
            "/pods",
            "/runningpods/",
            "/healthz",
            "/configz",
            "/metrics/resource",
            "/stats/summary",
            "/containerLogs/a/b/c",
            "/exec/a/b/c?command=id&output=1",
        ] {
            let code = direct(account, "GET", path);
            let may = code != 403 && code != 401;
            assert_eq!(may, allowed.contains(&path), "{name}: {path}: {code}");
        }
    }
    let (code, _) = at(
        cluster,
        &format!("https://{address}:10250/pods"),
        "GET",
        &[],
    );
    assert_eq!(code, 401);
}

/// PUT and apply make what is not there, for who may create it.
fn creating_by_other_means(cluster: &Cluster) {
    let rules =
        "[{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, update, patch]}]";
    let updater = Account::new(cluster, "shop", "updater", false, rules);
    let lease = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"new"},"spec":{}}"#;
    let path = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/new";
    for (method, kind, query) in [
        ("PUT", "application/json", ""),
        (
            "PATCH",
            "application/apply-patch+yaml",
            "?fieldManager=x&force=true",
        ),
    ] {
        let kind = format!("Content-Type: {kind}");
        let (code, body) = updater.ask(
            method,
            &format!("{path}{query}"),
            &["-H", &kind, "-d", lease],
        );
        assert_eq!(code, 403, "{method}: {body}");
        assert!(body.contains("cannot create resource"), "{method}: {body}");
    }
    assert!(!cluster.kubectl("get lease new -n shop").status.success());
}

/// What a review says is what happens.
fn reviews_agree(cluster: &Cluster) {
    let reader = Account::known(cluster, "shop", "reader");
    let review = |resource: &str| {
        let body = format!(
            r#"{{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{{{resource}}}}}"#
        );
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let (code, body) = reader.ask(
            "POST",
            path,
            &["-H", "Content-Type: application/json", "-d", &body],
        );
        (code, body.replace(' ', "").contains("\"allowed\":true"))
    };
    let asked = |verb: &str, name: &str, more: &str| {
        review(&format!(
            r#""resourceAttributes":{{"namespace":"shop","verb":"{verb}","resource":"secrets","name":"{name}"{more}}}"#
        ))
    };
    let list = "/api/v1/namespaces/shop/secrets";
    for (verb, name, method, path) in [
        ("list", "", "GET", list.to_owned()),
        (
            "list",
            "public",
            "GET",
            format!("{list}?fieldSelector=metadata.name%3Dpublic"),
        ),
        ("get", "public", "GET", format!("{list}/public")),
        ("get", "private", "GET", format!("{list}/private")),
        ("create", "", "POST", list.to_owned()),
        ("update", "public", "PUT", format!("{list}/public")),
    ] {
        let (code, allowed) = asked(verb, name, "");
        assert_eq!(code, 201);
        assert_eq!(allowed, reader.code(method, &path) != 403, "{verb} {name}");
    }
    let selector = |text: &str| format!(r#","fieldSelector":{text}"#);
    let raw = selector(r#"{"rawSelector":"metadata.name=public"}"#);
    assert_eq!(
        asked("list", "", &raw),
        (201, false),
        "a selector is no name"
    );
    let both = selector(
        r#"{"rawSelector":"a=b","requirements":[{"key":"a","operator":"In","values":["b"]}]}"#,
    );
    assert_eq!(asked("list", "", &both).0, 422);
    let path = review(r#""nonResourceAttributes":{"verb":"get","path":"/metrics"}"#);
    assert_eq!((path.1, reader.code("GET", "/metrics")), (false, 403));
}

#[test]
#[ignore = "needs root"]
fn strangers_see_what_is_for_everybody() {
    let cluster = Cluster::started();
    for (code, paths) in [
        (
            200,
            &[
                "/healthz",
                "/livez",
                "/readyz",
                "/healthz?verbose",
                "/livez?exclude=etcd",
                "/version",
                "/version/",
            ][..],
        ),
        (
            403,
            &[
                "/",
                "/api",
                "/api/",
                "/apis",
                "/apis/",
                "/api/v1",
                "/apis/apps",
                "/apis/apps/v1",
                "/metrics",
                "/metrics/",
                "//metrics",
                "/openapi/v2",
                "/openapi/v3",
                "/openapi/v3/api/v1",
                "/openid/v1/jwks",
                "/.well-known/openid-configuration",
                "/logs",
                "/logs/",
                "/debug/pprof/",
                "/debug/pprof/heap",
                "/configz",
                "/statusz",
                "/flagz",
                "/swagger.json",
                "/swaggerapi",
                "/api/v1/namespaces",
                "/api/v1/nodes",
                "/api/v1/pods",
                "/api/v1/secrets",
                "/api/v1/namespaces/default/secrets",
                "/api/v1/namespaces/kube-system/configmaps",
                "/api/v1/namespaces/default/pods/x/exec",
                "/api/v1/namespaces/default/pods/x/log",
                "/api/v1/namespaces/default/services/x/proxy/",
                "/api/v1/nodes/x/proxy/",
                "/api/v1/watch/secrets",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles",
                "/apis/apps/v1/deployments",
                "/apis/none.example/v1/things",
                "/apis/authentication.k8s.io/v1/tokenreviews",
                "/healthz/../metrics",
                "/healthz/..%2fmetrics",
                "/healthzz",
                "/version/../metrics",
                "/readyz/../api/v1/secrets",
            ],
        ),
    ] {
        for path in paths {
            let (got, body) = curl(&cluster, "GET", path, &[]);
            assert_eq!(got, code, "{path}: {body}");
            // Reading without a body is a verb of its own, as in the original, which nobody has.
            let (got, body) = curl(&cluster, "HEAD", path, &[]);
            assert_eq!(got, 403, "HEAD {path}: {body}");
        }
    }
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        for path in [
            "/healthz",
            "/version",
            "/api",
            "/api/v1/namespaces/default/secrets",
            "/apis",
        ] {
            assert_eq!(curl(&cluster, method, path, &[]).0, 403, "{method} {path}");
        }
    }
    // What claims to be somebody and is not is refused, wherever it asks.
    let basic = ["-u", "admin:admin"];
    let bearer = ["-H", "Authorization: Bearer nonsense"];
    assert_eq!(curl(&cluster, "GET", "/version", &bearer).0, 401);
    assert_eq!(curl(&cluster, "GET", "/api/v1/secrets", &bearer).0, 401);
    assert_eq!(curl(&cluster, "GET", "/api/v1/secrets", &basic).0, 403);
    for header in [
        "X-Remote-User: admin",
        "Impersonate-User: admin",
        "X-Forwarded-User: admin",
        "Cookie: token=admin",
    ] {
        let code = curl(
            &cluster,
            "GET",
            "/api/v1/secrets",
            &["-H", header, "-H", "X-Remote-Group: system:masters"],
        )
        .0;
        assert_eq!(code, 403, "{header}");
    }
    assert_eq!(
        curl(&cluster, "GET", "/api/v1/secrets?access_token=x", &[]).0,
        403
    );
}

/// Who may write roles and bindings in a namespace gets no more by it than it has.
#[test]
#[ignore = "needs root"]
fn rights_do_not_grow() {
    let cluster = Cluster::started();
    cluster.ok("create namespace shop");
    let rbac = "rbac.authorization.k8s.io";
    let all = "verbs: [get, list, watch, create, update, patch, delete]";
    let rules = format!(
        "[{{apiGroups: [{rbac}], resources: [roles, rolebindings, clusterroles, clusterrolebindings], {all}}}, \
         {{apiGroups: [''], resources: [configmaps], verbs: [get]}}, \
         {{apiGroups: [''], resources: [secrets], resourceNames: [mine], verbs: [get]}}, \
         {{apiGroups: [''], resources: [serviceaccounts], {all}}}]"
    );
    let clerk = Account::new(&cluster, "shop", "clerk", true, &rules);
    let role = |kind: &str, rules: &str, more: &str| {
        format!(
            r#"{{"apiVersion":"{rbac}/v1","kind":"{kind}","metadata":{{"name":"more"{more}}},"rules":[{rules}]}}"#
        )
    };
    let binding = |kind: &str, to: &str, name: &str| {
        format!(
            r#"{{"apiVersion":"{rbac}/v1","kind":"{kind}","metadata":{{"name":"more"}},
            "roleRef":{{"apiGroup":"{rbac}","kind":"{to}","name":"{name}"}},
            "subjects":[{{"kind":"ServiceAccount","namespace":"shop","name":"clerk"}},
                {{"kind":"Group","apiGroup":"{rbac}","name":"system:masters"}}]}}"#
        )
    };
    let rule = |groups: &str, resources: &str, verbs: &str, more: &str| {
        format!(
            r#"{{"apiGroups":["{groups}"],"resources":["{resources}"],"verbs":["{verbs}"]{more}}}"#
        )
    };
    let base = format!("/apis/{rbac}/v1");
    let inside = format!("{base}/namespaces/shop");
    let json = "Content-Type: application/json";
    let tries: Vec<(&str, String, String)> = vec![
        (
            "another verb",
            format!("{inside}/roles"),
            role("Role", &rule("", "configmaps", "update", ""), ""),
        ),
        (
            "every verb",
            format!("{inside}/roles"),
            role("Role", &rule("", "configmaps", "*", ""), ""),
        ),
        (
            "every resource",
            format!("{inside}/roles"),
            role("Role", &rule("", "*", "get", ""), ""),
        ),
        (
            "every group",
            format!("{inside}/roles"),
            role("Role", &rule("*", "configmaps", "get", ""), ""),
        ),
        (
            "a subresource",
            format!("{inside}/roles"),
            role("Role", &rule("", "configmaps/status", "get", ""), ""),
        ),
        (
            "a name given up",
            format!("{inside}/roles"),
            role("Role", &rule("", "secrets", "get", ""), ""),
        ),
        (
            "another name",
            format!("{inside}/roles"),
            role(
                "Role",
                &rule("", "secrets", "get", r#","resourceNames":["mine","other"]"#),
                "",
            ),
        ),
        (
            "an empty name",
            format!("{inside}/roles"),
            role(
                "Role",
                &rule("", "secrets", "get", r#","resourceNames":[]"#),
                "",
            ),
        ),
        (
            "escalate",
            format!("{inside}/roles"),
            role("Role", &rule(rbac, "roles", "escalate", ""), ""),
        ),
        (
            "bind",
            format!("{inside}/roles"),
            role("Role", &rule(rbac, "clusterroles", "bind", ""), ""),
        ),
        (
            "impersonate",
            format!("{base}/clusterroles"),
            role("ClusterRole", &rule("", "users", "impersonate", ""), ""),
        ),
        (
            "a path",
            format!("{base}/clusterroles"),
            role(
                "ClusterRole",
                r#"{"nonResourceURLs":["/metrics"],"verbs":["get"]}"#,
                "",
            ),
        ),
        (
            "every path",
            format!("{base}/clusterroles"),
            role(
                "ClusterRole",
                r#"{"nonResourceURLs":["*"],"verbs":["*"]}"#,
                "",
            ),
        ),
        (
            "part of edit",
            format!("{base}/clusterroles"),
            role(
                "ClusterRole",
                &rule("", "secrets", "get", ""),
                &format!(r#","labels":{{"{rbac}/aggregate-to-edit":"true"}}"#),
            ),
        ),
        (
            "aggregation",
            format!("{base}/clusterroles"),
            format!(
                r#"{{"apiVersion":"{rbac}/v1","kind":"ClusterRole","metadata":{{"name":"more"}},"rules":[],
            "aggregationRule":{{"clusterRoleSelectors":[{{"matchLabels":{{"kubernetes.io/bootstrapping":"rbac-defaults"}}}}]}}}}"#
            ),
        ),
        (
            "cluster-admin here",
            format!("{inside}/rolebindings"),
            binding("RoleBinding", "ClusterRole", "cluster-admin"),
        ),
        (
            "edit here",
            format!("{inside}/rolebindings"),
            binding("RoleBinding", "ClusterRole", "edit"),
        ),
        (
            "cluster-admin",
            format!("{base}/clusterrolebindings"),
            binding("ClusterRoleBinding", "ClusterRole", "cluster-admin"),
        ),
        (
            "no such role",
            format!("{base}/clusterrolebindings"),
            binding("ClusterRoleBinding", "ClusterRole", "later"),
        ),
        (
            "kubelets' rights",
            format!("{base}/clusterrolebindings"),
            binding("ClusterRoleBinding", "ClusterRole", "system:node"),
        ),
    ];
    for (what, path, body) in &tries {
        let (code, said) = clerk.ask("POST", path, &["-H", json, "-d", body]);
        assert!(
            code == 403 || (code == 404 && *what == "no such role"),
            "{what}: {code} {said}"
        );
        // Nor by the other ways to make an object.
        let kind = "Content-Type: application/apply-patch+yaml";
        let (code, said) = clerk.ask(
            "PATCH",
            &format!("{path}/more?fieldManager=x"),
            &["-H", kind, "-d", body],
        );
        assert!(
            code == 403 || (code == 404 && *what == "no such role"),
            "apply {what}: {code} {said}"
        );
    }
    // What it has it may give, and may not widen afterwards.
    let fine = role("Role", &rule("", "configmaps", "get", ""), "");
    let (code, said) = clerk.ask(
        "POST",
        &format!("{inside}/roles"),
        &["-H", json, "-d", &fine],
    );
    assert_eq!(code, 201, "{said}");
    let (code, said) = clerk.ask(
        "POST",
        &format!("{inside}/rolebindings"),
        &["-H", json, "-d", &binding("RoleBinding", "Role", "more")],
    );
    assert_eq!(code, 201, "{said}");
    let wide = role("Role", &rule("", "*", "*", ""), "");
    let path = format!("{inside}/roles/more");
    assert_eq!(clerk.ask("PUT", &path, &["-H", json, "-d", &wide]).0, 403);
    for (kind, patch) in [
        (
            "merge-patch+json",
            r#"{"rules":[{"apiGroups":["*"],"resources":["*"],"verbs":["*"]}]}"#,
        ),
        (
            "json-patch+json",
            r#"[{"op":"add","path":"/rules/0/verbs/-","value":"delete"}]"#,
        ),
        (
            "strategic-merge-patch+json",
            r#"{"rules":[{"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}"#,
        ),
    ] {
        let kind = format!("Content-Type: application/{kind}");
        assert_eq!(
            clerk.ask("PATCH", &path, &["-H", &kind, "-d", patch]).0,
            403,
            "{kind}"
        );
    }
    let other = r#"{"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"}}"#;
    let kind = "Content-Type: application/merge-patch+json";
    let code = clerk
        .ask(
            "PATCH",
            &format!("{inside}/rolebindings/more"),
            &["-H", kind, "-d", other],
        )
        .0;
    assert!(code == 403 || code == 422, "{code}");
    // Nobody becomes somebody else by saying so.
    for headers in [
        &[
            "Impersonate-User: kubernetes-admin",
            "Impersonate-Group: system:masters",
        ][..],
        &["Impersonate-User: system:serviceaccount:kube-system:default"],
        &[
            "impersonate-user: system:serviceaccount:shop:clerk",
            "IMPERSONATE-GROUP: system:masters",
        ],
        &[
            "Impersonate-User: system:anonymous",
            "Impersonate-User: kubernetes-admin",
        ],
        &[
            "Impersonate-User: system:node:x",
            "Impersonate-Group: system:nodes",
        ],
    ] {
        let more: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
        let (code, said) = clerk.ask("GET", "/api/v1/secrets", &more);
        assert_eq!(code, 403, "{headers:?}: {said}");
        assert!(said.contains("impersonate"), "{headers:?}: {said}");
    }
    for headers in [
        &["Impersonate-Group: system:masters"][..],
        &["Impersonate-User: ", "Impersonate-Uid: 1"],
    ] {
        let more: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
        let code = clerk.ask("GET", "/api/v1/secrets", &more).0;
        assert!(code == 400 || code == 403, "{headers:?}: {code}");
    }
    let can = clerk.ask("GET", "/api/v1/namespaces/shop/secrets", &[]).0;
    assert_eq!(can, 403, "it still has what it had");
    cluster.ok("get --raw /readyz");
}
