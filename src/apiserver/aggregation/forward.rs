//! Passing requests on to the servers of aggregated APIs, in the name of whoever asks.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::remote::Remote;
use crate::apiserver::{
    objects::Lookup,
    request::User,
    response::{Body, full},
    status::{Reason, Status},
    streaming::{self, Passing, Proxy},
};

/// A server that does not tell in this time what it serves is not available.
const DISCOVERY: Duration = Duration::from_secs(5);
const MAX_DISCOVERY_BYTES: usize = 4 << 20;

/// The APIResourceList of the remote's group and version.
pub async fn discover(lookup: &dyn Lookup, remote: &Remote) -> Result<Value, Status> {
    let path = format!("/apis/{}", remote.group_version());
    let asked = async {
        match fetch(lookup, remote, &path).await? {
            (code, bytes) if code.is_success() => {
                serde_json::from_slice(&bytes).map_err(Status::internal)
            }
            (code, _) => Err(Status::internal(format!("bad status: {code}"))),
        }
    };
    let failed = |why: &str| {
        let what = format!(
            "failing or missing response from https://{}.{}.svc:{}{path}: {why}",
            remote.service, remote.namespace, remote.port
        );
        Status::new(Reason::ServiceUnavailable, what)
    };
    match tokio::time::timeout(DISCOVERY, asked).await {
        Ok(Err(status)) if status.message.starts_with("no endpoints") => Err(status),
        Ok(Err(status)) => Err(failed(&status.message)),
        Ok(list) => list,
        Err(_) => Err(failed("context deadline exceeded")),
    }
}

/// Its OpenAPI 3 document. Servers of before have none.
pub async fn openapi(lookup: &dyn Lookup, remote: &Remote) -> Option<Bytes> {
    let path = format!("/openapi/v3/apis/{}", remote.group_version());
    let asked = tokio::time::timeout(DISCOVERY, fetch(lookup, remote, &path));
    let (code, bytes) = asked.await.ok()?.ok()?;
    let is_document = || {
        serde_json::from_slice::<Value>(&bytes)
            .is_ok_and(|document| document["openapi"].is_string())
    };
    (code.is_success() && is_document()).then(|| bytes.into())
}

/// Asks in this server's own name.
async fn fetch(
    lookup: &dyn Lookup,
    remote: &Remote,
    path: &str,
) -> Result<(StatusCode, Vec<u8>), Status> {
    let mut headers = HeaderMap::new();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::ACCEPT, json);
    let user = User::internal("system:kube-aggregator", &["system:masters"]);
    let passing = Passing {
        method: Method::GET,
        headers,
        ours: HeaderMap::new(),
        body: full(""),
        upgrade: None,
    };
    let response = send(lookup, remote, &user, (path, ""), passing).await?;
    let code = response.status();
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(Status::internal)?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if bytes.len() > MAX_DISCOVERY_BYTES {
            return Err(Status::internal("the answer is too large"));
        }
    }
    Ok((code, bytes))
}

/// Passes a request on. `target`: path and query, as they came.
pub async fn send(
    lookup: &dyn Lookup,
    remote: &Remote,
    user: &User,
    target: (&str, &str),
    mut passing: Passing,
) -> Result<Response<Body>, Status> {
    let unavailable = |why: String| Status::new(Reason::ServiceUnavailable, why);
    let (tls, name) = remote
        .tls
        .as_ref()
        .map_err(|why| unavailable(why.clone()))?;
    let address =
        streaming::service_address(lookup, &remote.namespace, &remote.service, remote.port).await?;
    passing.ours = identity(user)?;
    Proxy::pass_over(address, (tls.clone(), name.clone()), target, passing)
        .await
        .map_err(|error| unavailable(format!("error trying to reach service: {error}")))
}

/// Says who asks. An identity that cannot be said whole is not said at all. Pure.
fn identity(user: &User) -> Result<HeaderMap, Status> {
    let mut headers = HeaderMap::new();
    let mut add = |name: &str, value: &str| {
        let header = HeaderName::from_bytes(name.as_bytes()).ok();
        let pair = header.zip(HeaderValue::from_bytes(value.as_bytes()).ok());
        let (header, value) =
            pair.ok_or_else(|| Status::internal(format!("{value:?} cannot be told as {name}")))?;
        headers.append(header, value);
        Ok::<_, Status>(())
    };
    add("x-remote-user", &user.name)?;
    if let Some(uid) = &user.uid {
        add("x-remote-uid", uid)?;
    }
    for group in &user.groups {
        add("x-remote-group", group)?;
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        for value in values {
            add(&name, value)?;
        }
    }
    Ok(headers)
}

/// A key as part of a header's name: what may not stand there is percent-encoded.
fn escaped(key: &str) -> String {
    key.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ if b"!#$&'*+-.^_`|~".contains(&byte) => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_said() {
        let mut user = User::internal("j\u{fc}rgen", &["dev"]);
        user.extra = [("example.com/a".to_owned(), vec!["1".to_owned()])].into();
        let headers = identity(&user).expect("headers");
        assert_eq!(headers["x-remote-user"].as_bytes(), user.name.as_bytes());
        let groups: Vec<_> = headers.get_all("x-remote-group").iter().collect();
        assert_eq!(groups, ["dev", "system:authenticated"]);
        assert_eq!(headers["x-remote-extra-example.com%2fa"], "1");
        user.groups.push("a\nx-remote-user: root".to_owned());
        assert!(identity(&user).is_err(), "not in part");
    }
}
