//! Who owns whom, over all kinds. Pure.

use std::collections::{HashMap, HashSet};

use crate::informer::Key;

pub type Uid = String;

/// Where an object is found in the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Group, without version: an object is the same in all versions.
    pub group: String,
    pub kind: String,
    pub key: Key,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: Uid,
    pub place: Place,
    pub api_version: String,
    pub blocks: bool,
}

/// One object as far as ownership goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub place: Place,
    pub owners: Vec<Owner>,
    pub deleting: bool,
    pub foreground: bool,
    pub orphan: bool,
}

#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = (&Uid, &Node)> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|uid| Some((uid, self.nodes.get(uid)?)))
    }

    /// Takes over an object's present state; returns the UIDs to look at.
    pub fn set(&mut self, uid: Uid, node: Node) -> Vec<Uid> {
        let mut touched = self.unlink(&uid);
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
        }
        if node.deleting {
            touched.extend(node.owners.iter().map(|owner| owner.uid.clone()));
        }
        if node.foreground || node.deleting || !node.owners.is_empty() {
            touched.push(uid.clone());
        }
        // What waits for its dependents deletes those first.
        if node.foreground {
            touched.extend(self.dependents(&uid).map(|(uid, _)| uid.clone()));
        }
        self.nodes.insert(uid, node);
        touched
    }

    /// Forgets an object that is gone; returns the UIDs to look at.
    pub fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let mut touched = self.unlink(uid);
        self.nodes.remove(uid);
        touched.extend(self.dependents(uid).map(|(uid, _)| uid.clone()));
        touched
    }

    /// Takes the object out of its owners' lists; returns the owners that wait for it.
    fn unlink(&mut self, uid: &str) -> Vec<Uid> {
        let Some(old) = self.nodes.get(uid) else {
            return Vec::new();
        };
        let owners: Vec<Uid> = old.owners.iter().map(|owner| owner.uid.clone()).collect();
        for owner in &owners {
            if let Some(list) = self.dependents.get_mut(owner) {
                list.remove(uid);
                if list.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
        owners
            .into_iter()
            .filter(|owner| self.nodes.get(owner).is_some_and(|node| node.foreground))
            .collect()
    }

    /// All objects of which something may have to be done.
    pub fn all(&self) -> Vec<Uid> {
        let judged = self.nodes.iter().filter(|(_, node)| {
            node.deleting || node.foreground || node.orphan || !node.owners.is_empty()
        });
        judged.map(|(uid, _)| uid.clone()).collect()
    }

    /// All objects of one kind, for comparing with a fresh list.
    pub fn of_kind(&self, group: &str, kind: &str) -> Vec<Uid> {
        self.nodes
            .iter()
            .filter(|(_, node)| node.place.group == group && node.place.kind == kind)
            .map(|(uid, _)| uid.clone())
            .collect()
    }
}

/// What is to be done with one object, given which of its owners are still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Drop the references to these owners, which are gone or wait for this object to go.
    Unreference(Vec<Uid>),
    DeleteInBackground,
    /// First delete its own dependents. `unblock` breaks a circle: one of those waits for it.
    DeleteInForeground {
        unblock: bool,
    },
    /// All that blocked the object's deletion is gone.
    FinishForeground,
    /// Take its name from its dependents, then let it go.
    Orphan,
}

/// `absent` are the owners that the server was asked for and does not have.
pub fn judge(graph: &Graph, uid: &str, absent: &HashSet<Uid>) -> Verdict {
    let Some(node) = graph.get(uid) else {
        return Verdict::Keep;
    };
    if node.orphan && node.deleting {
        return Verdict::Orphan;
    }
    if node.foreground && node.deleting {
        let blocked = graph.dependents(uid).any(|(_, dependent)| {
            dependent
                .owners
                .iter()
                .any(|owner| owner.uid == uid && owner.blocks)
        });
        return if blocked {
            Verdict::Keep
        } else {
            Verdict::FinishForeground
        };
    }
    if node.deleting || node.owners.is_empty() {
        return Verdict::Keep;
    }
    let is_waiting = |owner: &Owner| {
        graph
            .get(&owner.uid)
            .is_some_and(|held| held.foreground && held.deleting)
    };
    let (mut gone, mut waiting, mut solid) = (Vec::new(), Vec::new(), 0);
    for owner in &node.owners {
        if absent.contains(&owner.uid) {
            gone.push(owner.uid.clone());
        } else if is_waiting(owner) {
            waiting.push(owner.uid.clone());
        } else {
            solid += 1;
        }
    }
    match (solid, gone.is_empty(), waiting.is_empty()) {
        (0, _, false) if graph.dependents(uid).next().is_some() => Verdict::DeleteInForeground {
            unblock: graph
                .dependents(uid)
                .any(|(_, dependent)| dependent.foreground && dependent.deleting),
        },
        (0, ..) => Verdict::DeleteInBackground,
        (_, true, true) => Verdict::Keep,
        _ => {
            gone.extend(waiting);
            Verdict::Unreference(gone)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        Place {
            group: String::new(),
            kind: "ConfigMap".into(),
            key: Key::new("n", name),
        }
    }

    fn node(name: &str, owners: &[&str]) -> Node {
        Node {
            place: place(name),
            owners: owners
                .iter()
                .map(|uid| Owner {
                    uid: (*uid).into(),
                    place: place(uid),
                    api_version: "v1".into(),
                    blocks: true,
                })
                .collect(),
            deleting: false,
            foreground: false,
            orphan: false,
        }
    }

    fn absent(uids: &[&str]) -> HashSet<Uid> {
        uids.iter().map(|uid| (*uid).to_owned()).collect()
    }

    #[test]
    fn an_object_goes_with_its_last_owner() {
        let mut graph = Graph::default();
        graph.set("a".into(), node("a", &[]));
        graph.set("b".into(), node("b", &[]));
        graph.set("child".into(), node("child", &["a", "b"]));
        assert_eq!(judge(&graph, "child", &absent(&[])), Verdict::Keep);
        assert_eq!(graph.remove("a"), ["child"]);
        assert_eq!(
            judge(&graph, "child", &absent(&["a"])),
            Verdict::Unreference(vec!["a".into()])
        );
        assert_eq!(
            judge(&graph, "child", &absent(&["a", "b"])),
            Verdict::DeleteInBackground
        );
    }

    #[test]
    fn foreground_waits_for_what_blocks() {
        let mut graph = Graph::default();
        graph.set("child".into(), node("child", &["a"]));
        let mut owner = node("a", &[]);
        (owner.deleting, owner.foreground) = (true, true);
        let touched = graph.set("a".into(), owner);
        assert!(touched.contains(&"child".to_owned()));
        assert_eq!(judge(&graph, "a", &absent(&[])), Verdict::Keep);
        assert_eq!(
            judge(&graph, "child", &absent(&[])),
            Verdict::DeleteInBackground
        );
        graph.set("grandchild".into(), node("grandchild", &["child"]));
        assert_eq!(
            judge(&graph, "child", &absent(&[])),
            Verdict::DeleteInForeground { unblock: false }
        );
        assert_eq!(graph.remove("child"), ["a", "grandchild"]);
        assert_eq!(judge(&graph, "a", &absent(&[])), Verdict::FinishForeground);
    }

    #[test]
    fn a_cycle_in_the_foreground_does_not_hang() {
        let mut graph = Graph::default();
        let mut first = node("a", &["b"]);
        (first.deleting, first.foreground) = (true, true);
        graph.set("a".into(), first);
        graph.set("b".into(), node("b", &["a"]));
        assert_eq!(
            judge(&graph, "b", &absent(&[])),
            Verdict::DeleteInForeground { unblock: true }
        );
        let mut unblocked = node("b", &["a"]);
        (unblocked.deleting, unblocked.foreground) = (true, true);
        unblocked.owners[0].blocks = false;
        graph.set("b".into(), unblocked);
        assert_eq!(judge(&graph, "a", &absent(&[])), Verdict::FinishForeground);
    }
}
