//! Which requests a webhook, a policy or a binding is for.

use serde_json::Value;

use super::{Operation, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::{
        Resource, Scope,
        kinds::{
            selector,
            value::{items, text, texts},
        },
    },
};

/// Rules and selectors, ready to be asked.
#[derive(Debug)]
pub struct Matching {
    rules: Vec<Value>,
    excluded: Vec<Value>,
    /// Without a rule it is for every kind.
    all_without_rules: bool,
    /// Whether other versions of a rule's kind count too.
    equivalent: bool,
    namespaces: Value,
    objects: Value,
}

impl Matching {
    pub fn of_webhook(hook: &Value) -> Self {
        Self {
            rules: items(hook, "rules").to_vec(),
            excluded: Vec::new(),
            all_without_rules: false,
            equivalent: text(hook, "matchPolicy") != "Exact",
            namespaces: hook["namespaceSelector"].clone(),
            objects: hook["objectSelector"].clone(),
        }
    }

    /// `resources`: the `MatchResources` of a policy or of a binding, where it may be absent.
    pub fn of_policy(resources: &Value) -> Self {
        Self {
            rules: items(resources, "resourceRules").to_vec(),
            excluded: items(resources, "excludeResourceRules").to_vec(),
            all_without_rules: true,
            equivalent: text(resources, "matchPolicy") == "Equivalent",
            namespaces: resources["namespaceSelector"].clone(),
            objects: resources["objectSelector"].clone(),
        }
    }

    /// The row in whose version the request is wanted; `None`: it is not.
    pub async fn row<'a>(
        &self,
        request: &Request<'a>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Option<&'a Resource> {
        if self.fitting(&self.excluded, request, lookup).is_some() {
            return None;
        }
        let row = match self.rules.is_empty() && self.all_without_rules {
            true => request.resource,
            false => self.fitting(&self.rules, request, lookup)?,
        };
        let labels = |object: Option<&'a Value>| object.map(|one| one["metadata"].get("labels"));
        let chosen = selector::is_empty(&self.objects)
            || object.is_some_and(|object| {
                selector::matches(&self.objects, object["metadata"].get("labels"))
            })
            || labels(request.old).is_some_and(|labels| selector::matches(&self.objects, labels));
        let here = chosen && self.in_namespace(request, object, lookup).await;
        here.then_some(row)
    }

    fn fitting<'a>(
        &self,
        rules: &[Value],
        request: &Request<'a>,
        lookup: &dyn Lookup,
    ) -> Option<&'a Resource> {
        let fits = |row| {
            let asked = Asked {
                operation: request.operation,
                row,
                subresource: request.subresource,
                name: request.name,
            };
            rules.iter().any(|rule| asked.fits(rule))
        };
        if rules.is_empty() {
            return None;
        }
        match fits(request.resource) {
            true => Some(request.resource),
            false if self.equivalent => lookup
                .rows_of(request.resource.storage)
                .into_iter()
                .find(|row| fits(row)),
            false => None,
        }
    }

    async fn in_namespace(
        &self,
        request: &Request<'_>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> bool {
        if selector::is_empty(&self.namespaces) {
            return true;
        }
        if request.resource.plural == "namespaces" && request.resource.group.is_empty() {
            let own = object.or(request.old);
            let labels = own.and_then(|own| own["metadata"].get("labels"));
            return selector::matches(&self.namespaces, labels);
        }
        if request.namespace.is_empty() {
            return true;
        }
        let namespace = lookup.get("namespaces", "", request.namespace).await;
        let labels = namespace
            .as_ref()
            .and_then(|one| one["metadata"].get("labels"));
        selector::matches(&self.namespaces, labels)
    }
}

/// A request in the words of a rule.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    operation: Operation,
    row: &'a Resource,
    subresource: Option<&'a str>,
    name: &'a str,
}

impl Asked<'_> {
    /// `rule`: a `RuleWithOperations`, of policies with names.
    fn fits(&self, rule: &Value) -> bool {
        let listed = |field: &str, value: &str| {
            let mut all = items(rule, field).iter().filter_map(Value::as_str);
            all.any(|one| one == "*" || one == value)
        };
        let scope = match text(rule, "scope") {
            "Namespaced" => self.row.scope == Scope::Namespaced,
            "Cluster" => self.row.scope == Scope::Cluster,
            _ => true,
        };
        let resource = || {
            texts(rule, "resources").into_iter().any(|pattern| {
                let (plural, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
                (plural == "*" || plural == self.row.plural)
                    && (sub == "*" || sub == self.subresource.unwrap_or_default())
            })
        };
        let named = || {
            let names = items(rule, "resourceNames");
            names.is_empty() || names.iter().any(|name| *name == self.name)
        };
        scope
            && listed("operations", operation(self.operation))
            && listed("apiGroups", self.row.group)
            && listed("apiVersions", self.row.version)
            && resource()
            && named()
    }
}

/// As rules and reviews write it.
pub fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::admission::testing::row;

    #[test]
    fn what_fits() {
        let rule = |groups: &str, resources: Value, scope: &str| {
            json!({"operations": ["CREATE", "CONNECT"], "apiGroups": [groups], "apiVersions": ["v1"],
                "resources": resources, "scope": scope})
        };
        use Operation::{Connect, Create, Update};
        for (operation, plural, sub, rule, want) in [
            (Create, "pods", None, rule("", json!(["pods"]), "*"), true),
            (Update, "pods", None, rule("", json!(["pods"]), "*"), false),
            (Create, "pods", None, rule("apps", json!(["*"]), "*"), false),
            (
                Create,
                "deployments",
                None,
                rule("*", json!(["*"]), "Namespaced"),
                true,
            ),
            (
                Create,
                "nodes",
                None,
                rule("*", json!(["*"]), "Namespaced"),
                false,
            ),
            (
                Create,
                "namespaces",
                None,
                rule("*", json!(["*"]), "Cluster"),
                true,
            ),
            (
                Connect,
                "pods",
                Some("attach"),
                rule("", json!(["pods"]), "*"),
                false,
            ),
            (
                Connect,
                "pods",
                Some("attach"),
                rule("", json!(["pods/attach"]), "*"),
                true,
            ),
            (
                Connect,
                "pods",
                Some("attach"),
                rule("", json!(["*/*"]), "*"),
                true,
            ),
            (Create, "pods", None, rule("", json!(["*/*"]), "*"), true),
        ] {
            let asked = Asked {
                operation,
                row: row(plural),
                subresource: sub,
                name: "web",
            };
            assert_eq!(asked.fits(&rule), want, "{asked:?} {rule}");
        }
    }
    #[test]
    fn rules_of_policies_may_name_objects() {
        let asked = Asked {
            operation: Operation::Create,
            row: row("pods"),
            subresource: None,
            name: "web",
        };
        for (names, want) in [
            (json!([]), true),
            (json!(["web"]), true),
            (json!(["other"]), false),
        ] {
            let rule = json!({"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["pods"], "resourceNames": names});
            assert_eq!(asked.fits(&rule), want, "{names}");
        }
    }
}
