//! The path of every write: decoded, pruned, defaulted, admitted, validated; `commit.rs` is its end.

use std::{collections::HashSet, sync::Arc};

use serde_json::{Value, json};

use super::{
    admission::{self, Held, Operation, Round},
    cache::{self, Object},
    metadata,
    patch::managed::{self, Manager},
    query::FieldValidation,
    registry::{
        Causes, Resource,
        custom::{self, schema},
    },
    request::User,
    server::ApiServer,
    status::Status,
};
use crate::store::Guard;

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
    /// Of the server itself, for what every cluster needs: what users have set up to change or
    /// refuse writes is not asked.
    pub exempt: bool,
    /// What must be as it was when the write was decided on.
    pub guards: Vec<Guard>,
}

/// A write that went through.
#[derive(Debug)]
pub struct Written {
    pub object: Arc<Object>,
    pub warnings: Vec<String>,
}

impl Writing {
    /// A write of the server itself, of the object's main endpoint.
    pub fn own(row: &'static Resource, namespace: &str, name: &str) -> Self {
        Self {
            user: super::start::own_user(),
            row,
            subresource: None,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            dry_run: false,
            validation: FieldValidation::Ignore,
            manager: "vetch".to_owned(),
            applies: false,
            exempt: false,
            guards: Vec::new(),
        }
    }

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

    /// In whose name this write changes fields, now.
    pub fn manager<'a>(&'a self, now: &'a str) -> Manager<'a> {
        Manager {
            name: &self.manager,
            subresource: self.subresource.as_deref().unwrap_or_default(),
            now,
        }
    }

    /// Takes away what the schema does not know; says so as loudly as asked. `complaints`: what
    /// there is to say of the document besides.
    pub fn prune(
        &self,
        object: &mut Value,
        complaints: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let unknown = self.fit(object)?;
        let complaints = self.heeded(unknown, complaints, warnings);
        match complaints.is_empty() {
            true => Ok(()),
            false => Err(Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                self.row.kind,
                self.row.version,
                self.row.kind,
                complaints.join(", ")
            ))),
        }
    }

    /// As [`Writing::prune`], of what a patch has made of an object.
    pub fn prune_patched(
        &self,
        object: &mut Value,
        complaints: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let text: String = match self.validation {
            FieldValidation::Strict => object.to_string().chars().take(MAX_QUOTED).collect(),
            _ => String::new(),
        };
        let unknown = self.fit(object)?;
        let complaints = self.heeded(unknown, complaints, warnings);
        if complaints.is_empty() {
            return Ok(());
        }
        let mut causes = Causes::default();
        let what = format!("strict decoding error: {}", complaints.join(", "));
        causes.invalid("patch", text, &what);
        Err(Status::invalid("", "", "", causes.0))
    }

    fn fit(&self, object: &mut Value) -> Result<Vec<String>, Status> {
        let reset = managed::is_reset(object);
        let unknown = fit(self.row, object)?;
        if reset {
            // An empty list would be left out, and says something here.
            metadata::of(object).insert("managedFields".to_owned(), json!([]));
        }
        Ok(unknown)
    }

    /// What is an error for this writer; what is only told goes into the warnings.
    fn heeded(
        &self,
        unknown: Vec<String>,
        complaints: &[String],
        warnings: &mut Vec<String>,
    ) -> Vec<String> {
        let unknown = unknown
            .into_iter()
            .map(|path| format!("unknown field {path:?}"));
        let all = unknown.chain(complaints.iter().cloned());
        match self.validation {
            FieldValidation::Strict => return all.collect(),
            FieldValidation::Warn => warnings.extend(all),
            FieldValidation::Ignore => {}
        }
        Vec::new()
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
        Some(custom) => {
            let content = custom.content().ok_or_else(custom::gone)?;
            (None, schema::prune(&content.schema, object))
        }
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
            if let Some(content) = row.custom.and_then(|custom| custom.content()) {
                unknown.extend(schema::prune_embedded(&content.schema, object));
            }
        }
    }
    Ok(unknown)
}

/// Characters of an object that an answer quotes, so that there is room for what is wrong with it.
const MAX_QUOTED: usize = 400;

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
        object: Value,
        mut warnings: Vec<String>,
    ) -> Result<Written, Status> {
        let row = writing.row;
        let mut round = Round::default();
        let admitted = self
            .admit_new(writing, object, &mut warnings, &mut round)
            .await;
        let stored = match admitted {
            Ok((name, _)) if writing.dry_run && self.is_there(writing, &name).await => {
                Err(Status::already_exists(row.group, row.plural, &name))
            }
            Ok((name, object)) if writing.dry_run => {
                let could = self.could_store(writing, &object).await;
                could.map(|()| (name, object, 0))
            }
            Ok((name, mut object)) => {
                let mut stored = self.commit_new(writing, &name, &object, &round.held).await;
                // Who owns what is the first that an object can do without.
                if stored
                    .as_ref()
                    .is_err_and(|status| *status == Status::not_stored())
                    && metadata::of(&mut object).remove("managedFields").is_some()
                {
                    stored = self.commit_new(writing, &name, &object, &round.held).await;
                }
                stored.map(|revision| (name, object, revision))
            }
            Err(status) => Err(status),
        };
        let kept = stored.is_ok() && !writing.dry_run;
        round.held.settle(kept).await;
        let (name, object, revision) = stored?;
        if kept {
            for plugin in self.plugins() {
                plugin.created(row, &object).await;
            }
        }
        Ok(self.written(writing, &name, object, revision, warnings))
    }

    /// Everything before the commit of a new object: its name, and what is to be stored.
    async fn admit_new(
        &self,
        writing: &Writing,
        mut object: Value,
        warnings: &mut Vec<String>,
        round: &mut Round,
    ) -> Result<(String, Value), Status> {
        let row = writing.row;
        metadata::prepare_create(row, &writing.namespace, &mut object)?;
        row.default_values(&mut object)?;
        // What the server adds from here on is nobody's.
        if !writing.applies {
            managed::created(row, &mut object, writing.manager(&metadata::now()));
        }
        row.prepare_create(&mut object);
        let name = metadata::text(&object, "name").to_owned();
        let mut request = request(writing, Operation::Create, &name, None, warnings, round);
        self.admit(writing, &mut request, &mut object).await?;
        row.default_values(&mut object)?;
        let mut causes = Causes::default();
        metadata::validate(row, &object, &mut causes);
        row.validate(&object, &mut causes);
        row.validate_new(&object, &mut causes);
        causes.settle_name();
        self.refuse(writing, &name, causes)?;
        let told = (row.behaviour.warnings)(&object, None);
        request.warnings.extend(told);
        self.admit_last(writing, &mut request, Some(&object))
            .await?;
        Ok((name, object))
    }

    /// Stores a changed object over `old`. The caller has merged and kept what it must.
    pub async fn write_changed(
        &self,
        writing: &Writing,
        object: Value,
        old: &Arc<Object>,
        mut warnings: Vec<String>,
    ) -> Result<Written, Status> {
        let mut round = Round::default();
        let admitted = self
            .admit_changed(writing, object, old, &mut warnings, &mut round)
            .await;
        match admitted {
            Ok(object) => self.store(writing, object, old, warnings, round.held).await,
            Err(status) => {
                round.held.settle(false).await;
                Err(status)
            }
        }
    }

    /// Everything before the commit of a change.
    async fn admit_changed(
        &self,
        writing: &Writing,
        mut object: Value,
        old: &Arc<Object>,
        warnings: &mut Vec<String>,
        round: &mut Round,
    ) -> Result<Value, Status> {
        let row = writing.row;
        let name = &writing.name;
        let was = old.value();
        let update = Operation::Update;
        let mut request = request(writing, update, name, Some(&was), warnings, round);
        row.default_values(&mut object)?;
        if !writing.applies {
            let now = metadata::now();
            managed::updated(row, &was, &mut object, writing.manager(&now));
        }
        self.admit(writing, &mut request, &mut object).await?;
        row.default_values(&mut object)?;
        let mut causes = Causes::default();
        metadata::validate(row, &object, &mut causes);
        added_finalizers(&object, &was, &mut causes);
        let part = writing.subresource.as_deref();
        let told = row.validate_changed(&object, &was, part, &mut causes);
        request.warnings.extend(told);
        if !causes.0.is_empty() && row.custom.is_none() {
            // What an older version of this program took, and nobody touches now, may stay.
            let mut before = Causes::default();
            metadata::validate(row, &was, &mut before);
            row.validate(&was, &mut before);
            causes.0.retain(|cause| !before.0.contains(cause));
        }
        match part {
            None => (row.behaviour.validate_update)(&object, &was, &mut causes),
            Some(part) => {
                (row.behaviour.validate_subresource)(part, &object, &was, &mut causes);
            }
        }
        causes.settle_name();
        self.refuse(writing, name, causes)?;
        if part.is_none() {
            let told = (row.behaviour.warnings)(&object, Some(&was));
            request.warnings.extend(told);
        }
        if row.behaviour.generation && spec_differs(&object, &was) {
            let generation = was["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            metadata::of(&mut object).insert("generation".to_owned(), json!(generation));
        }
        self.admit_last(writing, &mut request, Some(&object))
            .await?;
        Ok(object)
    }

    /// Commits a change that is past all checks; the generation is the caller's. One that changes nothing keeps its revision; the
    /// last finalizer gone from a terminating object removes it.
    pub async fn store_changed(
        &self,
        writing: &Writing,
        object: Value,
        old: &Arc<Object>,
        warnings: Vec<String>,
    ) -> Result<Written, Status> {
        self.store(writing, object, old, warnings, Held::default())
            .await
    }

    pub(super) fn written(
        &self,
        writing: &Writing,
        name: &str,
        mut object: Value,
        revision: u64,
        warnings: Vec<String>,
    ) -> Written {
        let key = writing.key(name);
        let rest = match writing.namespace.as_str() {
            "" => name.to_owned(),
            namespace => format!("{namespace}/{name}"),
        };
        let metadata = metadata::of(&mut object);
        match revision {
            0 => metadata.remove("resourceVersion"),
            revision => metadata.insert("resourceVersion".to_owned(), json!(revision.to_string())),
        };
        let made = Object::answered(key, &rest, object, revision);
        Written {
            object: Arc::new(made),
            warnings,
        }
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
        request: &mut admission::Request<'_>,
        object: &mut Value,
    ) -> Result<(), Status> {
        let owners = object["metadata"].get("managedFields").cloned();
        let plugins = self.plugins();
        let mut next = 0;
        while let Some(plugin) = plugins.get(next) {
            if writing.exempt && plugin.is_policy() {
                next += 1;
                continue;
            }
            plugin.mutate(request, object, self).await?;
            next = match std::mem::take(&mut request.round.again) {
                true => 0,
                false => next + 1,
            };
        }
        // A plugin of somebody else's may make nonsense of them.
        if let Some(owners) = owners
            && object["metadata"]["managedFields"] != owners
            && !managed::are_sound(object)
        {
            metadata::of(object).insert("managedFields".to_owned(), owners);
        }
        Ok(())
    }

    /// Whether a name is taken.
    async fn is_there(&self, writing: &Writing, name: &str) -> bool {
        let found = self.read(writing.row, &writing.namespace, name);
        found.await.is_ok()
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
        let mut round = Round::default();
        let mut request = request(writing, operation, name, None, &mut warnings, &mut round);
        self.admit(writing, &mut request, body).await?;
        self.admit_last(writing, &mut request, Some(body)).await?;
        Ok(warnings)
    }

    /// `object`: as it is to be; none if it is to be deleted.
    pub async fn admit_last(
        &self,
        writing: &Writing,
        request: &mut admission::Request<'_>,
        object: Option<&Value>,
    ) -> Result<(), Status> {
        for plugin in self.plugins() {
            if !(writing.exempt && plugin.is_policy()) {
                plugin.validate(request, object, self).await?;
            }
        }
        Ok(())
    }

    /// Tells the plugins that an object is gone.
    pub async fn deleted(&self, writing: &Writing, object: &Value) {
        for plugin in self.plugins() {
            plugin.deleted(writing.row, object).await;
        }
    }
}

/// What the plugins are told of a write.
pub fn request<'a>(
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
