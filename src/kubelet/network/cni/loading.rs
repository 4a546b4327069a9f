//! The network that new pods get: read from the folder of configurations, again when something changes there or
//! among the plugins.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Folders,
    config::{self, Described, Disagreement, Invalid, Network},
    exec, plan, result,
};
use crate::runtime::files;

/// A plugin has so long to say which versions it speaks.
pub const VERSION_WITHIN: Duration = Duration::from_secs(10);
/// To say how it is, as long as for everything else.
const STATUS_WITHIN: Duration = Duration::from_secs(60);

/// Why there is no network for new pods.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cni config uninitialized: there is no *.conflist, *.conf or *.json in {}",
        .0.display()
    )]
    NoFile(PathBuf),
    #[error("cni config uninitialized: read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cni config uninitialized: {}", path.display())]
    Invalid { path: PathBuf, source: Invalid },
    #[error("cni config uninitialized: {}", path.display())]
    Plugin {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// In the words of the original's.
    #[error("Network plugin returns error")]
    Status(#[source] exec::Failed),
}

/// Looks at the folders once.
pub async fn load(folders: &Folders) -> Result<Network, Error> {
    let from = folders.configurations.clone();
    let read = tokio::task::spawn_blocking(move || read(&from)).await;
    let (path, described) = read.unwrap_or_else(|error| {
        Err(Error::Read {
            path: folders.configurations.clone(),
            source: error.into(),
        })
    })?;
    let spoken = versions(&folders.programs, &described).await;
    let spoken = spoken.map_err(|error| Error::Plugin {
        path: path.clone(),
        source: Box::new(error),
    })?;
    let agreed = described.agreed(&spoken);
    agreed.map_err(|error: Disagreement| Error::Plugin {
        path,
        source: Box::new(error),
    })
}

/// The network, if its plugins say that they can take pods. Those that speak no version with STATUS are not asked.
pub async fn able(programs: &[PathBuf], network: Network) -> Result<Network, Error> {
    for invocation in plan::status(&network, programs) {
        let answered = exec::run(programs, &invocation, STATUS_WITHIN).await;
        answered.map_err(Error::Status)?;
    }
    Ok(network)
}

fn read(folder: &Path) -> Result<(PathBuf, Described), Error> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Read { path, source }
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoFile(folder.to_owned()));
        }
        entries => entries.map_err(unreadable(folder))?,
    };
    let mut first: Option<String> = None;
    for entry in entries {
        let name = entry.map_err(unreadable(folder))?.file_name();
        let both = first.as_deref().into_iter().chain(name.to_str());
        let better = config::first(both).map(str::to_owned);
        first = better;
    }
    let name = first.ok_or_else(|| Error::NoFile(folder.to_owned()))?;
    let path = folder.join(name);
    // Files of ConfigMaps are links.
    let file = files::open_following(&path).map_err(unreadable(&path))?;
    let bytes = files::read_file_at_most(&file, config::MAX_BYTES).map_err(unreadable(&path))?;
    match config::parse(&bytes) {
        Ok(described) => Ok((path, described)),
        Err(source) => Err(Error::Invalid { path, source }),
    }
}

/// What each plugin says it speaks, in their order.
async fn versions(
    programs: &[PathBuf],
    described: &Described,
) -> Result<Vec<Vec<String>>, exec::Failed> {
    let all = described.plugins.iter().map(async |plugin| {
        let invocation = plan::version(plugin, programs);
        let answer = exec::run(programs, &invocation, VERSION_WITHIN).await?;
        result::versions(&answer).map_err(|garbage| exec::Failed {
            plugin: plugin.kind.clone(),
            verb: plan::Verb::Version,
            failure: garbage.into(),
        })
    });
    futures::future::try_join_all(all).await
}
