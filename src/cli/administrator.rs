//! The API as the cluster's administrator sees it, for commands beside the daemon.

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{Error, paths::Paths};

/// A client of the cluster below these folders. `flag`: `--root` as it was typed, for messages.
pub async fn client(paths: &Paths, flag: &str) -> Result<Client, Error> {
    Ok(Client::try_from(config(paths, flag).await?)?)
}

/// Where the cluster is and as whom to speak to it.
pub async fn config(paths: &Paths, flag: &str) -> Result<Config, Error> {
    let path = paths.kubeconfig();
    if !path.exists() {
        let path = path.display();
        return Err(
            format!("{path} is not there: start the cluster with `vetch up{flag}` first").into(),
        );
    }
    let kubeconfig = Kubeconfig::read_from(path)?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    // A command says what it waits for, and for how long: an eviction that a budget forbids is refused with 429.
    config.default_retry = false;
    Ok(config)
}
