//! Pods whose records this program does not understand: left alone, and ended once nobody wants them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    super::{Config, Error, cgroup, link::lock, records::PodDir, teardown},
    Node, blocking, carried,
};

/// How often it is looked whether a process has ended that is nobody's whom we know.
const LOOK: Duration = Duration::from_millis(50);
/// A pod's group lies so deep below the node's at most: `kubepods/<quality>/pod<uid>`.
const DEPTH: usize = 3;

impl Node {
    pub(super) fn leave_alone(&self, uid: &str, why: String) {
        tracing::error!(
            pod = uid,
            why,
            "a pod is not understood and left alone as it is"
        );
        lock(&self.set_aside).insert(uid.to_owned(), why);
    }

    /// Pods that may run, but are not understood, and why.
    pub fn set_aside(&self) -> BTreeMap<String, String> {
        lock(&self.set_aside).clone()
    }

    /// Ends such a pod by what is known of it, which is its groups: they bear its UID. Its processes
    /// are asked to end, and after `grace` made to; then what lies on disk of it goes.
    pub async fn end_set_aside(self: &Arc<Self>, uid: &str, grace: Duration) -> Result<(), Error> {
        let (node, uid) = (self.clone(), uid.to_owned());
        carried(async move {
            if !node.set_aside().contains_key(&uid) {
                return Ok(());
            }
            let _alone = node.change(&uid)?;
            let (config, hierarchy) = (node.config.clone(), node.hierarchy.clone());
            let ended = uid.clone();
            blocking(move || {
                end(&config, &hierarchy, &ended, grace)?;
                teardown::remove_files(&config, &PodDir::new(&config, &ended))
            })
            .await?;
            lock(&node.set_aside).remove(&uid);
            Ok(())
        })
        .await
    }

    pub async fn remove_set_aside(&self) -> Result<(), Error> {
        let config = self.config.clone();
        let uids: Vec<String> = self.set_aside().into_keys().collect();
        blocking(move || {
            let dirs = uids.iter().map(|uid| PodDir::new(&config, uid));
            dirs.map(|dir| teardown::remove_files(&config, &dir))
                .fold(Ok(()), Result::and)
        })
        .await?;
        lock(&self.set_aside).clear();
        Ok(())
    }
}

fn end(
    config: &Config,
    hierarchy: &cgroups::Hierarchy,
    uid: &str,
    grace: Duration,
) -> Result<(), Error> {
    let failed = |error| cgroup::failed(&format!("pod {uid}"), error);
    let open = |name: &str| cgroups::Group::open(hierarchy, name).map_err(failed);
    let is_of = |name: &str| name.ends_with(uid);
    let pods = open(&cgroup::pods_name(&config.cgroup_root))?;
    let pods = pods.find(DEPTH, is_of).map_err(failed)?;
    let groups: Vec<cgroups::Group> = pods
        .iter()
        .map(|name| open(name))
        .collect::<Result<_, _>>()?;
    let processes = || -> Result<Vec<i32>, Error> {
        let all = groups.iter().map(|group| group.processes().map_err(failed));
        Ok(all
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect())
    };
    if !grace.is_zero() {
        for pid in processes()? {
            // One that has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let end = Instant::now() + grace;
        while Instant::now() < end && !processes()?.is_empty() {
            std::thread::sleep(LOOK);
        }
    }
    // Without its supervisor nothing of the pod is started again.
    let all = open(&config.cgroup_root)?
        .find(DEPTH, is_of)
        .map_err(failed)?;
    let (pods, supervisors): (Vec<_>, Vec<_>) = all.iter().partition(|name| pods.contains(*name));
    for name in supervisors.into_iter().chain(pods) {
        teardown::remove_group(hierarchy, name)?;
    }
    Ok(())
}
