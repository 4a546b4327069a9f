//! Requests for resources: from method and path to a verb, from its answer to bytes.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use super::{
    Body, Frontend, Incoming, ResourcePath, answer, connect, full, header_text, not_allowed,
};
use crate::apiserver::{
    encode::{self, Encoded, Frames, Include},
    negotiate::{self, ANSWERS, CUSTOM, CUSTOM_WATCHES, Format, OBJECTS, WATCHES},
    patch::PatchType,
    query::FieldValidation,
    registry::{Resource, Subresource},
    request::{Attributes, Target},
    server::ApiServer,
    special::Call,
    status::{Cause, CauseType, Reason, Status},
    verbs::{self, Deleted, ListOptions, WatchOptions},
    write::{Writing, Written, api_version},
};

/// Larger bodies are refused.
const MAX_BODY_BYTES: usize = 3 << 20;
/// Kinds whose DELETE answers with the object instead of a Status.
const RETURN_DELETED: [&str; 7] = [
    "pods",
    "services",
    "persistentvolumeclaims",
    "persistentvolumes",
    "serviceaccounts",
    "resourcequotas",
    "podtemplates",
];

impl Frontend {
    pub(super) async fn resource(
        self: &Arc<Self>,
        incoming: Incoming,
        body: Body,
        path: ResourcePath,
    ) -> Result<Response<Body>, Status> {
        let streams = matches!(
            path.subresource.as_deref(),
            Some("log" | "exec" | "attach" | "portforward" | "proxy")
        );
        if streams && path.name.is_some() {
            let warnings = self.admit_connection(&incoming, &path).await?;
            let response = self
                .proxy
                .forward(
                    &self.server,
                    crate::apiserver::streaming::Forward {
                        row: path.row,
                        namespace: path.namespace,
                        name: path.name.unwrap_or_default(),
                        subresource: path.subresource.unwrap_or_default(),
                        path: incoming.uri_path,
                        rest: path.rest,
                        method: incoming.method,
                        headers: incoming.headers,
                        query: incoming.raw_query,
                        body,
                        upgrade: incoming.upgrade,
                    },
                )
                .await?;
            return Ok(warned(response, &warnings));
        }
        let writing = Writing {
            user: incoming.user.clone(),
            row: path.row,
            subresource: path.subresource.clone(),
            namespace: path.namespace.clone(),
            name: path.name.clone().unwrap_or_default(),
            dry_run: incoming.query.dry_run()?,
            validation: incoming.query.field_validation()?,
            manager: incoming.manager(),
            applies: false,
        };
        let method = incoming.method.clone();
        match (method, path.name.is_some(), path.subresource.as_deref()) {
            (Method::GET | Method::HEAD, _, None) if path.watch || incoming.query.flag("watch") => {
                self.watch(&incoming, &path).await
            }
            (Method::GET | Method::HEAD, false, None) => self.list(&incoming, &path).await,
            (Method::GET | Method::HEAD, true, None) => self.get(&incoming, &path).await,
            (Method::POST, _, subresource) => {
                let body = read(body).await?;
                self.post(&incoming, &writing, subresource, body).await
            }
            (Method::DELETE, named, None) => {
                let body = read(body).await?;
                self.delete(&incoming, &writing, named, body).await
            }
            (Method::PUT, true, None) => {
                self.allow(&path, "update")?;
                let body = read(body).await?;
                let (value, duplicates) = decode(&incoming.headers, body, path.row.type_name)?;
                let written = verbs::update(&self.server, &writing, value, duplicates).await?;
                one(&incoming, path.row, 200, written)
            }
            (Method::PATCH, true, None) => {
                self.allow(&path, "patch")?;
                let kind = PatchType::parse(
                    header_text(&incoming.headers, &header::CONTENT_TYPE).unwrap_or_default(),
                )?;
                let body = read(body).await?;
                if kind == PatchType::Apply {
                    return self.apply(&incoming, writing, &body).await;
                }
                one(
                    &incoming,
                    path.row,
                    200,
                    verbs::patch(&self.server, &writing, kind, &body).await?,
                )
            }
            (_, true, Some(subresource)) => {
                let subresource = subresource.to_owned();
                self.subresource(&incoming, read(body).await?, &path, &writing, &subresource)
                    .await
            }
            _ => Err(not_allowed(&path)),
        }
    }

    /// Reading a log is no connection; all else that is passed on is, and goes past admission.
    async fn admit_connection(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
    ) -> Result<Vec<String>, Status> {
        let Some(options) = connect::options(path, &incoming.query) else {
            return Ok(Vec::new());
        };
        let writing = Writing {
            user: incoming.user.clone(),
            row: path.row,
            subresource: path.subresource.clone(),
            namespace: path.namespace.clone(),
            name: path.name.clone().unwrap_or_default(),
            dry_run: false,
            validation: FieldValidation::Ignore,
            manager: String::new(),
            applies: false,
        };
        self.server.admit_connection(&writing, options).await
    }

    fn allow(&self, path: &ResourcePath, verb: &str) -> Result<(), Status> {
        match path.row.verbs.contains(&verb) {
            true => Ok(()),
            false => Err(not_allowed(path)),
        }
    }

    async fn get(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
    ) -> Result<Response<Body>, Status> {
        self.allow(path, "get")?;
        let name = path.name.as_deref().unwrap_or_default();
        let object = self.server.read(path.row, &path.namespace, name).await?;
        one(
            incoming,
            path.row,
            200,
            Written {
                object,
                warnings: Vec::new(),
            },
        )
    }

    async fn list(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
    ) -> Result<Response<Body>, Status> {
        self.allow(path, "list")?;
        let options = ListOptions::parse(path.row, &incoming.query)?;
        let wanted = incoming.wanted(offer(path.row))?;
        let page = verbs::list(&self.server, path.row, &path.namespace, &options).await?;
        let encoded = encode::list(path.row, &page, wanted, incoming.include()?)?;
        Ok(respond(incoming, 200, encoded, &[]))
    }

    async fn watch(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
    ) -> Result<Response<Body>, Status> {
        self.allow(path, "watch")?;
        let options = WatchOptions::parse(path.row, &incoming.query, path.name.as_deref())?;
        let wanted = incoming.wanted(watch_offer(path.row))?;
        let mut frames = Frames::new(path.row, wanted, incoming.include()?);
        let content_type = frames.content_type();
        let events = verbs::watch(self.server.clone(), path.row, &path.namespace, options).await?;
        // What is ready together goes out together: one write for many events.
        let chunks = events.ready_chunks(64).map(move |events| {
            let mut chunk = bytes::BytesMut::new();
            for event in &events {
                let frame = frames
                    .encode(event)
                    .map_err(crate::apiserver::response::BoxError::from)?;
                chunk.extend_from_slice(&frame);
            }
            Ok(http_body::Frame::data(chunk.freeze()))
        });
        Ok(answer(
            200,
            content_type,
            StreamBody::new(chunks).boxed_unsync(),
        ))
    }

    async fn post(
        &self,
        incoming: &Incoming,
        writing: &Writing,
        subresource: Option<&str>,
        body: Bytes,
    ) -> Result<Response<Body>, Status> {
        let row = writing.row;
        if let Some(special) = self.server.special(row, subresource) {
            let wanted = incoming.wanted(ANSWERS)?;
            let (type_name, version, kind) = body_type(row, subresource);
            let (mut value, _) = decode(&incoming.headers, body, &type_name)?;
            fill_kind(&mut value, &version, &kind);
            if let Some(ty) = proto::schema().get(&type_name) {
                proto::prune(ty, &mut value);
            }
            let call = Call {
                user: &writing.user,
                resource: row,
                subresource,
                namespace: &writing.namespace,
                name: &writing.name,
                dry_run: writing.dry_run,
                objects: &*self.server,
            };
            let answer = special.create(&call, value).await?;
            let answer_type = match answer["kind"].as_str() {
                Some("Status") => "io.k8s.apimachinery.pkg.apis.meta.v1.Status".to_owned(),
                _ => type_name,
            };
            let encoded = encode::plain(&answer, &answer_type, wanted.format)?;
            return Ok(respond(incoming, 201, encoded, &[]));
        }
        if subresource.is_some() || !writing.name.is_empty() || !row.verbs.contains(&"create") {
            return Err(not_allowed(&path_of(writing)));
        }
        let (value, duplicates) = decode(&incoming.headers, body, row.type_name)?;
        let written = verbs::create(&self.server, writing, value, duplicates, Vec::new()).await?;
        one(incoming, row, 201, written)
    }

    /// Server-side apply; making an object needs the right to.
    async fn apply(
        &self,
        incoming: &Incoming,
        writing: Writing,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let row = writing.row;
        named_manager(incoming)?;
        let writing = Writing {
            applies: true,
            ..writing
        };
        let there = self
            .server
            .read(row, &writing.namespace, &writing.name)
            .await;
        if there.is_err() {
            let creates = Attributes {
                verb: "create".to_owned(),
                target: Target::Resource {
                    group: row.group.to_owned(),
                    version: row.version.to_owned(),
                    resource: row.plural.to_owned(),
                    subresource: writing.subresource.clone(),
                    namespace: (!writing.namespace.is_empty()).then(|| writing.namespace.clone()),
                    name: Some(writing.name.clone()),
                },
            };
            self.authorize(&incoming.user, &creates).await?;
        }
        let force = incoming.query.flag("force");
        let (written, new) = verbs::apply(&self.server, &writing, body, force).await?;
        one(incoming, row, if new { 201 } else { 200 }, written)
    }

    async fn delete(
        &self,
        incoming: &Incoming,
        writing: &Writing,
        named: bool,
        body: Bytes,
    ) -> Result<Response<Body>, Status> {
        let row = writing.row;
        let verb = if named { "delete" } else { "deletecollection" };
        if !row.verbs.contains(&verb) {
            return Err(not_allowed(&path_of(writing)));
        }
        let options = delete_options(incoming, body)?;
        let dry_run = writing.dry_run
            || options["dryRun"]
                .as_array()
                .is_some_and(|list| list.iter().any(|all| all == "All"));
        let writing = Writing {
            dry_run,
            ..writing.clone()
        };
        if !named {
            let select = ListOptions::parse(row, &incoming.query)?;
            let objects =
                verbs::delete_collection(&self.server, &writing, &options, &select).await?;
            let page = crate::apiserver::response::Page {
                objects,
                revision: self.server.cache.revision(),
                next: String::new(),
                remaining: None,
            };
            let encoded = encode::list(
                row,
                &page,
                incoming.wanted(offer(row))?,
                incoming.include()?,
            )?;
            return Ok(respond(incoming, 200, encoded, &[]));
        }
        let deleted = verbs::delete(&self.server, &writing, &options).await?;
        match deleted {
            Deleted::Gone(object) if !RETURN_DELETED.contains(&row.plural) => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": {"name": &*object.name, "group": row.group, "kind": row.plural, "uid": object.value["metadata"]["uid"]},
                });
                let encoded = encode::plain(
                    &status,
                    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
                    incoming.wanted(OBJECTS)?.format,
                )?;
                Ok(respond(incoming, 200, encoded, &[]))
            }
            deleted => one(
                incoming,
                row,
                200,
                Written {
                    object: deleted.object().clone(),
                    warnings: Vec::new(),
                },
            ),
        }
    }

    async fn subresource(
        &self,
        incoming: &Incoming,
        body: Bytes,
        path: &ResourcePath,
        writing: &Writing,
        name: &str,
    ) -> Result<Response<Body>, Status> {
        let found = path
            .row
            .subresources
            .iter()
            .find(|subresource| match subresource {
                Subresource::Status => name == "status",
                Subresource::Scale(_) => name == "scale",
                Subresource::Special(special) => special.name == name,
            });
        let Some(found) = found else {
            return Err(Status::new(
                Reason::NotFound,
                "the server could not find the requested resource",
            ));
        };
        let server: &ApiServer = &self.server;
        if let Subresource::Scale(paths) = found {
            let scale = match incoming.method {
                Method::GET => verbs::get_scale(server, writing, paths).await?,
                Method::PUT => {
                    let (value, _) =
                        decode(&incoming.headers, body, "io.k8s.api.autoscaling.v1.Scale")?;
                    verbs::update_scale(server, writing, paths, &value).await?
                }
                Method::PATCH => {
                    let kind = PatchType::parse(
                        header_text(&incoming.headers, &header::CONTENT_TYPE).unwrap_or_default(),
                    )?;
                    if kind == PatchType::Apply {
                        named_manager(incoming)?;
                        let writing = Writing {
                            applies: true,
                            ..writing.clone()
                        };
                        let force = incoming.query.flag("force");
                        verbs::apply_scale(server, &writing, paths, &body, force).await?
                    } else {
                        verbs::patch_scale(server, writing, paths, kind, &body).await?
                    }
                }
                _ => return Err(not_allowed(path)),
            };
            let encoded = encode::plain(
                &scale,
                "io.k8s.api.autoscaling.v1.Scale",
                incoming.wanted(OBJECTS)?.format,
            )?;
            return Ok(respond(incoming, 200, encoded, &[]));
        }
        let verb = match incoming.method {
            Method::GET => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            _ => return Err(not_allowed(path)),
        };
        if let Subresource::Special(special) = found
            && !special.verbs.contains(&verb)
        {
            return Err(not_allowed(path));
        }
        let written = match verb {
            "get" => Written {
                object: server
                    .read(path.row, &path.namespace, &writing.name)
                    .await?,
                warnings: Vec::new(),
            },
            "update" => {
                let (value, duplicates) = decode(&incoming.headers, body, path.row.type_name)?;
                verbs::update(server, writing, value, duplicates).await?
            }
            _ => {
                let kind = PatchType::parse(
                    header_text(&incoming.headers, &header::CONTENT_TYPE).unwrap_or_default(),
                )?;
                if kind == PatchType::Apply {
                    return self.apply(incoming, writing.clone(), &body).await;
                }
                verbs::patch(server, writing, kind, &body).await?
            }
        };
        one(incoming, path.row, 200, written)
    }
}

impl Incoming {
    fn wanted(&self, offer: negotiate::Offer) -> Result<negotiate::Wanted, Status> {
        let browser = || {
            let agent = header_text(&self.headers, &header::USER_AGENT).unwrap_or_default();
            ["curl", "Wget", "Mozilla/5.0"]
                .iter()
                .any(|known| agent.starts_with(known))
        };
        let pretty = match self.query.get("pretty") {
            Some(_) => self.query.flag("pretty"),
            None => browser(),
        };
        negotiate::negotiate(header_text(&self.headers, &header::ACCEPT), pretty, offer)
    }

    /// Who owns the fields that this request sets: by parameter, or by the client's name.
    fn manager(&self) -> String {
        let named = self
            .query
            .get("fieldManager")
            .filter(|name| !name.is_empty());
        let agent = header_text(&self.headers, &header::USER_AGENT).unwrap_or_default();
        let name = named.unwrap_or_else(|| agent.split('/').next().unwrap_or_default());
        let name: String = name.chars().take(128).collect();
        if name.is_empty() {
            "unknown".to_owned()
        } else {
            name
        }
    }

    fn include(&self) -> Result<Include, Status> {
        Include::parse(self.query.get("includeObject"))
    }
}

/// Who applies must say in whose name.
fn named_manager(incoming: &Incoming) -> Result<(), Status> {
    if incoming
        .query
        .get("fieldManager")
        .is_some_and(|name| !name.is_empty())
    {
        return Ok(());
    }
    let cause = Cause {
        reason: CauseType::FieldValueRequired,
        message: "Required value: is required for apply patch".to_owned(),
        field: "fieldManager".to_owned(),
    };
    Err(Status::invalid(
        "meta.k8s.io",
        "PatchOptions",
        "",
        vec![cause],
    ))
}

fn offer(row: &Resource) -> negotiate::Offer {
    match row.custom {
        Some(_) => CUSTOM,
        None => OBJECTS,
    }
}

fn watch_offer(row: &Resource) -> negotiate::Offer {
    match row.custom {
        Some(_) => CUSTOM_WATCHES,
        None => WATCHES,
    }
}

fn one(
    incoming: &Incoming,
    row: &'static Resource,
    code: u16,
    written: Written,
) -> Result<Response<Body>, Status> {
    let encoded = encode::object(
        row,
        &written.object,
        incoming.wanted(offer(row))?,
        incoming.include()?,
    )?;
    Ok(respond(incoming, code, encoded, &written.warnings))
}

/// Larger answers are compressed for those who ask.
const COMPRESS_OVER: usize = 128 << 10;

fn respond(
    incoming: &Incoming,
    code: u16,
    encoded: Encoded,
    warnings: &[String],
) -> Response<Body> {
    let gzip = encoded.bytes.len() > COMPRESS_OVER
        && header_text(&incoming.headers, &header::ACCEPT_ENCODING)
            .is_some_and(|accepted| accepted.contains("gzip"));
    let compressed = gzip.then(|| compress(&encoded.bytes)).flatten();
    let response = match compressed {
        Some(bytes) => {
            let mut response = answer(code, encoded.content_type, full(bytes));
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
                .headers_mut()
                .insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            response
        }
        None => answer(code, encoded.content_type, full(encoded.bytes)),
    };
    warned(response, warnings)
}

fn warned(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        let text = format!("299 - {}", serde_json::Value::from(warning.as_str()));
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

async fn read(mut body: Body) -> Result<Bytes, Status> {
    let mut bytes = bytes::BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Status::bad_request(format!("the body could not be read: {error}")))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > MAX_BODY_BYTES {
                let message = format!("the body is over the limit of {MAX_BODY_BYTES} bytes");
                return Err(Status::new(Reason::RequestEntityTooLarge, message));
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes.freeze())
}

/// A body as JSON, and the fields that stood twice in it.
fn decode(
    headers: &http::HeaderMap,
    body: Bytes,
    type_name: &str,
) -> Result<(Value, Vec<String>), Status> {
    let content_type = header_text(headers, &header::CONTENT_TYPE).unwrap_or("application/json");
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => proto::parse_json(&body)
            .map_err(|error| Status::bad_request(format!("the body is not JSON: {error}"))),
        "application/yaml" => {
            let text = std::str::from_utf8(&body)
                .map_err(|_| Status::bad_request("the body is not UTF-8"))?;
            let value = serde_saphyr::from_str(text)
                .map_err(|error| Status::bad_request(format!("the body is not YAML: {error}")))?;
            Ok((value, Vec::new()))
        }
        "application/vnd.kubernetes.protobuf" => {
            let bad = |error: proto::Error| Status::bad_request(error.to_string());
            let envelope = proto::unwrap_envelope(&body).map_err(bad)?;
            let ty = proto::schema().get(type_name).ok_or_else(|| {
                Status::new(
                    Reason::UnsupportedMediaType,
                    format!("{type_name} has no protobuf form"),
                )
            })?;
            let mut value = proto::decode(ty, envelope.raw).map_err(bad)?;
            fill_kind(&mut value, &envelope.api_version, &envelope.kind);
            Ok((value, Vec::new()))
        }
        other => Err(Status::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format {other:?} - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
            ),
        )),
    }
}

fn fill_kind(value: &mut Value, api_version: &str, kind: &str) {
    if let Some(map) = value.as_object_mut() {
        for (name, text) in [("apiVersion", api_version), ("kind", kind)] {
            let missing = map
                .get(name)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty);
            if missing && !text.is_empty() {
                map.insert(name.to_owned(), json!(text));
            }
        }
    }
}

/// The schema's type, version and kind of what is posted to an endpoint with a handler of its own.
fn body_type(row: &Resource, subresource: Option<&str>) -> (String, String, String) {
    let special = row.subresources.iter().find_map(|known| match known {
        Subresource::Special(special) if Some(special.name) == subresource => Some(special),
        _ => None,
    });
    let Some(special) = special else {
        return (
            row.type_name.to_owned(),
            api_version(row),
            row.kind.to_owned(),
        );
    };
    let group = if special.group.is_empty() {
        row.group
    } else {
        special.group
    };
    let version = if special.version.is_empty() {
        row.version
    } else {
        special.version
    };
    let package = match group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    let full = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    (
        format!("io.k8s.api.{package}.{version}.{}", special.kind),
        full,
        special.kind.to_owned(),
    )
}

/// DeleteOptions of the body, or of the query.
fn delete_options(incoming: &Incoming, body: Bytes) -> Result<Value, Status> {
    let mut options = match body.is_empty() {
        true => json!({}),
        false => {
            decode(
                &incoming.headers,
                body,
                "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
            )?
            .0
        }
    };
    if let Some(seconds) = incoming.query.number::<i64>("gracePeriodSeconds")? {
        options["gracePeriodSeconds"] = json!(seconds);
    }
    if let Some(policy) = incoming
        .query
        .get("propagationPolicy")
        .filter(|policy| !policy.is_empty())
    {
        options["propagationPolicy"] = json!(policy);
    }
    if incoming.query.get("orphanDependents").is_some() {
        options["orphanDependents"] = json!(incoming.query.flag("orphanDependents"));
    }
    Ok(options)
}

fn path_of(writing: &Writing) -> ResourcePath {
    ResourcePath {
        row: writing.row,
        namespace: writing.namespace.clone(),
        name: None,
        subresource: writing.subresource.clone(),
        rest: String::new(),
        watch: false,
    }
}

/// JSON for those who did not say: used by documents too.
pub(super) const JSON: Format = Format::Json { pretty: false };
