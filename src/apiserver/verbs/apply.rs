//! PATCH with `application/apply-patch+yaml`: server-side apply, also of a Scale.

use serde_json::{Value, json};

use super::{
    scale::{check_replicas, put_replicas, scale_of},
    update::{Missing, check_immutable, check_version, merged},
};
use crate::apiserver::{
    metadata,
    patch::managed::{self, Manager},
    registry::ScalePaths,
    server::ApiServer,
    status::{Reason, Status},
    write::{Writing, Written, check_kind},
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
    let mut config = decoded(body)?;
    check_kind(row, &mut config)?;
    let mut warnings = Vec::new();
    writing.prune(&mut config, &[], &mut warnings)?;
    if config["metadata"]["managedFields"].is_array() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    if metadata::text(&config, "name").is_empty() {
        metadata::of(&mut config).insert("name".to_owned(), json!(writing.name));
    }
    metadata::check_address(row, writing.address(), &mut config)?;
    let asked = metadata::text(&config, "resourceVersion").to_owned();
    let subresource = writing.subresource.clone().unwrap_or_default();
    let now = metadata::now();
    let manager = Manager {
        name: &writing.manager,
        subresource: &subresource,
        now: &now,
    };
    let mut last = None;
    for _ in 0..RETRIES {
        let old = match server.read(row, &writing.namespace, &writing.name).await {
            Ok(old) => old,
            Err(status)
                if status.reason == Reason::NotFound
                    && missing == Missing::Create
                    && subresource.is_empty()
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
        let owners = new["metadata"]["managedFields"].take();
        // What was merged need not fit any more.
        writing.prune(&mut new, &[], &mut Vec::new())?;
        metadata::of(&mut new).insert(
            "resourceVersion".to_owned(),
            json!(old.revision.to_string()),
        );
        let mut new = merged(row, writing.subresource.as_deref(), new, &old);
        metadata::of(&mut new).insert("managedFields".to_owned(), owners);
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

fn decoded(body: &[u8]) -> Result<Value, Status> {
    // What clients send is JSON almost always, which is much less work than as YAML.
    if body.trim_ascii_start().starts_with(b"{")
        && let Ok((value, _)) = proto::parse_json(body)
    {
        return Ok(value);
    }
    let text =
        std::str::from_utf8(body).map_err(|_| Status::bad_request("the body is not UTF-8"))?;
    serde_saphyr::from_str(text)
        .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))
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
    let wanted = decoded(body)?;
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
