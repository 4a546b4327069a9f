//! What a connection to a part of an object is to be like, as an object for admission. Pure.

use serde_json::{Value, json};

use super::path::ResourcePath;
use crate::apiserver::query::Query;

/// The options object of exec, attach, portforward and proxy; `None` for what is no connection.
pub fn options(path: &ResourcePath, query: &Query) -> Option<Value> {
    let streams = || {
        json!({
            "stdin": query.flag("stdin"),
            "stdout": query.flag("stdout"),
            "stderr": query.flag("stderr"),
            "tty": query.flag("tty"),
            "container": query.get("container").unwrap_or_default(),
        })
    };
    let (kind, mut options) = match (path.row.plural, path.subresource.as_deref()?) {
        ("pods", "exec") => {
            let mut options = streams();
            options["command"] = query.all("command").collect();
            ("PodExecOptions", options)
        }
        ("pods", "attach") => ("PodAttachOptions", streams()),
        ("pods", "portforward") => {
            let ports = query.all("ports").flat_map(|ports| ports.split(','));
            let ports: Vec<u16> = ports.filter_map(|port| port.parse().ok()).collect();
            ("PodPortForwardOptions", json!({"ports": ports}))
        }
        ("pods", "proxy") => ("PodProxyOptions", json!({"path": path.rest})),
        ("services", "proxy") => ("ServiceProxyOptions", json!({"path": path.rest})),
        ("nodes", "proxy") => ("NodeProxyOptions", json!({"path": path.rest})),
        _ => return None,
    };
    options["apiVersion"] = "v1".into();
    options["kind"] = kind.into();
    Some(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::{
        aggregation::Remotes,
        http::path::{Place, parse},
        registry::custom::Rows,
    };

    #[test]
    fn what_a_connection_is() {
        for (subresource, query, want) in [
            (
                "attach",
                "stdout=true",
                Some(("PodAttachOptions", "/stdout", json!(true))),
            ),
            (
                "exec",
                "command=a&command=b",
                Some(("PodExecOptions", "/command", json!(["a", "b"]))),
            ),
            (
                "portforward",
                "ports=80,81",
                Some(("PodPortForwardOptions", "/ports", json!([80, 81]))),
            ),
            (
                "proxy/x/y",
                "",
                Some(("PodProxyOptions", "/path", json!("x/y"))),
            ),
            ("log", "", None),
        ] {
            let place = parse(
                &format!("/api/v1/namespaces/n/pods/p/{subresource}"),
                &Rows::default(),
                &Remotes::default(),
            );
            let Place::Resource(_, path) = place else {
                panic!("{subresource} is no resource")
            };
            let got = options(&path, &Query::parse(query));
            match (got, want) {
                (None, None) => {}
                (Some(got), Some((kind, pointer, value))) => {
                    assert_eq!(
                        (&got["kind"], got.pointer(pointer)),
                        (&json!(kind), Some(&value))
                    );
                }
                (got, want) => panic!("{got:?} instead of {want:?}"),
            }
        }
    }
}
