//! May this user do that? The reviews of `authorization.k8s.io`.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use super::{Authorizer, index::compact, rules::Rule};
use crate::apiserver::{
    registry::{Causes, Resource},
    request::{Attributes, FieldTerm, Target, User},
    selector::parse_fields,
    special::{Call, Special},
    status::Status,
};

const GROUP: &str = "authorization.k8s.io";

/// About any user, anywhere.
pub struct SubjectAccessReviews(pub Arc<Authorizer>);
/// About any user, in the namespace of the URL.
pub struct LocalSubjectAccessReviews(pub Arc<Authorizer>);
/// About the one who asks.
pub struct SelfSubjectAccessReviews(pub Arc<Authorizer>);
/// All that the one who asks may do in a namespace.
pub struct SelfSubjectRulesReviews(pub Arc<Authorizer>);

fn is(resource: &Resource, subresource: Option<&str>, plural: &str) -> bool {
    resource.group == GROUP && resource.plural == plural && subresource.is_none()
}

#[async_trait::async_trait]
impl Special for SubjectAccessReviews {
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool {
        is(resource, subresource, "subjectaccessreviews")
    }

    async fn create(&self, _: &Call<'_>, body: Value) -> Result<Value, Status> {
        let mut causes = Causes::default();
        let user = spec_user(&body["spec"], &mut causes);
        review(&self.0, "SubjectAccessReview", &user, body, causes).await
    }
}

#[async_trait::async_trait]
impl Special for LocalSubjectAccessReviews {
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool {
        is(resource, subresource, "localsubjectaccessreviews")
    }

    async fn create(&self, call: &Call<'_>, body: Value) -> Result<Value, Status> {
        let spec = &body["spec"];
        let mut causes = Causes::default();
        let user = spec_user(spec, &mut causes);
        if !spec["nonResourceAttributes"].is_null() {
            causes.invalid(
                "spec.nonResourceAttributes",
                &spec["nonResourceAttributes"],
                "disallowed on this kind of request",
            );
        }
        let asked = &spec["resourceAttributes"];
        if !asked.is_null() && asked["namespace"].as_str().unwrap_or_default() != call.namespace {
            return Err(Status::bad_request(format!(
                "spec.resourceAttributes.namespace must match namespace: {}",
                call.namespace
            )));
        }
        review(&self.0, "LocalSubjectAccessReview", &user, body, causes).await
    }
}

#[async_trait::async_trait]
impl Special for SelfSubjectAccessReviews {
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool {
        is(resource, subresource, "selfsubjectaccessreviews")
    }

    async fn create(&self, call: &Call<'_>, body: Value) -> Result<Value, Status> {
        let causes = Causes::default();
        review(&self.0, "SelfSubjectAccessReview", call.user, body, causes).await
    }
}

#[async_trait::async_trait]
impl Special for SelfSubjectRulesReviews {
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool {
        is(resource, subresource, "selfsubjectrulesreviews")
    }

    async fn create(&self, call: &Call<'_>, mut body: Value) -> Result<Value, Status> {
        let namespace = body["spec"]["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let rules = self.0.rules(call.user, namespace).await;
        let (paths, resources): (Vec<Rule>, Vec<Rule>) = compact(rules.iter())
            .into_iter()
            .partition(|rule| !rule.non_resource_urls.is_empty());
        // What the node authorizer allows depends on pods and is no list of rules.
        let incomplete = super::node_identity(call.user).is_some();
        body["status"] = json!({
            "resourceRules": resources,
            "nonResourceRules": paths,
            "incomplete": incomplete,
        });
        if incomplete {
            body["status"]["evaluationError"] =
                json!("node authorizer does not support user rule resolution");
        }
        Ok(body)
    }
}

/// The user that a review is about.
fn spec_user(spec: &Value, causes: &mut Causes) -> User {
    let strings = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.filter_map(|item| Some(item.as_str()?.to_owned()))
            .collect()
    };
    let extra: BTreeMap<String, Vec<String>> = spec["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, values)| (key.clone(), strings(values)))
        .collect();
    let user = User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().map(str::to_owned),
        groups: strings(&spec["groups"]),
        extra,
    };
    if user.name.is_empty() && user.groups.is_empty() {
        causes.invalid(
            "spec.user",
            "",
            "at least one of user or group must be specified",
        );
    }
    user
}

async fn review(
    authorizer: &Authorizer,
    kind: &str,
    user: &User,
    mut body: Value,
    mut causes: Causes,
) -> Result<Value, Status> {
    let attributes = attributes(&body["spec"], &mut causes);
    let Some(attributes) = attributes.filter(|_| causes.0.is_empty()) else {
        return Err(Status::invalid(GROUP, kind, "", causes.0));
    };
    let decision = authorizer.authorize(user, &attributes).await;
    body["status"] = json!({ "allowed": decision.is_allowed() });
    if !decision.reason().is_empty() {
        body["status"]["reason"] = json!(decision.reason());
    }
    Ok(body)
}

/// What is asked about: a resource or a path, not both.
fn attributes(spec: &Value, causes: &mut Causes) -> Option<Attributes> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if !resource.is_null() && !path.is_null() {
        causes.invalid(
            "spec.nonResourceAttributes",
            path,
            "cannot be specified in combination with resourceAttributes",
        );
        return None;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let some = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    if resource.is_object() {
        let fields = narrowed(resource, causes);
        return Some(Attributes {
            verb: text(&resource["verb"]),
            target: Target::Resource {
                group: text(&resource["group"]),
                version: text(&resource["version"]),
                resource: text(&resource["resource"]),
                subresource: some(&resource["subresource"]),
                namespace: some(&resource["namespace"]),
                name: some(&resource["name"]),
            },
            fields,
        });
    }
    if path.is_object() {
        return Some(Attributes {
            verb: text(&path["verb"]),
            target: Target::Path(text(&path["path"])),
            fields: Vec::new(),
        });
    }
    causes.invalid(
        "spec.resourceAttributes",
        Value::Null,
        "exactly one of nonResourceAttributes or resourceAttributes must be specified",
    );
    None
}

/// The field selector of what is asked about. What cannot be understood narrows nothing: the
/// authorizer then decides about more, hence allows no more.
fn narrowed(resource: &Value, causes: &mut Causes) -> Vec<FieldTerm> {
    for list in ["fieldSelector", "labelSelector"] {
        let selector = &resource[list];
        if selector.is_null() {
            continue;
        }
        let path = format!("spec.resourceAttributes.{list}");
        let raw = selector["rawSelector"].as_str().unwrap_or_default();
        let requirements = selector["requirements"].as_array();
        match (raw, requirements.is_none_or(Vec::is_empty)) {
            ("", true) => causes.required(
                format!("{path}.requirements"),
                &format!("when {path} is specified, requirements or rawSelector is required"),
            ),
            (raw, false) if !raw.is_empty() => causes.invalid(
                format!("{path}.rawSelector"),
                raw,
                "may not specified at the same time as requirements",
            ),
            _ => {}
        }
    }
    let selector = &resource["fieldSelector"];
    if let Some(raw) = selector["rawSelector"]
        .as_str()
        .filter(|raw| !raw.is_empty())
    {
        return parse_fields(raw).unwrap_or_default();
    }
    let requirements = selector["requirements"].as_array();
    let term = |requirement: &Value| {
        let equal = match requirement["operator"].as_str()? {
            "In" => true,
            "NotIn" => false,
            _ => return None,
        };
        let [value] = requirement["values"].as_array()?.as_slice() else {
            return None;
        };
        Some(FieldTerm {
            label: requirement["key"].as_str()?.to_owned(),
            value: value.as_str()?.to_owned(),
            equal,
        })
    };
    requirements
        .into_iter()
        .flatten()
        .filter_map(term)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_is_narrowed_as_a_request_is() {
        let term = |label: &str, value: &str, equal| FieldTerm {
            label: label.to_owned(),
            value: value.to_owned(),
            equal,
        };
        let one = |operator: &str, values: Value| json!({"requirements": [{"key": "spec.nodeName", "operator": operator, "values": values}]});
        for (selector, want, causes) in [
            (Value::Null, vec![], 0),
            (
                json!({"rawSelector": "spec.nodeName=n,a!=b"}),
                vec![term("spec.nodeName", "n", true), term("a", "b", false)],
                0,
            ),
            (json!({"rawSelector": "nonsense"}), vec![], 0),
            (
                one("In", json!(["n"])),
                vec![term("spec.nodeName", "n", true)],
                0,
            ),
            (
                one("NotIn", json!(["n"])),
                vec![term("spec.nodeName", "n", false)],
                0,
            ),
            (one("In", json!(["n", "m"])), vec![], 0),
            (one("Exists", json!([])), vec![], 0),
            (json!({}), vec![], 1),
        ] {
            let mut found = Causes::default();
            let asked = json!({"verb": "list", "resource": "pods", "fieldSelector": selector});
            assert_eq!(narrowed(&asked, &mut found), want, "{selector}");
            assert_eq!(found.0.len(), causes, "{selector}");
        }
        let mut both = one("In", json!(["n"]));
        both["rawSelector"] = json!("a=b");
        let mut found = Causes::default();
        narrowed(&json!({"fieldSelector": both}), &mut found);
        assert_eq!(found.0.len(), 1);
    }
}
