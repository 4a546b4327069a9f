//! AdmissionReview: what a webhook is asked, and what its answer means. Pure.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::apiserver::{
    admission::{
        Request,
        shown::{Shown, described},
    },
    registry::kinds::value::text,
    status::{Reason, Status},
};

/// The question. `version` is that of AdmissionReview.
pub fn question(request: &Request<'_>, shown: &Shown<'_>, version: &str, uid: &str) -> Value {
    let mut ask = described(request, shown);
    ask["uid"] = uid.into();
    ask["object"] = json!(shown.object);
    ask["oldObject"] = json!(shown.old);
    json!({
        "kind": "AdmissionReview",
        "apiVersion": format!("admission.k8s.io/{version}"),
        "request": ask,
    })
}

/// What a webhook said.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    pub refused: Option<Box<Status>>,
    pub warnings: Vec<String>,
    /// A JSON patch, undecided whether it is one.
    pub patch: Option<Vec<u8>>,
}

/// Reads the answer of webhook `name`. An answer that is none is an error like no answer.
pub fn answer(review: &Value, name: &str, version: &str, uid: &str) -> Result<Verdict, String> {
    let response = &review["response"];
    if !response.is_object() {
        return Err(format!("{name}: the answer holds no response"));
    }
    // Version v1beta1 did not ask for these.
    if version == "v1" {
        for (field, want) in [
            ("kind", "AdmissionReview"),
            ("apiVersion", "admission.k8s.io/v1"),
        ] {
            let have = text(review, field);
            if have != want {
                return Err(format!("expected response.{field}={want:?}, got {have:?}"));
            }
        }
        let have = text(response, "uid");
        if have != uid {
            return Err(format!("expected response.uid={uid:?}, got {have:?}"));
        }
    }
    let warnings = response["warnings"].as_array().into_iter().flatten();
    let warnings = warnings
        .filter_map(|warning| warning.as_str().map(str::to_owned))
        .collect();
    if response["allowed"] != true {
        return Ok(Verdict {
            refused: Some(Box::new(refusal(name, &response["status"]))),
            warnings,
            patch: None,
        });
    }
    let patch = match text(response, "patch") {
        "" => None,
        patch => {
            let kind = text(response, "patchType");
            if kind != "JSONPatch" && !(kind.is_empty() && version != "v1") {
                return Err(format!("unsupported patch type {kind:?}"));
            }
            let bytes = BASE64_STANDARD.decode(patch);
            Some(bytes.map_err(|error| format!("the patch is not base64: {error}"))?)
        }
    };
    Ok(Verdict {
        refused: None,
        warnings,
        patch,
    })
}

/// The status that the client gets, with the webhook's own words in it.
fn refusal(name: &str, status: &Value) -> Status {
    let denied = format!("admission webhook {name:?} denied the request");
    let message = match (text(status, "message"), text(status, "reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = status["code"].as_u64();
    let code = code.and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    let reason = Reason::of(text(status, "reason"), code);
    Status {
        code,
        ..Status::new(reason, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::{
        admission::{Operation, Round, testing::row},
        request::User,
    };

    #[test]
    fn what_is_asked() {
        let user = User {
            uid: Some("u".to_owned()),
            ..User::internal("jane", &["dev"])
        };
        let (mut warnings, mut round) = (Vec::new(), Round::default());
        let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}});
        let request = Request {
            user: &user,
            operation: Operation::Create,
            resource: row("pods"),
            subresource: None,
            namespace: "n",
            name: "p",
            old: None,
            dry_run: true,
            warnings: &mut warnings,
            round: &mut round,
        };
        let shown = Shown {
            row: row("pods"),
            object: Some(&object),
            old: None,
        };
        let review = question(&request, &shown, "v1", "7");
        assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
        let asked = &review["request"];
        assert_eq!(
            asked["kind"],
            json!({"group": "", "version": "v1", "kind": "Pod"})
        );
        assert_eq!(asked["requestKind"], asked["kind"]);
        assert_eq!(asked["resource"]["resource"], "pods");
        assert_eq!(asked["userInfo"]["uid"], "u");
        assert_eq!(
            (&asked["dryRun"], &asked["oldObject"]),
            (&json!(true), &Value::Null)
        );
        let options = json!({"kind": "PodAttachOptions", "apiVersion": "v1"});
        let connect = Shown {
            object: Some(&options),
            ..shown
        };
        let review = question(&request, &connect, "v1", "7");
        assert_eq!(review["request"]["kind"]["kind"], "PodAttachOptions");
    }

    #[test]
    fn what_is_answered() {
        let answers = |response: Value| json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        for (review, want) in [
            (answers(json!({"uid": "7", "allowed": true})), Ok(None)),
            (answers(json!({"uid": "8", "allowed": true})), Err(())),
            (json!({"response": {"uid": "7", "allowed": true}}), Err(())),
            (
                answers(json!({"uid": "7", "allowed": true, "patch": "W10=", "patchType": "X"})),
                Err(()),
            ),
            (
                answers(json!({"uid": "7", "allowed": false})),
                Ok(Some((
                    400,
                    "admission webhook \"h\" denied the request without explanation",
                ))),
            ),
            (
                answers(
                    json!({"uid": "7", "allowed": false, "status": {"code": 403, "message": "no", "reason": "Forbidden"}}),
                ),
                Ok(Some((
                    403,
                    "admission webhook \"h\" denied the request: no",
                ))),
            ),
            (
                answers(
                    json!({"uid": "7", "allowed": false, "status": {"code": 200, "reason": "why"}}),
                ),
                Ok(Some((
                    400,
                    "admission webhook \"h\" denied the request: why",
                ))),
            ),
        ] {
            let got = answer(&review, "h", "v1", "7").map_err(drop);
            let got =
                got.map(|verdict| verdict.refused.map(|status| (status.code, status.message)));
            let want =
                want.map(|want| want.map(|(code, text): (u16, &str)| (code, text.to_owned())));
            assert_eq!(got, want, "{review}");
        }
    }
}
