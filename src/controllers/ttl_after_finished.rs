//! Deletes finished Jobs once their `ttlSecondsAfterFinished` is over.

use std::time::Duration;

use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::{Api, Client, ResourceExt, api::DeleteParams};
use tokio_util::sync::CancellationToken;

use super::{
    error::{Doing, Error, OrGone},
    pods,
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    deletion::Judged,
    informer::{Informer, Informers, Key},
};

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let jobs: Informer<Job> = informers.get();
    let controller = Ttl {
        client: informers.client().clone(),
        jobs: jobs.clone(),
    };
    Loop::new(controller, &jobs).run(5, shutdown).await
}

/// What a Job's time to live says now. `None` if it has none or is not finished.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let finished = job
        .status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|one| matches!(one.type_.as_str(), "Complete" | "Failed") && one.status == "True")?;
    let since = finished.last_transition_time.as_ref()?.0;
    Some(pods::remaining(since, i64::from(seconds), now).unwrap_or_default())
}

struct Ttl {
    client: Client,
    jobs: Informer<Job>,
}

impl Controller for Ttl {
    const NAME: &'static str = "ttl-after-finished-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let held = self.jobs.get(key);
        let Some(job) = held.filter(|job| !pods::is_terminating(job.as_ref())) else {
            return Ok(Next::Settled);
        };
        match left(&job, Timestamp::now()) {
            None => return Ok(Next::Settled),
            Some(left) if !left.is_zero() => return Ok(Next::After(left)),
            Some(_) => {}
        }
        let api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        // The cache may be behind a raised time to live.
        let live = api
            .get_opt(&key.name)
            .await
            .doing(|| format!("ask for Job {key} before its time is over"))?;
        let Some(live) = live.filter(|live| live.uid() == job.uid()) else {
            return Ok(Next::Settled);
        };
        match left(&live, Timestamp::now()) {
            None => return Ok(Next::Settled),
            Some(left) if !left.is_zero() => return Ok(Next::After(left)),
            Some(_) => {}
        }
        let params = Judged::State.params(&live.metadata, DeleteParams::foreground());
        api.delete(&key.name, &params)
            .await
            .or_gone()
            .doing(|| format!("delete Job {key} after its time"))?;
        Ok(Next::Settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn time_left() {
        let now: Timestamp = "2026-01-01T00:00:30Z".parse().expect("a time");
        for (ttl, condition, want) in [
            (json!(100), "Complete", Some(70)),
            (json!(0), "Failed", Some(0)),
            (json!(null), "Complete", None),
            (json!(100), "Suspended", None),
        ] {
            let job: Job = serde_json::from_value(json!({
                "metadata": {"name": "j"},
                "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": [{"type": condition, "status": "True",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .expect("a Job");
            assert_eq!(
                left(&job, now),
                want.map(Duration::from_secs),
                "{ttl} {condition}"
            );
        }
    }
}
