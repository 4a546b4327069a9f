//! How the controls look at a pod, and the words they share.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Violation;
use crate::apiserver::registry::kinds::{
    pods::references,
    value::{at, flag, items, pairs, text},
};

/// A pod, or what a template makes pods of.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a>(pub &'a Value);

/// Who has a field that may not be as it is: the pod as a whole, containers.
#[derive(Default)]
pub struct Setters<'a> {
    pub pod: bool,
    pub containers: Vec<&'a str>,
}

impl<'a> Pod<'a> {
    pub fn spec(&self) -> &'a Value {
        &self.0["spec"]
    }

    /// Init containers, containers, ephemeral ones.
    pub fn containers(&self) -> impl Iterator<Item = &'a Value> {
        references::containers(self.spec())
    }

    pub fn volumes(&self) -> &'a [Value] {
        references::volumes(self.0)
    }

    pub fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        pairs(self.0, "metadata.annotations")
    }

    /// Names of the containers that are `bad`.
    pub fn containers_where(&self, bad: impl Fn(&'a Value) -> bool) -> Vec<&'a str> {
        let bad = self.containers().filter(|container| bad(container));
        bad.map(name).collect()
    }

    /// Who has a `bad` security context.
    pub fn setters(&self, bad: impl Fn(&'a Value) -> bool) -> Setters<'a> {
        let context = |holder: &'a Value| at(holder, "securityContext");
        Setters {
            pod: context(self.spec()).is_some_and(&bad),
            containers: self.containers_where(|container| context(container).is_some_and(&bad)),
        }
    }

    /// The values of one field of all security contexts.
    pub fn settings(&self, path: &'static str) -> impl Iterator<Item = &'a Value> {
        let holders = std::iter::once(self.spec()).chain(self.containers());
        holders.filter_map(move |holder| at(&holder["securityContext"], path))
    }

    pub fn is_windows(&self) -> bool {
        text(self.spec(), "os.name") == "windows"
    }

    /// Whether root in the pod is nobody on the node.
    pub fn has_own_users(&self) -> bool {
        at(self.spec(), "hostUsers") == Some(&Value::Bool(false))
    }
}

impl Setters<'_> {
    pub fn is_empty(&self) -> bool {
        !self.pod && self.containers.is_empty()
    }

    /// `pod and containers "a", "b"`.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        if self.pod {
            words.push("pod".to_owned());
        }
        if !self.containers.is_empty() {
            words.push(containers(&self.containers));
        }
        words.join(" and ")
    }
}

pub fn name(container: &Value) -> &str {
    text(container, "name")
}

pub fn violation(reason: impl Into<String>, detail: String) -> Option<Violation> {
    Some(Violation {
        reason: reason.into(),
        detail,
    })
}

pub fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `"a", "b"`.
pub fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names = names.into_iter().map(|name| format!("\"{name}\""));
    names.collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`.
pub fn containers(names: &[&str]) -> String {
    let word = plural("container", "containers", names.len());
    format!("{word} {}", quoted(names.iter().copied()))
}

/// The strings that are not allowed, sorted.
pub fn outside<'a>(
    values: impl Iterator<Item = &'a Value>,
    allowed: impl Fn(&str) -> bool,
) -> BTreeSet<&'a str> {
    values
        .filter_map(Value::as_str)
        .filter(|value| !allowed(value))
        .collect()
}

/// The capabilities that a container adds, or drops.
pub fn capabilities<'a>(container: &'a Value, list: &str) -> &'a [Value] {
    items(&container["securityContext"]["capabilities"], list)
}

pub fn is_true(context: &Value, path: &str) -> bool {
    flag(context, path)
}
