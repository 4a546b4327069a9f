//! Roles and bindings, arranged by who they are for. Pure; made anew when one of them changes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde_json::Value;

use super::rules::{Rule, rules_of};
use crate::apiserver::request::{Attributes, Target, User};

/// Namespace (empty for a cluster role) and name.
type RoleKey = (String, String);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// What one binding gives to one subject.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Where; `None` for everywhere.
    namespace: Option<String>,
    rules: Arc<[Rule]>,
    /// `ClusterRoleBinding "x" of ClusterRole "y" to Group "z"`.
    pub why: String,
}

/// The rules that a role itself has.
#[derive(Debug)]
struct Own {
    /// The role's, when they were read; empty for one that is not stored.
    version: String,
    rules: Arc<[Rule]>,
}

#[derive(Debug, Default)]
pub struct Index {
    own: HashMap<RoleKey, Own>,
    roles: HashMap<RoleKey, Arc<[Rule]>>,
    grants: HashMap<Subject, Vec<Grant>>,
}

fn key_of(role: &Value) -> RoleKey {
    let part = |key| metadata(role, key).to_owned();
    (part("namespace"), part("name"))
}

fn metadata<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

impl Index {
    /// `before`: the index of a moment ago, whose roles are not read again if they are the same.
    pub fn new(
        before: Option<&Self>,
        cluster_roles: &[Arc<Value>],
        roles: &[Arc<Value>],
        cluster_bindings: &[Arc<Value>],
        bindings: &[Arc<Value>],
    ) -> Self {
        let mut index = Self::default();
        for role in cluster_roles.iter().chain(roles) {
            let (key, version) = (key_of(role), metadata(role, "resourceVersion"));
            let known = before.and_then(|before| before.own.get(&key));
            let known = known.filter(|own| !version.is_empty() && own.version == version);
            let own = Own {
                version: version.to_owned(),
                rules: known.map_or_else(|| rules_of(role).into(), |own| own.rules.clone()),
            };
            index.roles.insert(key.clone(), own.rules.clone());
            index.own.insert(key, own);
        }
        for role in cluster_roles.iter().filter(|role| aggregates(role)) {
            let mut all = Aggregation::default();
            all.add(role, cluster_roles, &index.own);
            let rules = all.rules.into_iter().cloned().collect();
            index.roles.insert(key_of(role), rules);
        }
        for binding in cluster_bindings {
            index.bind(binding, None);
        }
        for binding in bindings {
            index.bind(binding, Some(metadata(binding, "namespace")));
        }
        index
    }

    /// A binding to a role that does not exist (yet) gives nothing.
    fn bind(&mut self, binding: &Value, namespace: Option<&str>) {
        let reference = &binding["roleRef"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, role) = (text(&reference["kind"]), text(&reference["name"]));
        let place = match (kind.as_str(), namespace) {
            ("ClusterRole", _) => String::new(),
            ("Role", Some(namespace)) => namespace.to_owned(),
            _ => return,
        };
        let Some(rules) = self.roles.get(&(place, role.clone())).cloned() else {
            return;
        };
        let name = metadata(binding, "name");
        let label = match namespace {
            None => format!("ClusterRoleBinding {name:?}"),
            Some(namespace) => format!("RoleBinding {:?}", format!("{name}/{namespace}")),
        };
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            let Some((subject, to)) = parse_subject(subject, namespace) else {
                continue;
            };
            self.grants.entry(subject).or_default().push(Grant {
                namespace: namespace.map(str::to_owned),
                rules: rules.clone(),
                why: format!("{label} of {kind} {role:?} to {to}"),
            });
        }
    }

    pub fn role(&self, namespace: &str, name: &str) -> Option<&[Rule]> {
        let rules = self.roles.get(&(namespace.to_owned(), name.to_owned()));
        rules.map(|rules| &**rules)
    }

    fn grants<'a>(&'a self, user: &User) -> impl Iterator<Item = &'a Grant> + use<'a> {
        let groups = user.groups.iter().cloned().map(Subject::Group);
        let subjects: Vec<Subject> = std::iter::once(Subject::User(user.name.clone()))
            .chain(groups)
            .collect();
        subjects
            .into_iter()
            .filter_map(|subject| self.grants.get(&subject))
            .flatten()
    }

    /// The grant that allows it.
    pub fn allows(&self, user: &User, attributes: &Attributes) -> Option<&Grant> {
        let place = match &attributes.target {
            Target::Resource { namespace, .. } => namespace.as_deref().unwrap_or_default(),
            Target::Path(_) => "",
        };
        self.grants(user)
            .filter(|grant| grant.reaches(place))
            .find(|grant| grant.rules.iter().any(|rule| rule.allows(attributes)))
    }

    pub fn rules(&self, user: &User, namespace: &str) -> impl Iterator<Item = &Rule> {
        self.grants(user)
            .filter(move |grant| grant.reaches(namespace))
            .flat_map(|grant| &*grant.rules)
    }
}

impl Grant {
    fn reaches(&self, namespace: &str) -> bool {
        match &self.namespace {
            None => true,
            Some(own) => own == namespace,
        }
    }
}

/// Whom a binding's subject means, and how to say it. A service account without a namespace is one
/// of the binding's own.
fn parse_subject(subject: &Value, binding_in: Option<&str>) -> Option<(Subject, String)> {
    let name = subject["name"].as_str()?;
    match subject["kind"].as_str()? {
        "User" => Some((Subject::User(name.to_owned()), format!("User {name:?}"))),
        "Group" => Some((Subject::Group(name.to_owned()), format!("Group {name:?}"))),
        "ServiceAccount" => {
            let named = subject["namespace"].as_str();
            let place = named.filter(|place| !place.is_empty()).or(binding_in)?;
            let user = format!("system:serviceaccount:{place}:{name}");
            let to = format!("ServiceAccount {:?}", format!("{name}/{place}"));
            Some((Subject::User(user), to))
        }
        _ => None,
    }
}

fn selectors(role: &Value) -> impl Iterator<Item = &Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
    selectors.into_iter().flatten()
}

fn aggregates(role: &Value) -> bool {
    selectors(role).next().is_some()
}

/// A cluster role's own rules and those of the roles that its selectors choose, and so on.
#[derive(Default)]
struct Aggregation<'a> {
    roles: HashSet<&'a str>,
    known: HashSet<&'a Rule>,
    rules: Vec<&'a Rule>,
}

impl<'a> Aggregation<'a> {
    fn add(&mut self, role: &'a Value, all: &'a [Arc<Value>], own: &'a HashMap<RoleKey, Own>) {
        let mut left = vec![role];
        self.roles.insert(metadata(role, "name"));
        while let Some(role) = left.pop() {
            let rules = own.get(&key_of(role)).into_iter();
            for rule in rules.flat_map(|own| &*own.rules) {
                if self.known.insert(rule) {
                    self.rules.push(rule);
                }
            }
            for selector in selectors(role) {
                let chosen = all.iter().map(AsRef::as_ref);
                // Each role once: they may choose each other.
                left.extend(chosen.filter(|other: &&Value| {
                    matches(selector, &other["metadata"]["labels"])
                        && self.roles.insert(metadata(other, "name"))
                }));
            }
        }
    }
}

/// A label selector; an empty one chooses everything.
fn matches(selector: &Value, labels: &Value) -> bool {
    let empty = serde_json::Map::new();
    let wanted = selector["matchLabels"].as_object().unwrap_or(&empty);
    let expressions = selector["matchExpressions"].as_array();
    wanted.iter().all(|(key, value)| labels[key] == *value)
        && expressions.into_iter().flatten().all(|expression| {
            let label = &labels[expression["key"].as_str().unwrap_or_default()];
            let listed = expression["values"]
                .as_array()
                .is_some_and(|values| values.contains(label));
            match expression["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => !label.is_null(),
                Some("DoesNotExist") => label.is_null(),
                _ => false,
            }
        })
}

/// Rules that differ in their verbs only put together, as a list for people.
pub fn compact<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<Rule> {
    let mut together: Vec<Rule> = Vec::new();
    for rule in rules {
        let alike = together.iter_mut().find(|other| {
            other.api_groups == rule.api_groups
                && other.resources == rule.resources
                && other.resource_names == rule.resource_names
                && other.non_resource_urls == rule.non_resource_urls
        });
        match alike {
            Some(other) => {
                for verb in &rule.verbs {
                    if !other.verbs.contains(verb) {
                        other.verbs.push(verb.clone());
                    }
                }
            }
            None => together.push(rule.clone()),
        }
    }
    together
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn role(name: &str, version: &str, verb: &str, selects: &str) -> Arc<Value> {
        let selectors = match selects {
            "" => json!([]),
            label => json!([{"matchLabels": {label: "yes"}}]),
        };
        Arc::new(json!({
            "metadata": {"name": name, "resourceVersion": version, "labels": {name: "yes"}},
            "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}],
            "aggregationRule": {"clusterRoleSelectors": selectors},
        }))
    }

    fn verbs(index: &Index, name: &str) -> Vec<String> {
        let rules = index.role("", name).unwrap_or_default();
        let mut verbs: Vec<String> = rules.iter().flat_map(|rule| rule.verbs.clone()).collect();
        verbs.sort();
        verbs
    }

    #[test]
    fn roles_have_the_rules_of_those_they_choose_and_so_on() {
        let roles = [
            role("a", "1", "get", "b"),
            role("b", "1", "list", "c"),
            role("c", "1", "watch", "a"),
            role("same", "1", "get", "a"),
            role("alone", "1", "update", ""),
        ];
        let index = Index::new(None, &roles, &[], &[], &[]);
        for name in ["a", "b", "c", "same"] {
            assert_eq!(verbs(&index, name), ["get", "list", "watch"], "{name}");
        }
        assert_eq!(verbs(&index, "alone"), ["update"]);
    }

    #[test]
    fn only_what_has_changed_is_read_again() {
        let before = Index::new(
            None,
            &[role("a", "1", "get", ""), role("b", "1", "get", "")],
            &[],
            &[],
            &[],
        );
        let roles = [role("a", "1", "get", ""), role("b", "2", "list", "")];
        let after = Index::new(Some(&before), &roles, &[], &[], &[]);
        let own = |index: &Index, name: &str| index.role("", name).unwrap().as_ptr();
        assert_eq!(own(&before, "a"), own(&after, "a"));
        assert_eq!(verbs(&after, "b"), ["list"]);
        let unstored = [role("a", "", "patch", "")];
        let after = Index::new(Some(&after), &unstored, &[], &[], &[]);
        assert_eq!(verbs(&after, "a"), ["patch"]);
        assert!(after.role("", "b").is_none());
    }
}
