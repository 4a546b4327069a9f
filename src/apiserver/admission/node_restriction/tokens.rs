//! Which tokens a node may have made: those that its pods mount, bound to the pod.

use serde_json::Value;

use super::{Asked, pods};
use crate::apiserver::{
    admission::Operation,
    authz::Authorizer,
    objects::Lookup,
    registry::kinds::{
        pods::references,
        value::{at, items, text, texts},
    },
    request::{Attributes, Target},
    status::Status,
};

/// Who has this verb on a "resource" named after an audience may ask for it without a volume.
const VERB: &str = "request-serviceaccounts-token-audience";

pub async fn check(asked: &Asked<'_>, authorizer: &Authorizer) -> Result<(), Status> {
    if asked.request.operation != Operation::Create {
        return Ok(());
    }
    let bound = &asked.object["spec"]["boundObjectRef"];
    let (name, uid) = (text(bound, "name"), text(bound, "uid"));
    if text(bound, "apiVersion") != "v1" || text(bound, "kind") != "Pod" || name.is_empty() {
        return asked.refuse("node requested token not bound to a pod");
    }
    if uid.is_empty() {
        return asked.refuse("node requested token with a pod binding without a uid");
    }
    let pod = pods::pod(asked, name).await?;
    if uid != text(&pod, "metadata.uid") {
        return asked.refuse(&format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    if text(&pod, "spec.nodeName") != asked.node {
        return asked.refuse("node requested token bound to a pod scheduled on a different node");
    }
    let audience = match texts(asked.object, "spec.audiences").as_slice() {
        [] => "",
        [one] => *one,
        _ => return asked.refuse("node may only request 0 or 1 audiences"),
    };
    if mounts(&pod, audience, asked).await || granted(asked, authorizer, audience).await {
        return Ok(());
    }
    asked.refuse(&format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        asked.request.user.name
    ))
}

/// Whether a volume of the pod holds a token for the audience (empty: that of the API server), or is
/// of a driver that is given one.
async fn mounts(pod: &Value, audience: &str, asked: &Asked<'_>) -> bool {
    let projected = references::projections(pod)
        .filter_map(|source| at(source, "serviceAccountToken"))
        .any(|token| text(token, "audience") == audience);
    if projected {
        return true;
    }
    for volume in references::volumes(pod) {
        let driver = text(volume, "csi.driver");
        if !driver.is_empty() && is_given(driver, audience, asked.lookup).await {
            return true;
        }
    }
    for claim in references::claims(pod) {
        let driver = driver_of(&claim, asked).await.unwrap_or_default();
        if !driver.is_empty() && is_given(&driver, audience, asked.lookup).await {
            return true;
        }
    }
    false
}

/// The driver behind a claim.
async fn driver_of(claim: &str, asked: &Asked<'_>) -> Option<String> {
    let (plural, namespace) = ("persistentvolumeclaims", asked.request.namespace);
    let claim = asked.lookup.get(plural, namespace, claim).await?;
    let volume = text(&claim, "spec.volumeName");
    let volume = asked.lookup.get("persistentvolumes", "", volume).await?;
    Some(text(&volume, "spec.csi.driver").to_owned())
}

async fn is_given(driver: &str, audience: &str, lookup: &dyn Lookup) -> bool {
    let driver = lookup.get("csidrivers.storage.k8s.io", "", driver).await;
    driver.is_some_and(|driver| {
        items(&driver, "spec.tokenRequests")
            .iter()
            .any(|request| text(request, "audience") == audience)
    })
}

async fn granted(asked: &Asked<'_>, authorizer: &Authorizer, audience: &str) -> bool {
    let attributes = Attributes {
        verb: VERB.to_owned(),
        target: Target::Resource {
            group: String::new(),
            version: "v1".to_owned(),
            resource: audience.to_owned(),
            subresource: None,
            namespace: Some(asked.request.namespace.to_owned()),
            name: Some(asked.request.name.to_owned()),
        },
        fields: Vec::new(),
    };
    let decision = authorizer.authorize(asked.request.user, &attributes);
    decision.await.is_allowed()
}
