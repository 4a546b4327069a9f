//! Which path means what, and what right it takes. Pure.

use http::Method;

use super::lookup::Target;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`, or one of its parts.
    Health,
    Pods,
    RunningPods,
    Configz,
    StatsSummary,
    Metrics(Metrics),
    Logs(Target),
    Exec(Target),
    Attach(Target),
    PortForward(Target),
    Run(Target),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    Kubelet,
    Resource,
    Cadvisor,
    Probes,
}

/// What is to be allowed on `nodes/<subresource>`: one of them suffices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    pub verb: &'static str,
    pub subresources: &'static [&'static str],
}

impl Route {
    pub fn parse(path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let route = match segments.as_slice() {
            ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => Self::Health,
            ["pods"] => Self::Pods,
            ["runningpods"] => Self::RunningPods,
            ["configz"] => Self::Configz,
            ["stats", "summary"] => Self::StatsSummary,
            ["metrics"] => Self::Metrics(Metrics::Kubelet),
            ["metrics", "resource"] => Self::Metrics(Metrics::Resource),
            ["metrics", "cadvisor"] => Self::Metrics(Metrics::Cadvisor),
            ["metrics", "probes"] => Self::Metrics(Metrics::Probes),
            ["containerLogs", names @ ..] => Self::Logs(container(names)?),
            ["exec", names @ ..] => Self::Exec(container(names)?),
            ["attach", names @ ..] => Self::Attach(container(names)?),
            ["run", names @ ..] => Self::Run(container(names)?),
            ["portForward", names @ ..] => Self::PortForward(pod(names)?),
            _ => return None,
        };
        Some(route)
    }

    pub fn allows(&self, method: &Method) -> bool {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        match self {
            Self::Exec(_) | Self::Attach(_) | Self::PortForward(_) => {
                matches!(*method, Method::GET | Method::POST)
            }
            Self::Run(_) => method == Method::POST,
            _ => reads,
        }
    }

    /// Sessions in containers take `create` even when they begin as a GET (WebSocket): who may
    /// read through the node's proxy may not run programs.
    pub fn right(&self) -> Right {
        let (verb, subresources): (_, &[&str]) = match self {
            Self::Health => ("get", &["healthz", "proxy"]),
            Self::Pods | Self::RunningPods => ("get", &["pods", "proxy"]),
            Self::Configz => ("get", &["configz", "proxy"]),
            Self::StatsSummary => ("get", &["stats"]),
            Self::Metrics(_) => ("get", &["metrics"]),
            Self::Logs(_) => ("get", &["proxy"]),
            Self::Exec(_) | Self::Attach(_) | Self::PortForward(_) | Self::Run(_) => {
                ("create", &["proxy"])
            }
        };
        Right { verb, subresources }
    }
}

/// `namespace/pod[/uid]/container`.
fn container(names: &[&str]) -> Option<Target> {
    let (uid, container) = match names {
        [_, _, container] => (None, container),
        [_, _, uid, container] => (Some((*uid).to_owned()), container),
        _ => return None,
    };
    filled(Target {
        container: (*container).to_owned(),
        uid,
        ..named(names)
    })
    .filter(|target| !target.container.is_empty())
}

/// `namespace/pod[/uid]`.
fn pod(names: &[&str]) -> Option<Target> {
    let uid = match names {
        [_, _] => None,
        [_, _, uid] => Some((*uid).to_owned()),
        _ => return None,
    };
    filled(Target {
        uid,
        ..named(names)
    })
}

fn named(names: &[&str]) -> Target {
    Target {
        namespace: names[0].to_owned(),
        pod: names[1].to_owned(),
        ..Target::default()
    }
}

fn filled(target: Target) -> Option<Target> {
    (!target.namespace.is_empty() && !target.pod.is_empty()).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(uid: Option<&str>, container: &str) -> Target {
        Target {
            namespace: "n".to_owned(),
            pod: "p".to_owned(),
            uid: uid.map(str::to_owned),
            container: container.to_owned(),
        }
    }

    #[test]
    fn paths() {
        for (path, want) in [
            ("/healthz", Some(Route::Health)),
            ("/healthz/ping", Some(Route::Health)),
            ("/pods", Some(Route::Pods)),
            ("/runningpods/", Some(Route::RunningPods)),
            ("/metrics/resource", Some(Route::Metrics(Metrics::Resource))),
            ("/containerLogs/n/p/c", Some(Route::Logs(target(None, "c")))),
            ("/exec/n/p/c", Some(Route::Exec(target(None, "c")))),
            ("/exec/n/p/u/c", Some(Route::Exec(target(Some("u"), "c")))),
            (
                "/portForward/n/p",
                Some(Route::PortForward(target(None, ""))),
            ),
            (
                "/portForward/n/p/u",
                Some(Route::PortForward(target(Some("u"), ""))),
            ),
            ("/exec/n/p", None),
            ("/exec//p/c", None),
            ("/logs/", None),
            ("/", None),
        ] {
            assert_eq!(Route::parse(path), want, "{path}");
        }
    }

    #[test]
    fn methods_and_rights() {
        let (read, open) = (&["GET", "HEAD"][..], &["GET", "POST"][..]);
        for (path, allowed, verb, subresources) in [
            ("/healthz", read, "get", &["healthz", "proxy"][..]),
            ("/healthz/ping", read, "get", &["healthz", "proxy"]),
            ("/pods", read, "get", &["pods", "proxy"]),
            ("/runningpods/", read, "get", &["pods", "proxy"]),
            ("/configz", read, "get", &["configz", "proxy"]),
            ("/stats/summary", read, "get", &["stats"]),
            ("/metrics", read, "get", &["metrics"]),
            ("/metrics/cadvisor", read, "get", &["metrics"]),
            ("/containerLogs/n/p/c", read, "get", &["proxy"]),
            // What enters a container takes `create`, also by GET, with which a WebSocket begins.
            ("/exec/n/p/c", open, "create", &["proxy"]),
            ("//exec/n/p/u/c", open, "create", &["proxy"]),
            ("/attach/n/p/c", open, "create", &["proxy"]),
            ("/portForward/n/p", open, "create", &["proxy"]),
            ("/run/n/p/c", &["POST"], "create", &["proxy"]),
        ] {
            let route = Route::parse(path).unwrap();
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "FOO"] {
                let parsed: Method = method.parse().unwrap();
                assert_eq!(
                    route.allows(&parsed),
                    allowed.contains(&method),
                    "{path} {method}"
                );
            }
            assert_eq!(route.right(), Right { verb, subresources }, "{path}");
        }
        for path in [
            "/%65xec/n/p/c",
            "/EXEC/n/p/c",
            "/x/../exec/n/p/c",
            "/exec/n/p/c/",
        ] {
            let served = Route::parse(path);
            let session = matches!(served, Some(Route::Exec(_)));
            assert_eq!(session, path.ends_with('/'), "{path}");
        }
    }
}
