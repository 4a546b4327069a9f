//! Jobs played through: a model of pods that end as told, step by step.

use super::*;
use serde_json::{Value, json};

struct World {
    job: Job,
    pods: Vec<Arc<Pod>>,
    now: i64,
    made: usize,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut spec = spec;
        spec["template"] = json!({"spec": {"restartPolicy": "Never", "containers": []}});
        Self {
            job: serde_json::from_value(json!({
                "metadata": {"name": "j", "namespace": "n", "uid": "j"}, "spec": spec,
            }))
            .expect("a Job"),
            pods: Vec::new(),
            now: 1000,
            made: 0,
        }
    }

    /// Applies one plan as the controller would; true if it changed anything.
    fn step(&mut self) -> (bool, Option<Duration>) {
        let now = Timestamp::from_second(self.now).expect("a time");
        let plan = plan(&self.job, &self.pods, now);
        let changed = self.job.status.as_ref() != Some(&plan.status)
            || !plan.release.is_empty()
            || !plan.delete.is_empty()
            || !plan.create.is_empty();
        self.job.status = Some(plan.status);
        for pod in &mut self.pods {
            if plan.release.contains(&pod.uid().expect("set")) {
                Arc::make_mut(pod).metadata.finalizers = None;
            }
        }
        self.pods
            .retain(|pod| !plan.delete.contains(&pod.uid().expect("set")));
        for index in plan.create {
            let name = format!("p{}", self.made);
            self.made += 1;
            let annotations = index.map(|index| json!({INDEX: index.to_string()}));
            let pod = json!({
                "metadata": {"name": name, "uid": name, "finalizers": [FINALIZER],
                    "annotations": annotations},
                "spec": {"containers": []}, "status": {"phase": "Pending"},
            });
            self.pods
                .push(Arc::new(serde_json::from_value(pod).expect("a pod")));
        }
        (changed, plan.recheck)
    }

    /// Steps until nothing changes; the wait that the last plan asked for.
    fn settle(&mut self) -> Option<Duration> {
        for _ in 0..20 {
            let (changed, recheck) = self.step();
            if !changed {
                return recheck;
            }
        }
        panic!("does not settle: {:?}", self.job.status);
    }

    fn end(&mut self, phase: &str, which: impl Fn(&Pod) -> bool) {
        let at = Timestamp::from_second(self.now).expect("a time");
        for pod in &mut self.pods {
            if pods::is_active(pod) && which(pod) {
                let pod = Arc::make_mut(pod);
                pod.metadata.creation_timestamp = Some(Time(at));
                pod.status.as_mut().expect("set").phase = Some(phase.into());
            }
        }
    }

    fn active(&self) -> usize {
        self.pods.iter().filter(|pod| pods::is_active(pod)).count()
    }

    fn status(&self) -> &JobStatus {
        self.job.status.as_ref().expect("a status")
    }

    fn conditions(&self) -> Vec<(String, String)> {
        let all = self.status().conditions.iter().flatten();
        all.map(|one| (one.type_.clone(), one.reason.clone().unwrap_or_default()))
            .collect()
    }
}

fn pair(kind: &str, reason: &str) -> (String, String) {
    (kind.into(), reason.into())
}

#[test]
fn completions_in_parallel() {
    let mut world = World::new(json!({"completions": 5, "parallelism": 2}));
    world.settle();
    assert_eq!(world.active(), 2);
    world.end("Succeeded", |_| true);
    world.settle();
    assert_eq!((world.active(), world.status().succeeded), (2, Some(2)));
    world.end("Succeeded", |_| true);
    world.settle();
    assert_eq!(world.active(), 1, "only one is left to do");
    world.end("Succeeded", |_| true);
    world.settle();
    assert_eq!(world.made, 5);
    assert_eq!(world.status().succeeded, Some(5));
    assert!(world.status().completion_time.is_some());
    let reached = "CompletionsReached";
    let want = [
        pair("SuccessCriteriaMet", reached),
        pair("Complete", reached),
    ];
    assert_eq!(world.conditions(), want);
}

#[test]
fn failures_are_retried_later_and_later() {
    // Source: documentation of Jobs, "Pod backoff failure policy": 10 s, doubled, six times.
    let mut world = World::new(json!({"completions": 1, "parallelism": 1, "backoffLimit": 6}));
    world.settle();
    for delay in [10, 20, 40, 80, 160, 320] {
        world.end("Failed", |_| true);
        assert_eq!(world.settle(), Some(Duration::from_secs(delay)));
        assert_eq!(world.active(), 0);
        world.now += i64::try_from(delay).expect("small");
        world.settle();
        assert_eq!(world.active(), 1);
    }
    world.end("Failed", |_| true);
    world.settle();
    assert_eq!((world.made, world.status().failed), (7, Some(7)));
    let limit = "BackoffLimitExceeded";
    assert_eq!(
        world.conditions(),
        [pair("FailureTarget", limit), pair("Failed", limit)]
    );
}

#[test]
fn each_index_succeeds_once() {
    let mut world =
        World::new(json!({"completions": 4, "parallelism": 3, "completionMode": "Indexed"}));
    world.settle();
    let indexes = |world: &World| -> Vec<Option<i32>> {
        let active = world.pods.iter().filter(|pod| pods::is_active(pod));
        active.map(|pod| index_of(pod)).collect()
    };
    assert_eq!(indexes(&world), [Some(0), Some(1), Some(2)]);
    world.end("Succeeded", |pod| index_of(pod) != Some(1));
    world.settle();
    assert_eq!(world.status().completed_indexes.as_deref(), Some("0,2"));
    assert_eq!(indexes(&world), [Some(1), Some(3)]);
    world.end("Succeeded", |_| true);
    world.settle();
    assert_eq!(world.status().completed_indexes.as_deref(), Some("0-3"));
    assert!(is_finished(&world.job));
}

#[test]
fn a_limit_per_index_fails_indexes_alone() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2,
        "completionMode": "Indexed", "backoffLimitPerIndex": 0, "backoffLimit": 2147483647}));
    world.settle();
    world.end("Failed", |pod| index_of(pod) == Some(0));
    world.settle();
    assert_eq!(world.status().failed_indexes.as_deref(), Some("0"));
    assert_eq!(world.active(), 1);
    world.end("Succeeded", |_| true);
    world.settle();
    let reason = "FailedIndexes";
    assert_eq!(
        world.conditions(),
        [pair("FailureTarget", reason), pair("Failed", reason)]
    );
}

#[test]
fn a_success_policy_ends_a_job_early_and_names_its_rule() {
    let mut world = World::new(json!({"completions": 3, "parallelism": 3,
        "completionMode": "Indexed", "successPolicy": {"rules": [
            {"succeededIndexes": "0"}, {"succeededIndexes": "1-2", "succeededCount": 1}]}}));
    world.settle();
    world.end("Succeeded", |pod| index_of(pod) == Some(2));
    world.settle();
    assert_eq!(world.active(), 0);
    let ends = world.status().conditions.iter().flatten();
    let messages: Vec<_> = ends.filter_map(|one| one.message.as_deref()).collect();
    assert_eq!(messages, ["Matched rules at index 1"; 2]);
}

#[test]
fn a_suspended_job_has_no_pods_and_counts_none() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2}));
    world.settle();
    world.job.spec.as_mut().expect("set").suspend = Some(true);
    world.settle();
    assert_eq!((world.active(), world.status().failed), (0, Some(0)));
    assert!(world.status().start_time.is_none());
    world.job.spec.as_mut().expect("set").suspend = Some(false);
    world.settle();
    assert_eq!(world.active(), 2);
    assert_eq!(world.conditions(), [pair("Suspended", "JobResumed")]);
}

#[test]
fn the_deadline_ends_a_job() {
    let mut world = World::new(json!({"parallelism": 1, "activeDeadlineSeconds": 60}));
    assert_eq!(world.settle(), Some(Duration::from_secs(60)));
    world.now += 60;
    world.settle();
    let reason = "DeadlineExceeded";
    assert_eq!(
        world.conditions(),
        [pair("FailureTarget", reason), pair("Failed", reason)]
    );
}
