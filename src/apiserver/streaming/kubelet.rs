//! A pod's log, exec, attach and portforward: which container, on which kubelet, at which path.

use std::sync::Arc;

use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use serde_json::Value;

use super::{Forward, Location, Proxy, Transport, log_socket::Wish, target::encode_segment};
use crate::apiserver::{
    objects::Lookup,
    query::Query,
    registry::{Causes, Resource},
    response::{Body, full},
    server::ApiServer,
    status::{Reason, Status},
};

/// Of a kubelet's complaint, so much is told.
const MAX_COMPLAINT_BYTES: usize = 4096;
const KUBELET_PORT: u16 = 10250;

impl Proxy {
    /// `pods/log`: text, as long as it comes.
    pub(super) async fn log(
        &self,
        server: &ApiServer,
        mut forward: Forward,
    ) -> Result<Response<Body>, Status> {
        if !matches!(forward.method, Method::GET | Method::HEAD) {
            return Err(wrong_method());
        }
        let wish = match forward.upgrade.take() {
            Some(upgrade) => Wish::read(&forward.headers)?.map(|wish| (wish, upgrade)),
            None => None,
        };
        let query = std::mem::take(&mut forward.options);
        check_log_options(&query, &forward.name)?;
        let pod = pod(server, forward.row, &forward.namespace, &forward.name).await?;
        let container = container(&pod, query.get("container").unwrap_or_default())?;
        if node_name(&pod).is_empty() {
            return log_answer(wish, full(""));
        }
        let (host, port) = kubelet(server, node_name(&pod)).await?;
        let kept = [
            "follow",
            "previous",
            "timestamps",
            "sinceSeconds",
            "sinceTime",
            "tailLines",
            "limitBytes",
        ];
        let location = Location {
            host,
            port,
            transport: Transport::Kubelet,
            path: path(&[
                "containerLogs",
                &forward.namespace,
                &forward.name,
                &container,
            ]),
            query: only(&query, &kept),
        };
        forward.headers.remove(header::ACCEPT);
        forward.headers.remove(header::ACCEPT_ENCODING);
        forward.body = full("");
        let response = self
            .pass(location, forward.into())
            .await
            .map_err(Status::internal)?;
        if response.status().is_success() {
            return log_answer(wish, response.into_body());
        }
        Err(complaint(response).await)
    }

    /// `pods/exec`, `pods/attach` and `pods/portforward`: an upgrade, passed through.
    pub(super) async fn stream(
        &self,
        server: &ApiServer,
        mut forward: Forward,
    ) -> Result<Response<Body>, Status> {
        if !matches!(forward.method, Method::GET | Method::POST) {
            return Err(wrong_method());
        }
        let query = std::mem::take(&mut forward.options);
        if query.get("dryRun").is_some() {
            return Err(Status::bad_request(
                "dryRun is not supported on this subresource",
            ));
        }
        let pod = pod(server, forward.row, &forward.namespace, &forward.name).await?;
        let (path, query) = stream_target(&forward, &pod, &query)?;
        if node_name(&pod).is_empty() {
            let what = format!("pod {} does not have a host assigned", forward.name);
            return Err(Status::bad_request(what));
        }
        if forward.upgrade.is_none() || !forward.headers.contains_key(header::UPGRADE) {
            return Err(Status::bad_request("Upgrade request required"));
        }
        let (host, port) = kubelet(server, node_name(&pod)).await?;
        let location = Location {
            host,
            port,
            transport: Transport::Kubelet,
            path,
            query,
        };
        let response = self
            .pass(location, forward.into())
            .await
            .map_err(|error| Status::internal(format!("error dialing backend: {error}")))?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => Ok(response),
            // Which protocols the kubelet has stands in the headers.
            StatusCode::FORBIDDEN => Ok(response),
            status if status.is_success() => Ok(response),
            _ => Err(complaint(response).await),
        }
    }
}

/// The log as text, or as messages for who wished for them.
fn log_answer(wish: Option<(Wish, OnUpgrade)>, log: Body) -> Result<Response<Body>, Status> {
    match wish {
        Some((wish, upgrade)) => wish.grant(upgrade, log),
        None => Ok(text(log)),
    }
}

/// Path and query at the kubelet. Pure.
fn stream_target(
    forward: &Forward,
    pod: &Value,
    query: &Query,
) -> Result<(String, String), Status> {
    let (namespace, name) = (forward.namespace.as_str(), forward.name.as_str());
    let mut out = form_urlencoded::Serializer::new(String::new());
    if forward.subresource == "portforward" {
        let ports: Vec<&str> = query
            .all("ports")
            .flat_map(|ports| ports.split(','))
            .collect();
        if let Some(bad) = ports
            .iter()
            .find(|port| port.parse::<u16>().is_ok_and(|port| port > 0).eq(&false))
        {
            return Err(Status::bad_request(format!("{bad:?} is not a port")));
        }
        if !ports.is_empty() {
            out.append_pair("port", &ports.join(","));
        }
        return Ok((path(&["portForward", namespace, name]), out.finish()));
    }
    let container = container(pod, query.get("container").unwrap_or_default())?;
    let attach = forward.subresource == "attach";
    // Who asks to attach to nothing in particular gets what the container says.
    let default = |stream: &str| attach && query.get(stream).is_none() && stream != "stdin";
    let tty = query.flag("tty");
    let wanted = |stream: &str| query.flag(stream) || default(stream);
    let (stdin, stdout) = (wanted("stdin"), wanted("stdout"));
    let stderr = wanted("stderr") && !tty;
    if !stdin && !stdout && !stderr {
        return Err(Status::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    if !attach {
        let commands: Vec<&str> = query.all("command").collect();
        if commands.is_empty() {
            return Err(Status::bad_request(
                "you must specify at least one command for the container",
            ));
        }
        for command in commands {
            out.append_pair("command", command);
        }
    }
    for (name, on) in [
        ("input", stdin),
        ("output", stdout),
        ("error", stderr),
        ("tty", tty),
    ] {
        if on {
            out.append_pair(name, "1");
        }
    }
    Ok((
        path(&[&forward.subresource, namespace, name, &container]),
        out.finish(),
    ))
}

/// The container meant: the one named, or the only one. Pure.
fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers
            .filter_map(|one| one["name"].as_str().map(str::to_owned))
            .collect()
    };
    let (main, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    if !asked.is_empty() {
        let known = main
            .iter()
            .chain(&init)
            .chain(&ephemeral)
            .any(|one| one == asked);
        return match known {
            true => Ok(asked.to_owned()),
            false => Err(Status::bad_request(format!(
                "container {asked} is not valid for pod {name}"
            ))),
        };
    }
    if let [only] = main.as_slice() {
        return Ok(only.clone());
    }
    let mut message = format!("a container name must be specified for pod {name}");
    if !main.is_empty() {
        message.push_str(&format!(", choose one of: [{}]", main.join(" ")));
    }
    for (what, list) in [("init", init), ("ephemeral", ephemeral)] {
        if !list.is_empty() {
            message.push_str(&format!(
                " or one of the {what} containers: [{}]",
                list.join(" ")
            ));
        }
    }
    Err(Status::bad_request(message))
}

fn check_log_options(query: &Query, pod: &str) -> Result<(), Status> {
    let mut causes = Causes::default();
    for (name, least, detail) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        match query.number::<i64>(name)? {
            Some(number) if number < least => causes.invalid(name, number, detail),
            _ => {}
        }
    }
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        causes.forbidden(
            "",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        );
    }
    if let Some(time) = query
        .get("sinceTime")
        .filter(|time| time.parse::<jiff::Timestamp>().is_err())
    {
        return Err(Status::bad_request(format!(
            "sinceTime: {time:?} is not an RFC 3339 time"
        )));
    }
    match causes.0.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid("", "PodLogOptions", pod, causes.0)),
    }
}

async fn pod(
    server: &ApiServer,
    row: &Resource,
    namespace: &str,
    name: &str,
) -> Result<Arc<Value>, Status> {
    Ok(server.read(row, namespace, name).await?.value())
}

fn node_name(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

/// Where the kubelet of a node listens.
pub(super) async fn kubelet(server: &ApiServer, node: &str) -> Result<(String, u16), Status> {
    let found = server
        .get("nodes", "", node)
        .await
        .ok_or_else(|| Status::not_found("", "nodes", node))?;
    kubelet_of(&found)
}

/// Its InternalIP, or the next best address. Pure.
fn kubelet_of(node: &Value) -> Result<(String, u16), Status> {
    let addresses = node["status"]["addresses"].as_array();
    let of_type = |wanted: &str| {
        addresses
            .into_iter()
            .flatten()
            .find(|one| one["type"] == wanted)?["address"]
            .as_str()
    };
    let host = ["InternalIP", "Hostname", "ExternalIP"]
        .into_iter()
        .find_map(of_type)
        .ok_or_else(|| {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            Status::internal(format!("no preferred addresses found for node {name:?}"))
        })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .unwrap_or(KUBELET_PORT);
    Ok((host.to_owned(), port))
}

fn path(segments: &[&str]) -> String {
    segments.iter().fold(String::new(), |path, segment| {
        path + "/" + &encode_segment(segment)
    })
}

fn only(query: &Query, names: &[&str]) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    for name in names {
        if let Some(value) = query.get(name) {
            out.append_pair(name, value);
        }
    }
    out.finish()
}

fn text(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// What a kubelet refused, in the API's form.
async fn complaint(response: Response<Body>) -> Status {
    let code = response.status();
    let (mut body, mut said) = (response.into_body(), Vec::new());
    while let Some(Ok(frame)) = body.frame().await {
        said.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if said.len() >= MAX_COMPLAINT_BYTES {
            break;
        }
    }
    said.truncate(MAX_COMPLAINT_BYTES);
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let said = match serde_json::from_str::<Value>(&said) {
        Ok(status) if status["kind"] == "Status" => {
            status["message"].as_str().unwrap_or_default().to_owned()
        }
        _ => said,
    };
    let reason = match code {
        StatusCode::BAD_REQUEST => Reason::BadRequest,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Reason::Forbidden,
        StatusCode::NOT_FOUND => Reason::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Reason::MethodNotAllowed,
        StatusCode::CONFLICT => Reason::Conflict,
        StatusCode::TOO_MANY_REQUESTS => Reason::TooManyRequests,
        StatusCode::SERVICE_UNAVAILABLE => Reason::ServiceUnavailable,
        _ => Reason::InternalError,
    };
    let message = match said.is_empty() {
        true => format!("the kubelet answered {code}"),
        false => said,
    };
    match reason {
        Reason::InternalError => Status::internal(message),
        reason => Status::new(reason, message),
    }
}

fn wrong_method() -> Status {
    Status::new(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: &[&str]) -> Value {
        let list: Vec<Value> = containers
            .iter()
            .map(|name| json!({"name": name}))
            .collect();
        json!({"metadata": {"name": "p"}, "spec": {"containers": list, "initContainers": [{"name": "i"}]}})
    }

    #[test]
    fn which_container() {
        for (containers, asked, want) in [
            (&["a"][..], "", Ok("a")),
            (&["a", "b"], "b", Ok("b")),
            (&["a"], "i", Ok("i")),
            (&["a"], "x", Err("container x is not valid for pod p")),
            (
                &["a", "b"],
                "",
                Err(
                    "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]",
                ),
            ),
        ] {
            let got = container(&pod(containers), asked);
            match (&got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(got), Err(want)) => assert_eq!((got.code, got.message.as_str()), (400, want)),
                _ => panic!("{containers:?} {asked}: {got:?}"),
            }
        }
    }

    #[test]
    fn where_streams_are() {
        for (subresource, query, want) in [
            (
                "exec",
                "command=ls&command=-l+%2F&stdout=true&stderr=true&stdin=true&tty=true",
                Some((
                    "/exec/n/p/a",
                    "command=ls&command=-l+%2F&input=1&output=1&tty=1",
                )),
            ),
            ("exec", "command=ls", None),
            ("exec", "stdout=true", None),
            ("attach", "", Some(("/attach/n/p/a", "output=1&error=1"))),
            ("portforward", "", Some(("/portForward/n/p", ""))),
            (
                "portforward",
                "ports=80&ports=443",
                Some(("/portForward/n/p", "port=80%2C443")),
            ),
            ("portforward", "ports=0", None),
        ] {
            let forward = super::super::target::tests::forward("pods", "n", "p", subresource, "");
            let got = stream_target(&forward, &pod(&["a"]), &Query::parse(query)).ok();
            let want = want.map(|(path, query)| (path.to_owned(), query.to_owned()));
            assert_eq!(got, want, "{subresource}?{query}");
        }
    }

    #[test]
    fn log_options() {
        for (query, code) in [
            ("tailLines=10", None),
            ("tailLines=-1", Some(422)),
            ("limitBytes=0", Some(422)),
            ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", Some(422)),
            ("tailLines=x", Some(400)),
            ("sinceTime=yesterday", Some(400)),
        ] {
            let got = check_log_options(&Query::parse(query), "p").err();
            assert_eq!(got.map(|status| status.code), code, "{query}");
        }
    }

    #[test]
    fn where_a_kubelet_listens() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10350}},
        }});
        assert_eq!(kubelet_of(&node).unwrap(), ("10.0.0.1".to_owned(), 10350));
        assert!(kubelet_of(&json!({})).is_err());
    }
}
