//! Who may do what: RBAC and the node authorizer.
//!
//! Called by the HTTP layer once per request after authentication, and by reviews and admission.
//! Reads roles and bindings through [`Lookup`] only.
//! Always true:
//! - Rules only ever add; what no rule allows is refused.
//! - The index is as fresh as the last finished write of a role or binding.
//!
//! `rules.rs` decides by one rule, `index.rs` finds the rules of a user, `node.rs` is for nodes.

pub mod bootstrap;
mod escalation;
mod index;
mod node;
mod reviews;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock};

use futures::FutureExt;

use self::index::Index;
pub use self::{
    escalation::EscalationGuard,
    reviews::{
        LocalSubjectAccessReviews, SelfSubjectAccessReviews, SelfSubjectRulesReviews,
        SubjectAccessReviews,
    },
    rules::Rule,
};
use super::{
    objects::Lookup,
    request::{Attributes, Target, User},
    status::{Reason, Status},
};

/// May do everything, whatever the roles say.
pub const MASTERS: &str = "system:masters";
const RBAC: &str = "rbac.authorization.k8s.io";
pub const NODES: &str = "system:nodes";

/// What an authorizer says; `reason` may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow {
        reason: String,
    },
    /// Nothing allows it, which at the end of all authorizers means no.
    NoOpinion {
        reason: String,
    },
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    pub fn reason(&self) -> &str {
        match self {
            Self::Allow { reason } | Self::NoOpinion { reason } => reason,
        }
    }
}

/// The cluster's authorizer. Cheap to share; one per process.
pub struct Authorizer {
    lookup: Arc<dyn Lookup>,
    /// The state of roles and bindings that it was made from, and the index.
    index: RwLock<Option<(Versions, Arc<Index>)>>,
    building: tokio::sync::Mutex<()>,
}

type Versions = [u64; 4];

const PLURALS: [&str; 4] = [
    "clusterroles.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
];

impl Authorizer {
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        Self {
            lookup,
            index: RwLock::new(None),
            building: tokio::sync::Mutex::default(),
        }
    }

    /// Whether `user` may do what `attributes` say.
    pub async fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        if is_master(user) {
            return Decision::Allow {
                reason: String::new(),
            };
        }
        let mut reason = String::new();
        match node_identity(user) {
            None => {}
            Some("") => reason = format!("unknown node for user {:?}", user.name),
            Some(node) => match node::decide(node, attributes, &*self.lookup).await {
                Decision::NoOpinion { reason: why } => reason = why,
                allowed @ Decision::Allow { .. } => return allowed,
            },
        }
        match self.index().await.allows(user, attributes) {
            Some(grant) => Decision::Allow {
                reason: format!("RBAC: allowed by {}", grant.why),
            },
            None => Decision::NoOpinion { reason },
        }
    }

    /// As [`Self::authorize`], for those who cannot wait. What it takes for that must have been made
    /// ready just before; `None` if it was not, or is not any more.
    pub fn authorize_at_once(&self, user: &User, attributes: &Attributes) -> Option<Decision> {
        self.authorize(user, attributes).now_or_never()
    }

    /// Makes ready what [`Self::authorize_at_once`] takes.
    pub async fn ready(&self) {
        self.index().await;
    }

    /// All rules of `user` in `namespace` (empty: cluster-wide ones only).
    pub async fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let index = self.index().await;
        index.rules(user, namespace).cloned().collect()
    }

    /// The rules of a role, aggregation included; `None` if there is no such role. `namespace`
    /// empty: a cluster role.
    pub async fn role_rules(&self, namespace: &str, name: &str) -> Option<Vec<Rule>> {
        let index = self.index().await;
        Some(index.role(namespace, name)?.to_vec())
    }

    /// The index of the roles as they are now; made anew, by one caller for all, only if one has
    /// changed.
    async fn index(&self) -> Arc<Index> {
        if let Some(index) = self.current() {
            return index;
        }
        let _one = self.building.lock().await;
        if let Some(index) = self.current() {
            return index;
        }
        // Read before the objects: a change in between makes the next call build again.
        let versions = self.versions();
        let [cluster_roles, roles, cluster_bindings, bindings] = PLURALS;
        let before = {
            let known = self.index.read().unwrap_or_else(PoisonError::into_inner);
            known.as_ref().map(|(_, index)| index.clone())
        };
        let index = Arc::new(Index::new(
            before.as_deref(),
            &self.lookup.list(cluster_roles, "").await,
            &self.lookup.list(roles, "").await,
            &self.lookup.list(cluster_bindings, "").await,
            &self.lookup.list(bindings, "").await,
        ));
        let mut known = self.index.write().unwrap_or_else(PoisonError::into_inner);
        *known = Some((versions, index.clone()));
        index
    }

    fn versions(&self) -> Versions {
        PLURALS.map(|plural| self.lookup.changed(plural))
    }

    fn current(&self) -> Option<Arc<Index>> {
        let versions = self.versions();
        let known = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let (made_from, index) = known.as_ref()?;
        (*made_from == versions).then(|| index.clone())
    }
}

fn is_master(user: &User) -> bool {
    user.groups.iter().any(|group| group == MASTERS)
}

/// The node a user is, if it is one; an empty name is that of no node, and may do nothing.
pub fn node_identity(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    let member = user.groups.iter().any(|group| group == NODES);
    member.then_some(name)
}

/// The 403 of a request that `decision` did not allow.
pub fn forbidden(user: &User, attributes: &Attributes, decision: &Decision) -> Status {
    let mut why = refusal(user, attributes);
    if !decision.reason().is_empty() {
        why = format!("{why}: {}", decision.reason());
    }
    match &attributes.target {
        Target::Resource {
            group,
            resource,
            name,
            ..
        } => Status::forbidden(group, resource, name.as_deref().unwrap_or_default(), &why),
        Target::Path(_) => {
            let mut status = Status::new(Reason::Forbidden, format!("forbidden: {why}"));
            status.details = Some(super::status::Details::default());
            status
        }
    }
}

fn refusal(user: &User, attributes: &Attributes) -> String {
    let (name, verb) = (&user.name, &attributes.verb);
    match &attributes.target {
        Target::Path(path) => format!("User {name:?} cannot {verb} path {path:?}"),
        Target::Resource {
            group,
            resource,
            subresource,
            namespace,
            ..
        } => {
            let what = match subresource {
                Some(subresource) => format!("{resource}/{subresource}"),
                None => resource.clone(),
            };
            let place = match namespace.as_deref() {
                Some(namespace) if !namespace.is_empty() => {
                    format!("in the namespace {namespace:?}")
                }
                _ => "at the cluster scope".to_owned(),
            };
            format!("User {name:?} cannot {verb} resource {what:?} in API group {group:?} {place}")
        }
    }
}
