//! The body of a request: its bytes, and what they say in JSON, YAML or protobuf.

use std::time::Duration;

use bytes::Bytes;
use http::header;
use http_body::Body as _;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{
    Body, Incoming, header_text,
    inflight::{Inflight, Memory, Who},
};
use crate::apiserver::{
    registry::{Resource, Subresource},
    status::{Reason, Status},
    write::api_version,
    yaml,
};

/// Larger bodies are refused.
const MAX_BODY_BYTES: usize = 3 << 20;

/// Memory is counted for bodies over this: the small ones always have it.
const SMALL: usize = 64 << 10;
/// Of a body that is too large so much is read and thrown away.
const DISCARDED_BYTES: usize = 16 << 20;
/// Something must come within this.
const STALL: Duration = Duration::from_secs(10);

/// A body, with the memory that it takes from those of others until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub bytes: Bytes,
    _memory: Option<Memory>,
}

pub(super) async fn read(mut body: Body, limits: &Inflight, who: &Who) -> Result<Read, Status> {
    let announced = body.size_hint();
    if announced.lower() > MAX_BODY_BYTES as u64 {
        discard(body).await;
        return Err(Status::too_large(MAX_BODY_BYTES));
    }
    let announced = announced
        .exact()
        .and_then(|size| usize::try_from(size).ok());
    let announced = announced.unwrap_or(MAX_BODY_BYTES);
    let mut memory = None;
    let mut bytes = bytes::BytesMut::new();
    loop {
        let frame = tokio::time::timeout(STALL, body.frame()).await;
        let frame = frame.map_err(|_| {
            let what = format!("the body could not be read: nothing came for {STALL:?}");
            Status::bad_request(what)
        })?;
        let Some(frame) = frame else {
            break;
        };
        let frame = frame
            .map_err(|error| Status::bad_request(format!("the body could not be read: {error}")))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let length = bytes.len() + data.len();
        if length > MAX_BODY_BYTES {
            drop((bytes, memory));
            discard(body).await;
            return Err(Status::too_large(MAX_BODY_BYTES));
        }
        if length > SMALL && memory.is_none() {
            memory = limits.memory(who, announced).await?;
        }
        bytes.extend_from_slice(data);
    }
    Ok(Read {
        bytes: bytes.freeze(),
        _memory: memory,
    })
}

/// Lets the rest of a body pass, as far as it is not too much: many clients do not look at an answer
/// before they have sent everything.
async fn discard(mut body: Body) {
    let mut left = DISCARDED_BYTES;
    let passing = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(STALL, passing).await;
}

/// A body as JSON, and complaints about what stood twice in it.
pub(super) fn decode(
    headers: &http::HeaderMap,
    body: Bytes,
    type_name: &str,
) -> Result<(Value, Vec<String>), Status> {
    let content_type = header_text(headers, &header::CONTENT_TYPE).unwrap_or("application/json");
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => match proto::parse_json(&body) {
            Ok((value, duplicates)) => {
                let complaints = duplicates.iter();
                let complaints = complaints.map(|path| format!("duplicate field {path:?}"));
                Ok((value, complaints.collect()))
            }
            Err(proto::Error::TooHeavy) => Err(Status::too_heavy()),
            Err(error) => Err(Status::bad_request(format!(
                "the body is not JSON: {error}"
            ))),
        },
        "application/yaml" => {
            let text = std::str::from_utf8(&body)
                .map_err(|_| Status::bad_request("the body is not UTF-8"))?;
            let (value, duplicates) = yaml::parse(text)
                .map_err(|error| Status::bad_request(format!("the body is not YAML: {error}")))?;
            Ok((value, yaml::complaint(&duplicates).into_iter().collect()))
        }
        "application/vnd.kubernetes.protobuf" => {
            let bad = |error: proto::Error| match error {
                proto::Error::TooHeavy => Status::too_heavy(),
                error => Status::bad_request(error.to_string()),
            };
            let envelope = proto::unwrap_envelope(&body).map_err(bad)?;
            let ty = proto::schema().get(type_name).ok_or_else(|| {
                Status::new(
                    Reason::UnsupportedMediaType,
                    format!("{type_name} has no protobuf form"),
                )
            })?;
            let mut value = proto::decode(ty, envelope.raw).map_err(bad)?;
            fill_kind(&mut value, &envelope.api_version, &envelope.kind);
            Ok((value, Vec::new()))
        }
        _ => Err(Status::unknown_format(&[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ])),
    }
}

pub(super) fn fill_kind(value: &mut Value, api_version: &str, kind: &str) {
    if let Some(map) = value.as_object_mut() {
        for (name, text) in [("apiVersion", api_version), ("kind", kind)] {
            let missing = map
                .get(name)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty);
            if missing && !text.is_empty() {
                map.insert(name.to_owned(), json!(text));
            }
        }
    }
}

/// The schema's type, version and kind of what is posted to an endpoint with a handler of its own.
pub(super) fn body_type(row: &Resource, subresource: Option<&str>) -> (String, String, String) {
    let special = row.subresources.iter().find_map(|known| match known {
        Subresource::Special(special) if Some(special.name) == subresource => Some(special),
        _ => None,
    });
    let Some(special) = special else {
        return (
            row.type_name.to_owned(),
            api_version(row),
            row.kind.to_owned(),
        );
    };
    let group = if special.group.is_empty() {
        row.group
    } else {
        special.group
    };
    let version = if special.version.is_empty() {
        row.version
    } else {
        special.version
    };
    let package = match group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    let full = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    (
        format!("io.k8s.api.{package}.{version}.{}", special.kind),
        full,
        special.kind.to_owned(),
    )
}

/// DeleteOptions of the body, or of the query.
pub(super) fn delete_options(incoming: &Incoming, body: Bytes) -> Result<Value, Status> {
    let mut options = match body.is_empty() {
        true => json!({}),
        false => {
            decode(
                &incoming.headers,
                body,
                "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
            )?
            .0
        }
    };
    if let Some(seconds) = incoming.query.number::<i64>("gracePeriodSeconds")? {
        options["gracePeriodSeconds"] = json!(seconds);
    }
    if let Some(policy) = incoming
        .query
        .get("propagationPolicy")
        .filter(|policy| !policy.is_empty())
    {
        options["propagationPolicy"] = json!(policy);
    }
    if incoming.query.get("orphanDependents").is_some() {
        options["orphanDependents"] = json!(incoming.query.flag("orphanDependents"));
    }
    Ok(options)
}
