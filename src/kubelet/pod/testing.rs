//! Pods and records for the tables of this folder's tests.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{
    plan::Observed,
    record::{Marks, Origin, Record, Sandbox},
};
use crate::runtime::{Exit, Phase};

pub fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

/// A pod named `p` of namespace `n`; every container gets the image `i`.
pub fn pod(mut spec: Value) -> Pod {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if container["image"].is_null() {
                container["image"] = "i".into();
            }
        }
    }
    for list in ["initContainers", "ephemeralContainers"] {
        if spec[list].is_null() {
            spec.as_object_mut().unwrap().remove(list);
        }
    }
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
        "spec": spec,
    }))
    .unwrap()
}

/// A container of the living sandbox; its id is `name-attempt`.
pub fn record(name: &str, attempt: u32, phase: Phase) -> Record {
    Record {
        id: format!("{name}-{attempt}"),
        name: name.into(),
        attempt,
        image: "i".into(),
        image_name: "docker.io/library/i:latest".into(),
        image_id: "sha256:1".into(),
        delay: Duration::ZERO,
        signal: 15,
        grace: None,
        phase,
        origin: Origin::Here,
        log_path: Default::default(),
        told: None,
    }
}

pub fn running(name: &str, attempt: u32) -> Record {
    let phase = Phase::Running {
        pid: 1,
        started: at(0),
    };
    record(name, attempt, phase)
}

/// Ended at second ten.
pub fn exited(name: &str, attempt: u32, code: i32) -> Record {
    let exit = Exit {
        code,
        signal: None,
        oom_killed: false,
        error: String::new(),
    };
    let phase = Phase::Exited {
        exit,
        started: Some(at(0)),
        finished: at(10),
    };
    record(name, attempt, phase)
}

/// A pod with a sandbox at second ten.
pub fn observed<'a>(pod: &'a Pod, records: &'a [Record], marks: &'a Marks) -> Observed<'a> {
    Observed {
        pod,
        now: at(10),
        started: Some(at(0)),
        sandbox: Sandbox::Ready,
        records,
        marks,
        ending: None,
    }
}
