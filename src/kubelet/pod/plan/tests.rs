//! Each observation and the steps that follow from it.

use serde_json::json;

use super::{
    super::testing::{at, exited, observed, pod, record, running},
    *,
};
use crate::kubelet::pod::record::{Edit, Setback};

/// Actions as short lines: `start c 1 +10s`, `stop c-0 Pod 30s`, `remove c-0`, ...
fn lines(plan: &Plan) -> Vec<String> {
    let line = |action: &Action| match action {
        Action::Start {
            container,
            attempt,
            delay,
        } => format!("start {container} {attempt} +{}s", delay.as_secs()),
        Action::Stop {
            id, cause, grace, ..
        } => format!("stop {id} {cause:?} {}s", grace.as_secs()),
        Action::Remove { id } => format!("remove {id}"),
        Action::MakeSandbox => "sandbox".into(),
        Action::Release => "release".into(),
        Action::End(Verdict::Succeeded) => "succeeded".into(),
        Action::End(Verdict::Failed { reason, .. }) => {
            format!("failed {}", reason.as_deref().unwrap_or("-"))
        }
    };
    let mut lines: Vec<String> = plan.actions.iter().map(line).collect();
    if let Some(wake) = plan.wake {
        let seconds = wake.duration_since(at(0)).unwrap().as_secs();
        lines.push(format!("wake {seconds}"));
    }
    lines
}

fn delayed(mut record: Record, seconds: u64) -> Record {
    record.delay = Duration::from_secs(seconds);
    record
}

fn before(mut record: Record) -> Record {
    record.origin = Origin::Before;
    record
}

#[test]
fn containers_of_a_running_pod() {
    let two = || pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let policy = |policy: &str| {
        pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}))
    };
    let init = || {
        pod(json!({
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j"}],
            "containers": [{"name": "a"}],
        }))
    };
    let mut long = exited("a", 3, 1);
    if let Phase::Exited { started, .. } = &mut long.phase {
        *started = Some(at(10) - Duration::from_secs(601));
    }
    for (what, pod, records, want) in [
        (
            "both at once",
            two(),
            vec![],
            vec!["start a 0 +0s", "start b 0 +0s"],
        ),
        (
            "one runs",
            two(),
            vec![running("a", 0)],
            vec!["start b 0 +0s"],
        ),
        (
            "the first restart is at once",
            two(),
            vec![exited("a", 0, 1), running("b", 0)],
            vec!["start a 1 +10s"],
        ),
        (
            "the second one waits",
            two(),
            vec![delayed(exited("a", 1, 0), 10), running("b", 0)],
            vec!["wake 20"],
        ),
        (
            "after ten minutes all is forgotten",
            two(),
            vec![delayed(long, 300), running("b", 0)],
            vec!["start a 4 +10s"],
        ),
        (
            "older dead go",
            two(),
            vec![
                exited("a", 0, 1),
                exited("a", 1, 1),
                running("a", 2),
                running("b", 0),
            ],
            vec!["remove a-0"],
        ),
        (
            "done when all are",
            policy("OnFailure"),
            vec![exited("a", 0, 0), exited("b", 1, 0)],
            vec!["succeeded"],
        ),
        (
            "never again",
            policy("Never"),
            vec![exited("a", 0, 0), exited("b", 0, 1)],
            vec!["failed -"],
        ),
        (
            "one is left",
            policy("Never"),
            vec![exited("a", 0, 1), running("b", 0)],
            vec![],
        ),
        ("init goes first", init(), vec![], vec!["start i 0 +0s"]),
        ("and alone", init(), vec![running("i", 0)], vec![]),
        (
            "then the sidecar",
            init(),
            vec![exited("i", 0, 0)],
            vec!["start s 0 +0s"],
        ),
        (
            "then the next",
            init(),
            vec![exited("i", 0, 0), running("s", 0)],
            vec!["start j 0 +0s"],
        ),
        (
            "init fails and comes again",
            init(),
            vec![exited("i", 0, 0), running("s", 0), exited("j", 0, 1)],
            vec!["start j 1 +10s"],
        ),
        (
            "regular ones last",
            init(),
            vec![exited("i", 0, 0), running("s", 0), exited("j", 0, 0)],
            vec!["start a 0 +0s"],
        ),
        (
            "init is not run again when its records are gone",
            init(),
            vec![running("s", 0), running("a", 0)],
            vec![],
        ),
        (
            "sidecars come again even after success",
            init(),
            vec![
                exited("i", 0, 0),
                exited("s", 0, 0),
                exited("j", 0, 0),
                running("a", 0),
            ],
            vec!["start s 1 +10s"],
        ),
        (
            "a new sandbox runs init again",
            init(),
            vec![before(exited("i", 0, 0)), before(exited("a", 2, 137))],
            vec!["start i 1 +10s"],
        ),
        (
            "a start that an earlier daemon has begun is waited for",
            two(),
            vec![record("a", 0, Phase::Created), running("b", 0)],
            vec![],
        ),
    ] {
        let marks = Marks::default();
        let got = lines(&plan(&observed(&pod, &records, &marks)));
        assert_eq!(got, want, "{what}");
    }
}

#[test]
fn delays_double_up_to_five_minutes() {
    let mut delay = Duration::ZERO;
    let mut seen = Vec::new();
    for attempt in 0..8 {
        let record = delayed(exited("a", attempt, 1), delay.as_secs());
        delay = next_delay(&record, "i");
        seen.push(delay.as_secs());
    }
    assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn what_makes_a_container_stop() {
    let pod = pod(json!({
        "terminationGracePeriodSeconds": 7,
        "containers": [{"name": "a", "livenessProbe": {"terminationGracePeriodSeconds": 3}}],
    }));
    let records = [running("a", 0)];
    for (fault, want) in [
        (Fault::Liveness, "stop a-0 Fault(Liveness) 3s"),
        (Fault::Startup, "stop a-0 Fault(Startup) 7s"),
    ] {
        let mut marks = Marks::default();
        marks.faults.insert("a-0".into(), fault);
        assert_eq!(lines(&plan(&observed(&pod, &records, &marks))), [want]);
        marks.stopping.insert("a-0".into(), at(13));
        assert_eq!(lines(&plan(&observed(&pod, &records, &marks))), [""; 0]);
    }
    let mut other = running("a", 0);
    other.image = "old".into();
    let (records, marks) = ([other], Marks::default());
    let got = lines(&plan(&observed(&pod, &records, &marks)));
    assert_eq!(got, ["stop a-0 Changed 7s"]);
    let marks = Marks {
        edited: Some(Edit {
            at: at(10),
            before: Some(2),
        }),
        ..marks
    };
    let got = plan(&observed(&pod, &records, &marks));
    assert_eq!((got.actions.len(), got.wake), (0, Some(at(10) + SETTLE)));
    let mut seen = observed(&pod, &records, &marks);
    assert_eq!(seen.taken_up(), Some(2));
    seen.now = at(10) + SETTLE;
    assert_eq!(seen.taken_up(), Some(3));
    assert_eq!(lines(&plan(&seen)), ["stop a-0 Changed 7s"]);
}

#[test]
fn a_sidecar_holds_the_others_until_it_has_started() {
    let pod = pod(json!({
        "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {}}],
        "containers": [{"name": "a"}],
    }));
    let records = [running("s", 0)];
    let mut marks = Marks::default();
    assert_eq!(lines(&plan(&observed(&pod, &records, &marks))), [""; 0]);
    marks.started.insert("s-0".into());
    // The runtime says that it runs before its hook is known to have begun.
    marks.starting.insert("s".into());
    assert_eq!(lines(&plan(&observed(&pod, &records, &marks))), [""; 0]);
    marks.starting.clear();
    marks.in_hook.insert("s-0".into());
    assert_eq!(lines(&plan(&observed(&pod, &records, &marks))), [""; 0]);
    marks.in_hook.clear();
    let got = lines(&plan(&observed(&pod, &records, &marks)));
    assert_eq!(got, ["start a 0 +0s"]);
}

#[test]
fn sandboxes_and_setbacks() {
    let one = || pod(json!({"containers": [{"name": "a"}]}));
    let never = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    let lost = [before(exited("a", 0, 137))];
    for (what, pod, sandbox, records, want) in [
        ("none yet", one(), Sandbox::Absent, &[][..], vec!["sandbox"]),
        ("being made", one(), Sandbox::Making, &[], vec![]),
        (
            "again later",
            one(),
            Sandbox::Failed { again: at(12) },
            &[],
            vec!["wake 12"],
        ),
        (
            "again now",
            one(),
            Sandbox::Failed { again: at(10) },
            &[],
            vec!["sandbox"],
        ),
        ("broken", one(), Sandbox::Broken, &lost, vec!["sandbox"]),
        (
            "not for what never starts again",
            never,
            Sandbox::Broken,
            &lost,
            vec!["failed -"],
        ),
    ] {
        let marks = Marks::default();
        let mut observed = observed(&pod, records, &marks);
        observed.sandbox = sandbox;
        assert_eq!(lines(&plan(&observed)), want, "{what}");
    }
    let (pod, mut marks) = (one(), Marks::default());
    let setback = |again| Setback {
        reason: "ErrImagePull",
        message: String::new(),
        again,
        image: "i".into(),
    };
    marks.setbacks.insert("a".into(), setback(at(15)));
    assert_eq!(lines(&plan(&observed(&pod, &[], &marks))), ["wake 15"]);
    marks.setbacks.insert("a".into(), setback(at(10)));
    assert_eq!(
        lines(&plan(&observed(&pod, &[], &marks))),
        ["start a 0 +0s"]
    );
    // Another image has not failed yet.
    let other = Setback {
        image: "j".into(),
        ..setback(at(15))
    };
    marks.setbacks.insert("a".into(), other);
    assert_eq!(
        lines(&plan(&observed(&pod, &[], &marks))),
        ["start a 0 +0s"]
    );
    marks.starting.insert("a".into());
    assert_eq!(lines(&plan(&observed(&pod, &[], &marks))), [""; 0]);
}

#[test]
fn an_end_of_its_own_is_no_probes_fault() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let pod = pod(json!({
        "restartPolicy": "Never",
        "containers": [{"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}],
    }));
    let records = [exited("a", 0, 42)];
    let mut marks = Marks::default();
    // The probe went on while the container waited to be started again.
    marks.faults.insert("a-0".into(), Fault::Liveness);
    let got = lines(&plan(&observed(&pod, &records, &marks)));
    assert_eq!(got, ["start a 1 +10s"]);
    marks.stopped_by_fault.insert("a-0".into());
    let got = plan(&observed(&pod, &records, &marks));
    assert_eq!(got.actions, [Action::End(Verdict::FAILED)]);
}

#[test]
fn the_active_deadline() {
    let pod = pod(json!({"activeDeadlineSeconds": 10, "containers": [{"name": "a"}]}));
    let (records, marks) = ([running("a", 0)], Marks::default());
    let mut observed = observed(&pod, &records, &marks);
    assert_eq!(lines(&plan(&observed)), ["failed DeadlineExceeded"]);
    observed.now = at(9);
    assert_eq!(lines(&plan(&observed)), ["wake 10"]);
}

#[test]
fn the_end() {
    let pod = pod(json!({
        "initContainers": [
            {"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}],
    }));
    let ending = |since: u64, grace: u64| Ending {
        verdict: None,
        since: at(since),
        grace: Duration::from_secs(grace),
    };
    let all = || vec![running("s", 0), running("t", 0), running("a", 0)];
    let sidecars = || vec![running("s", 0), running("t", 0), exited("a", 0, 0)];
    let stopping = |name: &str, until| {
        let mut marks = Marks::default();
        marks.stopping.insert(format!("{name}-0"), at(until));
        marks
    };
    for (what, records, marks, ending, want) in [
        (
            "regular first",
            all(),
            Marks::default(),
            ending(10, 30),
            vec!["stop a-0 Pod 30s"],
        ),
        (
            "the clock runs",
            all(),
            Marks::default(),
            ending(0, 30),
            vec!["stop a-0 Pod 20s"],
        ),
        (
            "but never to zero",
            all(),
            Marks::default(),
            ending(0, 5),
            vec!["stop a-0 Pod 2s"],
        ),
        (
            "unless asked for",
            all(),
            Marks::default(),
            ending(0, 0),
            vec!["stop a-0 Pod 0s"],
        ),
        (
            "said already",
            all(),
            stopping("a", 40),
            ending(10, 30),
            vec![],
        ),
        (
            "sooner than said",
            all(),
            stopping("a", 40),
            ending(10, 1),
            vec!["stop a-0 Pod 1s"],
        ),
        (
            "sidecars backwards",
            sidecars(),
            Marks::default(),
            ending(10, 30),
            vec!["stop t-0 Pod 30s"],
        ),
        (
            "one at a time",
            sidecars(),
            stopping("t", 40),
            ending(10, 30),
            vec![],
        ),
        (
            "nothing left",
            vec![exited("a", 0, 0)],
            Marks::default(),
            ending(10, 30),
            vec!["release"],
        ),
    ] {
        let mut observed = observed(&pod, &records, &marks);
        observed.ending = Some(&ending);
        assert_eq!(lines(&plan(&observed)), want, "{what}");
    }
    let mut marks = Marks::default();
    marks.starting.insert("a".into());
    let ending = ending(10, 30);
    let mut observed = observed(&pod, &[], &marks);
    observed.ending = Some(&ending);
    assert_eq!(lines(&plan(&observed)), [""; 0], "a start is under way");
}
