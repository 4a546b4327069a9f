//! `serviceaccounts/token`: a token on request.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    issuer::{Bound, Reference, Subject, TokenIssuer, now},
    service_account::MAX_TOKEN_BYTES,
};
use crate::apiserver::{
    objects::Lookup,
    registry::{Causes, Resource},
    special::{Call, Special},
    status::{CauseType, Status},
};

const GROUP: &str = "authentication.k8s.io";
const DEFAULT_SECONDS: i64 = 3600;
const LEAST_SECONDS: i64 = 600;
const MOST_SECONDS: i64 = 1 << 32;

/// Answers TokenRequests.
pub struct TokenRequests(pub Arc<TokenIssuer>);

#[async_trait::async_trait]
impl Special for TokenRequests {
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool {
        resource.group.is_empty()
            && resource.plural == "serviceaccounts"
            && subresource == Some("token")
    }

    async fn create(&self, call: &Call<'_>, mut body: Value) -> Result<Value, Status> {
        let lookup: &dyn Lookup = call.objects;
        let account = lookup
            .get("serviceaccounts", call.namespace, call.name)
            .await
            .ok_or_else(|| Status::not_found("", "serviceaccounts", call.name))?;
        check_metadata(&body, call)?;
        let seconds = seconds(&body["spec"])?;
        let audiences = audiences(&body["spec"], self.0.audiences());
        let bound = bound(&body["spec"]["boundObjectRef"], call, lookup).await?;
        let subject = Subject {
            namespace: call.namespace.to_owned(),
            account: reference(&account),
        };
        let (issuer, meant) = (self.0.clone(), audiences.clone());
        // A signature takes a millisecond.
        let issued = tokio::task::spawn_blocking(move || {
            issuer.issue_at(&subject, &meant, seconds, bound, now())
        });
        let issued = issued.await.map_err(Status::internal)?;
        let issued = issued.map_err(Status::internal)?;
        check_size(&issued.token, &body)?;
        body["apiVersion"] = json!("authentication.k8s.io/v1");
        body["kind"] = json!("TokenRequest");
        body["metadata"] = json!({
            "name": call.name,
            "namespace": call.namespace,
            "creationTimestamp": timestamp(now()),
        });
        body["spec"]["audiences"] = json!(audiences);
        body["spec"]["expirationSeconds"] = json!(seconds);
        body["status"] = json!({
            "token": issued.token,
            "expirationTimestamp": timestamp(issued.expires),
        });
        Ok(body)
    }
}

/// A name or namespace in the body must be that of the URL.
fn check_metadata(body: &Value, call: &Call<'_>) -> Result<(), Status> {
    for (key, expected) in [("name", call.name), ("namespace", call.namespace)] {
        let given = body["metadata"][key].as_str().unwrap_or_default();
        if !given.is_empty() && given != expected {
            return Err(Status::bad_request(format!(
                "the {key} of the provided object ({given}) does not match the {key} sent on the request ({expected})"
            )));
        }
    }
    Ok(())
}

fn seconds(spec: &Value) -> Result<u64, Status> {
    let asked = spec["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECONDS);
    let complaint = if asked < LEAST_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if asked > MOST_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return u64::try_from(asked).map_err(Status::internal);
    };
    let mut causes = Causes::default();
    causes.invalid("spec.expirationSeconds", asked, complaint);
    Err(Status::invalid(GROUP, "TokenRequest", "", causes.0))
}

/// Nobody would accept a larger token.
fn check_size(token: &str, body: &Value) -> Result<(), Status> {
    if token.len() <= MAX_TOKEN_BYTES {
        return Ok(());
    }
    let mut causes = Causes::default();
    let message = format!("Too long: the token would be larger than {MAX_TOKEN_BYTES} bytes");
    causes.push(CauseType::FieldValueTooLong, "spec.audiences", message);
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    Err(Status::invalid(GROUP, "TokenRequest", name, causes.0))
}

fn audiences(spec: &Value, default: &[String]) -> Vec<String> {
    let asked: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|audience| Some(audience.as_str()?.to_owned()))
        .collect();
    if asked.is_empty() {
        default.to_vec()
    } else {
        asked
    }
}

/// What the token is to be bound to, if that is there and is the one meant.
async fn bound(reference: &Value, call: &Call<'_>, lookup: &dyn Lookup) -> Result<Bound, Status> {
    if reference.is_null() {
        return Ok(Bound::Nothing);
    }
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    let (kind, version, name) = (text("kind"), text("apiVersion"), text("name"));
    let (plural, namespace) = match (version, kind) {
        ("v1", "Pod") => ("pods", call.namespace),
        ("v1", "Secret") => ("secrets", call.namespace),
        ("v1", "Node") => ("nodes", ""),
        _ => {
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {version}, Kind={kind}"
            )));
        }
    };
    let object = lookup
        .get(plural, namespace, name)
        .await
        .ok_or_else(|| Status::not_found("", plural, name))?;
    let found = self::reference(&object);
    let asked = text("uid");
    if !asked.is_empty() && asked != found.uid {
        let why = format!(
            "the UID in the bound object reference ({asked}) does not match the UID in record. \
             The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", plural, name, &why));
    }
    Ok(match plural {
        "secrets" => Bound::Secret(found),
        "nodes" => Bound::Node(found),
        _ => {
            if object["spec"]["serviceAccountName"] != call.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.name
                )));
            }
            Bound::Pod {
                node: node_of(&object, lookup).await,
                pod: found,
            }
        }
    })
}

async fn node_of(pod: &Value, lookup: &dyn Lookup) -> Option<Reference> {
    let name = pod["spec"]["nodeName"].as_str()?;
    let node = lookup.get("nodes", "", name).await;
    Some(node.map_or_else(
        || Reference {
            name: name.to_owned(),
            uid: String::new(),
        },
        |node| self::reference(&node),
    ))
}

fn reference(object: &Value) -> Reference {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    Reference {
        name: text("name").to_owned(),
        uid: text("uid").to_owned(),
    }
}

fn timestamp(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}
