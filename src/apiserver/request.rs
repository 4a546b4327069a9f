//! Who asks, and for what: the words that authentication, authorization and admission share.

use std::collections::BTreeMap;

/// An authenticated user. `system:anonymous` when nobody said who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user of this process; `system:authenticated` is added.
    pub fn internal(name: &str, groups: &[&str]) -> Self {
        let groups = groups
            .iter()
            .chain(&["system:authenticated"])
            .map(|group| (*group).to_owned());
        Self {
            name: name.to_owned(),
            groups: groups.collect(),
            ..Self::default()
        }
    }

    /// A service account, for a component of this process that acts as one.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let own = format!("system:serviceaccounts:{namespace}");
        let name = format!("system:serviceaccount:{namespace}:{name}");
        Self::internal(&name, &["system:serviceaccounts", &own])
    }
}

/// What a request wants to do, as authorizers see it (the attributes of a SubjectAccessReview).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `create`, ...; for non-resource paths the lower-case HTTP method.
    pub verb: String,
    pub target: Target,
    /// All of them must hold for what is listed, watched or deleted: an authorizer may allow what
    /// is narrowed so where it would not allow the whole.
    pub fields: Vec<FieldTerm>,
}

/// A term of a field selector: `label=value`, or `label!=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub label: String,
    pub value: String,
    pub equal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Resource {
        group: String,
        version: String,
        resource: String,
        subresource: Option<String>,
        namespace: Option<String>,
        name: Option<String>,
    },
    Path(String),
}

impl Default for Target {
    fn default() -> Self {
        Self::Path("/".to_owned())
    }
}
