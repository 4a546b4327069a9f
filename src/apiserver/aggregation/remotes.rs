//! The aggregated APIs that are served now: which requests are theirs, and what discovery says of
//! them. Pure but for the lock.

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Value, json};

use super::remote::Remote;

/// Read with every request; written when an APIService or its availability changes.
#[derive(Default)]
pub struct Remotes(RwLock<Arc<Vec<Arc<Remote>>>>);

impl Remotes {
    pub fn all(&self) -> Arc<Vec<Arc<Remote>>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Most preferred first.
    pub fn set(&self, mut remotes: Vec<Arc<Remote>>) {
        remotes.sort_by(|a, b| {
            let rank = |one: &Remote| (-one.priority.0, one.group.clone(), -one.priority.1);
            rank(a).cmp(&rank(b))
        });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(remotes);
    }

    pub fn find(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let all = self.all();
        let mut found = all.iter();
        found
            .find(|one| one.group == group && one.version == version)
            .cloned()
    }

    /// Adds the groups to `/apis`, also those whose servers do not answer: what they serve is not gone.
    pub fn add_groups(&self, list: &mut Value) {
        let remotes = self.all();
        for remote in remotes.iter() {
            let known = list["groups"].as_array_mut();
            let Some(groups) = known else { return };
            let group = groups.iter_mut().find(|one| one["name"] == remote.group);
            match group {
                Some(group) => add_version(group, remote),
                None => {
                    let mut group = json!({"name": remote.group, "versions": []});
                    add_version(&mut group, remote);
                    groups.push(group);
                }
            }
        }
    }

    /// `/apis/G`, with the versions that others serve.
    pub fn group(&self, name: &str, own: Option<Value>) -> Option<Value> {
        let mut document = own;
        let remotes = self.all();
        for remote in remotes.iter().filter(|one| one.group == name) {
            let document = document.get_or_insert_with(
                || json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": []}),
            );
            add_version(document, remote);
        }
        document
    }

    /// Adds to the aggregated document of `/apis`.
    pub fn add_discovered(&self, list: &mut Value) {
        let remotes = self.all();
        let Some(items) = list["items"].as_array_mut() else {
            return;
        };
        for remote in remotes.iter() {
            let group = items
                .iter_mut()
                .find(|one| one["metadata"]["name"] == remote.group);
            match group.and_then(|group| group["versions"].as_array_mut()) {
                Some(versions) => versions.push(remote.discovered()),
                None => items.push(json!({
                    "metadata": {"name": remote.group},
                    "versions": [remote.discovered()],
                })),
            }
        }
    }
}

fn add_version(group: &mut Value, remote: &Remote) {
    let version = json!({"groupVersion": remote.group_version(), "version": remote.version});
    if !group["preferredVersion"].is_object() {
        group["preferredVersion"] = version.clone();
    }
    if let Some(versions) = group["versions"].as_array_mut()
        && !versions.contains(&version)
    {
        versions.push(version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;

    pub(in crate::apiserver) fn remotes() -> Remotes {
        let dir = tempfile::tempdir().expect("a folder");
        let pki = Pki::open(dir.path()).expect("made");
        let front = pki.front_proxy().expect("issued");
        let service = json!({"spec": {"group": "w.example", "version": "v1", "groupPriorityMinimum": 10,
            "versionPriority": 5, "service": {"name": "s", "namespace": "n"}}});
        let list = json!({"resources": [
            {"name": "tabs", "singularName": "tab", "namespaced": true, "kind": "Tab", "verbs": ["get"]},
            {"name": "tabs/status", "singularName": "", "namespaced": true, "kind": "Tab", "verbs": ["get"]},
        ]});
        let remote = Remote::new(&service, &front).expect("a service");
        let remotes = Remotes::default();
        remotes.set(vec![Arc::new(remote.serving(Some(list), None))]);
        remotes
    }

    #[test]
    fn what_discovery_says() {
        let remotes = remotes();
        let mut list = json!({"groups": [{"name": "apps", "versions": []}]});
        remotes.add_groups(&mut list);
        assert_eq!(
            list["groups"][1]["preferredVersion"]["groupVersion"],
            "w.example/v1"
        );
        let group = remotes.group("w.example", None).expect("a group");
        assert_eq!(group["versions"][0]["version"], "v1");
        assert!(remotes.group("other", None).is_none());
        let mut list = json!({"items": []});
        remotes.add_discovered(&mut list);
        let tabs = &list["items"][0]["versions"][0]["resources"][0];
        assert_eq!(
            (&tabs["scope"], &tabs["responseKind"]["group"]),
            (&json!("Namespaced"), &json!("w.example"))
        );
        assert_eq!(tabs["subresources"][0]["subresource"], "status");
        let version = |list: &Value| list["items"][0]["versions"][0]["freshness"].clone();
        assert_eq!(version(&list), "Current");
        // Its server does not answer any more.
        let silent = remotes.all()[0].serving(None, None);
        remotes.set(vec![Arc::new(silent)]);
        let mut list = json!({"items": []});
        remotes.add_discovered(&mut list);
        assert_eq!(version(&list), "Stale");
        let mut list = json!({"groups": []});
        remotes.add_groups(&mut list);
        assert_eq!(list["groups"][0]["name"], "w.example");
    }
}
