//! Which requests a webhook wants to see. Pure.

use serde_json::Value;

use crate::apiserver::{
    admission::Operation,
    registry::{
        Resource, Scope,
        kinds::value::{text, texts},
    },
};

/// A request in the words of a rule.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub operation: Operation,
    pub row: &'a Resource,
    pub subresource: Option<&'a str>,
}

impl Asked<'_> {
    /// `rule`: a `RuleWithOperations`.
    pub fn fits(&self, rule: &Value) -> bool {
        let listed = |field: &str, value: &str| {
            let all = texts(rule, field);
            all.contains(&"*") || all.contains(&value)
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
        scope
            && listed("operations", operation(self.operation))
            && listed("apiGroups", self.row.group)
            && listed("apiVersions", self.row.version)
            && resource()
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
            };
            assert_eq!(asked.fits(&rule), want, "{asked:?} {rule}");
        }
    }
}
