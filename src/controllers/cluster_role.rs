//! Aggregated ClusterRoles: their rules are those of the roles that their selectors find.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    core::{Selector, SelectorExt},
};
use tokio_util::sync::CancellationToken;

use super::{
    error::{Doing, Error, OrGone},
    shared::{Controller, Loop, Next, Stopped},
};
use crate::informer::{Informer, Informers, Key};

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let roles: Informer<ClusterRole> = informers.get();
    let controller = Aggregation {
        client: informers.client().clone(),
        roles: roles.clone(),
    };
    let all = roles.clone();
    Loop::new(controller, &roles)
        .watch(&roles, move |_| {
            let mut held = all.list();
            held.retain(|role| role.aggregation_rule.is_some());
            held.iter().map(|role| Key::of(role.as_ref())).collect()
        })
        .run(1, shutdown)
        .await
}

struct Aggregation {
    client: Client,
    roles: Informer<ClusterRole>,
}

impl Controller for Aggregation {
    const NAME: &'static str = "clusterrole-aggregation-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(role) = self.roles.get(key) else {
            return Ok(Next::Settled);
        };
        let Some(rules) = rules(&role, &self.roles.list())? else {
            return Ok(Next::Settled);
        };
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(Next::Settled);
        }
        let mut updated = ClusterRole::clone(&role);
        updated.rules = Some(rules);
        Api::<ClusterRole>::all(self.client.clone())
            .replace(&key.name, &PostParams::default(), &updated)
            .await
            .or_gone()
            .doing(|| format!("update the rules of ClusterRole {key}"))?;
        Ok(Next::Settled)
    }
}

/// The rules that `role` shall have, each once, by name of the role they come from; `None` if it
/// is not made of others.
fn rules(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Result<Option<Vec<PolicyRule>>, Error> {
    let Some(rule) = &role.aggregation_rule else {
        return Ok(None);
    };
    let mut parts: Vec<&Arc<ClusterRole>> = all
        .iter()
        .filter(|one| one.name_any() != role.name_any())
        .collect();
    parts.sort_by_key(|one| one.name_any());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        let selector = Selector::try_from(selector.clone())
            .map_err(|why| Error::invalid("aggregation rule", role.name_any(), why))?;
        for part in parts.iter().filter(|one| selector.matches(one.labels())) {
            for rule in part.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Ok(Some(rules))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_are_gathered_once_and_in_order() {
        let part = |name: &str, verb: &str, label: &str| {
            let value = json!({"metadata": {"name": name, "labels": {"to": label}},
                "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]});
            Arc::new(serde_json::from_value::<ClusterRole>(value).expect("a role"))
        };
        let all = [
            part("z", "list", "view"),
            part("a", "get", "view"),
            part("b", "get", "view"),
            part("c", "create", "edit"),
        ];
        let whole: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "view"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}}))
        .expect("a role");
        let found = rules(&whole, &all).expect("a selector").expect("a whole");
        let verbs: Vec<&str> = found.iter().map(|rule| rule.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list"]);
        assert!(rules(&all[0], &all).expect("none").is_none());
    }
}
