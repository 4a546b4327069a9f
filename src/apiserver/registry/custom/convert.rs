//! Conversion of custom resources between versions by a webhook of their definition's author.

use std::time::Duration;

use serde_json::{Value, json};

use crate::apiserver::{
    callout::Caller,
    objects::Lookup,
    registry::kinds::value::{text, texts},
    status::{Reason, Status},
};

/// The forms of ConversionReview that this server speaks, best first.
pub const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const TIMEOUT: Duration = Duration::from_secs(30);

/// A definition's webhook, ready to be asked.
pub struct Converter {
    caller: Caller,
    version: &'static str,
    kind: String,
}

impl std::fmt::Debug for Converter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Converter")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Converter {
    /// `None`: the definition converts by the version's name alone.
    pub fn new(definition: &Value) -> Option<Self> {
        let conversion = &definition["spec"]["conversion"];
        if text(conversion, "strategy") != "Webhook" {
            return None;
        }
        let wanted = texts(conversion, "webhook.conversionReviewVersions");
        let known = wanted
            .iter()
            .find_map(|wanted| REVIEW_VERSIONS.into_iter().find(|known| known == wanted));
        Some(Self {
            caller: Caller::new(&conversion["webhook"]["clientConfig"]),
            version: known.unwrap_or("v1"),
            kind: text(definition, "spec.names.kind").to_owned(),
        })
    }

    /// The objects in version `to` (`group/version`), in their order.
    pub async fn convert(
        &self,
        lookup: &dyn Lookup,
        to: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, Status> {
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({
            "kind": "ConversionReview",
            "apiVersion": format!("apiextensions.k8s.io/{}", self.version),
            "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects},
        });
        let answer = self
            .caller
            .post(lookup, &review, TIMEOUT, Some(TIMEOUT.as_secs()));
        let converted = match answer.await {
            Ok(answer) => read(&answer, &uid, to, &objects),
            Err(error) => Err(error.to_string()),
        };
        converted.map_err(|why| {
            let from = objects.first().map_or(to, |one| text(one, "apiVersion"));
            let kind = &self.kind;
            let what = format!("conversion webhook for {from}, Kind={kind} failed: {why}");
            Status::new(Reason::Unknown, what)
        })
    }
}

/// What the webhook made, with the metadata that it may not touch as it was. Pure.
fn read(answer: &Value, uid: &str, to: &str, objects: &[Value]) -> Result<Vec<Value>, String> {
    let response = &answer["response"];
    let have = text(response, "uid");
    if have != uid {
        return Err(format!("expected response.uid={uid:?}, got {have:?}"));
    }
    match (
        text(response, "result.status"),
        text(response, "result.message"),
    ) {
        ("Success", _) => {}
        (_, "") => return Err("the webhook refused without a message".to_owned()),
        (_, message) => return Err(message.to_owned()),
    }
    let converted = response["convertedObjects"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if converted.len() != objects.len() {
        return Err(format!(
            "the webhook returned {} objects, expected {}",
            converted.len(),
            objects.len()
        ));
    }
    let pairs = converted.into_iter().zip(objects).enumerate();
    pairs
        .map(|(index, (mut new, old))| {
            let same = |path: &str, want: &str| match text(&new, path) {
                have if have == want => Ok(()),
                have => Err(format!(
                    "the webhook returned an object at index {index} with {path} {have:?}, expected {want:?}"
                )),
            };
            same("apiVersion", to)?;
            for path in ["kind", "metadata.name", "metadata.namespace", "metadata.uid"] {
                same(path, text(old, path))?;
            }
            // Labels and annotations may be converted; all else is the server's.
            let mut metadata = old["metadata"].clone();
            for free in ["labels", "annotations"] {
                match new["metadata"].get(free).filter(|one| !one.is_null()) {
                    Some(value) => metadata[free] = value.clone(),
                    None => {
                        metadata.as_object_mut().map(|map| map.remove(free));
                    }
                }
            }
            new["metadata"] = metadata;
            Ok(new)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_webhook_may_make() {
        let object = |version: &str, name: &str| {
            json!({"apiVersion": format!("a.example/{version}"), "kind": "Tab",
                "metadata": {"name": name, "uid": "u", "labels": {"v": version}, "finalizers": [version]}})
        };
        let answers = |status: &str, objects: Value| json!({"response": {"uid": "7", "result": {"status": status, "message": "why"}, "convertedObjects": objects}});
        let old = [object("v1", "x")];
        for (answer, want) in [
            (answers("Success", json!([object("v2", "x")])), Ok(())),
            (answers("Failed", json!([])), Err("why")),
            (answers("Success", json!([])), Err("returned 0 objects")),
            (
                answers("Success", json!([object("v1", "x")])),
                Err("with apiVersion"),
            ),
            (
                answers("Success", json!([object("v2", "y")])),
                Err("with metadata.name"),
            ),
            (json!({"response": {"uid": "8"}}), Err("response.uid")),
        ] {
            match (read(&answer, "7", "a.example/v2", &old), want) {
                (Ok(made), Ok(())) => {
                    assert_eq!(made[0]["metadata"]["labels"]["v"], "v2");
                    assert_eq!(made[0]["metadata"]["finalizers"], json!(["v1"]));
                }
                (Err(have), Err(want)) => assert!(have.contains(want), "{have}"),
                (have, want) => panic!("{have:?} instead of {want:?}"),
            }
        }
    }
}
