//! NodeRestriction: a node writes what is its own, and nothing else.
//!
//! The node authorizer says which kinds a node may write; it cannot see what a created object is
//! called or what is in it. That half is here, with a file for each kind. It is at the chain's
//! beginning, since it needs the authorizer, like the guard against escalation.
//! Always true: a user in group `system:nodes` whose name is that of no node writes nothing.

mod certificates;
mod claims;
mod labels;
mod nodes;
mod pods;
mod tokens;
mod volumes;

pub use self::labels::is_forbidden as is_label_of_cluster;

use std::sync::Arc;

use serde_json::Value;

use super::{Operation, Plugin, Request};
use crate::{
    addresses::balancing,
    apiserver::{
        authz::{Authorizer, node_identity},
        objects::Lookup,
        registry::kinds::value::text,
        status::Status,
    },
};

const LEASES: &str = "kube-node-lease";

pub struct NodeRestriction(pub Arc<Authorizer>);

#[async_trait::async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        object: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        match request.operation {
            // Streams into a pod are authorization's alone.
            Operation::Connect => Ok(()),
            _ => self.check(request, object, lookup).await,
        }
    }

    /// Nothing is mutated when an object is deleted: there only this is asked.
    async fn validate(
        &self,
        request: &mut Request<'_>,
        _object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        match request.operation {
            Operation::Delete => self.check(request, &Value::Null, lookup).await,
            _ => Ok(()),
        }
    }
}

impl NodeRestriction {
    async fn check(
        &self,
        request: &Request<'_>,
        object: &Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let Some(node) = node_identity(request.user) else {
            return Ok(());
        };
        if node.is_empty() {
            return Err(request.forbidden(&format!(
                "could not determine node from user {:?}",
                request.user.name
            )));
        }
        let asked = Asked {
            node,
            request,
            object,
            lookup,
        };
        let resource = request.resource;
        match (resource.group, resource.plural, request.subresource) {
            ("", "pods", None) => pods::whole(&asked).await,
            ("", "pods", Some("status")) => pods::status(&asked),
            ("", "pods", Some("eviction")) => pods::eviction(&asked).await,
            ("", "pods", Some(other)) => asked.refuse(&format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            )),
            ("", "nodes", _) => nodes::check(&asked),
            ("", "persistentvolumes", _) => volumes::check(&asked),
            ("", "persistentvolumeclaims", Some("status")) => claims::status(&asked),
            ("", "persistentvolumeclaims", _) => asked.refuse("may only update PVC status"),
            ("", "serviceaccounts", Some("token")) => tokens::check(&asked, &self.0).await,
            ("coordination.k8s.io", "leases", _) => asked.lease(),
            ("storage.k8s.io", "csinodes", _) => asked.csi_node(),
            ("resource.k8s.io", "resourceslices", _) => asked.slice(),
            ("certificates.k8s.io", "certificatesigningrequests", None) => {
                certificates::check(&asked)
            }
            _ => Ok(()),
        }
    }
}

/// One write of one node.
struct Asked<'a> {
    node: &'a str,
    request: &'a Request<'a>,
    /// Null when something is deleted.
    object: &'a Value,
    lookup: &'a dyn Lookup,
}

impl Asked<'_> {
    fn refuse(&self, why: &str) -> Result<(), Status> {
        Err(self.request.forbidden(why))
    }

    fn unexpected_operation(&self) -> Result<(), Status> {
        let operation = operation(self.request.operation);
        self.refuse(&format!("unexpected operation {operation:?}"))
    }

    /// As written in the object where it is new, for the URL has no name then.
    fn name(&self) -> &str {
        match self.request.operation {
            Operation::Create => text(self.object, "metadata.name"),
            _ => self.request.name,
        }
    }

    fn lease(&self) -> Result<(), Status> {
        // Ours: the second Lease of a node, by which it announces addresses of load balancers.
        let own = (balancing::LEASES, balancing::lease_of(self.node));
        if (self.request.namespace, self.name()) == (own.0, own.1.as_str()) {
            return Ok(());
        }
        if self.request.namespace != LEASES {
            return self.refuse(&format!(
                "can only access leases in the {LEASES:?} system namespace"
            ));
        }
        if self.name() != self.node {
            return self
                .refuse("can only access node lease with the same name as the requesting node");
        }
        Ok(())
    }

    fn csi_node(&self) -> Result<(), Status> {
        match self.name() == self.node {
            true => Ok(()),
            false => {
                self.refuse("can only access CSINode with the same name as the requesting node")
            }
        }
    }

    fn slice(&self) -> Result<(), Status> {
        let (slice, verb) = match self.request.operation {
            Operation::Create => (Some(self.object), "create"),
            Operation::Delete => (self.request.old, "delete"),
            _ => return Ok(()),
        };
        if slice.is_some_and(|slice| text(slice, "spec.nodeName") == self.node) {
            return Ok(());
        }
        self.refuse(&format!(
            "can only {verb} ResourceSlice with the same NodeName as the requesting node"
        ))
    }
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

#[cfg(test)]
mod tests;
