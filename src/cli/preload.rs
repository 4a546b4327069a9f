//! Images of a folder, imported when the daemon starts.

use std::{path::Path, time::Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;

use super::registries::ImagesFolder;
use crate::{
    causes::causes,
    events::{Level, Recorder, Source},
    runtime::image::{Came, Images, excerpt},
};

/// Imports what is new in the folder; what is wrong is logged, and told as an event of the node.
pub async fn import(images: Images, folder: ImagesFolder, client: Client, node: String) {
    let source = Source {
        component: "kubelet",
        host: Some(node.clone()),
    };
    let events = Recorder::start(client, source);
    let about = ObjectReference {
        kind: Some("Node".into()),
        name: Some(node.clone()),
        uid: Some(node),
        ..ObjectReference::default()
    };
    let failed = |what: &Path, error: &crate::runtime::image::Error| {
        let message = format!("{}: {}", what.display(), excerpt(&causes(error), 1000));
        tracing::warn!("images are not imported: {message}");
        let message = format!("Failed to import images: {message}");
        events.record_ref(about.clone(), Level::Warning, "ImageImportFailed", message);
    };
    if !folder.named && !folder.path.exists() {
        return;
    }
    let begun = Instant::now();
    let imported = images
        .import_folder(&folder.path, |path, came| match came {
            Came::Imported(names) => {
                let names = excerpt(&names.join(", "), 1000);
                tracing::info!("imported {} from {}", names, path.display());
            }
            Came::Known => tracing::debug!("{} was imported before", path.display()),
            Came::Failed(error) => failed(path, &error),
        })
        .await;
    match imported {
        Ok(()) => tracing::debug!(took = ?begun.elapsed(), "the folder of images is imported"),
        Err(error) => failed(&folder.path, &error),
    }
}
