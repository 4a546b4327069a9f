//! Patches: a current object and a body in, the patched object out.
//!
//! Called by the patch verb, which prunes, defaults, admits and validates what comes out, and
//! checks names and versions. Always true: the result is an object that can be stored and read
//! back (its nesting is bounded), and no patch makes the work grow out of proportion to its size.

mod json;
pub mod managed;
mod merge;
mod strategic;

use serde_json::Value;

use super::status::{Reason, Status};

/// Deepest nesting of a result: what the JSON reader takes back.
const MAX_DEPTH: usize = 120;

/// The kinds of patch, by content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    const ALL: [Self; 4] = [Self::Json, Self::Merge, Self::Strategic, Self::Apply];

    /// What OpenAPI and 415 answers list: custom resources have no lists that merge by a key.
    pub fn served(custom: bool) -> impl Iterator<Item = Self> {
        let kinds = Self::ALL.into_iter();
        kinds.filter(move |kind| !custom || *kind != Self::Strategic)
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }

    /// From a Content-Type header; its parameters are ignored. Anything else is 415.
    pub fn parse(header: &str, custom: bool) -> Result<Self, Status> {
        let media = header.split(';').next().unwrap_or_default().trim();
        Self::served(custom)
            .find(|kind| media.eq_ignore_ascii_case(kind.content_type()))
            .ok_or_else(|| {
                let accepted: Vec<_> = Self::served(custom).map(Self::content_type).collect();
                Status::unknown_format(&accepted)
            })
    }
}

/// Applies `body` to `current`. `ty` is the kind's type; custom resources have none and take no
/// strategic merge patch (415).
pub fn apply(
    kind: PatchType,
    ty: Option<&'static proto::Type>,
    current: &Value,
    body: &[u8],
) -> Result<Value, Status> {
    apply_and_complain(kind, ty, current, body).map(|(patched, _)| patched)
}

/// As [`apply`], with complaints about what stands twice in the patch.
pub fn apply_and_complain(
    kind: PatchType,
    ty: Option<&'static proto::Type>,
    current: &Value,
    body: &[u8],
) -> Result<(Value, Vec<String>), Status> {
    let (patched, complaints) = match kind {
        PatchType::Json => json::apply(current, body)?,
        PatchType::Merge => merge::apply(current, body)?,
        PatchType::Strategic => {
            let ty = ty.ok_or_else(|| {
                let accepted: Vec<_> = PatchType::served(true)
                    .map(PatchType::content_type)
                    .collect();
                Status::unknown_format(&accepted)
            })?;
            strategic::apply(ty, current, body)?
        }
        PatchType::Apply => {
            return Err(Status::new(
                Reason::UnsupportedMediaType,
                "server-side apply (application/apply-patch+yaml) is not supported here",
            ));
        }
    };
    if !patched.is_object() {
        return Err(Status::bad_request("a patch must leave an object"));
    }
    if depth(&patched) > MAX_DEPTH {
        return Err(unprocessable("the patched object is nested too deep"));
    }
    if proto::weight(&patched) > proto::MAX_WEIGHT {
        return Err(Status::too_heavy());
    }
    Ok((patched, complaints))
}

/// A merge patch's body, a JSON object; with complaints about what stands twice in it.
fn object(body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    let (value, duplicates) = proto::parse_json(body).map_err(|error| match error {
        proto::Error::TooHeavy => Status::too_heavy(),
        error => malformed(&error),
    })?;
    if value.is_object() {
        let complaints = duplicates.iter();
        let complaints = complaints.map(|path| format!("duplicate field {path:?}"));
        return Ok((value, complaints.collect()));
    }
    Err(malformed("the patch is not an object"))
}

fn malformed(error: impl std::fmt::Display) -> Status {
    Status::bad_request(format!("error decoding patch: {error}"))
}

/// 422: well-formed, but it does not fit this object.
fn unprocessable(message: impl std::fmt::Display) -> Status {
    Status::new(
        Reason::Invalid,
        format!("the server rejected our request due to an error in our request: {message}"),
    )
}

/// Levels of nesting; a scalar has none.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn content_types() {
        for (header, want) in [
            ("application/json-patch+json", Some(PatchType::Json)),
            (
                "application/merge-patch+json; charset=utf-8",
                Some(PatchType::Merge),
            ),
            (
                "Application/Strategic-Merge-Patch+JSON",
                Some(PatchType::Strategic),
            ),
            ("application/apply-patch+yaml", Some(PatchType::Apply)),
            ("application/apply-patch+cbor", None),
            ("application/json", None),
            ("", None),
        ] {
            let found = PatchType::parse(header, false);
            assert_eq!(found.as_ref().ok(), want.as_ref(), "{header}");
            if let Err(status) = found {
                assert_eq!(status.code, 415);
            }
        }
        let strategic = PatchType::Strategic.content_type();
        let status = PatchType::parse(strategic, true).expect_err("of a custom resource");
        assert_eq!(
            (status.code, status.message.as_str()),
            (
                415,
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
            )
        );
    }

    #[test]
    fn results_and_codes() {
        let current = json!({"metadata": {"name": "p", "labels": {"a": "1"}}, "spec": {
            "containers": [{"name": "c", "image": "1"}]}});
        let pod = proto::schema().get("io.k8s.api.core.v1.Pod");
        for (kind, ty, body, want) in [
            (
                PatchType::Merge,
                pod,
                r#"{"metadata":{"labels":{"a":null,"b":"2"}}}"#,
                Ok(("/metadata/labels", json!({"b": "2"}))),
            ),
            (
                PatchType::Merge,
                pod,
                r#"{"spec":{"containers":[]}}"#,
                Ok(("/spec/containers", json!([]))),
            ),
            (PatchType::Merge, pod, "[]", Err(400)),
            (PatchType::Merge, pod, "{", Err(400)),
            (
                PatchType::Strategic,
                pod,
                r#"{"spec":{"containers":[{"name":"c","image":"2"}]}}"#,
                Ok(("/spec/containers", json!([{"name": "c", "image": "2"}]))),
            ),
            (
                PatchType::Strategic,
                pod,
                r#"{"spec":{"containers":[{"image":"2"}]}}"#,
                Err(422),
            ),
            (PatchType::Strategic, pod, "null", Err(400)),
            (PatchType::Strategic, None, "{}", Err(415)),
            (PatchType::Apply, pod, "{}", Err(415)),
            (
                PatchType::Json,
                pod,
                r#"[{"op":"replace","path":"/spec/containers/0/image","value":"2"}]"#,
                Ok(("/spec/containers/0/image", json!("2"))),
            ),
            (
                PatchType::Json,
                pod,
                r#"[{"op":"add","path":"/metadata/labels/x~1y","value":"2"}]"#,
                Ok(("/metadata/labels/x~1y", json!("2"))),
            ),
            (
                PatchType::Json,
                pod,
                r#"[{"op":"test","path":"/metadata/name","value":"q"}]"#,
                Err(422),
            ),
            (
                PatchType::Json,
                pod,
                r#"[{"op":"remove","path":"/spec/nothing"}]"#,
                Err(422),
            ),
            (
                PatchType::Json,
                pod,
                r#"[{"op":"replace","path":"/nothing/there","value":1}]"#,
                Err(422),
            ),
            (
                PatchType::Json,
                pod,
                r#"[{"op":"bogus","path":"/x"}]"#,
                Err(422),
            ),
            (PatchType::Json, pod, "[1]", Err(400)),
            (PatchType::Json, pod, "{}", Err(400)),
            (
                PatchType::Json,
                pod,
                r#"[{"op":"replace","path":"","value":[]}]"#,
                Err(400),
            ),
        ] {
            match (apply(kind, ty, &current, body.as_bytes()), want) {
                (Ok(patched), Ok((pointer, value))) => {
                    assert_eq!(patched.pointer(pointer), Some(&value), "{body}");
                }
                (Err(status), Err(code)) => assert_eq!(status.code, code, "{body}: {status}"),
                (got, want) => panic!("{body}: {got:?}, not {want:?}"),
            }
        }
    }

    /// Quadratic, each of these would take minutes.
    #[test]
    fn long_lists_are_merged_in_one_pass() {
        let begun = crate::testing::cpu_time();
        let pod = proto::schema().get("io.k8s.api.core.v1.Pod");
        let container = |at: usize| json!({"name": format!("c{at}"), "image": "i"});
        let names = |at: usize| json!({"name": format!("c{at}")});
        let many: Vec<Value> = (0..30_000).map(container).collect();
        let current =
            json!({"metadata": {"name": "p", "finalizers": ["a/b"]}, "spec": {"containers": many}});
        let patch = json!({
            "metadata": {"$deleteFromPrimitiveList/finalizers": (0..30_000).map(|at| format!("f/{at}")).collect::<Vec<_>>()},
            "spec": {
                "containers": (0..30_000).map(|at| container(at + 15_000)).collect::<Vec<_>>(),
                "$setElementOrder/containers": (0..45_000).map(names).collect::<Vec<_>>(),
            },
        });
        let patched = apply(
            PatchType::Strategic,
            pod,
            &current,
            patch.to_string().as_bytes(),
        );
        let patched = patched.expect("merges");
        let merged = patched["spec"]["containers"].as_array().expect("a list");
        assert_eq!(merged.len(), 45_000);
        let deletes: Vec<Value> = (0..30_000)
            .map(|at| json!({"name": format!("c{at}"), "$patch": "delete"}))
            .collect();
        let patch = json!({"spec": {"containers": deletes}});
        let patched = apply(
            PatchType::Strategic,
            pod,
            &current,
            patch.to_string().as_bytes(),
        );
        assert_eq!(patched.expect("deletes")["spec"]["containers"], json!([]));
        let took = crate::testing::cpu_time() - begun;
        assert!(took.as_secs() < 30, "{took:?}");
    }

    #[test]
    fn a_small_patch_stays_small_work() {
        let current = json!({"a": {"x": "0123456789"}});
        let many = format!(
            "[{}]",
            vec![r#"{"op":"test","path":"","value":0}"#; 10_001].join(",")
        );
        let status = apply(PatchType::Json, None, &current, many.as_bytes()).expect_err("too many");
        assert_eq!(status.code, 413);
        // Each copy doubles the object, or nests it one level deeper.
        let mut doubling = Vec::new();
        let mut nesting = Vec::new();
        for step in 0..5_000 {
            doubling.push(format!(r#"{{"op":"copy","from":"","path":"/k{step}"}}"#));
            nesting.push(r#"{"op":"copy","from":"/a","path":"/a/x"}"#.to_owned());
        }
        let long = json!({"a": vec![0; 200_000]});
        for operation in [
            r#"{"op":"add","path":"/a/0","value":1}"#,
            r#"{"op":"remove","path":"/a/0"}"#,
            r#"{"op":"move","from":"/a/0","path":"/a/1"}"#,
        ] {
            let body = format!("[{}]", vec![operation; 10_000].join(","));
            let status = apply(PatchType::Json, None, &long, body.as_bytes());
            let status = status.expect_err("moves the list again and again");
            assert!(status.message.contains("list items"), "{status}");
        }
        let appending = vec![r#"{"op":"add","path":"/a/-","value":1}"#; 10_000].join(",");
        let body = format!("[{appending}]");
        apply(PatchType::Json, None, &long, body.as_bytes()).expect("appends");
        let moving = [
            r#"{"op":"add","path":"/b","value":{}}"#,
            r#"{"op":"move","from":"/a","path":"/b/a"}"#,
            r#"{"op":"move","from":"/b","path":"/a"}"#,
        ];
        for operations in [doubling, nesting, vec![moving.join(","); 3_000]] {
            let body = format!("[{}]", operations.join(","));
            let status = apply(PatchType::Json, None, &current, body.as_bytes());
            assert_eq!(status.expect_err("grows too much").code, 422);
        }
    }
}
