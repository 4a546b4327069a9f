//! The scale subresource: one number of an object, in autoscaling/v1's words.

use serde_json::{Value, json};

use crate::apiserver::{
    metadata,
    patch::{self, PatchType},
    registry::{Resource, ScalePaths, kinds::value::set},
    server::ApiServer,
    status::{Cause, CauseType, Reason, Status},
    write::Writing,
};

const RETRIES: usize = 16;

pub async fn get_scale(
    server: &ApiServer,
    writing: &Writing,
    paths: &ScalePaths,
) -> Result<Value, Status> {
    let object = server
        .read(writing.row, &writing.namespace, &writing.name)
        .await?;
    Ok(scale_of(paths, &object.value()))
}

pub async fn update_scale(
    server: &ApiServer,
    writing: &Writing,
    paths: &ScalePaths,
    body: &Value,
) -> Result<Value, Status> {
    change(server, writing, paths, |_| Ok(body.clone())).await
}

pub async fn patch_scale(
    server: &ApiServer,
    writing: &Writing,
    paths: &ScalePaths,
    kind: PatchType,
    body: &[u8],
) -> Result<Value, Status> {
    let ty = proto::schema().get("io.k8s.api.autoscaling.v1.Scale");
    change(server, writing, paths, |current| {
        patch::apply(kind, ty, current, body)
    })
    .await
}

async fn change(
    server: &ApiServer,
    writing: &Writing,
    paths: &ScalePaths,
    make: impl Fn(&Value) -> Result<Value, Status>,
) -> Result<Value, Status> {
    let row: &Resource = writing.row;
    let mut last = None;
    for _ in 0..RETRIES {
        let old = server.read(row, &writing.namespace, &writing.name).await?;
        let current = scale_of(paths, &old.value());
        let mut wanted = make(&current)?;
        if metadata::text(&wanted, "name").is_empty() {
            metadata::of(&mut wanted).insert("name".to_owned(), json!(writing.name));
        }
        metadata::check_address(row, writing.address(), &mut wanted)?;
        let version = wanted["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default();
        let explicit = !version.is_empty()
            && version
                != current["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap_or_default();
        if explicit {
            return Err(Status::conflict(
                row.group,
                row.plural,
                &writing.name,
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        check_replicas(&writing.name, replicas)?;
        let mut new = (*old.value()).clone();
        put_replicas(paths, &mut new, replicas);
        match server.write_changed(writing, new, &old, Vec::new()).await {
            Ok(written) => return Ok(scale_of(paths, &written.object.value())),
            Err(status) if status.reason == Reason::Conflict => last = Some(status),
            Err(status) => return Err(status),
        }
    }
    Err(last.unwrap_or_else(|| Status::internal("a change was never tried")))
}

pub fn check_replicas(name: &str, replicas: i64) -> Result<(), Status> {
    if replicas >= 0 {
        return Ok(());
    }
    let cause = Cause {
        reason: CauseType::FieldValueInvalid,
        message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
        field: "spec.replicas".to_owned(),
    };
    Err(Status::invalid("autoscaling", "Scale", name, vec![cause]))
}

/// Writes the number that a Scale asks for into the object.
pub fn put_replicas(paths: &ScalePaths, object: &mut Value, replicas: i64) {
    match object.pointer_mut(paths.spec_replicas) {
        Some(place) => *place = json!(replicas),
        None => {
            let path = paths.spec_replicas.trim_start_matches('/');
            set(object, &path.replace('/', "."), replicas);
        }
    }
}

/// An object as a Scale.
pub fn scale_of(paths: &ScalePaths, object: &Value) -> Value {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let metadata = &object["metadata"];
    let mut kept = serde_json::Map::new();
    for name in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = metadata.get(name) {
            kept.insert(name.to_owned(), value.clone());
        }
    }
    let selector = object
        .pointer(paths.selector)
        .filter(|_| !paths.selector.is_empty())
        .map(|selector| match selector {
            Value::String(text) => text.clone(),
            selector => selector_text(selector),
        })
        .unwrap_or_default();
    json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": kept,
        "spec": {"replicas": number(paths.spec_replicas)},
        "status": {"replicas": number(paths.status_replicas), "selector": selector},
    })
}

/// A label selector, or a plain map of labels, as one string.
fn selector_text(selector: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let labels = match selector
        .get("matchLabels")
        .or_else(|| selector.get("matchExpressions").map(|_| &Value::Null))
    {
        Some(labels) => labels,
        None => selector,
    };
    let mut parts: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect();
    for expression in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let key = text(&expression["key"]);
        let values: Vec<String> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .map(text)
            .collect();
        parts.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key,
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_as_text() {
        for (selector, want) in [
            (json!({"app": "a", "tier": "b"}), "app=a,tier=b"),
            (json!({"matchLabels": {"app": "a"}}), "app=a"),
            (
                json!({"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "t", "operator": "In", "values": ["x", "y"]}, {"key": "z", "operator": "DoesNotExist"}]}),
                "app=a,t in (x,y),!z",
            ),
        ] {
            assert_eq!(selector_text(&selector), want);
        }
    }
}
