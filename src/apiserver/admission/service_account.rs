//! ServiceAccount: every pod runs as an account of its namespace and finds its token mounted.

use std::sync::Arc;

use rand::Rng;
use serde_json::{Value, json};

use super::{Late, Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::kinds::{
        pods::references,
        value::{at, default_text, has, items, items_mut, object_mut, set, text},
    },
    request::User,
    status::{Reason, Status},
};

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
const DEFAULT: &str = "default";
/// A little over an hour: the kubelet renews long before; the odd seconds mark injected tokens.
const TOKEN_SECONDS: u32 = 3607;

pub struct ServiceAccount {
    objects: Arc<Late>,
}

impl ServiceAccount {
    pub fn new(objects: Arc<Late>) -> Self {
        Self { objects }
    }

    /// The account. A new namespace's default one is made here if the controller has not come
    /// around yet: a pod created right after its namespace must not be refused.
    async fn account(
        &self,
        request: &Request<'_>,
        name: &str,
        lookup: &dyn Lookup,
    ) -> Result<Arc<Value>, Status> {
        let found = lookup.get("serviceaccounts", request.namespace, name).await;
        if let Some(account) = found {
            return Ok(account);
        }
        if name == DEFAULT && request.dry_run {
            return Ok(Arc::new(json!({})));
        }
        if name == DEFAULT {
            let user = User::internal("system:apiserver", &["system:masters"]);
            let account = json!({"metadata": {"name": DEFAULT}});
            let objects = self.objects.get()?;
            match objects
                .create(&user, "serviceaccounts", request.namespace, account)
                .await
            {
                Ok(account) => return Ok(Arc::new(account)),
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
            }
        }
        let again = lookup.get("serviceaccounts", request.namespace, name).await;
        again.ok_or_else(|| {
            request.forbidden(&format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                request.namespace
            ))
        })
    }
}

#[async_trait::async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        pod: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        if !request.is(Operation::Create, "", "pods") {
            return Ok(());
        }
        if references::is_mirror(pod) {
            return match refers_to(pod) {
                Some(what) => Err(request.forbidden(&format!("a mirror pod may not {what}"))),
                None => Ok(()),
            };
        }
        default_text(pod, "spec.serviceAccountName", DEFAULT);
        let name = text(pod, "spec.serviceAccountName").to_owned();
        set(pod, "spec.serviceAccount", name.clone());
        let account = self.account(request, &name, lookup).await?;
        let automount = at(pod, "spec.automountServiceAccountToken")
            .or_else(|| at(&account, "automountServiceAccountToken"))
            .is_none_or(|automount| automount == true);
        if automount {
            mount_token(pod);
        }
        if items(pod, "spec.imagePullSecrets").is_empty()
            && let Some(secrets) = at(&account, "imagePullSecrets")
        {
            set(pod, "spec.imagePullSecrets", secrets.clone());
        }
        Ok(())
    }
}

/// What a mirror pod cannot have: it stands for a pod that runs without the API.
fn refers_to(pod: &Value) -> Option<&'static str> {
    if !text(pod, "spec.serviceAccountName").is_empty() {
        return Some("reference service accounts");
    }
    if references::secrets(pod).next().is_some() {
        return Some("reference secrets");
    }
    let token = references::projections(pod).any(|source| has(source, "serviceAccountToken"));
    token.then_some("use ServiceAccountToken volume projections")
}

/// Adds the token's volume and mounts it where nothing is mounted yet.
fn mount_token(pod: &mut Value) {
    let existing = items(pod, "spec.volumes")
        .iter()
        .map(|volume| text(volume, "name"))
        .find(|name| name.starts_with(VOLUME))
        .map(str::to_owned);
    let is_new = existing.is_none();
    let volume = existing.unwrap_or_else(|| format!("{VOLUME}{}", suffix()));
    let mut used = false;
    for list in ["spec.initContainers", "spec.containers"] {
        for container in items_mut(pod, list) {
            let mounted = items(container, "volumeMounts")
                .iter()
                .any(|mount| text(mount, "mountPath") == MOUNT);
            if !mounted {
                let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT});
                push(container, "volumeMounts", mount);
                used = true;
            }
        }
    }
    if used && is_new {
        push(
            object(pod),
            "volumes",
            json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ]}}),
        );
    }
}

fn object(pod: &mut Value) -> &mut Value {
    if !has(pod, "spec") {
        set(pod, "spec", json!({}));
    }
    &mut pod["spec"]
}

fn push(parent: &mut Value, list: &str, item: Value) {
    let entry = object_mut(parent, "")
        .entry(list)
        .or_insert_with(|| json!([]));
    match entry.as_array_mut() {
        Some(items) => items.push(item),
        None => *entry = json!([item]),
    }
}

fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5)
        .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::testing;

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [{"name": "c"}]}})
    }

    #[tokio::test]
    async fn a_token_is_mounted() {
        let memory = testing::Memory::with(&[(
            "serviceaccounts",
            json!({"metadata": {"namespace": "a", "name": "default"},
            "imagePullSecrets": [{"name": "s"}]}),
        )]);
        let plugin = ServiceAccount::new(memory.late());
        let mut pod = pod();
        testing::admit(&plugin, &memory, "pods", &mut pod, None)
            .await
            .unwrap();
        let spec = &pod["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["imagePullSecrets"][0]["name"], "s");
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], MOUNT);
        assert_eq!(
            spec["containers"][0]["volumeMounts"][0]["name"],
            spec["volumes"][0]["name"]
        );
        assert_eq!(
            spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
            3607
        );
    }

    #[tokio::test]
    async fn accounts_must_exist_and_may_decline() {
        let memory = testing::Memory::with(&[(
            "serviceaccounts",
            json!({"metadata": {"namespace": "a", "name": "quiet"}, "automountServiceAccountToken": false}),
        )]);
        let plugin = ServiceAccount::new(memory.late());
        let mut quiet = pod();
        quiet["spec"]["serviceAccountName"] = "quiet".into();
        testing::admit(&plugin, &memory, "pods", &mut quiet, None)
            .await
            .unwrap();
        assert!(quiet["spec"].get("volumes").is_none());
        let mut missing = pod();
        missing["spec"]["serviceAccountName"] = "gone".into();
        let status = testing::admit(&plugin, &memory, "pods", &mut missing, None)
            .await
            .unwrap_err();
        assert_eq!(
            status.message,
            "pods \"p\" is forbidden: error looking up service account a/gone: serviceaccount \"gone\" not found"
        );
        // The default one is made on the way.
        testing::admit(&plugin, &memory, "pods", &mut pod(), None)
            .await
            .unwrap();
        assert!(
            memory
                .get("serviceaccounts", "a", "default")
                .await
                .is_some()
        );
    }
}
