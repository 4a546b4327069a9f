//! Patch formats: a document, a change, and the changed document. Pure.

use json_patch::{Patch, PatchErrorKind};
use serde_json::Value;

use super::status::{Cause, CauseType, Details, Reason, Status};

/// More operations than this in one JSON patch are refused.
const MAX_OPERATIONS: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    pub fn parse(content_type: &str) -> Result<Self, Status> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            other => Err(Status::new(
                Reason::UnsupportedMediaType,
                format!(
                    "the body of the request was in an unknown format {other:?} - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
                ),
            )),
        }
    }
}

/// `current` with `body` applied. `ty` is the schema of the object, for strategic merge.
pub fn apply(
    kind: PatchType,
    ty: Option<&'static proto::Type>,
    current: &Value,
    body: &[u8],
) -> Result<Value, Status> {
    match kind {
        PatchType::Json => json(current, body),
        PatchType::Merge => {
            let mut changed = current.clone();
            json_patch::merge(&mut changed, &parse(body)?);
            Ok(changed)
        }
        PatchType::Strategic => {
            let ty = ty.ok_or_else(|| {
                unsupported("strategic merge patch is not supported for this kind")
            })?;
            proto::strategic_merge(ty, current, &parse(body)?)
                .map_err(|error| Status::bad_request(error.to_string()))
        }
        PatchType::Apply => Err(unsupported(
            "server-side apply is not supported by this version of vetch; use client-side apply (kubectl apply without --server-side)",
        )),
    }
}

fn json(current: &Value, body: &[u8]) -> Result<Value, Status> {
    let patch: Patch = serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > MAX_OPERATIONS {
        return Err(Status::new(
            Reason::RequestEntityTooLarge,
            format!(
                "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                patch.0.len()
            ),
        ));
    }
    let mut changed = current.clone();
    json_patch::patch(&mut changed, &patch).map_err(|error| {
        let what = match error.kind {
            PatchErrorKind::TestFailed => "testing value failed".to_owned(),
            _ => error.to_string(),
        };
        let message =
            format!("the server rejected our request due to an error in our request: {what}");
        let mut status = Status::new(Reason::Invalid, message);
        let cause = Cause {
            reason: CauseType::FieldValueInvalid,
            message: what,
            field: error.path.to_string(),
        };
        status.details = Some(Details {
            causes: vec![cause],
            ..Details::default()
        });
        status
    })?;
    Ok(changed)
}

/// JSON, or YAML as `kubectl patch` files may be sent.
fn parse(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))
}

fn unsupported(message: &str) -> Status {
    Status::new(Reason::UnsupportedMediaType, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_format() {
        let pod = proto::schema().get("io.k8s.api.core.v1.Pod");
        let current =
            json!({"spec": {"containers": [{"name": "a", "image": "1"}], "nodeName": "n"}});
        for (kind, body, want) in [
            (
                PatchType::Json,
                r#"[{"op":"replace","path":"/spec/nodeName","value":"m"}]"#,
                json!({"spec": {"containers": [{"name": "a", "image": "1"}], "nodeName": "m"}}),
            ),
            (
                PatchType::Merge,
                r#"{"spec":{"nodeName":null}}"#,
                json!({"spec": {"containers": [{"name": "a", "image": "1"}]}}),
            ),
            (
                PatchType::Strategic,
                r#"{"spec":{"containers":[{"name":"b"}]}}"#,
                json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}], "nodeName": "n"}}),
            ),
        ] {
            assert_eq!(
                apply(kind, pod, &current, body.as_bytes()).unwrap(),
                want,
                "{kind:?}"
            );
        }
        for (kind, body, code) in [
            (
                PatchType::Json,
                r#"[{"op":"test","path":"/spec/nodeName","value":"m"}]"#,
                422,
            ),
            (
                PatchType::Json,
                r#"[{"op":"remove","path":"/nowhere"}]"#,
                422,
            ),
            (PatchType::Json, "{}", 400),
            (PatchType::Merge, "x", 400),
            (
                PatchType::Strategic,
                r#"{"spec":{"containers":[{"image":"2"}]}}"#,
                400,
            ),
            (PatchType::Apply, "{}", 415),
        ] {
            assert_eq!(
                apply(kind, pod, &current, body.as_bytes())
                    .unwrap_err()
                    .code,
                code,
                "{kind:?} {body}"
            );
        }
        assert_eq!(PatchType::parse("application/json").unwrap_err().code, 415);
    }
}
