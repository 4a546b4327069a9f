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

#[derive(Debug, Default)]
pub struct Index {
    roles: HashMap<RoleKey, Arc<[Rule]>>,
    grants: HashMap<Subject, Vec<Grant>>,
}

fn metadata<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

impl Index {
    pub fn new(
        cluster_roles: &[Arc<Value>],
        roles: &[Arc<Value>],
        cluster_bindings: &[Arc<Value>],
        bindings: &[Arc<Value>],
    ) -> Self {
        let mut index = Self::default();
        for role in cluster_roles {
            let rules = aggregated(role, cluster_roles, &mut HashSet::new());
            let key = (String::new(), metadata(role, "name").to_owned());
            index.roles.insert(key, rules.into());
        }
        for role in roles {
            let key = (
                metadata(role, "namespace").to_owned(),
                metadata(role, "name").to_owned(),
            );
            index.roles.insert(key, rules_of(role).into());
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

/// A cluster role's own rules and those of the roles that its selectors choose, and so on.
fn aggregated<'a>(
    role: &'a Value,
    all: &'a [Arc<Value>],
    seen: &mut HashSet<&'a str>,
) -> Vec<Rule> {
    let mut rules = rules_of(role);
    if !seen.insert(metadata(role, "name")) {
        return rules;
    }
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
    for selector in selectors.into_iter().flatten() {
        for other in all {
            if !matches(selector, &other["metadata"]["labels"])
                || seen.contains(metadata(other, "name"))
            {
                continue;
            }
            for rule in aggregated(other, all, seen) {
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
        }
    }
    rules
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
