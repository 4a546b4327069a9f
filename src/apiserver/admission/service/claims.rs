//! Claims on cluster addresses: an IPAddress object each, whose creation is the claim.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    SETTLED_SECONDS,
    addresses::{Claimed, PLURAL, Pool, held, revision},
    families, user,
};
use crate::{
    apiserver::{
        cache,
        objects::Named,
        registry::kinds::value::text,
        status::{Reason, Status},
    },
    store::{Expect, Guard},
};

/// Names the service by uid: a recreated service of the same name is another one.
pub const UID: &str = "vetch/service-uid";
/// Who made the claim; others may make IPAddresses of their own.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// A claim whose Service changes all the time is left to the repair.
const RETRIES: usize = 16;

impl Pool<'_> {
    /// Gives addresses back that this very service holds and does not use.
    pub async fn take_back(&self, ips: &[String]) {
        if self.dry_run {
            return;
        }
        for ip in ips {
            let Some(claim) = self.objects.get(PLURAL, "", ip).await else {
                continue;
            };
            if claim["metadata"]["annotations"][UID].as_str() == Some(&self.owner.uid) {
                self.remove(ip, &claim).await;
            }
        }
    }

    /// Makes the address this service's, unless it is another's.
    pub(super) async fn claim(&self, ip: &str) -> Result<Option<Claimed>, Status> {
        for _ in 0..2 {
            if let Some(claim) = self.objects.get(PLURAL, "", ip).await {
                let uid = &self.owner.uid;
                if !uid.is_empty() && claim["metadata"]["annotations"][UID].as_str() == Some(uid) {
                    return Ok(Some(Claimed::new(ip, &claim)));
                }
                let is_free = self.is_stale(ip, &claim).await
                    && (self.dry_run || self.remove(ip, &claim).await);
                if !is_free {
                    return Ok(None);
                }
            }
            if self.dry_run {
                return Ok(Some(Claimed::new(ip, &Value::Null)));
            }
            let (user, object) = (user(), self.object(ip));
            match self.objects.create(&user, PLURAL, "", object).await {
                Ok(claim) => return Ok(Some(Claimed::new(ip, &claim))),
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
            }
        }
        Ok(None)
    }

    /// Whether the claim's service is gone or uses another address, and it is no claim just made.
    async fn is_stale(&self, ip: &str, claim: &Value) -> bool {
        if !is_settled(claim) || !is_managed(claim) || !is_for_a_service(claim) {
            return false;
        }
        !uses(self.service_of(claim).await.as_deref(), ip, claim)
    }

    /// Makes the claim of an address that this Service has.
    pub(super) async fn restore(&self, ip: &str) -> bool {
        let (user, claim) = (user(), self.object(ip));
        let made = self.objects.create(&user, PLURAL, "", claim).await;
        if let Err(status) = &made {
            tracing::debug!(ip, %status, "address not claimed");
        }
        made.is_ok()
    }

    /// Removes a claim that is nobody's, whatever Services say.
    pub(super) async fn delete(&self, ip: &str, claim: &Value) -> bool {
        let (user, options) = (user(), this_one(claim));
        let deleted = self.objects.delete(&user, named(ip), options, Vec::new());
        deleted.await.is_ok()
    }

    pub(super) async fn service_of(&self, claim: &Value) -> Option<Arc<Value>> {
        let parent = &claim["spec"]["parentRef"];
        let (namespace, name) = (text(parent, "namespace"), text(parent, "name"));
        self.objects.get("services", namespace, name).await
    }

    /// Removes a claim, unless its Service uses the address at that very moment.
    pub async fn remove(&self, ip: &str, claim: &Value) -> bool {
        let options = this_one(claim);
        for _ in 0..RETRIES {
            let service = self.service_of(claim).await;
            if uses(service.as_deref(), ip, claim) {
                return false;
            }
            let guards = vec![as_found(claim, service.as_deref())];
            match self
                .objects
                .delete(&user(), named(ip), options.clone(), guards)
                .await
            {
                Ok(_) => return true,
                // The Service was changed: does it use the address now?
                Err(status) if status.reason == Reason::Conflict => {}
                Err(status) => {
                    tracing::debug!(ip, %status, "address not given back");
                    return false;
                }
            }
        }
        false
    }

    fn object(&self, ip: &str) -> Value {
        let family = ip.parse().map_or("IPv4", |ip| families::family(&ip));
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {
                "name": ip,
                "annotations": {UID: self.owner.uid},
                "labels": {FAMILY: family, MANAGED_BY: ALLOCATOR},
            },
            "spec": {"parentRef": {
                "group": "", "resource": "services",
                "namespace": self.owner.namespace, "name": self.owner.name,
            }},
        })
    }
}

fn named(ip: &str) -> Named<'_> {
    Named {
        plural: PLURAL,
        subresource: "",
        namespace: "",
        name: ip,
    }
}

/// Deletes no other claim that has taken its place.
fn this_one(claim: &Value) -> Value {
    match text(claim, "metadata.uid") {
        "" => json!({}),
        uid => json!({"preconditions": {"uid": uid}}),
    }
}

/// Whether it is no claim just made, which may belong to a write under way.
pub(super) fn is_settled(claim: &Value) -> bool {
    let created = text(claim, "metadata.creationTimestamp").parse::<jiff::Timestamp>();
    let age = created.map(|created| jiff::Timestamp::now().as_second() - created.as_second());
    age.is_ok_and(|age| age >= SETTLED_SECONDS)
}

/// Whether the claim was made by an allocator, and not by somebody for something else.
pub(super) fn is_managed(claim: &Value) -> bool {
    claim["metadata"]["labels"][MANAGED_BY] == ALLOCATOR
}

/// Whether it has the labels that an allocator gives.
pub(super) fn is_labelled(ip: &str, claim: &Value) -> bool {
    let family = ip.parse().map_or("IPv4", |ip| families::family(&ip));
    is_managed(claim) && claim["metadata"]["labels"][FAMILY] == family
}

pub(super) fn is_for_a_service(claim: &Value) -> bool {
    let parent = &claim["spec"]["parentRef"];
    text(parent, "group").is_empty() && text(parent, "resource") == "services"
}

/// Whether the Service that a claim is for has the address.
pub(super) fn uses(service: Option<&Value>, ip: &str, claim: &Value) -> bool {
    let uid = claim["metadata"]["annotations"][UID].as_str();
    service.is_some_and(|service| {
        let same = uid.is_none_or(|uid| uid == text(service, "metadata.uid"));
        same && held(service).iter().any(|own| own == ip)
    })
}

/// The Service that a claim is for, as it was found.
fn as_found(claim: &Value, service: Option<&Value>) -> Guard {
    let parent = &claim["spec"]["parentRef"];
    let key = cache::key("services", text(parent, "namespace"), text(parent, "name"));
    let revision = service.map(|service| revision(service).unwrap_or_default());
    Guard {
        key,
        expect: revision.map_or(Expect::Absent, Expect::ModRevision),
    }
}
