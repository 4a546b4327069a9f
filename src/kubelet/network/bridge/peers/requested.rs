//! Whether packets of pods are encrypted on their way to other nodes, as the whole cluster is told: by a ConfigMap that
//! the server keeps as its flag says, and every node follows.
//!
//! Always true: what was requested once is so until the cluster says something else. A node that finds no ConfigMap goes
//! by what it has on record, so that nothing is sent in plain because an object was deleted, or the server is away.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event},
};

use crate::backoff::Backoff;

/// Where it is told.
pub const NAMESPACE: &str = "kube-system";
pub const CONFIG_MAP: &str = "pod-network";
pub const ENCRYPTION: &str = "encryption";

const NONE: &str = "none";
const WIREGUARD: &str = "wireguard";
const RECORD: &str = "encryption";
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How packets of pods go from machine to machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As they are, or in a tunnel that anybody on the way can read.
    #[default]
    None,
    WireGuard,
    /// In a way that this program does not know: then in none.
    Unknown(String),
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => NONE,
            Self::WireGuard => WIREGUARD,
            Self::Unknown(text) => text,
        })
    }
}

impl Encryption {
    pub fn parse(text: &str) -> Self {
        match text {
            NONE => Self::None,
            WIREGUARD => Self::WireGuard,
            text => Self::Unknown(text.to_owned()),
        }
    }

    /// What a ConfigMap says, if anything.
    pub fn told(map: &ConfigMap) -> Option<Self> {
        let told = map.data.as_ref()?.get(ENCRYPTION)?;
        Some(Self::parse(told.trim()))
    }
}

/// What is requested now, and from then on.
pub struct Requested {
    record: PathBuf,
    current: Encryption,
}

impl Requested {
    /// As it is on record in this folder, if it is.
    pub fn recorded(folder: &Path) -> Self {
        let record = folder.join(RECORD);
        let current = match fs::read_to_string(&record) {
            Ok(text) => Encryption::parse(text.trim()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Encryption::None,
            Err(error) => Encryption::Unknown(format!("that {} has: {error}", record.display())),
        };
        Self { record, current }
    }

    pub fn current(&self) -> &Encryption {
        &self.current
    }

    /// Takes over what the cluster says, `None` if it says nothing, and puts it on record; whether it is something else
    /// than before.
    pub fn take(&mut self, told: Option<Encryption>) -> bool {
        let Some(told) = told.filter(|told| *told != self.current) else {
            return false;
        };
        let written = match &told {
            Encryption::None => match fs::remove_file(&self.record) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            told => write(&self.record, told),
        };
        if let Err(error) = written {
            tracing::warn!(%error, path = %self.record.display(), "which encryption is requested is not on record");
        }
        tracing::info!("pod encryption is {told} from now on");
        self.current = told;
        true
    }
}

fn write(record: &Path, told: &Encryption) -> io::Result<()> {
    let aside = record.with_extension("new");
    if let Some(folder) = record.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&aside, format!("{told}\n"))?;
    fs::rename(aside, record)
}

/// What the cluster says, whenever that is known anew. `config`: how it is watched.
pub fn watch(client: Client, config: watcher::Config) -> impl Stream<Item = Option<Encryption>> {
    let config = config.fields(&format!("metadata.name={CONFIG_MAP}"));
    async_stream::stream! {
        let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        let mut events = std::pin::pin!(watcher::watcher(maps, config));
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut listed = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = None,
                Ok(Event::InitApply(map)) => listed = Encryption::told(&map),
                Ok(Event::InitDone) => {
                    backoff.reset();
                    yield listed.take();
                }
                Ok(Event::Apply(map)) => yield Encryption::told(&map),
                Ok(Event::Delete(_)) => yield None,
                Err(error) => {
                    // A server of before says this: there nobody may read what it does not have.
                    if is_forbidden(&error) {
                        yield None;
                    }
                    tracing::debug!(%error, "which encryption is requested is not known, will retry");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 403,
        watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_requested_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("network");
        let mut requested = Requested::recorded(&folder);
        assert_eq!(requested.current(), &Encryption::None);
        assert!(!requested.take(None));
        assert!(!requested.take(Some(Encryption::None)));
        assert!(requested.take(Some(Encryption::WireGuard)));
        // The object is deleted, or the daemon starts again without a server.
        assert!(!requested.take(None));
        let mut again = Requested::recorded(&folder);
        assert_eq!(again.current(), &Encryption::WireGuard);
        assert!(again.take(Some(Encryption::parse("rot13"))));
        let mut again = Requested::recorded(&folder);
        assert_eq!(again.current(), &Encryption::Unknown("rot13".to_owned()));
        assert!(again.take(Some(Encryption::None)));
        assert_eq!(Requested::recorded(&folder).current(), &Encryption::None);
    }

    #[test]
    fn what_a_config_map_says() {
        let map = |data: &[(&str, &str)]| ConfigMap {
            data: Some(
                data.iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            ),
            ..ConfigMap::default()
        };
        let unknown = || Encryption::Unknown("x".to_owned());
        for (data, want) in [
            (map(&[]), None),
            (ConfigMap::default(), None),
            (map(&[("encryption", "none")]), Some(Encryption::None)),
            (
                map(&[("encryption", "wireguard\n"), ("other", "1")]),
                Some(Encryption::WireGuard),
            ),
            (map(&[("encryption", "x")]), Some(unknown())),
        ] {
            assert_eq!(Encryption::told(&data), want);
        }
        for one in [Encryption::None, Encryption::WireGuard, unknown()] {
            assert_eq!(Encryption::parse(&one.to_string()), one);
        }
    }
}
