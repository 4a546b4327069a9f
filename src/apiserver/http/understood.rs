//! What a request would need and what would be served, side by side, for tests and fuzzers.

use http::{HeaderMap, Method, Uri};

use super::asked::{Action, Asked, Operation};
use crate::apiserver::{
    aggregation::Remotes,
    query::Query,
    registry::{Resource, custom::Rows},
    request::Attributes,
    selector::Selector,
};

/// A request as authorization and as the handlers understand it.
#[derive(Debug)]
pub struct Understood {
    /// All of it must be allowed.
    pub needed: Vec<Attributes>,
    pub served: Served,
}

/// What would be done.
#[derive(Debug)]
pub enum Served {
    /// `operation`: the handler's name. `selector`: which objects of a collection are meant.
    Resource {
        operation: &'static str,
        row: &'static Resource,
        subresource: String,
        namespace: String,
        name: String,
        selector: Option<Selector>,
    },
    /// Passed on to another server, with what of its path.
    Connection {
        plural: &'static str,
        subresource: String,
        namespace: String,
        name: String,
        rest: String,
        upgrades: bool,
    },
    Discovery(Vec<String>),
    Document(String),
    /// The code of the refusal.
    Refused(u16),
}

/// Understands a request for the built-in kinds. Pure.
pub fn understand(method: &Method, uri: &Uri, headers: &HeaderMap) -> Understood {
    let mut query = Query::parse(uri.query().unwrap_or_default());
    let (rows, remotes) = (Rows::default(), Remotes::default());
    let asked = Asked::new(method, uri, &mut query, headers, (&rows, &remotes));
    let (needed, action) = asked.ungranted();
    Understood {
        needed,
        served: served(action),
    }
}

fn served(action: Action) -> Served {
    match action {
        Action::Resource(path, operation) => {
            let (operation, selection) = match operation {
                Operation::Get => ("get", None),
                Operation::List(selection) => ("list", Some(selection)),
                Operation::Watch(selection) => ("watch", Some(selection)),
                Operation::Create => ("create", None),
                Operation::Update => ("update", None),
                Operation::Patch => ("patch", None),
                Operation::Delete => ("delete", None),
                Operation::DeleteCollection(selection) => ("deletecollection", Some(selection)),
            };
            let selector = selection.map(|selection| Selector::new(path.row, selection));
            let selector = match selector.transpose() {
                Ok(selector) => selector,
                Err(status) => return Served::Refused(status.code),
            };
            Served::Resource {
                operation,
                row: path.row,
                subresource: path.subresource.unwrap_or_default(),
                namespace: path.namespace,
                name: path.name.unwrap_or_default(),
                selector,
            }
        }
        Action::Connect(path, passed) => Served::Connection {
            plural: path.row.plural,
            subresource: path.subresource.unwrap_or_default(),
            namespace: path.namespace,
            name: path.name.unwrap_or_default(),
            rest: path.rest,
            upgrades: passed.upgrades,
        },
        Action::Remote(names, passed) => Served::Connection {
            plural: "",
            subresource: names.subresource,
            namespace: names.namespace,
            name: names.name,
            rest: passed.path,
            upgrades: passed.upgrades,
        },
        Action::Discovery(parts) => Served::Discovery(parts),
        Action::Document(path) => Served::Document(path),
        Action::Refused(status) => Served::Refused(status.code),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::apiserver::{registry::Scope, request::Target};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    /// `verb resource[/subresource] namespace name`, or `verb path`, for each right.
    fn needed(understood: &Understood) -> Vec<String> {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let show = |attributes: &Attributes| {
            let verb = &attributes.verb;
            match &attributes.target {
                Target::Path(path) => format!("{verb} {path}"),
                Target::Resource {
                    resource,
                    subresource,
                    namespace,
                    name,
                    ..
                } => {
                    let part = subresource.iter().map(|part| format!("/{part}"));
                    let what: String = std::iter::once(resource.clone()).chain(part).collect();
                    format!("{verb} {what} {} {}", or_none(namespace), or_none(name))
                }
            }
        };
        understood.needed.iter().map(show).collect()
    }

    fn asked(line: &str, head: &[(&'static str, &'static str)]) -> Understood {
        let (method, uri) = line.split_once(' ').expect("method and path");
        let (method, uri) = (
            method.parse().expect("a method"),
            uri.parse().expect("a URI"),
        );
        understand(&method, &uri, &headers(head))
    }

    #[test]
    fn which_rights_a_request_takes() {
        for (line, want) in [
            ("GET /api/v1/namespaces/n/pods", "list pods n -"),
            ("HEAD /api/v1/namespaces/n/pods/p", "get pods n p"),
            ("GET /api/v1/pods?watch=1", "watch pods - -"),
            ("GET /api/v1/pods?watch=True", "watch pods - -"),
            ("GET /api/v1/pods?watch=0&watch=1", "list pods - -"),
            ("GET /api/v1/watch/pods?watch=0", "watch pods - -"),
            ("DELETE /api/v1/watch/namespaces/n/pods/p", "watch pods n p"),
            ("GET /api/v1/namespaces/n/pods/p?watch=1", "watch pods n p"),
            (
                "GET /api/v1/namespaces/n/pods/p/status?watch=1",
                "get pods/status n p",
            ),
            ("POST /api/v1/namespaces/n/pods", "create pods n -"),
            (
                "POST /api/v1/namespaces/n/pods?fieldSelector=metadata.name%3Dx",
                "create pods n -",
            ),
            ("PUT /api/v1/namespaces/n/pods/p", "update pods n p"),
            (
                "PATCH /api/v1/namespaces/n/pods/p/ephemeralcontainers",
                "patch pods/ephemeralcontainers n p",
            ),
            (
                "DELETE /api/v1/namespaces/n/pods",
                "deletecollection pods n -",
            ),
            // A deletion of many is never a deletion of one.
            (
                "DELETE /api/v1/namespaces/n/pods?fieldSelector=metadata.name%3Dx",
                "deletecollection pods n -",
            ),
            ("OPTIONS /api/v1/namespaces/n/pods/p", " pods n p"),
            ("FOO /api/v1/namespaces/n/secrets/s", " secrets n s"),
            ("GET /api/v1/namespaces/n", "get namespaces n n"),
            (
                "PUT /api/v1/namespaces/n/finalize",
                "update namespaces/finalize n n",
            ),
            (
                "GET /apis/apps/v1/namespaces/n/deployments/d/scale",
                "get deployments/scale n d",
            ),
            ("GET /apis/none.example/v1/foos", "list foos - -"),
            ("GET /version/", "get /version/"),
            ("POST /healthz", "post /healthz"),
            ("GET //metrics", "get //metrics"),
            (
                "GET /metrics/../api/v1/secrets",
                "get /metrics/../api/v1/secrets",
            ),
            (
                "GET /api/v1/namespaces//secrets",
                "get /api/v1/namespaces//secrets",
            ),
            ("GET /api/v1/namespaces/n/pods/p/log", "get pods/log n p"),
            (
                "GET /api/v1/nodes/n/proxy/stats/summary",
                "get nodes/proxy - n",
            ),
        ] {
            assert_eq!(needed(&asked(line, &[])), [want], "{line}");
        }
    }

    #[test]
    fn which_name_a_list_is_of() {
        for (selector, name) in [
            ("metadata.name=public", "public"),
            ("metadata.name==public", "public"),
            ("metadata.name=a,metadata.name=b", "a"),
            ("metadata.name=", "-"),
            ("metadata.name!=public", "-"),
            // No selector at all: 400 for who may list everything, 403 for all others.
            ("metadata.namespace!=x\\,metadata.name=public", "-"),
            ("metadata.namespace!=x\\,y,metadata.name=public", "public"),
            ("x=y;metadata.name=public", "-"),
        ] {
            let encoded: String = form_urlencoded::byte_serialize(selector.as_bytes()).collect();
            for verb in ["list", "watch"] {
                let watch = if verb == "watch" { "&watch=1" } else { "" };
                let line =
                    format!("GET /api/v1/namespaces/n/secrets?fieldSelector={encoded}{watch}");
                let want = format!("{verb} secrets n {name}");
                let understood = asked(&line, &[]);
                // What is no selector is refused, whatever it might have meant.
                if matches!(understood.served, Served::Refused(400)) {
                    assert_eq!(needed(&understood)[0].split(' ').next_back(), Some("-"));
                } else {
                    assert_eq!(needed(&understood), [want], "{selector}");
                }
            }
        }
        let twice =
            "GET /api/v1/namespaces/n/secrets?fieldSelector=&fieldSelector=metadata.name%3Dx";
        assert_eq!(needed(&asked(twice, &[])), ["list secrets n -"]);
    }

    #[test]
    fn sessions_take_the_right_to_create() {
        let socket = [("connection", "Upgrade"), ("upgrade", "foo, websocket")];
        let spdy = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let (get, create) = ("get pods/exec n p", "create pods/exec n p");
        let exec = "/api/v1/namespaces/n/pods/p/exec";
        for head in [&[][..], &socket, &spdy, &[("upgrade", "x")]] {
            assert_eq!(needed(&asked(&format!("GET {exec}"), head)), [get, create]);
            assert_eq!(needed(&asked(&format!("HEAD {exec}"), head)), [get, create]);
            assert_eq!(needed(&asked(&format!("POST {exec}"), head)), [create]);
            let put = needed(&asked(&format!("PUT {exec}"), head));
            assert_eq!(put, ["update pods/exec n p", create]);
        }
        for part in ["attach", "portforward"] {
            let line = format!("GET /api/v1/namespaces/n/pods/p/{part}");
            assert_eq!(needed(&asked(&line, &spdy)).len(), 2, "{part}");
        }
        let (get, create) = ("get nodes/proxy - n", "create nodes/proxy - n");
        for path in [
            "exec/a/b/c",
            "/exec/a/b/c",
            "%65xec/a/b/c",
            "//attach",
            "run/x",
            "portForward/a/b",
            "cri/x",
        ] {
            let line = format!("GET /api/v1/nodes/n/proxy/{path}");
            assert_eq!(needed(&asked(&line, &[])), [get, create], "{path}");
        }
        // Whatever a kubelet may let a connection become.
        assert_eq!(
            needed(&asked("GET /api/v1/nodes/n/proxy/pods", &socket)),
            [get, create]
        );
        let plain = asked("GET /api/v1/nodes/n/proxy/pods", &[]);
        assert!(matches!(
            plain.served,
            Served::Connection {
                upgrades: false,
                ..
            }
        ));
        // A pod's own WebSockets are the pod's matter.
        let own = asked("GET /api/v1/namespaces/n/pods/p/proxy/exec", &socket);
        assert_eq!(needed(&own), ["get pods/proxy n p"]);
    }

    /// What the original makes of a request, written down anew from its rules.
    fn oracle(method: &str, path: &str, query: &str) -> Option<Attributes> {
        let mut bytes = Vec::new();
        let mut rest = path.bytes();
        while let Some(byte) = rest.next() {
            if byte != b'%' {
                bytes.push(byte);
                continue;
            }
            let hex = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        }
        let path = String::from_utf8(bytes).ok()?;
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let of_path = || Attributes {
            verb: method.to_lowercase(),
            target: Target::Path(path.clone()),
            fields: Vec::new(),
        };
        let skipped = match parts[0] {
            "api" if parts.len() >= 3 => 1,
            "apis" if parts.len() >= 4 => 2,
            _ => return Some(of_path()),
        };
        let group = if skipped == 2 { parts[1] } else { "" };
        let version = parts[skipped];
        parts.drain(..=skipped);
        let first = |name: &str| {
            let mut pairs = form_urlencoded::parse(query.as_bytes());
            pairs
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let by_prefix = parts[0] == "watch";
        let mut verb = match method {
            _ if by_prefix => "watch",
            "POST" => "create",
            "GET" | "HEAD" => "get",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" => "delete",
            _ => "",
        };
        if by_prefix {
            parts.remove(0);
        }
        let mut namespace = "";
        if parts.first() == Some(&"namespaces") && parts.len() > 1 {
            namespace = parts[1];
            if parts.len() > 2 && !["status", "finalize"].contains(&parts[2]) {
                parts.drain(..2);
            }
        }
        let part = |index: usize| parts.get(index).copied().unwrap_or_default();
        let mut name = part(1).to_owned();
        if name.is_empty() && verb == "get" {
            let watch = first("watch")
                .is_some_and(|value| !["false", "0"].contains(&value.to_lowercase().as_str()));
            verb = if watch { "watch" } else { "list" };
            let selector = first("fieldSelector").unwrap_or_default();
            // The test's selectors have escapes in front of commas only.
            let terms = selector.replace("\\,", "\u{1}");
            let exact = terms.split(',').find_map(|term| {
                let (label, value) = term.split_once('=')?;
                (label == "metadata.name").then(|| value.trim_start_matches('=').to_owned())
            });
            name = exact.unwrap_or_default();
        }
        if name.is_empty() && verb == "delete" {
            verb = "deletecollection";
        }
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Some(Attributes {
            verb: verb.to_owned(),
            target: Target::Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                resource: part(0).to_owned(),
                subresource: some(part(2)),
                namespace: some(namespace),
                name: some(&name),
            },
            fields: Vec::new(),
        })
    }

    const SEGMENTS: [&str; 30] = [
        "api",
        "apis",
        "v1",
        "apps",
        "watch",
        "namespaces",
        "n",
        "pods",
        "secrets",
        "nodes",
        "deployments",
        "services",
        "p",
        "exec",
        "attach",
        "proxy",
        "status",
        "scale",
        "log",
        "finalize",
        "",
        ".",
        "..",
        "a%2Fb",
        "%2e%2e",
        "p;x",
        "Pods",
        "%zz",
        "healthz",
        "%70ods",
    ];
    const STARTS: [&str; 6] = [
        "/api/v1/namespaces/n/",
        "/api/v1/",
        "/apis/apps/v1/namespaces/n/",
        "/api/v1/watch/",
        "/",
        "/api/v1/nodes/",
    ];
    const QUERIES: [&str; 14] = [
        "watch=1",
        "watch=0",
        "watch=True",
        "watch",
        "watch=false",
        "wat%63h=1",
        "x=1",
        "fieldSelector=metadata.name%3Dpublic",
        "fieldSelector=metadata.name%3D",
        "fieldSelector=metadata.namespace!%3Dx%5C,metadata.name%3Dpublic",
        "fieldSelector=metadata.namespace!%3Dx%5C,y,metadata.name%3Dpublic",
        "fieldSelector=metadata.name!%3Dpublic",
        "fieldSelector=metadata.name%3D%3Da,metadata.name%3Dpublic",
        "labelSelector=a%3Db",
    ];
    const METHODS: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW",
    ];
    const UPGRADES: [Option<&str>; 4] = [
        None,
        Some("websocket"),
        Some("foo, WebSocket"),
        Some("SPDY/3.1"),
    ];

    fn check(method: &str, path: &str, query: &str, upgrade: Option<&'static str>) {
        let uri = format!("{path}?{query}").parse().expect("a URI");
        let head: Vec<_> = upgrade
            .into_iter()
            .map(|value| ("upgrade", value))
            .collect();
        let understood = understand(&method.parse().expect("a method"), &uri, &headers(&head));
        let what = format!("{method} {uri} {upgrade:?}: {understood:?}");
        let main = understood.needed.first().expect("nothing is free");
        match &understood.served {
            Served::Refused(_) => return,
            // Looked for by exactly the path that is authorized.
            Served::Document(served) => {
                assert_eq!(main.target, Target::Path(served.clone()), "{what}");
                return;
            }
            _ => {}
        }
        // Served, hence authorized as the original does it.
        let mut want = oracle(method, path, query).unwrap_or_else(|| panic!("no URL, {what}"));
        if main.verb == "watch" && want.verb == "get" {
            want.verb = "watch".to_owned();
        }
        assert_eq!(
            (&main.verb, &main.target),
            (&want.verb, &want.target),
            "{what}"
        );
        match (&understood.served, &main.target) {
            (Served::Discovery(_), Target::Path(path)) => {
                assert!(path.starts_with("/api"), "{what}")
            }
            (
                Served::Resource {
                    operation,
                    row,
                    subresource,
                    namespace,
                    name,
                    selector,
                },
                Target::Resource {
                    group,
                    resource,
                    subresource: part,
                    namespace: place,
                    name: one,
                    ..
                },
            ) => {
                assert_eq!(
                    (*operation, row.group, row.plural),
                    (&*main.verb, &**group, &**resource),
                    "{what}"
                );
                assert_eq!(subresource, part.as_deref().unwrap_or_default(), "{what}");
                if row.scope == Scope::Namespaced {
                    assert_eq!(namespace, place.as_deref().unwrap_or_default(), "{what}");
                }
                let authorized = one.as_deref().unwrap_or_default();
                match selector {
                    // Who is allowed one name sees no other.
                    Some(selector) if !authorized.is_empty() && name.is_empty() => {
                        for other in ["a", "b", "public", "x", ""] {
                            let object = json!({"metadata": {"name": other, "namespace": "n"}});
                            let seen = selector.matches_value(row, &object, None);
                            assert!(!seen || other == authorized, "{other}: {what}");
                        }
                    }
                    _ => assert_eq!(name, authorized, "{what}"),
                }
            }
            (
                Served::Connection {
                    plural,
                    subresource,
                    namespace,
                    name,
                    upgrades,
                    ..
                },
                Target::Resource {
                    resource,
                    subresource: part,
                    namespace: place,
                    name: one,
                    ..
                },
            ) => {
                assert_eq!(
                    (plural, Some(subresource)),
                    (&&**resource, part.as_ref()),
                    "{what}"
                );
                assert_eq!(namespace, place.as_deref().unwrap_or_default(), "{what}");
                assert_eq!(Some(name), one.as_ref(), "{what}");
                let creates = understood.needed.iter().any(|right| right.verb == "create");
                let enters = ["exec", "attach", "portforward"].contains(&&**subresource);
                assert!(creates || !enters, "{what}");
                assert!(creates || !upgrades || *plural != "nodes", "{what}");
            }
            _ => panic!("{what}"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 4000,
            // The input is in the message; nothing is written beside the sources.
            failure_persistence: None,
            ..ProptestConfig::default()
        })]
        #[test]
        fn what_is_authorized_is_what_is_served(
            method in prop::sample::select(&METHODS[..]),
            start in prop::sample::select(&STARTS[..]),
            segments in prop::collection::vec(prop::sample::select(&SEGMENTS[..]), 0..6),
            query in prop::collection::vec(prop::sample::select(&QUERIES[..]), 0..4),
            upgrade in prop::sample::select(&UPGRADES[..]),
        ) {
            let path = format!("{start}{}", segments.join("/"));
            check(method, &path, &query.join("&"), upgrade);
        }
    }
}
