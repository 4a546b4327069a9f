//! The path of every write: decoded, pruned, defaulted, admitted, validated, committed.

use std::{collections::HashSet, sync::Arc};

use serde_json::{Value, json};

use super::{
    admission::{self, Operation, Round},
    cache::{self, Object},
    metadata,
    patch::managed::{self, Manager},
    query::FieldValidation,
    registry::{Causes, Resource, custom::schema},
    request::User,
    server::ApiServer,
    status::{Reason, Status},
};
use crate::store::{self, Durability, Expect, Op, Space, Write};

/// Who writes what, and how careful they want it.
#[derive(Clone, Debug)]
pub struct Writing {
    pub user: User,
    pub row: &'static Resource,
    pub subresource: Option<String>,
    /// Empty for cluster scope.
    pub namespace: String,
    pub name: String,
    pub dry_run: bool,
    pub validation: FieldValidation,
    /// In whose name fields are owned.
    pub manager: String,
    /// A server-side apply, which says itself who owns what.
    pub applies: bool,
}

/// A write that went through.
#[derive(Debug)]
pub struct Written {
    pub object: Arc<Object>,
    pub warnings: Vec<String>,
}

impl Writing {
    pub fn key(&self, name: &str) -> Arc<str> {
        cache::key(self.row.storage, &self.namespace, name)
    }

    /// Namespace and name.
    pub fn address(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    pub fn not_found(&self) -> Status {
        Status::not_found(self.row.group, self.row.plural, &self.name)
    }

    pub fn type_of(&self) -> Result<&'static proto::Type, Status> {
        type_of(self.row)
    }

    /// Takes away what the schema does not know; says so as loudly as asked.
    pub fn prune(
        &self,
        object: &mut Value,
        duplicates: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let unknown = fit(self.row, object)?;
        let complaints: Vec<String> = unknown
            .iter()
            .map(|path| format!("unknown field {path:?}"))
            .chain(
                duplicates
                    .iter()
                    .map(|path| format!("duplicate field {path:?}")),
            )
            .collect();
        match self.validation {
            FieldValidation::Strict if !complaints.is_empty() => Err(Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                self.row.kind,
                self.row.version,
                self.row.kind,
                complaints.join(", ")
            ))),
            FieldValidation::Warn => {
                warnings.extend(complaints);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn type_of(row: &Resource) -> Result<&'static proto::Type, Status> {
    proto::schema()
        .get(row.type_name)
        .ok_or_else(|| Status::internal(format!("no schema for {}", row.type_name)))
}

/// Makes an object fit its schema: what is of a wrong type is an error, what is unknown is taken
/// away and told.
pub fn fit(row: &Resource, object: &mut Value) -> Result<Vec<String>, Status> {
    bounded(row, object)?;
    let (ty, mut unknown) = match row.custom {
        // Of a custom resource only the metadata has a type; the schema knows the rest.
        Some(custom) => (None, schema::prune(&custom.schema, object)),
        None => (Some(type_of(row)?), Vec::new()),
    };
    let holder = proto::schema()
        .get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
        .ok_or_else(|| Status::internal("no schema for metadata"))?;
    let first = match ty {
        Some(ty) => proto::type_errors(ty, object).into_iter().next(),
        None if object["metadata"].is_null() => None,
        None => proto::type_errors(holder, &object["metadata"])
            .into_iter()
            .next(),
    };
    if let Some(error) = first {
        let what = format!(
            "{} in version {:?} cannot be handled as a {}: {error}",
            row.kind, row.version, row.kind
        );
        return Err(Status::bad_request(what));
    }
    match ty {
        Some(ty) => {
            unknown = proto::prune(ty, object);
            proto::normalize(ty, object);
        }
        None => {
            let metadata = &mut object["metadata"];
            let more = proto::prune(holder, metadata);
            unknown.extend(more.into_iter().map(|path| format!("metadata.{path}")));
            proto::normalize(holder, metadata);
        }
    }
    Ok(unknown)
}

/// Items of all lists of one object. Each gets defaults of its own, so that ever so many small ones
/// would become a huge object.
const MAX_ITEMS: usize = 20_000;

/// What could never be stored is refused before anything is made of it.
fn bounded(row: &Resource, object: &Value) -> Result<(), Status> {
    if proto::weight(object) > proto::MAX_WEIGHT {
        return Err(Status::too_heavy());
    }
    // The defaults of a custom resource are counted when they are made.
    let count = match row.custom {
        Some(_) => 0,
        None => proto::count_items(object),
    };
    if count <= MAX_ITEMS {
        return Ok(());
    }
    let mut causes = Causes::default();
    causes.too_many("", count, MAX_ITEMS);
    let name = metadata::text(object, "name");
    Err(Status::invalid(row.group, row.kind, name, causes.0))
}

/// The body must be of the endpoint's kind; what it leaves out is filled in.
pub fn check_kind(row: &Resource, object: &mut Value) -> Result<(), Status> {
    let version = api_version(row);
    let Some(map) = object.as_object_mut() else {
        return Err(Status::bad_request("the body is not an object"));
    };
    for (field, want) in [("apiVersion", version.as_str()), ("kind", row.kind)] {
        match map.get(field).and_then(Value::as_str) {
            None | Some("") => {
                map.insert(field.to_owned(), json!(want));
            }
            Some(given) if given == want => {}
            Some(given) => {
                let what = format!(
                    "the {field} in the data ({given}) does not match the expected {field} ({want})"
                );
                return Err(Status::bad_request(what));
            }
        }
    }
    Ok(())
}

pub fn api_version(row: &Resource) -> String {
    match row.group {
        "" => row.version.to_owned(),
        group => format!("{group}/{}", row.version),
    }
}

impl ApiServer {
    /// Stores a new object. `object` is decoded and pruned.
    pub async fn write_new(
        &self,
        writing: &Writing,
        mut object: Value,
        mut warnings: Vec<String>,
    ) -> Result<Written, Status> {
        let row = writing.row;
        let owners = object["metadata"]["managedFields"].take();
        metadata::prepare_create(row, &writing.namespace, &mut object)?;
        if writing.applies {
            metadata::of(&mut object).insert("managedFields".to_owned(), owners);
        }
        row.prepare_create(&mut object);
        row.default_values(&mut object)?;
        let name = metadata::text(&object, "name").to_owned();
        self.admit(
            writing,
            Operation::Create,
            &name,
            &mut object,
            None,
            &mut warnings,
        )
        .await?;
        row.default_values(&mut object)?;
        let checked = async {
            let mut causes = Causes::default();
            metadata::validate(row, &object, &mut causes);
            row.validate(&object, &mut causes);
            self.refuse(writing, &name, causes)?;
            self.admit_last(
                writing,
                Operation::Create,
                &name,
                Some(&object),
                None,
                &mut warnings,
            )
            .await
        };
        let committed = match checked.await {
            Ok(()) if writing.dry_run => Ok(0),
            Ok(()) => {
                self.commit(writing, writing.key(&name), Expect::Absent, &object)
                    .await
            }
            Err(status) => Err(status),
        };
        let revision = match committed {
            Ok(revision) => revision,
            Err(status) => {
                self.release(writing, &object).await;
                return Err(match status.reason {
                    Reason::Conflict => Status::already_exists(row.group, row.plural, &name),
                    _ => status,
                });
            }
        };
        if writing.dry_run {
            self.release(writing, &object).await;
        } else {
            for plugin in self.plugins() {
                plugin.created(row, &object).await;
            }
        }
        self.written(writing, &name, object, revision, warnings)
    }

    /// Stores a changed object over `old`. The caller has merged and kept what it must.
    pub async fn write_changed(
        &self,
        writing: &Writing,
        mut object: Value,
        old: &Arc<Object>,
        mut warnings: Vec<String>,
    ) -> Result<Written, Status> {
        let was = old.value();
        let row = writing.row;
        let name = &writing.name;
        row.default_values(&mut object)?;
        self.admit(
            writing,
            Operation::Update,
            name,
            &mut object,
            Some(&was),
            &mut warnings,
        )
        .await?;
        row.default_values(&mut object)?;
        let mut causes = Causes::default();
        metadata::validate(row, &object, &mut causes);
        added_finalizers(&object, &was, &mut causes);
        row.validate(&object, &mut causes);
        match writing.subresource.as_deref() {
            None => (row.behaviour.validate_update)(&object, &was, &mut causes),
            Some(part) => {
                (row.behaviour.validate_subresource)(part, &object, &was, &mut causes);
            }
        }
        self.refuse(writing, name, causes)?;
        if row.behaviour.generation && spec_differs(&object, &was) {
            let generation = was["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            metadata::of(&mut object).insert("generation".to_owned(), json!(generation));
        }
        if !writing.applies {
            let manager = Manager {
                name: &writing.manager,
                subresource: writing.subresource.as_deref().unwrap_or_default(),
                now: &metadata::now(),
            };
            managed::updated(row, &was, &mut object, manager);
        }
        self.admit_last(
            writing,
            Operation::Update,
            name,
            Some(&object),
            Some(&was),
            &mut warnings,
        )
        .await?;
        self.store_changed(writing, object, old, warnings).await
    }

    /// Commits a change that is past all checks; the generation is the caller's. One that changes nothing keeps its revision; the
    /// last finalizer gone from a terminating object removes it.
    pub async fn store_changed(
        &self,
        writing: &Writing,
        mut object: Value,
        old: &Arc<Object>,
        warnings: Vec<String>,
    ) -> Result<Written, Status> {
        let was = old.value();
        let row = writing.row;
        metadata::of(&mut object).insert(
            "resourceVersion".to_owned(),
            json!(old.revision.to_string()),
        );
        if object == *was {
            return Ok(Written {
                object: old.clone(),
                warnings,
            });
        }
        if writing.dry_run {
            return self.written(writing, &writing.name, object, old.revision, warnings);
        }
        let expect = Expect::ModRevision(old.revision);
        if is_finished(row, &object) {
            let revision = self
                .commit_delete(row, writing.key(&writing.name), expect)
                .await?;
            self.release(writing, &object).await;
            return self.written(writing, &writing.name, object, revision, warnings);
        }
        let revision = self
            .commit(writing, writing.key(&writing.name), expect, &object)
            .await?;
        for plugin in self.plugins() {
            plugin.replaced(row, &was, &object).await;
        }
        self.written(writing, &writing.name, object, revision, warnings)
    }

    /// Writes the bytes. A conflict is 409.
    pub async fn commit(
        &self,
        writing: &Writing,
        key: Arc<str>,
        expect: Expect,
        object: &Value,
    ) -> Result<u64, Status> {
        let row = writing.row;
        let mut stored = object.clone();
        metadata::of(&mut stored).remove("resourceVersion");
        if let Some(convert) = row.convert {
            (convert.to_stored)(&mut stored);
        }
        if let Some(custom) = row.custom {
            stored = custom.to_stored(self, stored).await?;
        }
        let value = serde_json::to_vec(&stored).map_err(Status::internal)?;
        // Kept for as long as the object is: without the room that the vector had to grow.
        let value = value.into_boxed_slice().into();
        let ttl = (row.storage == "events").then_some(EVENT_TTL);
        self.put(
            row,
            Write {
                key,
                expect,
                op: Op::Put { value, ttl },
                durability: durability(row),
                space: space(writing, object),
            },
        )
        .await
    }

    pub async fn commit_delete(
        &self,
        row: &Resource,
        key: Arc<str>,
        expect: Expect,
    ) -> Result<u64, Status> {
        self.put(
            row,
            Write {
                key,
                expect,
                op: Op::Delete,
                durability: durability(row),
                space: Space::Reserved,
            },
        )
        .await
    }

    async fn put(&self, row: &Resource, write: Write) -> Result<u64, Status> {
        let name = write.key.rsplit('/').next().unwrap_or_default().to_owned();
        match self.cache.store().commit(write).await {
            Ok(committed) => {
                self.cache.reached(committed.revision).await;
                Ok(committed.revision)
            }
            Err(store::Error::Conflict { .. }) => Err(Status::conflict(
                row.group,
                row.plural,
                &name,
                "the object has been modified; please apply your changes to the latest version and try again",
            )),
            Err(store::Error::TooLarge { .. }) => Err(Status::not_stored()),
            Err(store::Error::NoSpace) => Err(Status::new(
                Reason::Unknown,
                "etcdserver: mvcc: database space exceeded",
            )),
            Err(store::Error::ReadOnly { reason }) => Err(Status::new(
                Reason::ServiceUnavailable,
                format!("the store takes no writes: {reason}"),
            )),
            Err(error) => Err(Status::internal(error)),
        }
    }

    fn written(
        &self,
        writing: &Writing,
        name: &str,
        mut object: Value,
        revision: u64,
        warnings: Vec<String>,
    ) -> Result<Written, Status> {
        let key = writing.key(name);
        let rest = match writing.namespace.as_str() {
            "" => name.to_owned(),
            namespace => format!("{namespace}/{name}"),
        };
        metadata::of(&mut object).remove("resourceVersion");
        let bytes = serde_json::to_vec(&object).map_err(Status::internal)?;
        let mut made = Object::new(key, &rest, &bytes, revision).map_err(Status::internal)?;
        if revision == 0 {
            let mut value = (*made.value()).clone();
            metadata::of(&mut value).remove("resourceVersion");
            made = made.converted(value);
        }
        Ok(Written {
            object: Arc::new(made),
            warnings,
        })
    }

    fn refuse(&self, writing: &Writing, name: &str, causes: Causes) -> Result<(), Status> {
        match causes.0.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid(
                writing.row.group,
                writing.row.kind,
                name,
                causes.0,
            )),
        }
    }

    async fn admit(
        &self,
        writing: &Writing,
        operation: Operation,
        name: &str,
        object: &mut Value,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let plugins = self.plugins();
        let mut round = Round::default();
        let mut next = 0;
        while let Some(plugin) = plugins.get(next) {
            let mut request = request(writing, operation, name, old, warnings, &mut round);
            plugin.mutate(&mut request, object, self).await?;
            next = match std::mem::take(&mut round.again) {
                true => 0,
                false => next + 1,
            };
        }
        Ok(())
    }

    /// Lets the plugins see what is not an object of its own in the store: a connection to a part of
    /// one (`body` says how it is to be), a binding, an eviction, a request for a token. Answers with
    /// warnings.
    pub async fn admit_special(
        &self,
        writing: &Writing,
        operation: Operation,
        body: &mut Value,
    ) -> Result<Vec<String>, Status> {
        let mut warnings = Vec::new();
        let name = writing.name.as_str();
        self.admit(writing, operation, name, body, None, &mut warnings)
            .await?;
        self.admit_last(writing, operation, name, Some(body), None, &mut warnings)
            .await?;
        Ok(warnings)
    }

    pub async fn admit_last(
        &self,
        writing: &Writing,
        operation: Operation,
        name: &str,
        object: Option<&Value>,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let mut round = Round::default();
        for plugin in self.plugins() {
            let mut request = request(writing, operation, name, old, warnings, &mut round);
            plugin.validate(&mut request, object, self).await?;
        }
        Ok(())
    }

    pub async fn release(&self, writing: &Writing, object: &Value) {
        if writing.subresource.is_some() {
            return;
        }
        for plugin in self.plugins() {
            plugin.release(writing.row, object).await;
        }
    }
}

fn request<'a>(
    writing: &'a Writing,
    operation: Operation,
    name: &'a str,
    old: Option<&'a Value>,
    warnings: &'a mut Vec<String>,
    round: &'a mut Round,
) -> admission::Request<'a> {
    admission::Request {
        user: &writing.user,
        operation,
        resource: writing.row,
        subresource: writing.subresource.as_deref(),
        namespace: &writing.namespace,
        name,
        old,
        dry_run: writing.dry_run,
        warnings,
        round,
    }
}

/// Events are told for an hour.
const EVENT_TTL: std::time::Duration = std::time::Duration::from_secs(3600);

fn durability(row: &Resource) -> Durability {
    match row.storage {
        "events" | "leases" => Durability::Relaxed,
        _ => Durability::Synced,
    }
}

/// What must go on in a full store: heartbeats of nodes, statuses, the end of what is being deleted.
fn space(writing: &Writing, object: &Value) -> Space {
    let metadata = &object["metadata"];
    let heartbeat = match writing.row.storage {
        "nodes" => true,
        "leases" => matches!(
            metadata["namespace"].as_str(),
            Some("kube-node-lease" | "kube-system")
        ),
        _ => false,
    };
    let status = writing.subresource.as_deref() == Some("status");
    match heartbeat || status || metadata["deletionTimestamp"].is_string() {
        true => Space::Reserved,
        false => Space::Ordinary,
    }
}

/// Terminating, nothing holds it, and no grace is left.
pub fn is_finished(row: &Resource, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let held = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    metadata["deletionTimestamp"].is_string()
        && !held(&metadata["finalizers"])
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !(row.storage == "namespaces" && held(&object["spec"]["finalizers"]))
}

fn added_finalizers(new: &Value, old: &Value, causes: &mut Causes) {
    if !old["metadata"]["deletionTimestamp"].is_string() {
        return;
    }
    let list = |object: &Value| {
        object["metadata"]["finalizers"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let before: HashSet<String> = list(old).iter().map(Value::to_string).collect();
    let added: Vec<Value> = list(new)
        .into_iter()
        .filter(|finalizer| !before.contains(&finalizer.to_string()))
        .take(100)
        .collect();
    if !added.is_empty() {
        causes.forbidden("metadata.finalizers", &format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"));
    }
}

/// Whether anything besides metadata and status changed.
fn spec_differs(new: &Value, old: &Value) -> bool {
    let others = |object: &Value| {
        let mut object = object.clone();
        if let Some(map) = object.as_object_mut() {
            map.remove("metadata");
            map.remove("status");
        }
        object
    };
    others(new) != others(old)
}
