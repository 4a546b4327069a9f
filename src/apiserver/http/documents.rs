//! What is no resource: discovery, OpenAPI, version, health, metrics.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Body, Frontend, answer, full, header_text, health, metrics, resources::JSON};
use crate::{
    apiserver::{
        authn, discovery, encode,
        negotiate::{self, DOCUMENTS, View},
        openapi,
        query::Query,
        registry::custom::Rows,
        server::ApiServer,
        status::{Reason, Status},
    },
    exposition::{CONTENT_TYPE, process},
};

const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Documents that are made on first use and kept as bytes with their hash.
pub struct Documents {
    /// `host:port` under which clients reach this server.
    pub advertise: String,
    /// By name, with the change of the rows they are of.
    made: Mutex<HashMap<String, (u64, Bytes, String)>>,
    health: health::Told,
}

impl Documents {
    pub fn new(advertise: String) -> Self {
        Self {
            advertise,
            made: Mutex::default(),
            health: health::Told::default(),
        }
    }

    fn made(&self, rows: &Rows, name: &str, make: impl FnOnce() -> Vec<u8>) -> (Bytes, String) {
        // Asked first: rows that change meanwhile make the document stale, not wrong for good.
        let changes = rows.changes();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, bytes, hash)) = made.get(name)
            && *of == changes
        {
            return (bytes.clone(), hash.clone());
        }
        let bytes: Bytes = make().into();
        let hash: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        // Those of before would only be made anew.
        made.retain(|_, (of, ..)| *of == changes);
        made.insert(name.to_owned(), (changes, bytes.clone(), hash.clone()));
        (bytes, hash)
    }

    pub(super) fn discovery(
        &self,
        server: &ApiServer,
        headers: &HeaderMap,
        parts: &[String],
    ) -> Result<Response<Body>, Status> {
        let (rows, remotes) = (&server.rows, &server.remotes);
        let accept = header_text(headers, &header::ACCEPT);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let all = rows.all();
        let aggregated = matches!(parts.as_slice(), ["api"] | ["apis"]);
        let wanted = negotiate::negotiate(accept, false, DOCUMENTS)?;
        if wanted.view == View::Discovery && aggregated {
            let core = parts == ["api"];
            let (bytes, hash) = self.made(
                rows,
                if core {
                    "aggregated/api"
                } else {
                    "aggregated/apis"
                },
                || {
                    let mut list = discovery::aggregated(&all, core);
                    if !core {
                        remotes.add_discovered(&mut list);
                    }
                    list.to_string().into_bytes()
                },
            );
            return Ok(tagged(
                headers,
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                bytes,
                &hash,
            ));
        }
        let value = match parts.as_slice() {
            ["api"] => Some(discovery::api_versions(&self.advertise)),
            ["apis"] => {
                let mut list = discovery::api_group_list(&all);
                remotes.add_groups(&mut list);
                Some(list)
            }
            ["apis", group] => remotes.group(group, discovery::api_group(&all, group)),
            ["apis", group, version] => discovery::api_resource_list(&all, group, version),
            _ => None,
        };
        let value = value.ok_or_else(not_found)?;
        let bytes = encode::text(wanted.format, &value)?;
        Ok(answer(200, wanted.format.content_type(), full(bytes)))
    }

    pub(super) async fn other(
        &self,
        frontend: &Arc<Frontend>,
        path: &str,
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<Response<Body>, Status> {
        let rows = &frontend.server.rows;
        // Byte for byte the path that was authorized.
        let parts: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
        match parts.as_slice() {
            [""] => {
                let checks = health::Checks::look(frontend, "livez").await;
                json_answer(&json!({"paths": self.paths(&frontend.server, &checks)}))
            }
            ["version"] | ["version", ""] => json_answer(&version()),
            [endpoint @ ("healthz" | "livez" | "readyz"), check @ ..] => {
                let checks = health::Checks::look(frontend, endpoint).await;
                match check {
                    [] | [""] => Ok(checks.all(query, &self.health)),
                    check => checks.one(&check.join("/")).ok_or_else(not_found),
                }
            }
            ["metrics"] => Ok(exposed(metrics::metrics(frontend))),
            ["metrics", "slis"] => Ok(exposed(metrics::slis(frontend).await)),
            [".well-known", "openid-configuration"] => {
                let document = of_the_issuer(frontend, authn::openid_configuration).await?;
                json_answer(&document).map(public)
            }
            ["openid", "v1", "jwks"] => {
                let document = of_the_issuer(frontend, authn::jwks).await?;
                let bytes = encode::text(JSON, &document)?;
                let answer = answer(200, "application/jwk-set+json", full(bytes));
                Ok(public(answer))
            }
            ["openapi", "v2"] => Ok(self.openapi_v2(rows, headers)),
            ["openapi", "v3"] => self.openapi_v3_index(&frontend.server),
            ["openapi", "v3", "api", version] => {
                self.openapi_v3(&frontend.server, headers, query, ("", version))
            }
            ["openapi", "v3", "apis", group, version] => {
                self.openapi_v3(&frontend.server, headers, query, (group, version))
            }
            _ => Err(not_found()),
        }
    }

    /// Every path that is no resource.
    fn paths(&self, server: &ApiServer, checks: &health::Checks) -> BTreeSet<String> {
        let mut paths: BTreeSet<String> = PATHS.iter().map(|path| (*path).to_owned()).collect();
        let mut add = |group: &str, version: &str| {
            let path = match group {
                "" => format!("/api/{version}"),
                group => {
                    paths.insert(format!("/apis/{group}"));
                    format!("/apis/{group}/{version}")
                }
            };
            paths.insert(format!("/openapi/v3{path}"));
            paths.insert(path);
        };
        for (group, version) in discovery::group_versions(&server.rows.all()) {
            add(group, version);
        }
        for remote in server.remotes.all().iter() {
            add(&remote.group, &remote.version);
        }
        for endpoint in ["healthz", "livez", "readyz"] {
            let names = checks.names();
            paths.extend(names.map(|name| format!("/{endpoint}/{name}")));
        }
        paths
    }

    fn openapi_v2(&self, rows: &Rows, headers: &HeaderMap) -> Response<Body> {
        let protobuf = header_text(headers, &header::ACCEPT)
            .is_some_and(|accept| accept.contains(OPENAPI_V2_PROTOBUF));
        if protobuf {
            let (bytes, hash) = self.made(rows, "v2.pb", || {
                openapi::v2_protobuf(&openapi::v2(&rows.all()))
            });
            return tagged(headers, openapi::V2_PROTOBUF, bytes, &hash);
        }
        let (bytes, hash) = self.made(rows, "v2", || {
            openapi::v2(&rows.all()).to_string().into_bytes()
        });
        tagged(headers, "application/json", bytes, &hash)
    }

    fn document_v3(&self, rows: &Rows, group: &str, version: &str) -> (Bytes, String) {
        self.made(rows, &format!("v3/{group}/{version}"), || {
            openapi::v3(&rows.all(), group, version)
                .to_string()
                .into_bytes()
        })
    }

    /// Another server's document, as it told it.
    fn remote_v3(&self, server: &ApiServer, group: &str, version: &str) -> Option<(Bytes, String)> {
        let remote = server.remotes.find(group, version)?;
        let document = remote.openapi.clone()?;
        let name = format!("v3/{group}/{version}");
        Some(self.made(&server.rows, &name, || document.to_vec()))
    }

    fn openapi_v3_index(&self, server: &ApiServer) -> Result<Response<Body>, Status> {
        let rows = &server.rows;
        let mut paths = serde_json::Map::new();
        for remote in server.remotes.all().iter() {
            let (group, version) = (&*remote.group, &*remote.version);
            if let Some((_, hash)) = self.remote_v3(server, group, version) {
                let path = format!("apis/{group}/{version}");
                let url = format!("/openapi/v3/{path}?hash={hash}");
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
        }
        for (group, version) in discovery::group_versions(&rows.all()) {
            let path = if group.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{group}/{version}")
            };
            let (_, hash) = self.document_v3(rows, group, version);
            paths.insert(
                path.clone(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            );
        }
        json_answer(&json!({"paths": paths}))
    }

    fn openapi_v3(
        &self,
        server: &ApiServer,
        headers: &HeaderMap,
        query: &Query,
        (group, version): (&str, &str),
    ) -> Result<Response<Body>, Status> {
        let (bytes, hash) = match server.rows.serves(group, version) {
            true => self.document_v3(&server.rows, group, version),
            false => self
                .remote_v3(server, group, version)
                .ok_or_else(not_found)?,
        };
        match query.get("hash") {
            Some(asked) if asked != hash => {
                let path = if group.is_empty() {
                    format!("api/{version}")
                } else {
                    format!("apis/{group}/{version}")
                };
                let mut response = answer(301, "text/plain", full(Bytes::new()));
                if let Ok(location) =
                    HeaderValue::from_str(&format!("/openapi/v3/{path}?hash={hash}"))
                {
                    response.headers_mut().insert(header::LOCATION, location);
                }
                Ok(response)
            }
            Some(_) => {
                let mut response = tagged(headers, "application/json", bytes, &hash);
                response.headers_mut().insert(
                    header::CACHE_CONTROL,
                    HeaderValue::from_static("public, immutable"),
                );
                Ok(response)
            }
            None => Ok(tagged(headers, "application/json", bytes, &hash)),
        }
    }
}

/// A document about the keys of tokens; the first of a new cluster may still be being made.
async fn of_the_issuer<E: std::fmt::Display + Send + 'static>(
    frontend: &Frontend,
    document: fn(&authn::TokenIssuer) -> Result<Value, E>,
) -> Result<Value, Status> {
    let authenticator = frontend.authenticator.clone();
    let made = tokio::task::spawn_blocking(move || document(authenticator.issuer()));
    let made = made.await.map_err(Status::internal)?;
    made.map_err(Status::internal)
}

const PATHS: [&str; 14] = [
    "/.well-known/openid-configuration",
    "/api",
    "/apis",
    "/apis/",
    "/healthz",
    "/livez",
    "/metrics",
    "/metrics/slis",
    "/openapi/v2",
    "/openapi/v3",
    "/openapi/v3/",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

/// What the whole world may keep for an hour: the keys of tokens change more seldom.
fn public(mut response: Response<Body>) -> Response<Body> {
    let value = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}

fn exposed(text: String) -> Response<Body> {
    answer(200, CONTENT_TYPE, full(text))
}

fn json_answer(value: &Value) -> Result<Response<Body>, Status> {
    Ok(answer(
        200,
        "application/json",
        full(encode::text(JSON, value)?),
    ))
}

fn not_found() -> Status {
    Status::new(
        Reason::NotFound,
        "the server could not find the requested resource",
    )
}

/// A document with its hash; 304 for who has it already.
fn tagged(
    headers: &HeaderMap,
    content_type: &'static str,
    bytes: Bytes,
    hash: &str,
) -> Response<Body> {
    let tag = format!("\"{hash}\"");
    let known = header_text(headers, &header::IF_NONE_MATCH).is_some_and(|known| known == tag);
    let mut response = if known {
        answer(304, content_type, full(Bytes::new()))
    } else {
        answer(200, content_type, full(bytes))
    };
    let fields = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        fields.insert(header::ETAG, tag);
    }
    fields.insert(header::VARY, HeaderValue::from_static("Accept"));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

fn version() -> Value {
    json!({
        "major": process::MAJOR,
        "minor": process::MINOR,
        "gitVersion": process::VERSION,
        "gitCommit": process::COMMIT,
        "gitTreeState": process::TREE,
        "buildDate": process::built(),
        "goVersion": process::GO,
        "compiler": process::COMPILER,
        "platform": process::platform(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_as_clients_parse_it() {
        let version = version();
        let text = |name: &str| version[name].as_str().unwrap_or_default();
        for (name, pattern) in [
            ("major", r"^\d$"),
            ("minor", r"^\d+\+?$"),
            ("gitVersion", r"^v\d\.\d+\.[\d\w\-.+]+$"),
            ("gitCommit", "^[0-9a-f]*$"),
            ("gitTreeState", "^(clean|dirty|archive)$"),
            ("buildDate", r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"),
            ("goVersion", "^none: rustc "),
            ("compiler", "^rustc$"),
            ("platform", "^linux/(amd64|arm64)$"),
        ] {
            let pattern = regex::Regex::new(pattern).expect("a pattern");
            assert!(pattern.is_match(text(name)), "{name}: {:?}", text(name));
        }
    }
}
