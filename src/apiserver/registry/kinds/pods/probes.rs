//! Probes and lifecycle hooks: one handler each, numbers in range.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{at, has, items, number, text},
    },
};

const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

pub fn validate(spec: &Value, container: &Value, path: &str, causes: &mut Causes) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = at(container, name) else {
            continue;
        };
        let path = format!("{path}.{name}");
        handler(probe, &path, causes);
        let mut own = Causes::default();
        for field in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            names::not_negative(probe, field, &mut own);
        }
        for mut cause in own.0 {
            cause.field = format!("{path}.{}", cause.field);
            causes.add(cause);
        }
        if name != "readinessProbe"
            && let Some(times) = number(probe, "successThreshold").filter(|times| *times != 1)
        {
            causes.invalid(format!("{path}.successThreshold"), times, "must be 1");
        }
        if let Some(grace) = number(probe, "terminationGracePeriodSeconds") {
            if name == "readinessProbe" {
                causes.invalid(
                    format!("{path}.terminationGracePeriodSeconds"),
                    grace,
                    "must not be set for readinessProbes",
                );
            } else if grace <= 0 {
                causes.invalid(
                    format!("{path}.terminationGracePeriodSeconds"),
                    grace,
                    "must be greater than 0",
                );
            }
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(hook) = at(container, &format!("lifecycle.{name}")) {
            let path = format!("{path}.lifecycle.{name}");
            handler(hook, &path, causes);
            sleep(spec, hook, &path, causes);
        }
    }
}

/// A hook sleeps no longer than the pod has time to end.
fn sleep(spec: &Value, hook: &Value, path: &str, causes: &mut Causes) {
    let Some(seconds) = number(hook, "sleep.seconds").or(has(hook, "sleep").then_some(0)) else {
        return;
    };
    let Some(grace) = number(spec, "terminationGracePeriodSeconds") else {
        return;
    };
    if !(0..=grace).contains(&seconds) {
        let detail =
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        causes.invalid(format!("{path}.sleep"), seconds, &detail);
    }
}

fn handler(handler: &Value, path: &str, causes: &mut Causes) {
    let given: Vec<&str> = HANDLERS
        .into_iter()
        .filter(|name| has(handler, name))
        .collect();
    match given.as_slice() {
        [] => causes.required(path, "must specify a handler type"),
        [one] => one_handler(handler, one, &format!("{path}.{one}"), causes),
        [_, rest @ ..] => {
            for extra in rest {
                causes.forbidden(
                    format!("{path}.{extra}"),
                    "may not specify more than 1 handler type",
                );
            }
        }
    }
}

fn one_handler(handler: &Value, kind: &str, path: &str, causes: &mut Causes) {
    let body = &handler[kind];
    match kind {
        "exec" if items(body, "command").is_empty() => {
            causes.required(format!("{path}.command"), "")
        }
        "httpGet" => {
            if text(body, "path").is_empty() {
                causes.required(format!("{path}.path"), "");
            }
            if !matches!(text(body, "scheme"), "HTTP" | "HTTPS") {
                causes.unsupported(
                    format!("{path}.scheme"),
                    text(body, "scheme"),
                    &["HTTP", "HTTPS"],
                );
            }
            port(&body["port"], &format!("{path}.port"), causes);
        }
        "tcpSocket" | "grpc" => port(&body["port"], &format!("{path}.port"), causes),
        _ => {}
    }
}

/// A number or the name of a container port.
pub fn port(value: &Value, path: &str, causes: &mut Causes) {
    match value {
        Value::String(name) => names::report(names::port_name(name), name, path, causes),
        value => names::port(value.as_i64().unwrap_or_default(), path, causes),
    }
}
