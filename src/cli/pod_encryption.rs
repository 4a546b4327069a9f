//! `--pod-encryption`, and the ConfigMap by which every node learns of it.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{Error, node_args::Machine};
use crate::{
    backoff::Backoff,
    informer::Informers,
    kubelet::network::peers::requested::{CONFIG_MAP, ENCRYPTION, Encryption, NAMESPACE, watch},
    logging,
    supervision::{Parts, Policy},
};

/// How packets of pods go from machine to machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PodEncryption {
    /// As they are, or by VXLAN
    #[default]
    None,
    /// By WireGuard; every machine's kernel must have it
    Wireguard,
}

impl From<PodEncryption> for Encryption {
    fn from(chosen: PodEncryption) -> Self {
        match chosen {
            PodEncryption::None => Self::None,
            PodEncryption::Wireguard => Self::WireGuard,
        }
    }
}

impl PodEncryption {
    /// Whether this machine can do it: one that lacks WireGuard is told, and its pods reach none of other nodes.
    pub fn check(self, machine: &Machine) -> Result<(), Error> {
        if self == Self::None {
            return Ok(());
        }
        if machine.cni.is_some() {
            return Err(
                "--pod-encryption is of no use with --cni-conf-dir: the plugins make the pods' network, and encrypt it or \
                 not"
                    .into(),
            );
        }
        if !netns::wireguard::is_supported() {
            logging::note(format_args!(
                "this kernel has no WireGuard, and --pod-encryption wireguard is requested: pods of other nodes are not \
                 reached from here until it has; `vetch check` says more"
            ));
        }
        Ok(())
    }
}

/// Writes the ConfigMap, where encryption is requested before the first node asks for it, and keeps it as it is wanted,
/// also when somebody has changed or deleted it.
pub async fn keep(parts: &Parts, client: Client, chosen: PodEncryption) {
    let informers = Informers::of("pod-encryption", client.clone(), parts.clone());
    let informers = informers.beside_the_server();
    let told = Arc::new(Told {
        client,
        encryption: chosen.into(),
    });
    // Only what is requested must be known before the first node asks: without a ConfigMap nothing is, and a write here
    // would hold up every start.
    if told.encryption != Encryption::None
        && let Err(error) = told.write().await
    {
        // What users have set up may refuse it.
        tracing::warn!(%error, "which pod encryption is requested is not told yet, will retry");
    }
    parts.start_endless("part/pod-encryption", Policy::Restart, move || {
        told.clone().keep_on(informers.clone())
    });
}

struct Told {
    client: Client,
    encryption: Encryption,
}

impl Told {
    async fn keep_on(self: Arc<Self>, informers: Informers) {
        let mut news = pin!(watch(self.client.clone(), informers.watch_config()));
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        while let Some(found) = news.next().await {
            while found.as_ref() != Some(&self.encryption) {
                match self.write().await {
                    Ok(()) => {
                        backoff.reset();
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "which pod encryption is requested is not told");
                        tokio::time::sleep(backoff.next_wait()).await;
                    }
                }
            }
        }
    }

    async fn write(&self) -> Result<(), kube::Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let data = json!({ENCRYPTION: self.encryption.to_string()});
        match maps.get_opt(CONFIG_MAP).await? {
            Some(found) if Encryption::told(&found).as_ref() == Some(&self.encryption) => Ok(()),
            Some(_) => {
                let patch = Patch::Merge(json!({"data": data}));
                let params = PatchParams::default();
                maps.patch(CONFIG_MAP, &params, &patch).await.map(drop)
            }
            None => {
                let object = json!({"metadata": {"name": CONFIG_MAP}, "data": data});
                let map = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
                maps.create(&PostParams::default(), &map).await.map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn the_flag_and_the_object_have_the_same_words() {
        for chosen in PodEncryption::value_variants() {
            let word = chosen.to_possible_value().unwrap().get_name().to_owned();
            assert_eq!(Encryption::parse(&word), Encryption::from(*chosen));
            assert_eq!(Encryption::from(*chosen).to_string(), word);
        }
    }
}
