//! Every kind that the API serves, in whichever version, and what could not be asked.
//!
//! For those who look at all objects there are: a kind that only an old version of its group serves is
//! one of them, and a group whose server does not answer is not passed over in silence.

use std::collections::HashSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResource, APIResourceList};
use kube::{Client, core::GroupVersion, discovery::ApiResource};

/// One kind, in the most preferred version that serves it.
#[derive(Clone, Debug)]
pub struct Kind {
    pub resource: ApiResource,
    pub namespaced: bool,
    verbs: Vec<String>,
}

impl Kind {
    pub fn supports(&self, verb: &str) -> bool {
        self.verbs.iter().any(|one| one == verb)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Served {
    pub kinds: Vec<Kind>,
    /// Groups with their versions, as `group/version`, whose servers do not answer.
    pub stale: Vec<String>,
}

impl Served {
    /// Why not all is known, in upstream's words.
    pub fn failure(&self) -> Option<String> {
        if self.stale.is_empty() {
            return None;
        }
        let each = |version: &String| format!("{version}: stale GroupVersion discovery: {version}");
        let all: Vec<String> = self.stale.iter().map(each).collect();
        Some(format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
            all.len(),
            all.join(", ")
        ))
    }
}

/// Asks the server. An error says that not even the groups are known.
pub async fn discover(client: &Client) -> Result<Served, kube::Error> {
    let mut served = Served::default();
    let core = client.list_core_api_resources("v1").await?;
    served.add(GroupVersion::gv("", "v1"), &core, &mut HashSet::new());
    for group in client.list_api_groups().await?.groups {
        let mut known = HashSet::new();
        for version in versions(&group) {
            match client
                .list_api_group_resources(&version.api_version())
                .await
            {
                Ok(list) => served.add(version, &list, &mut known),
                // Gone since the groups were listed.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(_) => served.stale.push(version.api_version()),
            }
        }
    }
    Ok(served)
}

/// The preferred one first.
fn versions(group: &APIGroup) -> Vec<GroupVersion> {
    let preferred = group.preferred_version.iter();
    let mut names: Vec<&str> = Vec::new();
    for version in preferred.chain(&group.versions) {
        if !names.contains(&version.version.as_str()) {
            names.push(&version.version);
        }
    }
    let all = names.into_iter();
    all.map(|name| GroupVersion::gv(&group.name, name))
        .collect()
}

impl Served {
    fn add(&mut self, of: GroupVersion, list: &APIResourceList, known: &mut HashSet<String>) {
        for one in &list.resources {
            let is_part = one.name.contains('/');
            if !is_part && known.insert(one.name.clone()) {
                self.kinds.push(kind(&of, one));
            }
        }
    }
}

fn kind(of: &GroupVersion, resource: &APIResource) -> Kind {
    Kind {
        resource: ApiResource {
            group: of.group.clone(),
            version: of.version.clone(),
            api_version: of.api_version(),
            kind: resource.kind.clone(),
            plural: resource.name.clone(),
        },
        namespaced: resource.namespaced,
        verbs: resource.verbs.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn list(names: &[&str]) -> APIResourceList {
        let one = |name: &&str| -> Value {
            json!({"name": name, "kind": name, "singularName": "", "namespaced": true, "verbs": ["list"]})
        };
        let all: Vec<Value> = names.iter().map(one).collect();
        serde_json::from_value(json!({"groupVersion": "g/v", "resources": all})).expect("a list")
    }

    #[test]
    fn each_kind_once_in_its_most_preferred_version() {
        let group: APIGroup = serde_json::from_value(json!({"name": "g",
            "preferredVersion": {"groupVersion": "g/v1", "version": "v1"},
            "versions": [{"groupVersion": "g/v2alpha1", "version": "v2alpha1"},
                {"groupVersion": "g/v1", "version": "v1"}]}))
        .expect("a group");
        let order = versions(&group);
        let names: Vec<&str> = order.iter().map(|one| one.version.as_str()).collect();
        assert_eq!(names, ["v1", "v2alpha1"]);
        let (mut served, mut known) = (Served::default(), HashSet::new());
        served.add(
            order[0].clone(),
            &list(&["tabs", "tabs/status"]),
            &mut known,
        );
        served.add(order[1].clone(), &list(&["tabs", "olds"]), &mut known);
        let found: Vec<(&str, &str)> = served
            .kinds
            .iter()
            .map(|one| (one.resource.plural.as_str(), one.resource.version.as_str()))
            .collect();
        assert_eq!(found, [("tabs", "v1"), ("olds", "v2alpha1")]);
    }

    #[test]
    fn what_is_said_of_servers_that_do_not_answer() {
        let mut served = Served::default();
        assert_eq!(served.failure(), None);
        served.stale.push("m.example/v1".to_owned());
        assert_eq!(
            served.failure().as_deref(),
            Some(
                "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: m.example/v1: stale GroupVersion discovery: m.example/v1"
            )
        );
    }
}
