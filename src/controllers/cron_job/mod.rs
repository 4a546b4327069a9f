//! CronJobs: a Job at each time of a schedule. `plan.rs` decides, `schedule.rs` knows the times.
//!
//! Always true: the name of a Job comes from its time, so that no time starts two.

mod plan;
mod schedule;

use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, PostParams},
};
use tokio_util::sync::CancellationToken;

use self::plan::{Note, plan};
use super::{
    error::{Doing, Error, OrGone, already_exists, namespace_terminating},
    pods,
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    deletion::Judged,
    events::{Level, Recorder},
    informer::{Informer, Informers, Key},
};

const WORKERS: usize = 5;

/// Runs until `shutdown`.
pub async fn run(informers: Informers, shutdown: CancellationToken) -> Result<(), Stopped> {
    let crons: Informer<CronJob> = informers.get();
    let jobs: Informer<Job> = informers.get();
    let controller = Crons {
        client: informers.client().clone(),
        events: Recorder::start(informers.client().clone(), "cronjob-controller"),
        crons: crons.clone(),
        jobs: jobs.clone(),
    };
    Loop::new(controller, &crons)
        .watch(&jobs, |job| {
            pods::controller_named(job, "batch", "CronJob")
                .map(|name| Key::new(job.namespace().unwrap_or_default(), name))
                .into_iter()
                .collect()
        })
        .run(WORKERS, shutdown)
        .await
}

struct Crons {
    client: Client,
    events: Recorder,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
}

impl Controller for Crons {
    const NAME: &'static str = "cronjob-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let Some(cron) = self.crons.get(key) else {
            return Ok(Next::Settled);
        };
        let uid = cron.uid();
        let mut jobs = self.jobs.list_in(&key.namespace);
        jobs.retain(|job| {
            pods::controller_of(job.as_ref()).is_some_and(|owner| Some(&owner.uid) == uid.as_ref())
        });
        let plan = plan(&cron, &jobs, Timestamp::now());
        for note in &plan.notes {
            self.tell(&cron, note);
        }
        for name in plan.forget.iter().chain(&plan.replace) {
            let Some(job) = jobs.iter().find(|job| job.name_any() == *name) else {
                continue;
            };
            let params = Judged::State.params(&job.metadata, DeleteParams::background());
            self.jobs_in(key)
                .delete(name, &params)
                .await
                .or_gone()
                .doing(|| format!("delete Job {name} of CronJob {key}"))?;
            let text = format!("Deleted job {name}");
            self.events
                .record(cron.as_ref(), Level::Normal, "SuccessfulDelete", text);
        }
        let mut active = plan.active;
        let mut scheduled = None;
        if let Some(job) = &plan.start {
            if let Some(reference) = self.start(key, &cron, job).await? {
                active.push(reference);
            }
            scheduled = plan.scheduled.map(Time);
        }
        let old = cron.status.clone().unwrap_or_default();
        let status = CronJobStatus {
            active: (!active.is_empty()).then_some(active),
            last_schedule_time: scheduled.or(old.last_schedule_time.clone()),
            last_successful_time: plan.last_success,
        };
        if status != old {
            let mut updated = CronJob::clone(&cron);
            updated.status = Some(status);
            Api::<CronJob>::namespaced(self.client.clone(), &key.namespace)
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
                .or_gone()
                .doing(|| format!("update the status of CronJob {key}"))?;
        }
        Ok(Next::after(plan.recheck))
    }
}

impl Crons {
    fn jobs_in(&self, key: &Key) -> Api<Job> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Makes the Job; one that this time has already started is as good.
    async fn start(
        &self,
        key: &Key,
        cron: &CronJob,
        job: &Job,
    ) -> Result<Option<ObjectReference>, Error> {
        let name = job.name_any();
        match self.jobs_in(key).create(&PostParams::default(), job).await {
            Ok(made) => {
                let text = format!("Created job {name}");
                self.events
                    .record(cron, Level::Normal, "SuccessfulCreate", text);
                Ok(Some(made.object_ref(&())))
            }
            Err(error) if already_exists(&error) || namespace_terminating(&error) => Ok(None),
            Err(error) => {
                let text = format!("Error creating job: {error}");
                self.events
                    .record(cron, Level::Warning, "FailedCreate", text);
                Err(error).doing(|| format!("create Job {name} of CronJob {key}"))
            }
        }
    }

    fn tell(&self, cron: &CronJob, note: &Note) {
        let (level, reason, text) = match note {
            Note::Unparseable(why) => (
                Level::Warning,
                "UnparseableSchedule",
                format!("unparseable schedule: {why}"),
            ),
            Note::UnknownZone(zone) => (
                Level::Warning,
                "UnknownTimeZone",
                format!("invalid timeZone: {zone:?}: unknown time zone"),
            ),
            Note::TooManyMissed(count) => (
                Level::Warning,
                "TooManyMissedTimes",
                format!("too many missed start times: {count}. Set or decrease .spec.startingDeadlineSeconds or check clock skew"),
            ),
            Note::AlreadyActive => (
                Level::Normal,
                "JobAlreadyActive",
                "Not starting job because prior execution is running and concurrency policy is Forbid".to_owned(),
            ),
            Note::Saw { job, result } => (
                Level::Normal,
                "SawCompletedJob",
                format!("Saw completed job: {job}, condition: {result}"),
            ),
        };
        self.events.record(cron, level, reason, text);
    }
}
