//! Requests for resources: from method and path to a verb, from its answer to bytes.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, header};
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use super::{
    Body, Frontend, Incoming, ResourcePath, answer,
    asked::{Operation, Passed},
    body::{Read, body_type, decode, delete_options, fill_kind, read},
    components, connect, header_text, not_allowed,
    reply::{cut, in_pieces, offer, one, respond, warned, watch_offer},
};
use crate::apiserver::{
    admission,
    cache::LARGE,
    encode::{self, Frames},
    negotiate::{ANSWERS, Format, OBJECTS},
    patch::PatchType,
    query::{self, FieldValidation, agent_manager},
    registry::{Resource, Subresource},
    request::{Attributes, Target},
    selector::Selection,
    server::ApiServer,
    special::Call,
    status::{CauseType, Reason, Status},
    streaming::Forward,
    verbs::{self, Deleted, ListOptions, Missing, WatchOptions},
    write::{Writing, Written},
};

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

/// Told to who deletes a Job without a word about its pods.
const JOB_ORPHANS: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning";

/// A request whose document takes more memory than this, or reads larger objects, is heavy.
const HEAVY_BYTES: usize = 256 << 10;
/// About what an object of a list costs.
const LISTED_BYTES: usize = 512;
/// Larger lists go out in pieces.
const LARGE_LIST: usize = 1 << 20;

impl Frontend {
    /// Hands a connection to whoever is at its other end.
    pub(super) async fn connect(
        self: &Arc<Self>,
        incoming: Incoming,
        body: Body,
        path: ResourcePath,
        passed: Passed,
    ) -> Result<Response<Body>, Status> {
        let warnings = self.admit_connection(&incoming, &path).await?;
        let forward = Forward {
            row: path.row,
            namespace: path.namespace,
            name: path.name.unwrap_or_default(),
            subresource: path.subresource.unwrap_or_default(),
            path: passed.path,
            rest: path.rest,
            method: passed.method,
            headers: incoming.headers,
            options: incoming.query,
            query: passed.query,
            body,
            upgrade: incoming.upgrade.filter(|_| passed.upgrades),
        };
        let response = self.proxy.forward(&self.server, forward).await?;
        Ok(warned(response, &warnings))
    }

    pub(super) async fn resource(
        self: &Arc<Self>,
        incoming: Incoming,
        body: Body,
        path: ResourcePath,
        operation: Operation,
    ) -> Result<Response<Body>, Status> {
        let body = match operation {
            Operation::Get | Operation::List(_) | Operation::Watch(_) => Read::default(),
            _ => read(body, &self.limits, &incoming.who).await?,
        };
        let heavy = self.is_heavy(&incoming, (&path, &operation), &body.bytes)?;
        let who = incoming.who.clone();
        let this = self.clone();
        let work = async move { this.carry_out(incoming, body, path, operation).await };
        match heavy {
            true => self.limits.lane().run(&who, work).await,
            false => work.await,
        }
    }

    /// Whether a request takes long enough to hold up those that are answered on the same thread: by
    /// what it sends, by the object it changes, or by how much it reads.
    fn is_heavy(
        &self,
        incoming: &Incoming,
        (path, operation): (&ResourcePath, &Operation),
        body: &[u8],
    ) -> Result<bool, Status> {
        let content_type = header_text(&incoming.headers, &header::CONTENT_TYPE);
        let weight = match content_type {
            _ if body.len() < HEAVY_BYTES / 64 => 0,
            Some(kind) if kind.contains("json") || kind.contains("apply-patch") => {
                proto::json_weight(body)
            }
            None => proto::json_weight(body),
            Some(_) => 16 * body.len(),
        };
        if weight > proto::MAX_WEIGHT {
            return Err(Status::too_heavy());
        }
        let kind = self.server.cache.kind(path.row.storage);
        let reads = match (operation, &path.name) {
            (Operation::Create, _) => 0,
            (_, Some(name)) => {
                let key = crate::apiserver::cache::key(path.row.storage, &path.namespace, name);
                kind.get(&key).map_or(0, |object| object.size)
            }
            // Each object is looked at, whatever is selected.
            (_, None) => kind.count() * LISTED_BYTES,
        };
        Ok(weight > HEAVY_BYTES || reads > HEAVY_BYTES)
    }

    async fn carry_out(
        self: &Arc<Self>,
        incoming: Incoming,
        body: Read,
        path: ResourcePath,
        operation: Operation,
    ) -> Result<Response<Body>, Status> {
        let query = &incoming.query;
        let options = operation.options();
        let writing = Writing {
            user: incoming.user.clone(),
            row: path.row,
            subresource: path.subresource.clone(),
            namespace: path.namespace.clone(),
            name: path.name.clone().unwrap_or_default(),
            dry_run: query.dry_run(options)?,
            validation: query.field_validation(options)?,
            manager: match query.field_manager(options)? {
                Some(name) => name.to_owned(),
                None => incoming.agent(),
            },
            applies: false,
            exempt: false,
            guards: Vec::new(),
        };
        let Read { bytes: body, .. } = &body;
        let body = body.clone();
        match (operation, path.subresource.as_deref()) {
            (Operation::Watch(selection), _) => self.watch(&incoming, &path, selection).await,
            (Operation::List(selection), _) => self.list(&incoming, &path, selection).await,
            (Operation::Create, subresource) => {
                self.post(&incoming, &writing, subresource, body).await
            }
            (Operation::DeleteCollection(selection), _) => {
                self.delete_collection(&incoming, &writing, selection, body)
                    .await
            }
            (operation, Some(subresource)) => {
                let what = (operation, subresource);
                self.subresource(&incoming, body, &path, &writing, what)
                    .await
            }
            (Operation::Get, None) => self.get(&incoming, &path).await,
            (Operation::Delete, None) => self.delete(&incoming, &writing, body).await,
            (Operation::Update, None) => {
                self.allow(&path, "update")?;
                let (value, complaints) = decode(&incoming.headers, body, path.row.type_name)?;
                let missing = match path.row.behaviour.create_on_update {
                    true => self.missing(&incoming, &writing).await?,
                    false => Missing::Refuse,
                };
                let written =
                    verbs::update(&self.server, &writing, value, complaints, missing).await?;
                one(&incoming, path.row, 200, written)
            }
            (Operation::Patch, None) => {
                self.allow(&path, "patch")?;
                let kind = kind_of_patch(&incoming, path.row)?;
                if kind == PatchType::Apply {
                    return self.apply(&incoming, writing, &body).await;
                }
                not_forced(&incoming)?;
                one(
                    &incoming,
                    path.row,
                    200,
                    verbs::patch(&self.server, &writing, kind, &body).await?,
                )
            }
        }
    }

    /// Reading a log is no connection; all else that is passed on is, and goes past admission.
    async fn admit_connection(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
    ) -> Result<Vec<String>, Status> {
        let Some(mut options) = connect::options(path, &incoming.query) else {
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
            exempt: false,
            guards: Vec::new(),
        };
        self.server
            .admit_special(&writing, admission::Operation::Connect, &mut options)
            .await
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
        if components::is_one(path.row) {
            let page = components::list(path.row, &self.parts.look().await)?;
            let mut all = page.objects.into_iter();
            let object = all.find(|object| &*object.name == name);
            let row = path.row;
            let object = object.ok_or_else(|| Status::not_found(row.group, row.plural, name))?;
            let warnings = vec![components::DEPRECATED.to_owned()];
            return one(incoming, row, 200, Written { object, warnings });
        }
        let object = self.server.read(path.row, &path.namespace, name).await?;
        let wanted = incoming.wanted(offer(path.row))?;
        if object.is_large() && encode::is_plain_json(wanted) {
            // One copy for all who read it at the same time.
            let end = std::iter::once(Bytes::from_static(b"\n"));
            let pieces = object.json_form().pieces(true, wanted.owners);
            let pieces = pieces.into_iter().flat_map(|piece| cut(piece, None));
            let pieces = pieces.chain(end);
            return Ok(in_pieces(incoming, wanted.format.content_type(), pieces));
        }
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
        selection: Selection,
    ) -> Result<Response<Body>, Status> {
        self.allow(path, "list")?;
        let options = ListOptions::parse(path.row, selection, &incoming.query)?;
        let wanted = incoming.wanted(offer(path.row))?;
        if components::is_one(path.row) {
            let mut page = components::list(path.row, &self.parts.look().await)?;
            page.objects
                .retain(|object| options.selector.matches(path.row, object));
            let encoded = encode::list(path.row, &page, wanted, incoming.include()?)?;
            let warnings = [components::DEPRECATED.to_owned()];
            return Ok(respond(incoming, 200, encoded, &warnings));
        }
        let page = verbs::list(&self.server, path.row, &path.namespace, &options).await?;
        let include = incoming.include()?;
        let size: usize = page.objects.iter().map(|object| object.size).sum();
        if size < LARGE_LIST {
            let encoded = encode::list(path.row, &page, wanted, include)?;
            return Ok(respond(incoming, 200, encoded, &[]));
        }
        let content_type = wanted.format.content_type();
        match encode::pieces(path.row, page, wanted, include) {
            Ok(pieces) => Ok(in_pieces(incoming, content_type, pieces)),
            Err(page) => {
                // Counted before it is made, and until it has gone out.
                let memory = self.limits.memory(&incoming.who, size).await?;
                let encoded = encode::list(path.row, &page, wanted, include)?;
                drop(page);
                let pieces = cut(encoded.bytes, memory);
                Ok(in_pieces(incoming, content_type, pieces))
            }
        }
    }

    async fn watch(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
        selection: Selection,
    ) -> Result<Response<Body>, Status> {
        self.allow(path, "watch")?;
        let name = path.name.as_deref();
        let options = WatchOptions::parse(path.row, selection, &incoming.query, name)?;
        let wanted = incoming.wanted(watch_offer(path.row))?;
        let mut frames = Frames::new(path.row, wanted, incoming.include()?);
        let content_type = frames.content_type();
        let events = verbs::watch(self.server.clone(), path.row, &path.namespace, options).await?;
        // What is ready together goes out together, as far as it is small.
        let chunks = async_stream::stream! {
            let mut batches = std::pin::pin!(events.ready_chunks(64));
            let mut chunk = bytes::BytesMut::new();
            while let Some(events) = batches.next().await {
                for event in events {
                    let parts = match frames.parts(&event) {
                        Ok(parts) => parts,
                        Err(status) => {
                            yield Err(crate::apiserver::response::BoxError::from(status));
                            return;
                        }
                    };
                    for part in parts {
                        if chunk.len() + part.len() > LARGE && !chunk.is_empty() {
                            yield Ok(http_body::Frame::data(chunk.split().freeze()));
                        }
                        if part.len() > LARGE {
                            yield Ok(http_body::Frame::data(part));
                        } else {
                            chunk.extend_from_slice(&part);
                        }
                    }
                }
                if !chunk.is_empty() {
                    yield Ok(http_body::Frame::data(chunk.split().freeze()));
                }
            }
        };
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
            let warnings = match is_review(row) {
                true => Vec::new(),
                false => {
                    let server = &self.server;
                    let admitted =
                        server.admit_special(writing, admission::Operation::Create, &mut value);
                    admitted.await?
                }
            };
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
            return Ok(respond(incoming, 201, encoded, &warnings));
        }
        if subresource.is_some() || !writing.name.is_empty() || !row.verbs.contains(&"create") {
            return Err(not_allowed(&path_of(writing)));
        }
        let (value, complaints) = decode(&incoming.headers, body, row.type_name)?;
        let written = verbs::create(&self.server, writing, value, complaints, Vec::new()).await?;
        one(incoming, row, 201, written)
    }

    /// Whether a write to what is not there may make it: only with the right to create.
    async fn missing(&self, incoming: &Incoming, writing: &Writing) -> Result<Missing, Status> {
        let row = writing.row;
        let there = self.server.read(row, &writing.namespace, &writing.name);
        if there.await.is_ok() {
            return Ok(Missing::Refuse);
        }
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
            fields: Vec::new(),
        };
        self.authorize(&incoming.user, &creates).await?;
        Ok(Missing::Create)
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
        let missing = self.missing(incoming, &writing).await?;
        let force = incoming.query.flag("force");
        let (written, new) = verbs::apply(&self.server, &writing, body, force, missing).await?;
        one(incoming, row, if new { 201 } else { 200 }, written)
    }

    /// What a deletion is told to do, and the write that it is.
    fn deletion(
        &self,
        incoming: &Incoming,
        writing: &Writing,
        verb: &str,
        body: Bytes,
    ) -> Result<(Writing, Value), Status> {
        if !writing.row.verbs.contains(&verb) {
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
        Ok((writing, options))
    }

    async fn delete_collection(
        &self,
        incoming: &Incoming,
        writing: &Writing,
        selection: Selection,
        body: Bytes,
    ) -> Result<Response<Body>, Status> {
        let row = writing.row;
        let (writing, options) = self.deletion(incoming, writing, "deletecollection", body)?;
        let select = ListOptions::parse(row, selection, &incoming.query)?;
        let objects = verbs::delete_collection(&self.server, &writing, &options, &select).await?;
        let page = crate::apiserver::response::Page {
            objects,
            revision: self.server.cache.revision(),
            next: String::new(),
            remaining: None,
        };
        let wanted = incoming.wanted(offer(row))?;
        let encoded = encode::list(row, &page, wanted, incoming.include()?)?;
        Ok(respond(incoming, 200, encoded, &[]))
    }

    async fn delete(
        &self,
        incoming: &Incoming,
        writing: &Writing,
        body: Bytes,
    ) -> Result<Response<Body>, Status> {
        let row = writing.row;
        let (writing, options) = self.deletion(incoming, writing, "delete", body)?;
        let deleted = verbs::delete(&self.server, &writing, &options).await?;
        let says = |name: &str| options.get(name).is_some_and(|value| !value.is_null());
        let unsaid = !says("propagationPolicy") && !says("orphanDependents");
        let warnings = match row.plural {
            "jobs" if unsaid => vec![JOB_ORPHANS.to_owned()],
            _ => Vec::new(),
        };
        match deleted {
            Deleted::Gone(object) if !RETURN_DELETED.contains(&row.plural) => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": {"name": &*object.name, "group": row.group, "kind": row.plural, "uid": object.value()["metadata"]["uid"]},
                });
                let encoded = encode::plain(
                    &status,
                    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
                    incoming.wanted(OBJECTS)?.format,
                )?;
                Ok(respond(incoming, 200, encoded, &warnings))
            }
            deleted => one(
                incoming,
                row,
                200,
                Written {
                    object: deleted.object().clone(),
                    warnings,
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
        (operation, name): (Operation, &str),
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
            let scale = match operation {
                Operation::Get => verbs::get_scale(server, writing, paths).await?,
                Operation::Update => {
                    let (value, _) =
                        decode(&incoming.headers, body, "io.k8s.api.autoscaling.v1.Scale")?;
                    verbs::update_scale(server, writing, paths, &value).await?
                }
                Operation::Patch => {
                    let kind = kind_of_patch(incoming, path.row)?;
                    if kind == PatchType::Apply {
                        named_manager(incoming)?;
                        let writing = Writing {
                            applies: true,
                            ..writing.clone()
                        };
                        let force = incoming.query.flag("force");
                        verbs::apply_scale(server, &writing, paths, &body, force).await?
                    } else {
                        not_forced(incoming)?;
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
        let verb = match operation {
            Operation::Get => "get",
            Operation::Update => "update",
            Operation::Patch => "patch",
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
                let (value, complaints) = decode(&incoming.headers, body, path.row.type_name)?;
                verbs::update(server, writing, value, complaints, Missing::Refuse).await?
            }
            _ => {
                let kind = kind_of_patch(incoming, path.row)?;
                if kind == PatchType::Apply {
                    return self.apply(incoming, writing.clone(), &body).await;
                }
                not_forced(incoming)?;
                verbs::patch(server, writing, kind, &body).await?
            }
        };
        one(incoming, path.row, 200, written)
    }
}

impl Incoming {
    /// Who owns the fields that this request sets, where it does not say.
    fn agent(&self) -> String {
        match (
            self.component,
            header_text(&self.headers, &header::USER_AGENT),
        ) {
            (Some(component), _) => component.to_owned(),
            (None, agent) => agent_manager(agent.unwrap_or_default()),
        }
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
    let message = "Required value: is required for apply patch".to_owned();
    let reason = CauseType::FieldValueRequired;
    Err(query::invalid(
        "PatchOptions",
        "fieldManager",
        reason,
        message,
    ))
}

/// By the Content-Type.
fn kind_of_patch(incoming: &Incoming, row: &Resource) -> Result<PatchType, Status> {
    let header = header_text(&incoming.headers, &header::CONTENT_TYPE);
    PatchType::parse(header.unwrap_or_default(), row.custom.is_some())
}

/// Only who applies may force.
fn not_forced(incoming: &Incoming) -> Result<(), Status> {
    if incoming.query.get("force").is_none() {
        return Ok(());
    }
    let message = "Forbidden: may not be specified for non-apply patch".to_owned();
    let reason = CauseType::FieldValueForbidden;
    Err(query::invalid("PatchOptions", "force", reason, message))
}

/// Questions about rights and identities change nothing, so there is nothing to admit.
fn is_review(row: &Resource) -> bool {
    matches!(row.group, "authentication.k8s.io" | "authorization.k8s.io")
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
