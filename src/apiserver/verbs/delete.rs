//! DELETE on one object or on a collection.

use std::sync::Arc;

use serde_json::{Value, json};

use super::list::{ListOptions, list};
use crate::apiserver::{
    admission::{Operation, Round},
    cache::Object,
    metadata,
    registry::kinds::groups::apiextensions::CLEANUP,
    server::ApiServer,
    status::{Reason, Status},
    write::{Writing, Written, is_finished, request},
};
use crate::store::Expect;

const RETRIES: usize = 16;

/// What became of an object that was to be deleted.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone; this was its last state.
    Gone(Arc<Object>),
    /// It is terminating: a finalizer or its grace period holds it.
    Waiting(Arc<Object>),
}

impl Deleted {
    pub fn object(&self) -> &Arc<Object> {
        match self {
            Self::Gone(object) | Self::Waiting(object) => object,
        }
    }
}

pub async fn delete(
    server: &ApiServer,
    writing: &Writing,
    options: &Value,
) -> Result<Deleted, Status> {
    let row = writing.row;
    let mut last = None;
    for _ in 0..RETRIES {
        let old = server.read(row, &writing.namespace, &writing.name).await?;
        check_preconditions(writing, options, &old)?;
        let (mut warnings, mut round) = (Vec::new(), Round::default());
        let (name, was) = (writing.name.as_str(), old.value());
        let (all, round) = (&mut warnings, &mut round);
        let mut request = request(writing, Operation::Delete, name, Some(&was), all, round);
        server.admit_last(writing, &mut request, None).await?;
        let result = match plan(writing, options, &old)? {
            Plan::Nothing => return Ok(Deleted::Waiting(old)),
            Plan::Remove if writing.dry_run => return Ok(Deleted::Gone(old)),
            Plan::Remove => remove(server, writing, &old).await,
            Plan::Mark(new) => server
                .store_changed(writing, new, &old, warnings)
                .await
                .map(|Written { object, .. }| Deleted::Waiting(object)),
        };
        match result {
            // With guards it is the caller who judges again.
            Err(status) if status.reason == Reason::Conflict && writing.guards.is_empty() => {
                last = Some(status);
            }
            result => return result,
        }
    }
    Err(last.unwrap_or_else(|| Status::internal("a deletion was never tried")))
}

async fn remove(
    server: &ApiServer,
    writing: &Writing,
    old: &Arc<Object>,
) -> Result<Deleted, Status> {
    let expect = Expect::ModRevision(old.revision);
    server
        .commit_delete(writing, writing.key(&writing.name), expect)
        .await
        .map_err(|refused| refused.status(writing.row, &writing.name))?;
    server.deleted(writing, &old.value()).await;
    Ok(Deleted::Gone(old.clone()))
}

pub async fn delete_collection(
    server: &ApiServer,
    writing: &Writing,
    options: &Value,
    select: &ListOptions,
) -> Result<Vec<Arc<Object>>, Status> {
    let page = list(server, writing.row, &writing.namespace, select).await?;
    let mut deleted = Vec::new();
    for object in page.objects {
        deleted.extend(delete_selected(server, writing, options, select, object).await?);
    }
    Ok(deleted)
}

/// Deletes what was selected: an object that changed since then is looked at again, and another one of
/// its name is not meant.
async fn delete_selected(
    server: &ApiServer,
    writing: &Writing,
    options: &Value,
    select: &ListOptions,
    mut object: Arc<Object>,
) -> Result<Option<Arc<Object>>, Status> {
    let row = writing.row;
    let each = Writing {
        name: object.name.to_string(),
        namespace: object.namespace.to_string(),
        ..writing.clone()
    };
    let uid = uid_of(&object);
    let own = options["preconditions"].is_object();
    let mut last = None;
    for _ in 0..RETRIES {
        let mut options = options.clone();
        if !own {
            let revision = object.revision.to_string();
            options["preconditions"] = json!({"uid": uid, "resourceVersion": revision});
        }
        match delete(server, &each, &options).await {
            Ok(gone) => return Ok(Some(gone.object().clone())),
            Err(status) if status.reason == Reason::NotFound => return Ok(None),
            Err(status) if status.reason == Reason::Conflict && !own => last = Some(status),
            Err(status) => return Err(status),
        }
        object = match server.read(row, &each.namespace, &each.name).await {
            Ok(now) if uid_of(&now) == uid => now,
            Ok(_) => return Ok(None),
            Err(status) if status.reason == Reason::NotFound => return Ok(None),
            Err(status) => return Err(status),
        };
        if !select.selector.matches(row, &object) {
            return Ok(None);
        }
    }
    Err(last.unwrap_or_else(|| Status::internal("a deletion was never tried")))
}

fn uid_of(object: &Object) -> String {
    metadata::text(&object.value(), "uid").to_owned()
}

fn check_preconditions(writing: &Writing, options: &Value, old: &Object) -> Result<(), Status> {
    let row = writing.row;
    let conflict = |what: &str, wanted: &str, have: &str| {
        let why = format!(
            "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {have}"
        );
        Err(Status::conflict(row.group, row.plural, &writing.name, &why))
    };
    let wanted = &options["preconditions"];
    let was = old.value();
    let uid = metadata::text(&was, "uid");
    match wanted["uid"].as_str() {
        Some(asked) if asked != uid => return conflict("UID", asked, uid),
        _ => {}
    }
    let revision = old.revision.to_string();
    match wanted["resourceVersion"].as_str() {
        Some(asked) if asked != revision => conflict("ResourceVersion", asked, &revision),
        _ => Ok(()),
    }
}

enum Plan {
    Remove,
    /// Written with these changes; it goes when nothing holds it any more.
    Mark(Value),
    /// Already terminating, and nothing changes.
    Nothing,
}

/// Pure but for the clock.
fn plan(writing: &Writing, options: &Value, old: &Object) -> Result<Plan, Status> {
    let was = old.value();
    let row = writing.row;
    let mut new = (*was).clone();
    let policy = match (
        options["propagationPolicy"].as_str(),
        options["orphanDependents"].as_bool(),
    ) {
        (Some(_), Some(_)) => {
            return Err(Status::bad_request(
                "orphanDependents and propagationPolicy cannot be both set",
            ));
        }
        (policy, orphan) => policy.or(match orphan {
            Some(true) => Some("Orphan"),
            Some(false) => Some("Background"),
            None => None,
        }),
    };
    let held = |name: &str| {
        let finalizers = was["metadata"]["finalizers"].as_array();
        finalizers.is_some_and(|list| list.iter().any(|have| have == name))
    };
    match policy {
        // What stands in the object counts more than what the kind does by itself.
        None if row.behaviour.orphans && !held("foregroundDeletion") => {
            set_dependents(&mut new, Some("orphan"));
        }
        None => {}
        Some("Background") => set_dependents(&mut new, None),
        Some("Foreground") => set_dependents(&mut new, Some("foregroundDeletion")),
        Some("Orphan") => set_dependents(&mut new, Some("orphan")),
        Some(other) => {
            return Err(Status::bad_request(format!(
                "invalid propagationPolicy {other:?}: must be Foreground, Background or Orphan"
            )));
        }
    }
    let asked = options["gracePeriodSeconds"]
        .as_i64()
        .map(|seconds| if seconds < 0 { 1 } else { seconds });
    let terminating = was["metadata"]["deletionTimestamp"].is_string();
    let grace = match (row.behaviour.graceful, terminating) {
        (None, _) => 0,
        (Some(default), false) => asked.unwrap_or_else(|| default(&was)),
        (Some(default), true) => {
            let have = was["metadata"]["deletionGracePeriodSeconds"]
                .as_i64()
                .unwrap_or(0);
            // A second delete may only shorten.
            asked.unwrap_or_else(|| default(&was)).min(have)
        }
    };
    // Nothing to wait for: unscheduled or finished pods end at once.
    let grace = match row.behaviour.graceful {
        Some(default) if default(&was) == 0 => 0,
        _ => grace,
    };
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
    let shorter = terminating
        && grace
            < was["metadata"]["deletionGracePeriodSeconds"]
                .as_i64()
                .unwrap_or(0);
    let metadata = metadata::of(&mut new);
    if !terminating || shorter {
        metadata.insert(
            "deletionTimestamp".to_owned(),
            json!(end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        );
        metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
        if row.behaviour.generation && !terminating {
            let generation = metadata
                .get("generation")
                .and_then(Value::as_i64)
                .unwrap_or(0)
                + 1;
            metadata.insert("generation".to_owned(), json!(generation));
        }
    }
    if row.storage == "customresourcedefinitions" && !terminating {
        // Goes when the last object of its kind is gone.
        let mut finalizers = new["metadata"]["finalizers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        finalizers.push(json!(CLEANUP));
        new["metadata"]["finalizers"] = finalizers.into();
    }
    if row.storage == "namespaces" {
        new["status"]["phase"] = json!("Terminating");
    }
    if is_finished(row, &new) {
        return Ok(Plan::Remove);
    }
    Ok(if new == *was {
        Plan::Nothing
    } else {
        Plan::Mark(new)
    })
}

/// Sets or takes away the finalizers that stand for a propagation policy.
fn set_dependents(object: &mut Value, finalizer: Option<&str>) {
    let metadata = metadata::of(object);
    let mut finalizers = metadata
        .get("finalizers")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    finalizers.retain(|have| have != "foregroundDeletion" && have != "orphan");
    finalizers.extend(finalizer.map(|name| json!(name)));
    match finalizers.is_empty() {
        true => metadata.remove("finalizers"),
        false => metadata.insert("finalizers".to_owned(), Value::Array(finalizers)),
    };
}
