//! Which pods are alike: those that the same service or controller selects.

use kube::{ResourceExt, core::Selector};

use super::{Scheduler, pod::PodInfo};
use crate::informer::Key;

impl Scheduler {
    /// Selects the pods of the same service and owner, over which a pod spreads by default.
    pub(super) fn spread_defaults(&self, pod: &PodInfo) -> Option<Selector> {
        if self.cluster.nodes.len() < 2 {
            return None;
        }
        let mut selector = Selector::default();
        for service in self.services.list_in(&pod.key.namespace) {
            let wanted = service.spec.as_ref().and_then(|spec| spec.selector.clone());
            let wanted = wanted.filter(|wanted| !wanted.is_empty());
            if let Some(wanted) = wanted
                && wanted
                    .iter()
                    .all(|(key, value)| pod.pod.labels().get(key) == Some(value))
            {
                selector.extend(wanted.into_iter().collect::<Selector>());
            }
        }
        if let Some(of_owner) = self.owner_selector(pod) {
            selector.extend(of_owner);
        }
        (!selector.selects_all()).then_some(selector)
    }

    fn owner_selector(&self, pod: &PodInfo) -> Option<Selector> {
        let owners = pod.pod.owner_references();
        let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
        let key = Key::new(pod.key.namespace.clone(), owner.name.clone());
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let selector = self.sets.get(&key)?.spec.selector.clone();
                selector.try_into().ok()
            }
            "ReplicationController" => {
                let owner = self.controllers.get(&key)?;
                let selector = owner.spec.as_ref()?.selector.clone()?;
                Some(selector.into_iter().collect())
            }
            _ => None,
        }
    }
}
