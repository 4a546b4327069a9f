//! Requests for resources: from method and path to a verb, from its answer to bytes.

mod deletes;
mod reads;
mod subresources;

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, header};

use super::{
    Body, Frontend, Incoming, ResourcePath,
    asked::{Operation, Passed},
    body::{Read, body_type, decode, fill_kind, read},
    connect, header_text, not_allowed,
    reply::{one, respond, warned},
};
use crate::apiserver::{
    admission, encode,
    negotiate::{ANSWERS, Format},
    patch::PatchType,
    query::{self, FieldValidation, agent_manager},
    registry::Resource,
    request::{Attributes, Target},
    special::Call,
    status::{CauseType, Reason, Status},
    streaming::Forward,
    verbs::{self, Missing},
    write::Writing,
};

/// A request whose document takes more memory than this, or reads larger objects, is heavy.
const HEAVY_BYTES: usize = 256 << 10;
/// About what an object of a list costs.
const LISTED_BYTES: usize = 512;

/// How often a write looks again that finds gone what was there.
const MEANWHILE: usize = 16;

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
                let creates = path.row.behaviour.create_on_update;
                let mut tries = 0..MEANWHILE;
                loop {
                    let missing = match creates {
                        true => self.missing(&incoming, &writing).await?,
                        false => Missing::Refuse,
                    };
                    let (value, complaints) = (value.clone(), complaints.clone());
                    let written =
                        verbs::update(&self.server, &writing, value, complaints, missing).await;
                    if creates && has_gone(missing, &written) && tries.next().is_some() {
                        continue;
                    }
                    return one(&incoming, path.row, 200, written?);
                }
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
        let force = incoming.query.flag("force");
        let mut tries = 0..MEANWHILE;
        loop {
            let missing = self.missing(incoming, &writing).await?;
            let applied = verbs::apply(&self.server, &writing, body, force, missing).await;
            if has_gone(missing, &applied) && tries.next().is_some() {
                continue;
            }
            let (written, new) = applied?;
            return one(incoming, row, if new { 201 } else { 200 }, written);
        }
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

/// Whether what was there has gone meanwhile: it is decided anew whether the write may make it.
fn has_gone<T>(missing: Missing, written: &Result<T, Status>) -> bool {
    let gone = |status: &Status| status.reason == Reason::NotFound;
    missing == Missing::Refuse && written.as_ref().is_err_and(gone)
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
