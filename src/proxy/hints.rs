//! Which of a Service's backends are for this node, by what endpoints say themselves. Pure.
//!
//! Hints for nodes come before hints for zones, and either counts only if every backend has one: else some
//! nodes would be for nobody.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::discovery::v1::Endpoint;

use super::model::{Backend, Node};

/// Whom a backend says that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hints {
    nodes: Hint,
    zones: Hint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    /// It does not say.
    None,
    /// Others.
    Elsewhere,
    /// This one among others.
    Here,
}

impl Hint {
    fn of<'a>(mut names: impl Iterator<Item = &'a String>, own: Option<&str>) -> Self {
        let Some(first) = names.next() else {
            return Self::None;
        };
        let mut all = std::iter::once(first).chain(names);
        match all.any(|name| Some(name.as_str()) == own) {
            true => Self::Here,
            false => Self::Elsewhere,
        }
    }
}

impl Hints {
    pub fn of(endpoint: &Endpoint, node: &Node) -> Self {
        let hints = || endpoint.hints.iter();
        let nodes = hints().flat_map(|hints| hints.for_nodes.iter().flatten());
        let zones = hints().flat_map(|hints| hints.for_zones.iter().flatten());
        Self {
            nodes: Hint::of(nodes.map(|one| &one.name), Some(&node.name)),
            zones: Hint::of(zones.map(|one| &one.name), node.zone.as_deref()),
        }
    }
}

pub fn backends(usable: &BTreeMap<Backend, Hints>) -> BTreeSet<Backend> {
    usable.keys().copied().collect()
}

/// Those for this node or else for its zone, where every one says for whom it is; else all of them.
pub fn nearest(usable: &BTreeMap<Backend, Hints>) -> BTreeSet<Backend> {
    let by = |hint: fn(&Hints) -> Hint| {
        let here = usable.iter().filter(|(_, hints)| hint(hints) == Hint::Here);
        let here: BTreeSet<Backend> = here.map(|(backend, _)| *backend).collect();
        let is_said = usable.values().all(|hints| hint(hints) != Hint::None);
        (is_said && !here.is_empty()).then_some(here)
    };
    by(|hints| hints.nodes)
        .or_else(|| by(|hints| hints.zones))
        .unwrap_or_else(|| backends(usable))
}
