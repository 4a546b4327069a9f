//! One rule of a role: what it allows, and whether some rules allow all that another does. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::apiserver::request::{Attributes, Target};

/// A PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

const ALL: &str = "*";

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted)
}

fn has_or_all(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

/// The rules of a role object. A rule that is not one allows nothing.
pub fn rules_of(role: &Value) -> Vec<Rule> {
    let rules = role["rules"].as_array().into_iter().flatten();
    rules
        .filter_map(|rule| Rule::deserialize(rule).ok())
        .collect()
}

impl Rule {
    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !has_or_all(&self.verbs, &attributes.verb) {
            return false;
        }
        match &attributes.target {
            Target::Path(path) => self.allows_path(path),
            Target::Resource {
                group,
                resource,
                subresource,
                name,
                ..
            } => {
                has_or_all(&self.api_groups, group)
                    && self.allows_resource(resource, subresource.as_deref())
                    && self.allows_name(name.as_deref().unwrap_or_default())
            }
        }
    }

    /// `pods`, `pods/log`, `*/scale` and `*`; `pods/*` is nothing special.
    fn allows_resource(&self, resource: &str, subresource: Option<&str>) -> bool {
        self.resources.iter().any(|allowed| {
            if allowed == ALL {
                return true;
            }
            match (subresource, allowed.split_once('/')) {
                (None, None) => allowed == resource,
                (Some(subresource), Some((of, allowed))) => {
                    allowed == subresource && (of == ALL || of == resource)
                }
                _ => false,
            }
        })
    }

    /// A request without a name (create, list of all) is never one for certain names.
    fn allows_name(&self, name: &str) -> bool {
        self.resource_names.is_empty() || has(&self.resource_names, name)
    }

    fn allows_path(&self, path: &str) -> bool {
        self.non_resource_urls
            .iter()
            .any(|allowed| match allowed.strip_suffix(ALL) {
                Some(start) => path.starts_with(start),
                None => path == allowed,
            })
    }

    /// The rule taken apart: one verb on one resource or path each.
    fn parts(&self) -> Vec<Rule> {
        let mut parts = Vec::new();
        let one = |item: &String| vec![item.clone()];
        let names: Vec<Vec<String>> = if self.resource_names.is_empty() {
            vec![Vec::new()]
        } else {
            self.resource_names.iter().map(one).collect()
        };
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    parts.extend(names.iter().map(|name| Rule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        resource_names: name.clone(),
                        non_resource_urls: Vec::new(),
                    }));
                }
            }
            parts.extend(self.non_resource_urls.iter().map(|url| Rule {
                verbs: one(verb),
                non_resource_urls: one(url),
                ..Rule::default()
            }));
        }
        parts
    }

    /// Whether this rule alone allows all that the single-purpose rule `part` does.
    fn covers_part(&self, part: &Rule) -> bool {
        let verbs = part.verbs.iter().all(|verb| has_or_all(&self.verbs, verb));
        if !part.non_resource_urls.is_empty() {
            return verbs
                && part
                    .non_resource_urls
                    .iter()
                    .all(|url| self.allows_path(url));
        }
        verbs
            && part
                .api_groups
                .iter()
                .all(|group| has_or_all(&self.api_groups, group))
            && part
                .resources
                .iter()
                .all(|resource| self.covers_resource(resource))
            && (self.resource_names.is_empty()
                || (!part.resource_names.is_empty()
                    && part
                        .resource_names
                        .iter()
                        .all(|name| has(&self.resource_names, name))))
    }

    fn covers_resource(&self, resource: &str) -> bool {
        if has_or_all(&self.resources, resource) {
            return true;
        }
        let subresource = resource.split_once('/').map(|(_, subresource)| subresource);
        subresource.is_some_and(|name| has(&self.resources, &format!("*/{name}")))
    }
}

/// What `wanted` allows and `held` does not, taken apart.
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(Rule::parts)
        .filter(|part| !held.iter().any(|rule| rule.covers_part(part)))
        .collect()
}

/// As `kubectl` users know it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = Vec::new();
        for (name, list) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                let list: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
                fields.push(format!("{name}:[{}]", list.join(" ")));
            }
        }
        write!(out, "{{{}}}", fields.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(value: Value) -> Rule {
        serde_json::from_value(value).expect("a rule")
    }

    fn on(verb: &str, resource: &str, name: &str) -> Attributes {
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (resource, None),
        };
        Attributes {
            verb: verb.to_owned(),
            target: Target::Resource {
                group: "apps".to_owned(),
                version: "v1".to_owned(),
                resource: resource.to_owned(),
                subresource,
                namespace: None,
                name: (!name.is_empty()).then(|| name.to_owned()),
            },
            fields: Vec::new(),
        }
    }

    #[test]
    fn what_a_rule_allows() {
        for (resources, names, verb, resource, name, allowed) in [
            (
                json!(["deployments"]),
                json!([]),
                "get",
                "deployments",
                "x",
                true,
            ),
            (
                json!(["deployments"]),
                json!([]),
                "get",
                "deployments/scale",
                "x",
                false,
            ),
            (
                json!(["deployments/scale"]),
                json!([]),
                "get",
                "deployments",
                "x",
                false,
            ),
            (
                json!(["*/scale"]),
                json!([]),
                "get",
                "deployments/scale",
                "x",
                true,
            ),
            (
                json!(["*/scale"]),
                json!([]),
                "get",
                "deployments/status",
                "x",
                false,
            ),
            (
                json!(["deployments/*"]),
                json!([]),
                "get",
                "deployments/scale",
                "x",
                false,
            ),
            (
                json!(["*"]),
                json!([]),
                "get",
                "deployments/scale",
                "x",
                true,
            ),
            (json!(["*"]), json!([]), "delete", "deployments", "x", false),
            (
                json!(["deployments"]),
                json!(["x"]),
                "get",
                "deployments",
                "x",
                true,
            ),
            (
                json!(["deployments"]),
                json!(["x"]),
                "get",
                "deployments",
                "y",
                false,
            ),
            (
                json!(["deployments"]),
                json!(["x"]),
                "list",
                "deployments",
                "",
                false,
            ),
        ] {
            let rule = rule(json!({
                "verbs": ["get", "list"],
                "apiGroups": ["apps"],
                "resources": resources,
                "resourceNames": names,
            }));
            assert_eq!(
                rule.allows(&on(verb, resource, name)),
                allowed,
                "{rule}: {verb} {resource} {name}"
            );
        }
    }

    #[test]
    fn paths() {
        let rule = rule(json!({ "verbs": ["get"], "nonResourceURLs": ["/api", "/healthz/*"] }));
        for (path, allowed) in [
            ("/api", true),
            ("/api/v1", false),
            ("/healthz/ping", true),
            ("/healthz", false),
        ] {
            let attributes = Attributes {
                verb: "get".to_owned(),
                target: Target::Path(path.to_owned()),
                fields: Vec::new(),
            };
            assert_eq!(rule.allows(&attributes), allowed, "{path}");
        }
    }

    #[test]
    fn what_is_missing_to_grant_a_rule() {
        let held = [
            rule(json!({ "verbs": ["get"], "apiGroups": ["*"], "resources": ["pods", "*/scale"] })),
            rule(
                json!({ "verbs": ["*"], "apiGroups": [""], "resources": ["secrets"],
                         "resourceNames": ["a", "b"] }),
            ),
            rule(json!({ "verbs": ["get"], "nonResourceURLs": ["/api/*"] })),
        ];
        for (wanted, count) in [
            (
                json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }),
                0,
            ),
            (
                json!({ "verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"] }),
                1,
            ),
            (
                json!({ "verbs": ["get"], "apiGroups": ["apps"], "resources": ["x/scale"] }),
                0,
            ),
            (
                json!({ "verbs": ["*"], "apiGroups": [""], "resources": ["pods"] }),
                1,
            ),
            (
                json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["secrets"],
                     "resourceNames": ["b"] }),
                0,
            ),
            (
                json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["secrets"] }),
                1,
            ),
            (
                json!({ "verbs": ["get"], "nonResourceURLs": ["/api/v1", "/api/v1/*"] }),
                0,
            ),
            (
                json!({ "verbs": ["get"], "nonResourceURLs": ["/metrics"] }),
                1,
            ),
        ] {
            let missing = missing(&held, &[rule(wanted.clone())]);
            assert_eq!(missing.len(), count, "{wanted}: {missing:?}");
        }
    }
}
