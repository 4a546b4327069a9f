//! Rollouts played through: a model of ReplicaSets that follow at once, step by step.

use super::*;
use serde_json::{Value, json};

fn deployment(image: &str, patch: &Value) -> Deployment {
    let mut value = json!({
        "metadata": {"name": "d", "namespace": "n", "uid": "u", "generation": 1},
        "spec": {
            "replicas": 10,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "a"}},
            "template": {
                "metadata": {"labels": {"app": "a"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    });
    for (key, one) in patch.as_object().expect("a map") {
        value["spec"][key] = one.clone();
    }
    serde_json::from_value(value).expect("a Deployment")
}

/// The world after the actions of one plan; pods become available `at_once` or never.
fn step(
    deployment: &mut Deployment,
    sets: &mut Vec<Arc<ReplicaSet>>,
    at_once: bool,
) -> Vec<Action> {
    let plan = plan(&Observed {
        deployment,
        sets,
        old_pods_run: false,
        now: Timestamp::now(),
    });
    for action in &plan.actions {
        match action {
            Action::Create(set) => {
                let mut set = set.clone();
                let age = i64::try_from(sets.len()).expect("few") + 1;
                set.metadata.creation_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                        Timestamp::from_second(age).expect("a time"),
                    ));
                follow(&mut set, at_once);
                sets.push(Arc::new(*set));
            }
            Action::Update { set, .. } => {
                let mut set = set.clone();
                follow(&mut set, at_once);
                let held = sets.iter_mut().find(|one| one.name_any() == set.name_any());
                *held.expect("it exists") = Arc::new(*set);
            }
            Action::Delete(name) => sets.retain(|one| one.name_any() != *name),
            Action::Revision(text) => {
                deployment
                    .annotations_mut()
                    .insert(REVISION.into(), text.clone());
            }
        }
    }
    deployment.status = Some(plan.status);
    plan.actions
}

fn follow(set: &mut ReplicaSet, at_once: bool) {
    let replicas = replicas(set);
    let status = set.status.get_or_insert_default();
    let available = if at_once {
        replicas
    } else {
        status.available_replicas.unwrap_or(0).min(replicas)
    };
    status.replicas = replicas;
    status.ready_replicas = Some(available);
    status.available_replicas = Some(available);
}

fn sizes(sets: &[Arc<ReplicaSet>]) -> Vec<i32> {
    sets.iter().map(|set| replicas(set)).collect()
}

fn settle(deployment: &mut Deployment, sets: &mut Vec<Arc<ReplicaSet>>) -> Vec<Vec<i32>> {
    let mut history = Vec::new();
    for _ in 0..50 {
        if step(deployment, sets, true).is_empty() {
            return history;
        }
        history.push(sizes(sets));
    }
    panic!("does not settle: {history:?}");
}

#[test]
fn a_rolling_update_stays_within_its_bounds_and_ends() {
    let mut d = deployment("one", &json!({}));
    let mut sets = Vec::new();
    settle(&mut d, &mut sets);
    assert_eq!(sizes(&sets), [10]);
    d.spec = deployment("two", &json!({})).spec;
    let history = settle(&mut d, &mut sets);
    assert_eq!(sizes(&sets), [0, 10]);
    assert_eq!(d.annotations()[REVISION], "2");
    for sizes in history {
        let total: i32 = sizes.iter().sum();
        assert!((8..=13).contains(&total), "{sizes:?}");
    }
    let status = d.status.expect("a status");
    assert_eq!(
        (status.updated_replicas, status.unavailable_replicas),
        (Some(10), Some(0))
    );
}

#[test]
fn a_broken_template_keeps_eight_of_ten_serving() {
    let mut d = deployment("one", &json!({}));
    let mut sets = Vec::new();
    settle(&mut d, &mut sets);
    d.spec = deployment("broken", &json!({})).spec;
    for _ in 0..10 {
        step(&mut d, &mut sets, false);
    }
    // Ten and a quarter up make thirteen; a quarter down leaves eight old ones.
    assert_eq!(sizes(&sets), [8, 5]);
    // A third template takes over at once: the second never became available and goes first.
    d.spec = deployment("three", &json!({})).spec;
    step(&mut d, &mut sets, true);
    settle(&mut d, &mut sets);
    assert_eq!(sizes(&sets).iter().sum::<i32>(), 10);
    assert_eq!(replicas(sets.last().expect("the newest")), 10);
}

#[test]
fn recreate_waits_for_the_old_pods() {
    let recreate = json!({"strategy": {"type": "Recreate"}});
    let mut d = deployment("one", &recreate);
    let mut sets = Vec::new();
    settle(&mut d, &mut sets);
    d.spec = deployment("two", &recreate).spec;
    step(&mut d, &mut sets, true);
    assert_eq!(sizes(&sets), [0], "no new pods beside old ones");
    let waiting = plan(&Observed {
        deployment: &d,
        sets: &sets,
        old_pods_run: true,
        now: Timestamp::now(),
    });
    assert_eq!(waiting.actions, []);
    settle(&mut d, &mut sets);
    assert_eq!(sizes(&sets), [0, 10]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut d = deployment("one", &json!({}));
    let mut sets = Vec::new();
    settle(&mut d, &mut sets);
    d.spec = deployment("two", &json!({"paused": true, "replicas": 4})).spec;
    settle(&mut d, &mut sets);
    assert_eq!(sizes(&sets), [4]);
}

#[test]
fn undo_reuses_the_set_and_history_is_cut() {
    let mut d = deployment("one", &json!({}));
    let mut sets = Vec::new();
    for image in ["one", "two", "three", "one"] {
        d.spec = deployment(image, &json!({})).spec;
        settle(&mut d, &mut sets);
    }
    // The first was dropped when the third was complete, the second when the fourth was.
    assert_eq!(d.annotations()[REVISION], "4");
    assert_eq!(sizes(&sets), [0, 10]);
    d.spec = deployment("three", &json!({})).spec;
    settle(&mut d, &mut sets);
    assert_eq!(d.annotations()[REVISION], "5");
    assert_eq!(sizes(&sets), [10, 0]);
}

#[test]
fn growth_in_mid_rollout_is_shared() {
    // Source: the Deployment documentation, "Proportional scaling".
    let rolling = json!({"strategy": {"type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}});
    let mut d = deployment("one", &rolling);
    let mut sets = Vec::new();
    settle(&mut d, &mut sets);
    d.spec = deployment("broken", &rolling).spec;
    for _ in 0..10 {
        step(&mut d, &mut sets, false);
    }
    assert_eq!(sizes(&sets), [8, 5]);
    d.spec.replicas = Some(15);
    step(&mut d, &mut sets, false);
    assert_eq!(sizes(&sets), [11, 7]);
}
