//! PUT, on an object, its status or another part of it.

use serde_json::{Value, json};

use super::create;
use crate::apiserver::{
    cache::Object,
    metadata,
    registry::{Causes, Resource, Subresource},
    server::ApiServer,
    status::{Cause, CauseType, Reason, Status},
    write::{Writing, Written, check_kind},
};

/// Unconditional updates that meet another writer look again at most so often.
const RETRIES: usize = 16;

/// What becomes of a write to a name that has no object, where the kind would have one made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The writer may create it.
    Create,
    /// The writer may not, or was not asked about, since the object was there then.
    Refuse,
}

pub async fn update(
    server: &ApiServer,
    writing: &Writing,
    mut body: Value,
    complaints: Vec<String>,
    missing: Missing,
) -> Result<Written, Status> {
    let row = writing.row;
    check_kind(row, &mut body)?;
    let mut warnings = Vec::new();
    writing.prune(&mut body, &complaints, &mut warnings)?;
    if metadata::text(&body, "name").is_empty() {
        metadata::of(&mut body).insert("name".to_owned(), json!(writing.name));
    }
    metadata::check_address(row, writing.address(), &mut body)?;
    let version = metadata::text(&body, "resourceVersion").to_owned();
    if version.is_empty() && !row.behaviour.unconditional_update {
        let message = "Invalid value: 0: must be specified for an update".to_owned();
        let cause = Cause {
            reason: CauseType::FieldValueInvalid,
            message,
            field: "metadata.resourceVersion".to_owned(),
        };
        return Err(Status::invalid(
            row.group,
            row.kind,
            &writing.name,
            vec![cause],
        ));
    }
    for _ in 0..RETRIES {
        let old = match server.read(row, &writing.namespace, &writing.name).await {
            Ok(old) => old,
            Err(status)
                if status.reason == Reason::NotFound
                    && row.behaviour.create_on_update
                    && missing == Missing::Create
                    && version.is_empty() =>
            {
                let made = create(server, writing, body.clone(), Vec::new(), warnings.clone());
                match made.await {
                    // Somebody else was first.
                    Err(status) if status.reason == Reason::AlreadyExists => continue,
                    result => return result,
                }
            }
            Err(status) => return Err(status),
        };
        check_version(writing, &version, &old)?;
        check_uid(writing, &body, &old)?;
        check_immutable(writing, &body, &old)?;
        let new = merged(row, writing.subresource.as_deref(), body.clone(), &old);
        match server
            .write_changed(writing, new, &old, warnings.clone())
            .await
        {
            Err(status) if status.reason == Reason::Conflict && version.is_empty() => {}
            result => return result,
        }
    }
    Err(Status::conflict(
        row.group,
        row.plural,
        &writing.name,
        "too many others are writing it",
    ))
}

/// A stale resourceVersion is a conflict.
pub fn check_version(writing: &Writing, version: &str, old: &Object) -> Result<(), Status> {
    if version.is_empty() || version == "0" || version == old.revision.to_string() {
        return Ok(());
    }
    Err(Status::conflict(
        writing.row.group,
        writing.row.plural,
        &writing.name,
        "the object has been modified; please apply your changes to the latest version and try again",
    ))
}

/// The uid of another object of this name is a conflict: the one that was read is gone.
fn check_uid(writing: &Writing, body: &Value, old: &Object) -> Result<(), Status> {
    let was = old.value();
    let (uid, have) = (metadata::text(body, "uid"), metadata::text(&was, "uid"));
    if uid.is_empty() || uid == have {
        return Ok(());
    }
    let row = writing.row;
    let why =
        format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {have}");
    Err(Status::conflict(row.group, row.plural, &writing.name, &why))
}

/// 422 for a change to what is fixed.
pub fn check_immutable(writing: &Writing, new: &Value, old: &Object) -> Result<(), Status> {
    let mut causes = Causes::default();
    metadata::check_immutable(new, &old.value(), &mut causes);
    let row = writing.row;
    match causes.0.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid(
            row.group,
            row.kind,
            &writing.name,
            causes.0,
        )),
    }
}

/// What an update through one endpoint may change of an object: the rest stays as it was.
pub fn merged(row: &Resource, subresource: Option<&str>, mut body: Value, old: &Object) -> Value {
    let was = old.value();
    let has_status = row.subresources.contains(&Subresource::Status);
    match subresource {
        None => {
            metadata::prepare_update(&mut body, &was);
            if has_status {
                keep(&mut body, &was, "status");
            }
            if row.storage == "namespaces" {
                // Only /finalize takes them away.
                let finalizers = was["spec"]["finalizers"].clone();
                if !finalizers.is_null() {
                    body["spec"]["finalizers"] = finalizers;
                }
            }
            (row.behaviour.prepare_update)(&mut body, &was);
            body
        }
        Some("status") => {
            let mut new = (*was).clone();
            match body.get_mut("status").map(Value::take) {
                Some(status) => new["status"] = status,
                None => remove(&mut new, "status"),
            }
            for name in row.behaviour.status_metadata.changeable() {
                let value = body["metadata"].get(name).filter(|value| !value.is_null());
                match value.cloned() {
                    Some(value) => metadata::of(&mut new).insert(name.to_owned(), value),
                    None => metadata::of(&mut new).remove(name),
                };
            }
            (row.behaviour.prepare_subresource)("status", &mut new, &was);
            new
        }
        Some("finalize") => {
            let mut new = (*was).clone();
            new["spec"]["finalizers"] = body["spec"]["finalizers"].take();
            if new["spec"]["finalizers"].is_null() {
                new["spec"]["finalizers"] = json!([]);
            }
            new
        }
        // Approval, ephemeral containers and the like: their kinds say in `prepare_update` what
        // the main endpoint keeps, and in `prepare_subresource` what these keep.
        Some(part) => {
            metadata::prepare_update(&mut body, &was);
            (row.behaviour.prepare_subresource)(part, &mut body, &was);
            body
        }
    }
}

fn keep(new: &mut Value, old: &Value, member: &str) {
    match old.get(member) {
        Some(value) => new[member] = value.clone(),
        None => remove(new, member),
    }
}

fn remove(object: &mut Value, member: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(member);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::registry::kinds;

    #[test]
    fn what_a_write_of_the_status_may_change() {
        let old = json!({"metadata": {"name": "x", "labels": {"a": "old"}, "annotations": {"a": "old"}},
            "spec": {"s": "old"}, "status": {"s": "old"}});
        let body = json!({"metadata": {"name": "x", "labels": {"a": "new"}, "ownerReferences": [{"uid": "u"}]},
            "spec": {"s": "new"}, "status": {"s": "new"}});
        for (plural, labels, annotated, owned) in [
            ("nodes", "new", false, true),
            ("deployments", "old", false, true),
            ("pods", "new", false, false),
            ("customresourcedefinitions", "old", true, false),
            ("volumeattachments", "old", true, false),
        ] {
            let row = kinds::ALL.iter().find(|row| row.plural == plural);
            let row = row.unwrap_or_else(|| panic!("no row {plural}"));
            let bytes = old.to_string();
            let stored = Object::new("/registry/x/x".into(), "x", bytes.as_bytes(), 7);
            let new = merged(
                row,
                Some("status"),
                body.clone(),
                &stored.expect("an object"),
            );
            assert_eq!(new["metadata"]["labels"]["a"], labels, "{plural}");
            assert_eq!(
                new["metadata"]["annotations"].is_object(),
                annotated,
                "{plural}"
            );
            assert_eq!(
                new["metadata"]["ownerReferences"].is_array(),
                owned,
                "{plural}"
            );
            assert_eq!(
                (&new["spec"]["s"], &new["status"]["s"]),
                (&json!("old"), &json!("new"))
            );
        }
    }
}
