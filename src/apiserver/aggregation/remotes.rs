//! The aggregated APIs that are served now: which requests are theirs, and what discovery says of
//! them. Pure but for the lock.

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Value, json};

use super::remote::Remote;
use crate::apiserver::registry::custom::Rows;

/// Read with every request; written when an APIService or its availability changes.
#[derive(Default)]
pub struct Remotes(RwLock<Arc<Vec<Arc<Remote>>>>);

/// A path below an aggregated group and version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemotePath {
    pub group: String,
    pub version: String,
    pub namespace: String,
    /// Empty: discovery.
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// Through the old `/watch/` prefix.
    pub watch: bool,
}

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

    /// What a path names, if it is another server's. What this server has rows for stays its own.
    pub fn claim(&self, path: &str, rows: &Rows) -> Option<RemotePath> {
        let rest = path.strip_prefix("/apis/")?;
        if self.all().is_empty() {
            return None;
        }
        let parts: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
        let [group, version, parts @ ..] = parts.as_slice() else {
            return None;
        };
        if self.find(group, version).is_none() || rows.serves(group, version) {
            return None;
        }
        let (watch, parts) = match parts {
            ["watch", parts @ ..] if !parts.is_empty() => (true, parts),
            parts => (false, parts),
        };
        let (namespace, parts) = match parts {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            parts => ("", parts),
        };
        let part = |index: usize| parts.get(index).copied().unwrap_or_default().to_owned();
        Some(RemotePath {
            group: (*group).to_owned(),
            version: (*version).to_owned(),
            namespace: namespace.to_owned(),
            resource: part(0),
            name: part(1),
            subresource: part(2),
            watch,
        })
    }

    /// Adds the groups that can be used to `/apis`.
    pub fn add_groups(&self, list: &mut Value) {
        let remotes = self.all();
        let available = || remotes.iter().filter(|one| one.is_available());
        for remote in available() {
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
        for remote in remotes
            .iter()
            .filter(|one| one.is_available() && one.group == name)
        {
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
        for remote in remotes.iter().filter(|one| one.is_available()) {
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
    use crate::pki::Identity;

    fn remotes() -> Remotes {
        let none = Identity {
            certificate: String::new(),
            key: String::new(),
        };
        let service = json!({"spec": {"group": "w.example", "version": "v1", "groupPriorityMinimum": 10,
            "versionPriority": 5, "service": {"name": "s", "namespace": "n"}}});
        let list = json!({"resources": [
            {"name": "tabs", "singularName": "tab", "namespaced": true, "kind": "Tab", "verbs": ["get"]},
            {"name": "tabs/status", "singularName": "", "namespaced": true, "kind": "Tab", "verbs": ["get"]},
        ]});
        let remote = Remote::new(&service, &none).expect("a service");
        let remotes = Remotes::default();
        remotes.set(vec![Arc::new(remote.serving(Some(list), None))]);
        remotes
    }

    #[test]
    fn whose_a_path_is() {
        let rows = Rows::default();
        for (path, want) in [
            ("/apis/apps/v1/deployments", None),
            ("/apis/w.example", None),
            ("/apis/w.example/v2/tabs", None),
            ("/apis/w.example/v1", Some(("", "", "", ""))),
            ("/apis/w.example/v1/tabs", Some(("", "tabs", "", ""))),
            (
                "/apis/w.example/v1/namespaces/n/tabs/t/status",
                Some(("n", "tabs", "t", "status")),
            ),
            (
                "/apis/w.example/v1/namespaces/n",
                Some(("", "namespaces", "n", "")),
            ),
            (
                "/apis/w.example/v1/watch/tabs/t",
                Some(("", "tabs", "t", "")),
            ),
        ] {
            let got = remotes().claim(path, &rows);
            assert_eq!(
                got.as_ref().is_some_and(|got| got.watch),
                path.contains("/watch/")
            );
            let got = got.map(|got| (got.namespace, got.resource, got.name, got.subresource));
            let want = want.map(|(a, b, c, d): (&str, &str, &str, &str)| {
                (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned())
            });
            assert_eq!(got, want, "{path}");
        }
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
    }
}
