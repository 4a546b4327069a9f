//! What a CronJob needs now. Pure: the clock comes in as an argument.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::{Timestamp, tz::TimeZone},
};
use kube::{Resource, ResourceExt};

use super::schedule::Schedule;
use crate::controllers::pods;

pub const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Starts are late by no more than this when the controller is busy.
const SLACK: Duration = Duration::from_millis(100);
/// So many missed starts are reported as a fault of the clock or of the deadline.
const MANY_MISSED: usize = 100;

#[derive(Debug, Default)]
pub struct Plan {
    /// The Job of this time, which is due.
    pub start: Option<Box<Job>>,
    pub scheduled: Option<Timestamp>,
    /// Running Jobs that the new one replaces.
    pub replace: Vec<String>,
    /// Finished Jobs beyond the limits of the history.
    pub forget: Vec<String>,
    /// Running Jobs as the status lists them, without the one to be started.
    pub active: Vec<ObjectReference>,
    pub last_success: Option<Time>,
    pub notes: Vec<Note>,
    pub recheck: Option<Duration>,
}

/// What is told in an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    Unparseable(String),
    UnknownZone(String),
    TooManyMissed(usize),
    AlreadyActive,
    Saw { job: String, result: &'static str },
}

pub fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let spec = cron.spec.clone();
    let status = cron.status.clone().unwrap_or_default();
    let mut plan = Plan {
        last_success: status.last_successful_time.clone(),
        ..Plan::default()
    };
    look_at_jobs(&mut plan, &status, jobs);
    plan.forget = surplus(
        jobs,
        "Complete",
        spec.successful_jobs_history_limit.unwrap_or(3),
    );
    plan.forget.extend(surplus(
        jobs,
        "Failed",
        spec.failed_jobs_history_limit.unwrap_or(1),
    ));
    if pods::is_terminating(cron) || spec.suspend == Some(true) {
        return plan;
    }
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(why) => {
            plan.notes.push(Note::Unparseable(why));
            return plan;
        }
    };
    let zone = match spec.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => match TimeZone::get(name) {
            Ok(zone) => zone,
            Err(_) => {
                plan.notes.push(Note::UnknownZone(name.to_owned()));
                return plan;
            }
        },
    };
    let created = cron
        .meta()
        .creation_timestamp
        .as_ref()
        .map_or(now, |time| time.0);
    let mut since = status
        .last_schedule_time
        .as_ref()
        .map_or(created, |time| time.0);
    if let Some(seconds) = spec.starting_deadline_seconds
        && let Ok(earliest) = Timestamp::from_second(now.as_second().saturating_sub(seconds))
    {
        since = since.max(earliest);
    }
    let (due, missed) = most_recent(&schedule, &zone, since, now);
    let next = schedule.next(now, &zone);
    plan.recheck = next.and_then(|next| {
        let wait = Duration::try_from(next.duration_since(now)).ok()?;
        Some(wait + SLACK)
    });
    let Some(due) = due else {
        return plan;
    };
    if missed > MANY_MISSED {
        plan.notes.push(Note::TooManyMissed(missed));
    }
    if !plan.active.is_empty() {
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") => {
                plan.notes.push(Note::AlreadyActive);
                return plan;
            }
            Some("Replace") => {
                let running = plan.active.drain(..);
                plan.replace = running.filter_map(|job| job.name).collect();
            }
            _ => {}
        }
    }
    plan.scheduled = Some(due);
    plan.start = Some(Box::new(job(cron, due, &zone)));
    plan
}

/// The last start that was due, and how many were.
fn most_recent(
    schedule: &Schedule,
    zone: &TimeZone,
    since: Timestamp,
    now: Timestamp,
) -> (Option<Timestamp>, usize) {
    let (mut last, mut count) = (None, 0);
    let mut at = since;
    while let Some(next) = schedule.next(at, zone) {
        if next > now {
            break;
        }
        (last, at) = (Some(next), next);
        count += 1;
    }
    (last, count)
}

fn is_finished(job: &Job) -> Option<&'static str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let holds = |kind: &str| {
        conditions
            .iter()
            .any(|one| one.type_ == kind && one.status == "True")
    };
    match (holds("Complete"), holds("Failed")) {
        (true, _) => Some("Complete"),
        (_, true) => Some("Failed"),
        _ => None,
    }
}

fn look_at_jobs(plan: &mut Plan, status: &CronJobStatus, jobs: &[Arc<Job>]) {
    let listed = |uid: Option<String>| status.active.iter().flatten().any(|one| one.uid == uid);
    for job in jobs {
        match is_finished(job) {
            None => plan.active.push(job.object_ref(&())),
            Some(result) => {
                if listed(job.uid()) {
                    plan.notes.push(Note::Saw {
                        job: job.name_any(),
                        result,
                    });
                }
                let done = job
                    .status
                    .as_ref()
                    .and_then(|status| status.completion_time.clone());
                if result == "Complete"
                    && let Some(done) = done
                    && plan
                        .last_success
                        .as_ref()
                        .is_none_or(|last| last.0 < done.0)
                {
                    plan.last_success = Some(done);
                }
            }
        }
    }
}

/// Finished Jobs of one result beyond `limit`, oldest first.
fn surplus(jobs: &[Arc<Job>], result: &str, limit: i32) -> Vec<String> {
    let mut finished: Vec<&Arc<Job>> = jobs
        .iter()
        .filter(|job| is_finished(job) == Some(result) && !pods::is_terminating(job.as_ref()))
        .collect();
    finished.sort_by_key(|job| {
        let started = job
            .status
            .as_ref()
            .and_then(|status| status.start_time.clone());
        (started.map(|time| time.0), job.name_any())
    });
    let count = finished
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or(0));
    finished
        .iter()
        .take(count)
        .map(|job| job.name_any())
        .collect()
}

/// The Job of one start; its name is the same however often it is made.
fn job(cron: &CronJob, due: Timestamp, zone: &TimeZone) -> Job {
    let template = cron.spec.clone().job_template;
    let metadata = template.metadata.unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    let local = due.to_zoned(zone.clone());
    annotations.insert(
        SCHEDULED_AT.to_owned(),
        local
            .strftime("%Y-%m-%dT%H:%M:%S%:z")
            .to_string()
            .replace("+00:00", "Z"),
    );
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.name_any(), due.as_second() / 60)),
            namespace: cron.namespace(),
            labels: metadata.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![pods::controller_ref(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cron(spec: Value, last: Option<&str>) -> CronJob {
        let mut value = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u",
            "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {}}}},
            "status": {"lastScheduleTime": last}});
        for (key, one) in spec.as_object().into_iter().flatten() {
            value["spec"][key] = one.clone();
        }
        serde_json::from_value(value).expect("a CronJob")
    }

    fn job(name: &str, condition: Option<&str>) -> Arc<Job> {
        let conditions: Vec<Value> = condition
            .iter()
            .map(|kind| json!({"type": kind, "status": "True"}))
            .collect();
        let value = json!({"metadata": {"name": name, "uid": name},
            "spec": {"template": {}}, "status": {"conditions": conditions}});
        Arc::new(serde_json::from_value(value).expect("a Job"))
    }

    #[test]
    fn starts() {
        let now: Timestamp = "2026-01-01T00:02:10Z".parse().expect("a time");
        let running = [job("r", None)];
        for (spec, last, jobs, want) in [
            (json!({}), None, &[][..], Some("c-29453762")),
            (json!({}), Some("2026-01-01T00:02:00Z"), &[], None),
            (json!({"suspend": true}), None, &[], None),
            (json!({"startingDeadlineSeconds": 5}), None, &[], None),
            (json!({"concurrencyPolicy": "Forbid"}), None, &running, None),
            (
                json!({"concurrencyPolicy": "Replace"}),
                None,
                &running,
                Some("c-29453762"),
            ),
            (json!({"schedule": "nonsense"}), None, &[], None),
        ] {
            let plan = plan(&cron(spec.clone(), last), jobs, now);
            let name = plan.start.as_ref().map(|job| job.name_any());
            assert_eq!(name.as_deref(), want, "{spec}");
            let replaces = spec["concurrencyPolicy"] == "Replace";
            assert_eq!(plan.replace.len(), usize::from(replaces), "{spec}");
        }
    }

    #[test]
    fn history() {
        let jobs: Vec<Arc<Job>> = ["a", "b", "c", "d", "e"]
            .iter()
            .map(|name| job(name, Some("Complete")))
            .chain([job("x", Some("Failed")), job("y", Some("Failed"))])
            .collect();
        let now: Timestamp = "2026-01-01T00:00:40Z".parse().expect("a time");
        assert_eq!(
            plan(&cron(json!({}), None), &jobs, now).forget,
            ["a", "b", "x"]
        );
    }
}
