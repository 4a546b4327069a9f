//! What each of a pod's volumes is made of: fetched from the API, not yet on disk.

use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Pod, ProjectedVolumeSource, SecretProjection,
    ServiceAccountTokenProjection, Volume,
};

use super::{
    PodVolumes,
    empty_dir::EmptyDir,
    host_path::HostPath,
    objects::{Key, Kind},
    payload::{self, Defaults, File, Payload},
};
use crate::kubelet::container;

/// One volume, ready to be made.
#[derive(Debug)]
pub enum Source {
    EmptyDir(EmptyDir),
    HostPath(HostPath),
    Files { payload: Payload, place: Place },
}

/// Where files of API data lie; what is secret never reaches a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Disk,
    Memory,
}

/// The folder's name of a volume's kind, as upstream has it; `None`: not kept below the pod.
pub fn folder_name(volume: &Volume) -> Option<&'static str> {
    let names = [
        (volume.empty_dir.is_some(), "kubernetes.io~empty-dir"),
        (volume.config_map.is_some(), "kubernetes.io~configmap"),
        (volume.secret.is_some(), "kubernetes.io~secret"),
        (volume.projected.is_some(), "kubernetes.io~projected"),
        (volume.downward_api.is_some(), "kubernetes.io~downward-api"),
    ];
    names.iter().find(|(is, _)| *is).map(|(_, name)| *name)
}

/// Whether the volume's content is the API's, and follows it while the pod runs.
pub fn is_api_data(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// A volume and what it is made of, or why that cannot be had.
#[derive(Debug)]
pub struct Collected {
    pub name: String,
    /// Of the folder that volumes of its kind lie in.
    pub kind: Option<&'static str>,
    pub source: Result<Source, String>,
}

impl PodVolumes {
    /// The pod's volumes of which `which` is true, fetched side by side. One that cannot be had holds
    /// up no other.
    pub(super) async fn collect(&self, pod: &Pod, which: fn(&Volume) -> bool) -> Vec<Collected> {
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
        let volumes = volumes.into_iter().flatten().filter(|one| which(one));
        let each = volumes.map(|volume| async move {
            Collected {
                name: volume.name.clone(),
                kind: folder_name(volume),
                source: self.source(pod, volume).await,
            }
        });
        join_all(each).await
    }

    async fn source(&self, pod: &Pod, volume: &Volume) -> Result<Source, String> {
        let facts = &self.shared().config.facts;
        if let Some(wanted) = &volume.empty_dir {
            return EmptyDir::new(wanted, pod, facts).map(Source::EmptyDir);
        }
        if let Some(wanted) = &volume.host_path {
            return HostPath::new(wanted).map(Source::HostPath);
        }
        let (payload, place) = if let Some(wanted) = &volume.config_map {
            let projection = ConfigMapProjection {
                items: wanted.items.clone(),
                name: wanted.name.clone(),
                optional: wanted.optional,
            };
            let defaults = Defaults::new(wanted.default_mode, wanted.default_user);
            let payload = self.config_map(pod, &projection, defaults).await?;
            (payload, Place::Disk)
        } else if let Some(wanted) = &volume.secret {
            let projection = SecretProjection {
                items: wanted.items.clone(),
                name: wanted.secret_name.clone().unwrap_or_default(),
                optional: wanted.optional,
            };
            let defaults = Defaults::new(wanted.default_mode, wanted.default_user);
            let payload = self.secret(pod, &projection, defaults).await?;
            (payload, Place::Memory)
        } else if let Some(wanted) = &volume.downward_api {
            let defaults = Defaults::new(wanted.default_mode, wanted.default_user);
            let payload = payload::downward(pod, wanted.items.as_deref(), defaults, facts)?;
            (payload, Place::Disk)
        } else if let Some(wanted) = &volume.projected {
            (self.projected(pod, wanted).await?, Place::Memory)
        } else {
            return Err(unsupported(volume));
        };
        Ok(Source::Files { payload, place })
    }

    async fn config_map(
        &self,
        pod: &Pod,
        wanted: &ConfigMapProjection,
        defaults: Defaults,
    ) -> Result<Payload, String> {
        let optional = wanted.optional == Some(true);
        let data = self
            .data(pod, Kind::ConfigMap, &wanted.name, optional)
            .await?;
        payload::keyed(&data, wanted.items.as_deref(), defaults, optional, "config")
            .map_err(|message| format!("configmap {message}"))
    }

    async fn secret(
        &self,
        pod: &Pod,
        wanted: &SecretProjection,
        defaults: Defaults,
    ) -> Result<Payload, String> {
        let optional = wanted.optional == Some(true);
        let data = self.data(pod, Kind::Secret, &wanted.name, optional).await?;
        payload::keyed(&data, wanted.items.as_deref(), defaults, optional, "secret")
    }

    /// The object's data; nothing if it is optional and absent.
    async fn data(
        &self,
        pod: &Pod,
        kind: Kind,
        name: &str,
        optional: bool,
    ) -> Result<std::sync::Arc<super::objects::Data>, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let shown = match kind {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
        };
        let key = Key::new(kind, namespace, name);
        match self.shared().objects.get(&key, self.user()).await? {
            Some(data) => Ok(data),
            None if optional => Ok(std::sync::Arc::default()),
            None => Err(format!("{shown} {name:?} not found")),
        }
    }

    /// All sources into one folder; a later one wins.
    async fn projected(
        &self,
        pod: &Pod,
        wanted: &ProjectedVolumeSource,
    ) -> Result<Payload, String> {
        let defaults = Defaults::new(wanted.default_mode, wanted.default_user);
        let facts = &self.shared().config.facts;
        let sources = wanted.sources.iter().flatten().map(|source| async move {
            if let Some(token) = &source.service_account_token {
                self.token(pod, token, defaults).await
            } else if let Some(config_map) = &source.config_map {
                self.config_map(pod, config_map, defaults).await
            } else if let Some(secret) = &source.secret {
                self.secret(pod, secret, defaults).await
            } else if let Some(fields) = &source.downward_api {
                payload::downward(pod, fields.items.as_deref(), defaults, facts)
            } else if source.cluster_trust_bundle.is_some() {
                Err("clusterTrustBundle projections are not supported by this version".into())
            } else {
                Err("podCertificate projections are not supported by this version".into())
            }
        });
        let mut all = Payload::new();
        for files in try_join_all(sources).await? {
            all.extend(files);
        }
        Ok(all)
    }

    /// A token is for one user's eyes if it is known whose, else for the group's, else as the
    /// volume says.
    async fn token(
        &self,
        pod: &Pod,
        wanted: &ServiceAccountTokenProjection,
        defaults: Defaults,
    ) -> Result<Payload, String> {
        let path = payload::checked(&wanted.path)?;
        let own = wanted.user.and_then(|id| u32::try_from(id).ok());
        let user = own.or(defaults.owner).or_else(|| shared_user(pod));
        let group = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.security_context.as_ref()?.fs_group);
        let file = File {
            content: self.token_text(pod, wanted).await?.into_bytes(),
            mode: match user.is_some() || group.is_some() {
                true => 0o600,
                false => defaults.mode,
            },
            owner: user,
        };
        Ok([(path, file)].into())
    }

    async fn token_text(
        &self,
        pod: &Pod,
        wanted: &ServiceAccountTokenProjection,
    ) -> Result<String, String> {
        self.shared().tokens.get(self.user(), pod, wanted).await
    }
}

/// The user all containers of the pod run as, if it is one and the pod says so.
fn shared_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let init = spec.init_containers.iter().flatten();
    let mut users = spec
        .containers
        .iter()
        .chain(init)
        .map(|one| container::effective_user(pod, one));
    let first = users.next()??;
    let same = users.all(|user| user == Some(first));
    same.then(|| u32::try_from(first).ok())?
}

/// What this version has no means for, named as in the manifest.
fn unsupported(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let kind = value
        .as_object()
        .and_then(|map| map.keys().find(|key| *key != "name"));
    match kind.map(String::as_str) {
        Some("gitRepo") => "gitRepo volumes are refused: they run a program on the node".into(),
        Some(kind) => format!("{kind} volumes are not supported by this version"),
        None => "the volume has no source".into(),
    }
}
