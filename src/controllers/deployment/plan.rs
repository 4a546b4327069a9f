//! The next step of a Deployment: which ReplicaSet to make, resize or drop. Pure.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet},
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::{
    revision::{REVISION, annotate, annotate_size, is_current, new_set, revision},
    size::{Bounds, DESIRED, MAX, Share, Strategy, annotation_number, proportional},
    status::{self, Found, available_of, is_complete},
};
use crate::controllers::pods;

/// One write. Events tell of changed sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create(Box<ReplicaSet>),
    Update {
        set: Box<ReplicaSet>,
        from: i32,
    },
    Delete(String),
    /// Notes on the Deployment which revision it has.
    Revision(String),
}

#[derive(Debug)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub status: DeploymentStatus,
    pub recheck: Option<Duration>,
}

pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// ReplicaSets that the Deployment controls.
    pub sets: &'a [Arc<ReplicaSet>],
    /// True if a pod of a ReplicaSet with another template than the present one still runs.
    pub old_pods_run: bool,
    pub now: Timestamp,
}

/// A ReplicaSet on the way to its planned state.
#[derive(Debug)]
struct Work {
    set: ReplicaSet,
    before: Option<Arc<ReplicaSet>>,
}

impl Work {
    fn replicas(&self) -> i32 {
        replicas(&self.set)
    }

    fn scale(&mut self, to: i32, bounds: &Bounds) {
        self.set.spec.replicas = Some(to);
        annotate_size(&mut self.set, bounds);
    }

    fn action(&self) -> Option<Action> {
        let set = Box::new(self.set.clone());
        match &self.before {
            None => Some(Action::Create(set)),
            Some(before) if **before == self.set => None,
            Some(before) => Some(Action::Update {
                set,
                from: replicas(before),
            }),
        }
    }
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub fn plan(observed: &Observed) -> Plan {
    let bounds = Bounds::of(observed.deployment);
    let mut rollout = Rollout::new(observed, bounds);
    let paused = observed.deployment.spec.paused == Some(true);
    if pods::is_terminating(observed.deployment) {
        return rollout.finish(Vec::new());
    }
    if paused || rollout.was_resized() {
        rollout.adopt_revision();
        rollout.resize();
    } else {
        match bounds.strategy {
            Strategy::Rolling => rollout.roll(),
            Strategy::Recreate => rollout.recreate(),
        }
    }
    let dropped = rollout.drop_history(paused);
    rollout.finish(dropped)
}

struct Rollout<'a> {
    observed: &'a Observed<'a>,
    bounds: Bounds,
    new: Option<Work>,
    /// Oldest first.
    old: Vec<Work>,
    found: Found,
}

impl<'a> Rollout<'a> {
    fn new(observed: &'a Observed<'a>, bounds: Bounds) -> Self {
        let mut sets: Vec<&Arc<ReplicaSet>> = observed.sets.iter().collect();
        sets.sort_by_cached_key(|set| (set.creation_timestamp(), set.name_any()));
        let current = sets
            .iter()
            .position(|set| is_current(observed.deployment, set));
        let mut work: Vec<Work> = sets
            .into_iter()
            .map(|set| Work {
                set: ReplicaSet::clone(set),
                before: Some(set.clone()),
            })
            .collect();
        let new = current.map(|index| work.remove(index));
        Self {
            observed,
            bounds,
            new,
            old: work,
            found: Found::Nothing,
        }
    }

    /// All ReplicaSets, the new one last.
    fn all(&self) -> impl Iterator<Item = &Work> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i32 {
        self.all().map(Work::replicas).sum()
    }

    /// The Deployment's size was changed since its ReplicaSets were sized.
    fn was_resized(&self) -> bool {
        self.all().filter(|work| work.replicas() > 0).any(|work| {
            annotation_number(&work.set, DESIRED)
                .is_some_and(|desired| desired != self.bounds.replicas)
        })
    }

    /// Gives an existing new ReplicaSet its revision and settings.
    fn adopt_revision(&mut self) {
        let latest = self.old.iter().map(|work| revision(&work.set)).max();
        let next = latest.unwrap_or(0) + 1;
        let deployment = self.observed.deployment;
        if let Some(new) = &mut self.new {
            self.found = Found::Existing;
            annotate(deployment, &mut new.set, next);
            let seconds = deployment.spec.min_ready_seconds;
            let spec = &mut new.set.spec;
            if spec.min_ready_seconds.unwrap_or(0) != seconds.unwrap_or(0) {
                spec.min_ready_seconds = seconds;
            }
        }
    }

    fn find_or_make(&mut self) {
        if self.new.is_some() {
            return self.adopt_revision();
        }
        let latest = self.old.iter().map(|work| revision(&work.set)).max();
        let deployment = self.observed.deployment;
        let mut set = new_set(deployment);
        annotate(deployment, &mut set, latest.unwrap_or(0) + 1);
        let size = self.bounds.new_replicas(0, self.total());
        let mut work = Work { set, before: None };
        work.scale(size, &self.bounds);
        self.new = Some(work);
        self.found = Found::Created;
    }

    fn roll(&mut self) {
        self.find_or_make();
        if !self.grow_new() {
            self.shrink_old();
        }
    }

    /// True if the new ReplicaSet changed size: the old ones wait for the next sync.
    fn grow_new(&mut self) -> bool {
        let total = self.total();
        let bounds = self.bounds;
        let Some(new) = &mut self.new else {
            return false;
        };
        let have = new.replicas();
        let want = if have > bounds.replicas {
            bounds.replicas
        } else {
            bounds.new_replicas(have, total)
        };
        if want != have {
            new.scale(want, &bounds);
        }
        want != have
    }

    fn shrink_old(&mut self) {
        let bounds = self.bounds;
        let unavailable_new = self
            .new
            .as_ref()
            .map_or(0, |new| new.replicas() - available_of(&new.set));
        let mut room = self.total() - bounds.min_available() - unavailable_new;
        if room <= 0 {
            return;
        }
        // Pods that serve nobody go first, whatever their age.
        for work in &mut self.old {
            let unhealthy = work.replicas() - available_of(&work.set);
            let less = unhealthy.min(room);
            if less > 0 {
                work.scale(work.replicas() - less, &bounds);
                room -= less;
            }
        }
        let available: i32 = self.all().map(|work| available_of(&work.set)).sum();
        let mut surplus = available - bounds.min_available();
        for work in &mut self.old {
            let less = work.replicas().min(surplus);
            if less > 0 {
                work.scale(work.replicas() - less, &bounds);
                surplus -= less;
            }
        }
    }

    fn recreate(&mut self) {
        let bounds = self.bounds;
        let mut scaled_down = false;
        for work in self.old.iter_mut().filter(|work| work.replicas() > 0) {
            work.scale(0, &bounds);
            scaled_down = true;
        }
        if scaled_down || self.observed.old_pods_run {
            return self.adopt_revision();
        }
        self.find_or_make();
        if let Some(new) = &mut self.new
            && new.replicas() != bounds.replicas
        {
            new.scale(bounds.replicas, &bounds);
        }
    }

    /// Follows a changed size without rolling out.
    fn resize(&mut self) {
        let bounds = self.bounds;
        let active = self.all().filter(|work| work.replicas() > 0).count();
        if active <= 1 {
            if let Some(only) = self.active_or_latest()
                && only.replicas() != bounds.replicas
            {
                only.scale(bounds.replicas, &bounds);
            }
            return;
        }
        if self.is_saturated() {
            for work in self.old.iter_mut().filter(|work| work.replicas() > 0) {
                work.scale(0, &bounds);
            }
            return;
        }
        if bounds.strategy == Strategy::Rolling {
            self.resize_in_proportion();
        }
    }

    fn active_or_latest(&mut self) -> Option<&mut Work> {
        let active = self.old.iter().position(|work| work.replicas() > 0);
        match active {
            Some(index) => self.old.get_mut(index),
            None if self.new.is_some() => self.new.as_mut(),
            None => self.old.last_mut(),
        }
    }

    /// The new ReplicaSet has all pods wanted, and they are available.
    fn is_saturated(&self) -> bool {
        self.new.as_ref().is_some_and(|new| {
            let all = self.bounds.replicas;
            annotation_number(&new.set, DESIRED) == Some(all)
                && new.replicas() == all
                && available_of(&new.set) == all
        })
    }

    fn resize_in_proportion(&mut self) {
        let bounds = self.bounds;
        let allowed = if bounds.replicas > 0 {
            bounds.max_total()
        } else {
            0
        };
        let grows = allowed >= self.total();
        let status = self.observed.deployment.status.as_ref();
        let status = status.and_then(|status| status.replicas).unwrap_or(0);
        let mut active: Vec<&mut Work> = self
            .old
            .iter_mut()
            .chain(&mut self.new)
            .filter(|work| work.replicas() > 0)
            .collect();
        if grows {
            active.sort_by_cached_key(|work| {
                let age = (work.set.creation_timestamp(), work.set.name_any());
                (Reverse(work.replicas()), Reverse(age))
            });
        } else {
            active.sort_by_cached_key(|work| {
                let age = (work.set.creation_timestamp(), work.set.name_any());
                (Reverse(work.replicas()), age)
            });
        }
        let shares: Vec<Share> = active
            .iter()
            .map(|work| Share {
                replicas: work.replicas(),
                max_before: annotation_number(&work.set, MAX),
            })
            .collect();
        for (work, size) in active
            .into_iter()
            .zip(proportional(&shares, &bounds, status))
        {
            work.scale(size, &bounds);
        }
    }

    /// Empty ReplicaSets beyond the history limit, oldest revision first.
    fn drop_history(&self, paused: bool) -> Vec<String> {
        let deployment = self.observed.deployment;
        let status = deployment.status.clone().unwrap_or_default();
        if !paused && !is_complete(deployment, &self.bounds, &status) {
            return Vec::new();
        }
        let limit = deployment.spec.revision_history_limit;
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else {
            return Vec::new();
        };
        let mut history: Vec<&ReplicaSet> = self
            .old
            .iter()
            .map(|work| &work.set)
            .filter(|set| !pods::is_terminating(*set))
            .collect();
        history.sort_by_key(|set| revision(set));
        let surplus = history
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        history
            .into_iter()
            .take(surplus)
            .filter(|set| {
                let status = set.status.clone().unwrap_or_default();
                replicas(set) == 0
                    && status.replicas == 0
                    && status.observed_generation >= set.metadata.generation
            })
            .map(ResourceExt::name_any)
            .collect()
    }

    fn finish(self, dropped: Vec<String>) -> Plan {
        let mut actions: Vec<Action> = self
            .all()
            .filter(|work| !dropped.contains(&work.set.name_any()))
            .filter_map(Work::action)
            .collect();
        actions.extend(dropped.into_iter().map(Action::Delete));
        let deployment = self.observed.deployment;
        let revision = self
            .new
            .as_ref()
            .and_then(|new| new.set.annotations().get(REVISION));
        if let Some(revision) = revision
            && !pods::is_terminating(deployment)
            && deployment.annotations().get(REVISION) != Some(revision)
        {
            actions.push(Action::Revision(revision.clone()));
        }
        let sets: Vec<&ReplicaSet> = self.all().map(|work| &work.set).collect();
        let (status, recheck) = status::status(&status::Observed {
            deployment,
            bounds: &self.bounds,
            sets: &sets,
            new: self.new.as_ref().map(|new| &new.set),
            found: self.found,
            now: self.observed.now,
        });
        Plan {
            actions,
            status,
            recheck,
        }
    }
}

#[cfg(test)]
mod tests;
