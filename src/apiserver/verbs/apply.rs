//! PATCH with `application/apply-patch+yaml`: server-side apply, also of a Scale.

use serde_json::{Value, json};

use super::{
    scale::{check_replicas, put_replicas, scale_of},
    update::{Missing, check_immutable, check_version, merged},
};
use crate::apiserver::{
    metadata,
    patch::managed::{self, Manager},
    query::FieldValidation,
    registry::ScalePaths,
    server::ApiServer,
    status::{Reason, Status},
    write::{Writing, Written, api_version, check_kind},
    yaml,
};

const RETRIES: usize = 16;

/// Applied, and whether the object is new.
pub async fn apply(
    server: &ApiServer,
    writing: &Writing,
    body: &[u8],
    force: bool,
    missing: Missing,
) -> Result<(Written, bool), Status> {
    let row = writing.row;
    let (mut config, duplicates) = decoded(body)?;
    check_kind(row, &mut config)?;
    if config["metadata"]["managedFields"].is_array() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    declared(writing, &config)?;
    let mut warnings = Vec::new();
    twice(writing, &duplicates, &mut warnings)?;
    writing.prune(&mut config, &[], &mut warnings)?;
    if metadata::text(&config, "name").is_empty() {
        metadata::of(&mut config).insert("name".to_owned(), json!(writing.name));
    }
    metadata::check_address(row, writing.address(), &mut config)?;
    let asked = metadata::text(&config, "resourceVersion").to_owned();
    let now = metadata::now();
    let manager = writing.manager(&now);
    let mut last = None;
    for _ in 0..RETRIES {
        let old = match server.read(row, &writing.namespace, &writing.name).await {
            Ok(old) => old,
            Err(status)
                if status.reason == Reason::NotFound
                    && missing == Missing::Create
                    && writing.subresource.is_none()
                    && row.verbs.contains(&"create") =>
            {
                let new = managed::apply(row, None, &config, manager, force)?;
                match server.write_new(writing, new, warnings.clone()).await {
                    Err(status) if status.reason == Reason::AlreadyExists => {
                        last = Some(status);
                        continue;
                    }
                    result => return result.map(|written| (written, true)),
                }
            }
            Err(status) => return Err(status),
        };
        check_version(writing, &asked, &old)?;
        check_immutable(writing, &config, &old)?;
        let mut new = managed::apply(row, Some(&old.value()), &config, manager, force)?;
        let owners = metadata::of(&mut new).remove("managedFields");
        // What was merged need not fit any more.
        writing.prune(&mut new, &[], &mut Vec::new())?;
        metadata::of(&mut new).insert(
            "resourceVersion".to_owned(),
            json!(old.revision.to_string()),
        );
        let mut new = merged(row, writing.subresource.as_deref(), new, &old);
        if let Some(owners) = owners {
            metadata::of(&mut new).insert("managedFields".to_owned(), owners);
        }
        match server
            .write_changed(writing, new, &old, warnings.clone())
            .await
        {
            Err(status) if status.reason == Reason::Conflict => last = Some(status),
            result => return result.map(|written| (written, false)),
        }
    }
    Err(last.unwrap_or_else(|| Status::internal("an apply was never tried")))
}

/// A configuration, and what stands twice in it.
fn decoded(body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    // What clients send is JSON almost always, which is much less work than as YAML; only of
    // what stands twice YAML knows the lines.
    if body.trim_ascii_start().starts_with(b"{")
        && let Ok((value, duplicates)) = proto::parse_json(body)
        && duplicates.is_empty()
    {
        return Ok((value, Vec::new()));
    }
    let text =
        std::str::from_utf8(body).map_err(|_| Status::bad_request("the body is not UTF-8"))?;
    yaml::parse(text).map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))
}

/// What is applied must be declared, or nobody could own it.
fn declared(writing: &Writing, config: &Value) -> Result<(), Status> {
    let faults = managed::faults(writing.row, config);
    let said = match faults.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let row = writing.row;
    let what = format!(
        "failed to create typed patch object ({}/{}; {}, Kind={}): {said}",
        writing.namespace,
        writing.name,
        api_version(row),
        row.kind
    );
    Err(Status::new(Reason::Unknown, what))
}

/// Says as loudly as asked what stands twice in a configuration.
fn twice(
    writing: &Writing,
    duplicates: &[String],
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let Some(complaint) = yaml::complaint(duplicates) else {
        return Ok(());
    };
    let complaint = format!("error converting YAML to JSON: {complaint}");
    match writing.validation {
        FieldValidation::Strict => Err(Status::bad_request(format!(
            "error strict decoding YAML: {complaint}"
        ))),
        FieldValidation::Warn => {
            warnings.push(complaint);
            Ok(())
        }
        FieldValidation::Ignore => Ok(()),
    }
}

/// A Scale applied: who does it owns the object's number of replicas, and nothing else.
pub async fn apply_scale(
    server: &ApiServer,
    writing: &Writing,
    paths: &ScalePaths,
    body: &[u8],
    force: bool,
) -> Result<Value, Status> {
    let row = writing.row;
    let (wanted, _) = decoded(body)?;
    let replicas = wanted["spec"]["replicas"].as_i64();
    let replicas = replicas.ok_or_else(|| {
        Status::bad_request("a Scale is applied with a number of replicas in spec.replicas")
    })?;
    check_replicas(&writing.name, replicas)?;
    let mut config = json!({"metadata": {"name": writing.name}});
    check_kind(row, &mut config)?;
    put_replicas(paths, &mut config, replicas);
    let now = metadata::now();
    let manager = Manager {
        name: &writing.manager,
        subresource: "scale",
        now: &now,
    };
    let mut last = None;
    for _ in 0..RETRIES {
        let old = server.read(row, &writing.namespace, &writing.name).await?;
        let new = managed::apply(row, Some(&old.value()), &config, manager, force)?;
        match server.write_changed(writing, new, &old, Vec::new()).await {
            Ok(written) => return Ok(scale_of(paths, &written.object.value())),
            Err(status) if status.reason == Reason::Conflict => last = Some(status),
            Err(status) => return Err(status),
        }
    }
    Err(last.unwrap_or_else(|| Status::internal("an apply was never tried")))
}
