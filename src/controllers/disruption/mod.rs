//! PodDisruptionBudgets: their status says how many pods may go. `plan.rs` decides.
//!
//! The eviction endpoint takes from `disruptionsAllowed`; this controller alone gives back.

mod plan;

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, StatefulSet},
    core::v1::{Pod, ReplicationController},
    policy::v1::PodDisruptionBudget,
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    core::{Selector, SelectorExt},
};
use tokio_util::sync::CancellationToken;

use self::plan::{Scale, plan};
use super::{
    error::{Doing, Error, OrGone},
    pods,
    shared::{Controller, Loop, Next, Stopped},
};
use crate::informer::{Informer, Informers, Key};

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let budgets: Informer<PodDisruptionBudget> = informers.get();
    let pods: Informer<Pod> = informers.get();
    let owners = Owners {
        deployments: informers.get(),
        replica_sets: informers.get(),
        stateful_sets: informers.get(),
        controllers: informers.get(),
    };
    let of = |budgets: &Informer<PodDisruptionBudget>| {
        let budgets = budgets.clone();
        move |namespace: Option<String>| -> Vec<Key> {
            let all = budgets.list_in(&namespace.unwrap_or_default());
            all.iter().map(|budget| Key::of(budget.as_ref())).collect()
        }
    };
    let (by_deployment, by_set, by_stateful, by_controller) =
        (of(&budgets), of(&budgets), of(&budgets), of(&budgets));
    let selecting = budgets.clone();
    let controller = Budgets {
        client: informers.client().clone(),
        budgets: budgets.clone(),
        pods: pods.clone(),
        owners: owners.clone(),
    };
    Loop::new(controller, &budgets)
        .watch(&pods, move |pod| {
            let all = selecting.list_in(&pod.namespace().unwrap_or_default());
            all.iter()
                .filter(|budget| selects(budget, pod))
                .map(|budget| Key::of(budget.as_ref()))
                .collect()
        })
        .watch_changes(
            &owners.deployments,
            |old, new| old.spec.replicas == new.spec.replicas,
            move |one| by_deployment(one.namespace()),
        )
        .watch_changes(
            &owners.replica_sets,
            |old, new| old.spec.replicas == new.spec.replicas,
            move |one| by_set(one.namespace()),
        )
        .watch_changes(
            &owners.stateful_sets,
            |old, new| old.spec.replicas == new.spec.replicas,
            move |one| by_stateful(one.namespace()),
        )
        .watch_changes(
            &owners.controllers,
            |old, new| {
                wanted(old.spec.as_ref().map(|s| s.replicas))
                    == wanted(new.spec.as_ref().map(|s| s.replicas))
            },
            move |one| by_controller(one.namespace()),
        )
        .run(2, shutdown)
        .await
}

fn wanted(replicas: Option<Option<i32>>) -> i32 {
    replicas.flatten().unwrap_or(1)
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    let Some(selector) = selector else {
        return false;
    };
    Selector::try_from(selector).is_ok_and(|selector| selector.matches(pod.labels()))
}

/// Who may stand behind a pod.
#[derive(Clone)]
struct Owners {
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
}

impl Owners {
    /// The replicas that the owners of these pods want together. Pods of nobody do not count.
    fn scale(&self, namespace: &str, pods: &[Arc<Pod>]) -> Scale {
        let mut wanted: HashMap<String, i32> = HashMap::new();
        for pod in pods {
            let Some(owner) = pods::controller_of(pod.as_ref()) else {
                continue;
            };
            let key = Key::new(namespace, &owner.name);
            let (uid, replicas) = self.owner(&owner.kind, &key).ok_or_else(|| {
                format!(
                    "{} {} of pod {} has no scale that is known",
                    owner.kind,
                    owner.name,
                    pod.name_any()
                )
            })?;
            wanted.insert(uid, replicas);
        }
        Ok(wanted.values().sum())
    }

    fn owner(&self, kind: &str, key: &Key) -> Option<(String, i32)> {
        match kind {
            "ReplicaSet" => {
                let set = self.replica_sets.get(key)?;
                let above = pods::controller_named(set.as_ref(), "apps", "Deployment")
                    .and_then(|name| self.deployments.get(&Key::new(&key.namespace, name)));
                match above {
                    Some(above) => Some((above.uid()?, above.spec.replicas.unwrap_or(1))),
                    None => Some((set.uid()?, set.spec.replicas.unwrap_or(1))),
                }
            }
            "StatefulSet" => {
                let set = self.stateful_sets.get(key)?;
                Some((set.uid()?, set.spec.replicas.unwrap_or(1)))
            }
            "ReplicationController" => {
                let controller = self.controllers.get(key)?;
                let replicas = controller.spec.as_ref().map(|spec| spec.replicas);
                Some((controller.uid()?, wanted(replicas)))
            }
            _ => None,
        }
    }
}

struct Budgets {
    client: Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    owners: Owners,
}

impl Controller for Budgets {
    const NAME: &'static str = "disruption-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(budget) = self.budgets.get(key) else {
            return Ok(Next::Settled);
        };
        if pods::is_terminating(budget.as_ref()) {
            return Ok(Next::Settled);
        }
        let mut held = self.pods.list_in(&key.namespace);
        held.retain(|pod| selects(&budget, pod) && !pods::is_finished(pod));
        let refs: Vec<&Pod> = held.iter().map(AsRef::as_ref).collect();
        let scale = self.owners.scale(&key.namespace, &held);
        let plan = plan(&budget, &refs, &scale, Timestamp::now());
        if budget.status.as_ref() != Some(&plan.status) {
            let mut updated = PodDisruptionBudget::clone(&budget);
            updated.status = Some(plan.status);
            // With the version that was read: an eviction in between is a conflict, not lost.
            Api::<PodDisruptionBudget>::namespaced(self.client.clone(), &key.namespace)
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
                .or_gone()
                .doing(|| format!("update the status of PodDisruptionBudget {key}"))?;
        }
        Ok(Next::after(plan.recheck))
    }
}
