//! The pods' network by CNI plugins: programs of others, which get a pod's namespace and answer with its addresses.
//!
//! Owns the records of what plugins were told and the mounts of pods' namespaces. `config.rs` reads the file that
//! describes the network, `loading.rs` finds it and asks its plugins which versions they speak, `plan.rs` says who
//! is told what, `exec.rs` runs a plugin, `result.rs` reads what it answers, `records.rs` remembers.
//! Always true:
//! - What ADD was told is on disk before the first plugin runs, and stays until DEL has gone well: a crash at any
//!   point leads to a DEL with the same configuration.
//! - Nothing is done twice for a pod: a pod that is on its network stays there; one whose ADD was cut off, or
//!   failed, is taken back by every plugin first.
//! - For one pod plugins run one after the other. While they clean up (GC), they run for no pod.

mod config;
mod exec;
mod holding;
mod loading;
mod plan;
mod records;
mod result;
mod stragglers;
#[cfg(test)]
mod tests;
mod version;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Notify, OwnedMutexGuard, RwLock, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::{
    config::{Capability, Network},
    exec::{Failed, Failure},
    plan::{Attachment, Invocation, LINK, Netns, PortMapping},
    records::{Record, Records, State},
};
use super::{
    Attached, PodRequest, Readiness,
    unmet::{self, Ipv6Loopback, Unmet},
};
use crate::{
    addresses::family::PerFamily,
    backoff::Backoff,
    causes::causes,
    hex::hex,
    kubelet::folder_watch::FolderWatch,
    logging,
    supervision::{
        pulse,
        steps::{Step, reached},
    },
    ticks,
};

/// A run of a plugin takes no longer: half of what the original gives a whole sandbox.
const RUN_WITHIN: Duration = Duration::from_secs(60);
/// So many plugins run at once.
const RUNS: usize = 16;
/// A pod waits so long for a network before that counts as a failure.
const NETWORK_WITHIN: Duration = Duration::from_secs(5);
/// An installer writes several files.
const SETTLE: Duration = Duration::from_millis(50);
/// The folders are looked at so often, whatever their watches say: links lead out of them.
const LOOK_AGAIN: Duration = Duration::from_secs(120);
/// Plugins that can say whether they are able to take pods are asked so often.
const STATUS_EVERY: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// How often plugins are asked to take a pod back that goes with all of the cluster.
const LAST_TRIES: u32 = 3;

/// Where configurations and plugins are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folders {
    pub configurations: PathBuf,
    /// Searched in this order; never none.
    pub programs: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub folders: Folders,
    /// The records lie there.
    pub state_dir: PathBuf,
    /// Pods' namespaces are mounted below.
    pub netns_dir: PathBuf,
    /// This node's.
    pub ranges: PerFamily<IpNet>,
}

/// What becomes of a pod that plugins do not take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Persistence {
    /// They are asked again.
    Keep,
    /// It is forgotten, and that is told: nothing shall be left here.
    LetGo,
}

/// The node's pod network; cheap to clone.
#[derive(Clone, Debug)]
pub struct CniNetwork {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    persistence: Persistence,
    records: Records,
    /// By UID, as on disk.
    known: Mutex<BTreeMap<String, Record>>,
    /// Held while plugins run for a pod, by UID.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Held with others while plugins run for a pod, alone while they clean up. Taken after the pod's turn.
    pods_or_gc: RwLock<()>,
    slots: Semaphore,
    /// That new pods get.
    network: watch::Sender<Option<Arc<Network>>>,
    readiness: watch::Sender<Readiness>,
    /// Whether all pods that run are known.
    adopted: watch::Sender<bool>,
    /// Pods that are gone and were not taken back yet.
    orphans: Mutex<BTreeSet<String>>,
    again: Notify,
}

impl CniNetwork {
    /// Takes over what an earlier daemon has recorded. There is no network for new pods until
    /// [`CniNetwork::keep`] has found one.
    pub async fn open(config: Config) -> Result<Self, Error> {
        Self::open_as(config, Persistence::Keep).await
    }

    /// The same for when nothing shall be left of it.
    pub async fn open_to_remove(config: Config) -> Result<Self, Error> {
        Self::open_as(config, Persistence::LetGo).await
    }

    async fn open_as(config: Config, persistence: Persistence) -> Result<Self, Error> {
        let folder = config.state_dir.clone();
        let (records, known) = blocking(move || {
            let records = Records::open(&folder)?;
            let known = records.load()?;
            let is_changing = |record: &&Record| matches!(record.state, State::Changing { .. });
            let cut_off = known.iter().filter(is_changing);
            stragglers::kill_those_of(&cut_off.map(|one| one.pod.container_id.clone()).collect());
            Ok((records, known))
        })
        .await?;
        let known = known.into_iter().map(|one| (one.pod.uid.clone(), one));
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                persistence,
                records,
                known: Mutex::new(known.collect()),
                turns: Mutex::default(),
                pods_or_gc: RwLock::default(),
                slots: Semaphore::new(RUNS),
                network: watch::Sender::new(None),
                readiness: watch::Sender::new(Readiness::Unknown),
                adopted: watch::Sender::new(false),
                orphans: Mutex::default(),
                again: Notify::new(),
            }),
        })
    }

    /// Whether an earlier daemon has left pods on networks of plugins.
    pub fn has_records(config: &Config) -> bool {
        Records::exist(&config.state_dir)
    }

    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.shared.readiness.subscribe()
    }

    /// The pods that are on a network, or were and are not taken back.
    pub fn owners(&self) -> Vec<String> {
        lock(&self.shared.known).keys().cloned().collect()
    }

    /// Puts the pod on the network, with what it asks for. A pod that is there already keeps its addresses.
    pub async fn attach(
        &self,
        pod: &PodRequest<'_>,
        netns: BorrowedFd<'_>,
    ) -> Result<Attached, Error> {
        let netns = netns.try_clone_to_owned().map_err(Error::Netns)?;
        let shared = &self.shared;
        let uid = &pod.identity.uid;
        let _turn = shared.turn(uid).await;
        let _pods = shared.pods_or_gc.read().await;
        let known = lock(&shared.known).get(uid).cloned();
        if let Some(record) = known {
            if let State::Added { addresses, .. } = record.state
                && shared.is_in(&record, &netns).await?
            {
                return Ok(attached(addresses, pod, &record.network));
            }
            shared.take_back(record).await?;
        }
        let network = shared.network().await?;
        let mut record = shared.new_record(pod, &network)?;
        shared.save(&record).await?;
        reached(Step::AddressClaimed);
        match shared.add(&record, netns).await {
            Ok((addresses, result)) => {
                record.state = State::Added { addresses, result };
                shared.save(&record).await?;
                reached(Step::NetworkWired);
                Ok(attached(addresses, pod, &network))
            }
            Err(error) => {
                let id = record.pod.container_id.clone();
                if let Err(error) = shared.take_back(record).await {
                    // It is on record: whoever comes next tries again.
                    let error = causes(&error);
                    tracing::warn!(
                        pod = uid,
                        error,
                        "what an ADD that failed has left stays for now"
                    );
                }
                Err(Error::Add {
                    container_id: id,
                    source: error,
                })
            }
        }
    }

    /// Takes the pod off its network. A pod that was never there is fine.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), Error> {
        let shared = &self.shared;
        let _turn = shared.turn(pod_uid).await;
        let _pods = shared.pods_or_gc.read().await;
        let known = lock(&shared.known).get(pod_uid).cloned();
        match known {
            Some(record) => shared.take_back(record).await,
            None => Ok(()),
        }
    }

    /// The pod's addresses, if it has any.
    pub fn addresses(&self, pod_uid: &str) -> Option<PerFamily<IpAddr>> {
        match lock(&self.shared.known).get(pod_uid)?.state {
            State::Added { addresses, .. } => Some(addresses),
            State::Changing { .. } => None,
        }
    }

    /// Takes over from an earlier daemon: the pods in `live` go on, all others are taken off their networks by
    /// [`CniNetwork::keep`], since that may take its time.
    pub fn adopt(&self, live: &[String]) {
        let mut gone = self.owners();
        gone.retain(|uid| !live.contains(uid));
        lock(&self.shared.orphans).extend(gone);
        self.shared.adopted.send_replace(true);
        self.shared.again.notify_one();
    }

    /// Takes all pods but these off their networks.
    pub async fn detach_all_but(&self, kept: &[String]) -> Result<(), Error> {
        let mut gone = self.owners();
        gone.retain(|uid| !kept.contains(uid));
        let detached = gone.iter().map(async |uid| match self.shared.persistence {
            Persistence::Keep => self.detach(uid).await,
            Persistence::LetGo => self.detach_or_let_go(uid).await,
        });
        let all = futures::future::join_all(detached).await;
        all.into_iter().fold(Ok(()), Result::and)
    }

    async fn detach_or_let_go(&self, uid: &str) -> Result<(), Error> {
        let mut retry = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let mut tries = 1;
        loop {
            match self.detach(uid).await {
                Ok(()) => return Ok(()),
                Err(_) if tries < LAST_TRIES => tokio::time::sleep(retry.next_wait()).await,
                Err(error) => {
                    let error = causes(&error);
                    logging::note(format_args!(
                        "vetch: the network of pod {uid} is forgotten; what its plugins hold stays: {error}"
                    ));
                    return self.let_go(uid).await;
                }
            }
            tries += 1;
        }
    }

    /// Forgets the pod, after every plugin was asked once more to take it back.
    async fn let_go(&self, uid: &str) -> Result<(), Error> {
        let shared = &self.shared;
        let _turn = shared.turn(uid).await;
        let Some(record) = lock(&shared.known).get(uid).cloned() else {
            return Ok(());
        };
        for invocation in shared.del(&record) {
            let _ = shared.run(&record.programs, &invocation).await; // it was told before
        }
        shared.forget(record).await
    }

    /// Finds the network, again whenever something changes in the folders, and takes off it who is gone; until
    /// `shutdown`. `tell` hears of what does not work.
    pub async fn keep(&self, tell: impl Fn(&Error), shutdown: CancellationToken) {
        let work = async {
            tokio::join!(
                self.follow_folders(),
                self.retry_orphans(tell),
                self.clean_up()
            )
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = work => {}
        }
    }

    async fn follow_folders(&self) {
        let folders = &self.shared.config.folders;
        let all = folders.programs.iter().chain([&folders.configurations]);
        let mut watches: Vec<FolderWatch> = all.cloned().map(FolderWatch::new).collect();
        loop {
            // First the watch, then the look: nothing that happens in between is missed.
            watches.iter_mut().for_each(FolderWatch::renew);
            let loaded = turning(loading::load(folders)).await;
            let mut asked = None;
            let able = match loaded {
                Ok(network) => {
                    asked = network.version.has_status().then(|| network.clone());
                    turning(loading::able(&folders.programs, network)).await
                }
                Err(error) => Err(error),
            };
            self.shared.take_network(able);
            let changed = watches.iter().map(|watch| Box::pin(watch.changed()));
            let mut changed = futures::future::select_all(changed);
            let again = ticks::sleep(LOOK_AGAIN);
            let mut again = std::pin::pin!(again);
            let mut status = ticks::every(STATUS_EVERY);
            loop {
                tokio::select! {
                    () = pulse::asked() => {}
                    _ = status.tick(), if asked.is_some() => {
                        let Some(network) = asked.clone() else { continue };
                        let able = turning(loading::able(&folders.programs, network)).await;
                        self.shared.take_network(able);
                    }
                    _ = &mut changed => {
                        tokio::time::sleep(SETTLE).await;
                        break;
                    }
                    () = &mut again => break,
                }
            }
        }
    }

    async fn retry_orphans(&self, tell: impl Fn(&Error)) {
        let mut retry = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let orphans = lock(&self.shared.orphans).clone();
            let detached = orphans
                .iter()
                .map(async |uid| match self.detach(uid).await {
                    Ok(()) => drop(lock(&self.shared.orphans).remove(uid)),
                    Err(error) => tell(&error),
                });
            futures::future::join_all(detached).await;
            let is_done = lock(&self.shared.orphans).is_empty();
            if is_done {
                retry.reset();
                self.shared.again.notified().await;
            } else {
                tokio::time::sleep(retry.next_wait()).await;
            }
        }
    }

    /// Tells the plugins once which pods there are, so that they give back what they hold for others.
    async fn clean_up(&self) {
        let shared = &self.shared;
        let (mut adopted, mut network) = (shared.adopted.subscribe(), shared.network.subscribe());
        // The senders live as long as `self`.
        let _ = adopted.wait_for(|adopted| *adopted).await;
        let network = match network.wait_for(Option::is_some).await {
            Ok(network) => network.clone(),
            Err(_) => None,
        };
        let Some(network) = network else { return };
        let _alone = shared.pods_or_gc.write().await;
        let valid: Vec<String> = {
            let known = lock(&shared.known);
            let of_it = known
                .values()
                .filter(|one| one.network.name == network.name);
            of_it.map(|one| one.pod.container_id.clone()).collect()
        };
        let programs = &shared.config.folders.programs;
        for invocation in plan::gc(&network, programs, &valid) {
            if let Err(error) = shared.run(programs, &invocation).await {
                let error = causes(&error);
                tracing::warn!(error, "a plugin has not cleaned up");
            }
        }
    }
}

/// Whether pods would get a network by these folders, after the plugins were asked for their versions and their
/// status.
pub async fn look(folders: &Folders) -> Result<(), loading::Error> {
    let network = loading::load(folders).await?;
    loading::able(&folders.programs, network).await.map(drop)
}

/// Answers meanwhile that the loop turns.
async fn turning<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            () = pulse::asked() => {}
            done = &mut work => return done,
        }
    }
}

/// What a pod has got, and what of its request no plugin was told.
fn attached(addresses: PerFamily<IpAddr>, pod: &PodRequest<'_>, network: &Network) -> Attached {
    let mut unmet = match network.takes(Capability::PortMappings) {
        true => unmet::ports(&addresses, pod.forwards, Ipv6Loopback::OfPlugins),
        false if pod.forwards.is_empty() => Vec::new(),
        false => vec![Unmet::HostPorts],
    };
    if pod.bandwidth.is_limited() && !network.takes(Capability::Bandwidth) {
        unmet.push(Unmet::Bandwidth);
    }
    Attached { addresses, unmet }
}

impl Shared {
    /// Waits until no plugin runs for the pod any more.
    async fn turn(&self, uid: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            // Those that nobody waits for.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(uid.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }

    fn take_network(&self, loaded: Result<Network, loading::Error>) {
        let (network, readiness) = match loaded {
            Ok(network) => (Some(Arc::new(network)), Readiness::Ready),
            Err(error) => (None, Readiness::NotReady(causes(&error))),
        };
        let is_news = |before: &mut Readiness| {
            let changed = *before != readiness;
            before.clone_from(&readiness);
            changed
        };
        let before = self.network.send_replace(network.clone());
        if self.readiness.send_if_modified(is_news) || before != network {
            match (&network, &readiness) {
                (Some(network), _) => {
                    let (name, version) = (&network.name, network.version);
                    tracing::info!(name, %version, "pods get their network from CNI plugins");
                }
                (None, Readiness::NotReady(why)) => tracing::warn!(why, "new pods get no network"),
                (None, _) => {}
            }
        }
    }

    /// The network for new pods; one that is not there is waited for a little.
    async fn network(&self) -> Result<Arc<Network>, Error> {
        let mut network = self.network.subscribe();
        let found = tokio::time::timeout(NETWORK_WITHIN, network.wait_for(Option::is_some)).await;
        let found = match found {
            Ok(Ok(network)) => network.clone(),
            _ => None,
        };
        found.ok_or_else(|| match &*self.readiness.borrow() {
            Readiness::NotReady(why) => Error::NotReady(why.clone()),
            _ => Error::NotReady("cni config uninitialized: it is being read".to_owned()),
        })
    }

    fn new_record(&self, pod: &PodRequest<'_>, network: &Network) -> Result<Record, Error> {
        let mut id = [0; 32];
        rand::rng().fill_bytes(&mut id);
        let container_id = hex(&id);
        let pod = Attachment {
            uid: pod.identity.uid.clone(),
            namespace: pod.identity.namespace.clone(),
            name: pod.identity.name.clone(),
            netns: self.config.netns_dir.join(&container_id),
            container_id,
            ports: pod.forwards.iter().map(PortMapping::of).collect(),
            bandwidth: pod.bandwidth.into(),
            ranges: self.config.ranges.iter().copied().collect(),
        };
        if !pod.is_sayable() {
            return Err(Error::Names {
                namespace: pod.namespace,
                name: pod.name,
            });
        }
        let programs = self.config.folders.programs.clone();
        Ok(Record::new(pod, network.clone(), programs))
    }

    async fn is_in(&self, record: &Record, netns: &OwnedFd) -> Result<bool, Error> {
        let (path, netns) = (record.pod.netns.clone(), netns.try_clone());
        let netns = netns.map_err(Error::Netns)?;
        blocking(move || Ok(holding::holds(&path, netns.as_fd()))).await
    }

    /// ADD, plugin by plugin.
    async fn add(
        &self,
        record: &Record,
        netns: OwnedFd,
    ) -> Result<(PerFamily<IpAddr>, Value), AddError> {
        let path = record.pod.netns.clone();
        let held = tokio::task::spawn_blocking(move || holding::hold(netns.as_fd(), &path)).await;
        let held = held.unwrap_or_else(|error| Err(error.into()));
        held.map_err(AddError::Netns)?;
        let Record {
            pod,
            network,
            programs,
            ..
        } = record;
        let mut result: Option<Value> = None;
        let mut last = String::new();
        for index in 0.. {
            let next = plan::add(network, programs, pod, index, result.as_ref());
            let Some(invocation) = next else { break };
            let answer = self.run(programs, &invocation).await?;
            let checked = result::result(&answer, network.version);
            result = Some(checked.map_err(|garbage| failed(&invocation.plugin, garbage))?);
            last = invocation.plugin;
        }
        let result = result.unwrap_or_default();
        let families = self.config.ranges.families();
        let addresses = result::addresses(&result, LINK, families);
        let addresses = addresses.map_err(|garbage| failed(&last, garbage))?;
        Ok((addresses, result))
    }

    /// DEL, plugin by plugin from the last; the first that fails ends it: what it holds may lead to the address that
    /// a later one would give back.
    async fn take_back(&self, mut record: Record) -> Result<(), Error> {
        if let State::Added { result, .. } = record.state {
            let result = Some(result);
            record.state = State::Changing { result };
            self.save(&record).await?;
        }
        for invocation in self.del(&record) {
            let done = self.run(&record.programs, &invocation).await;
            done.map_err(|source| Error::Del {
                container_id: record.pod.container_id.clone(),
                source,
            })?;
        }
        reached(Step::NetworkUnwired);
        self.forget(record).await?;
        reached(Step::AddressReleased);
        Ok(())
    }

    fn del(&self, record: &Record) -> Vec<Invocation> {
        let netns = match holding::is_held(&record.pod.netns) {
            true => Netns::There,
            false => Netns::Gone,
        };
        let Record {
            network,
            programs,
            pod,
            ..
        } = record;
        plan::del(network, programs, pod, netns, record.result())
    }

    /// All plugins have taken it back.
    async fn forget(&self, record: Record) -> Result<(), Error> {
        let (records, pod) = (self.records.clone(), record.pod.clone());
        blocking(move || {
            let released = holding::release(&pod.netns);
            released.map_err(|source| Error::Release {
                path: pod.netns.clone(),
                source,
            })?;
            Ok(records.delete(&pod.uid)?)
        })
        .await?;
        lock(&self.known).remove(&record.pod.uid);
        Ok(())
    }

    /// On disk, then here.
    async fn save(&self, record: &Record) -> Result<(), Error> {
        let (records, kept) = (self.records.clone(), record.clone());
        blocking(move || Ok(records.put(&kept)?)).await?;
        lock(&self.known).insert(record.pod.uid.clone(), record.clone());
        Ok(())
    }

    async fn run(&self, programs: &[PathBuf], invocation: &Invocation) -> Result<Vec<u8>, Failed> {
        // Nobody closes it.
        let _slot = self.slots.acquire().await;
        exec::run(programs, invocation, RUN_WITHIN).await
    }
}

fn failed(plugin: &str, garbage: result::Garbage) -> Failed {
    Failed {
        plugin: plugin.to_owned(),
        verb: plan::Verb::Add,
        failure: Failure::Garbage(garbage),
    }
}

/// A panic leaves none of this half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Task(error)))
}

/// Why a pod could not be put on a network.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error("keep the pod's network namespace")]
    Netns(#[source] std::io::Error),
    #[error(transparent)]
    Plugin(#[from] Failed),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// As the original says it.
    #[error(
        "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{0}"
    )]
    NotReady(String),
    #[error("failed to setup network for sandbox {container_id:?}")]
    Add {
        container_id: String,
        source: AddError,
    },
    #[error("failed to destroy network for sandbox {container_id:?}")]
    Del {
        container_id: String,
        source: Failed,
    },
    #[error("CNI plugins cannot be told the names {namespace:?} and {name:?}")]
    Names { namespace: String, name: String },
    #[error("records of pods' networks")]
    Records(#[from] records::Error),
    #[error("keep the pod's network namespace")]
    Netns(#[source] std::io::Error),
    #[error("let go of the network namespace {path}")]
    Release {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("run a blocking call")]
    Task(#[source] tokio::task::JoinError),
}
