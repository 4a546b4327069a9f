//! The node authorizer: a node may read what its pods need, and nothing of other nodes' pods.
//!
//! A node is user `system:node:NAME` in group `system:nodes`. What a created object is called is
//! not known here: there [`crate::apiserver::admission`] has the other half, NodeRestriction.
//! Always true:
//! - A mirror pod opens nothing: whoever can make one cannot reach its node's other objects by it.
//! - Lists and watches of pods are narrowed by the node's own name in their field selector.

use std::sync::{Arc, LazyLock};

use serde_json::Value;

use super::{Decision, bootstrap, rules::Rule};
use crate::{
    addresses::balancing,
    apiserver::{
        objects::Lookup,
        registry::kinds::{
            pods::references,
            value::{at, items, text},
        },
        request::{Attributes, Target},
    },
};

/// What every node may do; the kinds of `decide` are narrowed further, each in its own way.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(bootstrap::node_rules);

const LEASES: &str = "kube-node-lease";

/// One request of one node.
struct Asked<'a> {
    node: &'a str,
    verb: &'a str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
    attributes: &'a Attributes,
    lookup: &'a dyn Lookup,
}

/// Why not; may be empty.
type Refused = String;

pub async fn decide(node: &str, attributes: &Attributes, lookup: &dyn Lookup) -> Decision {
    match allowed(node, attributes, lookup).await {
        Ok(()) => Decision::Allow {
            reason: String::new(),
        },
        Err(reason) => Decision::NoOpinion { reason },
    }
}

async fn allowed(node: &str, attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Refused> {
    let Target::Resource {
        group,
        resource,
        subresource,
        namespace,
        name,
        ..
    } = &attributes.target
    else {
        return by_rules(attributes);
    };
    let asked = Asked {
        node,
        verb: &attributes.verb,
        subresource: subresource.as_deref().unwrap_or_default(),
        namespace: namespace.as_deref().unwrap_or_default(),
        name: name.as_deref().unwrap_or_default(),
        attributes,
        lookup,
    };
    match (group.as_str(), resource.as_str()) {
        ("", "secrets") => asked.read(Kind::Secret).await,
        ("", "configmaps") => asked.read(Kind::ConfigMap).await,
        ("", "persistentvolumeclaims") if asked.subresource == "status" => {
            asked.claim_status().await
        }
        ("", "persistentvolumeclaims") => asked.get(Kind::Claim).await,
        ("", "persistentvolumes") => asked.volume_request().await,
        ("", "serviceaccounts") if asked.verb == "create" => asked.token().await,
        ("", "serviceaccounts") => asked.get(Kind::ServiceAccount).await,
        ("", "nodes") => asked.node(),
        ("", "pods") => asked.pod().await,
        ("resource.k8s.io", "resourceclaims") => asked.get(Kind::ResourceClaim).await,
        ("resource.k8s.io", "resourceslices") => asked.slice().await,
        ("storage.k8s.io", "volumeattachments") => asked.get(Kind::Attachment).await,
        ("storage.k8s.io", "csinodes") => asked.csi_node(),
        ("coordination.k8s.io", "leases") => asked.lease(),
        _ => by_rules(attributes),
    }
}

fn by_rules(attributes: &Attributes) -> Result<(), Refused> {
    match RULES.iter().any(|rule| rule.allows(attributes)) {
        true => Ok(()),
        false => Err(String::new()),
    }
}

fn no(reason: impl Into<String>) -> Result<(), Refused> {
    Err(reason.into())
}

impl Asked<'_> {
    /// Get, list or watch of one object of a namespace.
    async fn read(&self, kind: Kind) -> Result<(), Refused> {
        if !matches!(self.verb, "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !self.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if self.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(kind).await
    }

    async fn get(&self, kind: Kind) -> Result<(), Refused> {
        if self.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !self.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(kind).await
    }

    /// Ours: a node removes the folders of volumes that are on it alone, and frees the volumes then. So it
    /// watches all, and may change those. What it may change of them is for admission to see.
    async fn volume_request(&self) -> Result<(), Refused> {
        match self.verb {
            "list" | "watch" if self.subresource.is_empty() => Ok(()),
            "update" if self.subresource.is_empty() => {
                let volume = self.lookup.get("persistentvolumes", "", self.name).await;
                match volume.is_some_and(|volume| is_only_on(&volume, self.node)) {
                    true => Ok(()),
                    false => no("can only update volumes that are on the node and on no other"),
                }
            }
            _ => self.get(Kind::Volume).await,
        }
    }

    async fn claim_status(&self) -> Result<(), Refused> {
        if !matches!(self.verb, "get" | "update" | "patch") {
            return no("can only get/update/patch this type");
        }
        self.related(Kind::Claim).await
    }

    async fn token(&self) -> Result<(), Refused> {
        if self.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if self.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(Kind::ServiceAccount).await
    }

    /// Beside the node's own one, ours: nodes that announce addresses of load balancers have another one each, in
    /// a namespace in which they see those of others.
    fn lease(&self) -> Result<(), Refused> {
        if self.namespace == balancing::LEASES {
            return self.announcers_lease();
        }
        if !matches!(self.verb, "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a node lease");
        }
        if self.namespace != LEASES {
            return no(format!(
                "can only access leases in the {LEASES:?} system namespace"
            ));
        }
        if self.verb != "create" && self.name != self.node {
            return no("can only access node lease with the same name as the requesting node");
        }
        Ok(())
    }

    fn announcers_lease(&self) -> Result<(), Refused> {
        match self.verb {
            "list" | "watch" | "create" => Ok(()),
            "get" | "update" | "patch" | "delete"
                if self.name == balancing::lease_of(self.node) =>
            {
                Ok(())
            }
            _ => no(format!(
                "can only watch leases in the {:?} namespace, and have one, {:?}",
                balancing::LEASES,
                balancing::lease_of(self.node)
            )),
        }
    }

    fn csi_node(&self) -> Result<(), Refused> {
        if !matches!(self.verb, "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a CSINode");
        }
        if !self.subresource.is_empty() {
            return no("cannot authorize CSINode subresources");
        }
        if self.verb != "create" && self.name != self.node {
            return no("can only access CSINode with the same name as the requesting node");
        }
        Ok(())
    }

    async fn slice(&self) -> Result<(), Refused> {
        if !self.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match self.verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(Kind::Slice).await,
            "watch" | "list" | "deletecollection" if self.selects("nodeName") => Ok(()),
            "watch" | "list" | "deletecollection" => no(
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    /// Which Node is written is for admission to see.
    fn node(&self) -> Result<(), Refused> {
        match (self.subresource, self.verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
            ("", "get" | "list" | "watch") if self.name == self.node => Ok(()),
            ("", "get" | "list" | "watch") if self.name.is_empty() => no(format!(
                "node '{}' cannot read all nodes, only its own Node object",
                self.node
            )),
            ("", "get" | "list" | "watch") => no(format!(
                "node '{}' cannot read '{}', only its own Node object",
                self.node, self.name
            )),
            _ => no(""),
        }
    }

    /// Which pod is written is for admission to see.
    async fn pod(&self) -> Result<(), Refused> {
        match (self.subresource, self.verb) {
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Ok(())
            }
            ("", "get") => self.related(Kind::Pod).await,
            ("", "list" | "watch") if self.selects("spec.nodeName") => Ok(()),
            ("", "list" | "watch") if !self.name.is_empty() => self.related(Kind::Pod).await,
            ("", "list" | "watch") => {
                no("can only list/watch pods with spec.nodeName field selector")
            }
            _ => no(""),
        }
    }

    /// Whether the request is narrowed to objects whose `field` is this node.
    fn selects(&self, field: &str) -> bool {
        let fields = &self.attributes.fields;
        fields
            .iter()
            .any(|term| term.equal && term.label == field && term.value == self.node)
    }

    async fn related(&self, kind: Kind) -> Result<(), Refused> {
        if self.name.is_empty() {
            return no("No Object name found");
        }
        let found = match kind {
            Kind::Pod => self.names_node("pods", "spec.nodeName").await,
            Kind::Attachment => {
                let plural = "volumeattachments.storage.k8s.io";
                self.names_node(plural, "spec.nodeName").await
            }
            Kind::Slice => {
                let plural = "resourceslices.resource.k8s.io";
                self.names_node(plural, "spec.nodeName").await
            }
            Kind::Volume => self.volume().await,
            Kind::Secret => self.used(kind).await || self.secret_of_volume().await,
            _ => self.used(kind).await,
        };
        match found {
            true => Ok(()),
            false => no(format!(
                "no relationship found between node '{}' and this object",
                self.node
            )),
        }
    }

    async fn names_node(&self, plural: &str, path: &str) -> bool {
        let object = self.lookup.get(plural, self.namespace, self.name).await;
        object.is_some_and(|object| text(&object, path) == self.node)
    }

    async fn used(&self, kind: Kind) -> bool {
        let pods = self.pods(self.namespace).await;
        pods.iter().any(|pod| uses(pod, kind, self.name))
    }

    /// The node's pods; mirror pods, which may refer to nothing, are left out.
    async fn pods(&self, namespace: &str) -> Vec<Arc<Value>> {
        let mut pods = self.lookup.list("pods", namespace).await;
        pods.retain(|pod| text(pod, "spec.nodeName") == self.node && !references::is_mirror(pod));
        pods
    }

    async fn volume(&self) -> bool {
        match self.lookup.get("persistentvolumes", "", self.name).await {
            Some(volume) => self.holds(&volume).await,
            None => false,
        }
    }

    /// Whether the volume belongs to a claim of a pod on the node.
    async fn holds(&self, volume: &Value) -> bool {
        let namespace = text(volume, "spec.claimRef.namespace");
        let claim = text(volume, "spec.claimRef.name");
        if namespace.is_empty() || claim.is_empty() {
            return false;
        }
        let pods = self.pods(namespace).await;
        pods.iter().any(|pod| uses(pod, Kind::Claim, claim))
    }

    /// Whether the driver of such a volume needs the secret.
    async fn secret_of_volume(&self) -> bool {
        for volume in self.lookup.list("persistentvolumes", "").await {
            if needs_secret(&volume, self.namespace, self.name) && self.holds(&volume).await {
                return true;
            }
        }
        false
    }
}

/// Whether the volume can be reached from that node alone, by its name.
fn is_only_on(volume: &Value, node: &str) -> bool {
    let terms = items(volume, "spec.nodeAffinity.required.nodeSelectorTerms");
    let by_name = |expression: &Value| {
        text(expression, "key") == "kubernetes.io/hostname"
            && text(expression, "operator") == "In"
            && items(expression, "values") == [Value::from(node)]
    };
    let on_it = |term: &Value| items(term, "matchExpressions").iter().any(by_name);
    !terms.is_empty() && terms.iter().all(on_it)
}

/// What a node's pods lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pod,
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ServiceAccount,
    ResourceClaim,
    Attachment,
    Slice,
}

/// Whether the pod refers to the object of that kind and name in its namespace.
fn uses(pod: &Value, kind: Kind, name: &str) -> bool {
    match kind {
        Kind::ServiceAccount => text(pod, "spec.serviceAccountName") == name,
        Kind::ResourceClaim => references::resource_claims(pod).any(|claim| claim == name),
        Kind::Claim => references::claims(pod).any(|claim| claim == name),
        Kind::Secret => references::secrets(pod).any(|secret| secret == name),
        Kind::ConfigMap => references::config_maps(pod).any(|map| map == name),
        Kind::Pod | Kind::Volume | Kind::Attachment | Kind::Slice => false,
    }
}

/// Whether a volume's source names the secret: in a reference of its own, which may lead to another
/// namespace than that of the claim.
fn needs_secret(volume: &Value, namespace: &str, name: &str) -> bool {
    let own = text(volume, "spec.claimRef.namespace");
    let place = |given: &str| {
        let given = if given.is_empty() { own } else { given };
        given == namespace
    };
    let sources = volume["spec"].as_object().into_iter().flatten();
    let mut sources = sources.map(|(_, source)| source);
    sources.any(|source| {
        let by_name = text(source, "secretName") == name && place(text(source, "secretNamespace"));
        let references = [
            "secretRef",
            "controllerPublishSecretRef",
            "controllerExpandSecretRef",
            "nodeStageSecretRef",
            "nodePublishSecretRef",
            "nodeExpandSecretRef",
        ];
        by_name
            || references.iter().any(|reference| {
                at(source, reference).is_some_and(|reference| {
                    text(reference, "name") == name && place(text(reference, "namespace"))
                })
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_of_volumes() {
        let volume = json!({"spec": {"claimRef": {"namespace": "a", "name": "c"},
            "csi": {"nodeStageSecretRef": {"name": "stage", "namespace": "b"}},
            "azureFile": {"secretName": "share"}}});
        for (namespace, name, want) in [
            ("b", "stage", true),
            ("a", "stage", false),
            ("a", "share", true),
            ("b", "share", false),
        ] {
            assert_eq!(
                needs_secret(&volume, namespace, name),
                want,
                "{namespace}/{name}"
            );
        }
    }
}
