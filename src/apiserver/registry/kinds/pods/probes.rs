//! Probes and lifecycle hooks: one handler each, numbers in range.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{at, has, items, number, text},
    },
};

const OF_PROBES: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
const OF_HOOKS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "sleep"];

pub fn validate(spec: &Value, container: &Value, path: &str, causes: &mut Causes) {
    for name in ["postStart", "preStop"] {
        if let Some(hook) = at(container, &format!("lifecycle.{name}")) {
            let path = format!("{path}.lifecycle.{name}");
            handler(spec, hook, OF_HOOKS, &path, causes);
        }
    }
    if has(container, "lifecycle.stopSignal") {
        let signal = text(container, "lifecycle.stopSignal");
        stop_signal(
            spec,
            signal,
            &format!("{path}.lifecycle.stopSignal"),
            causes,
        );
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(one) = at(container, name) {
            probe(spec, one, name, &format!("{path}.{name}"), causes);
        }
    }
}

fn probe(spec: &Value, probe: &Value, name: &str, path: &str, causes: &mut Causes) {
    handler(spec, probe, OF_PROBES, path, causes);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        if let Some(value) = number(probe, field).filter(|value| *value < 0) {
            let detail = "must be greater than or equal to 0";
            causes.invalid(format!("{path}.{field}"), value, detail);
        }
    }
    let grace = number(probe, "terminationGracePeriodSeconds");
    let own = format!("{path}.terminationGracePeriodSeconds");
    if let Some(grace) = grace.filter(|grace| *grace <= 0) {
        causes.invalid(&own, grace, "must be greater than 0");
    }
    if name == "readinessProbe" {
        if let Some(grace) = grace {
            causes.invalid(own, grace, "must not be set for readinessProbes");
        }
    } else if let Some(times) = number(probe, "successThreshold").filter(|times| *times != 1) {
        causes.invalid(format!("{path}.successThreshold"), times, "must be 1");
    }
}

/// Signals that containers may be stopped by; on Windows two of them are known.
fn stop_signal(spec: &Value, signal: &str, path: &str, causes: &mut Causes) {
    const PLAIN: &str = "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF \
        PWR QUIT RTMAX RTMIN SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM \
        WINCH XCPU XFSZ";
    let known: Vec<String> = match text(spec, "os.name") {
        "windows" => vec!["SIGKILL".to_owned(), "SIGTERM".to_owned()],
        "linux" => {
            let plain = PLAIN.split_whitespace().map(|name| format!("SIG{name}"));
            let low = (1..=15).map(|number| format!("SIGRTMIN+{number}"));
            let high = (1..=14).map(|number| format!("SIGRTMAX-{number}"));
            let mut all: Vec<String> = plain.chain(low).chain(high).collect();
            all.sort_unstable();
            all
        }
        _ if has(spec, "os") => return,
        _ => {
            let detail = "may not be set for containers with empty `spec.os.name`";
            return causes.forbidden(path, detail);
        }
    };
    if !known.iter().any(|one| one == signal) {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        causes.unsupported(path, signal, &known);
    }
}

fn handler(spec: &Value, handler: &Value, kinds: [&str; 4], path: &str, causes: &mut Causes) {
    let mut given = kinds.into_iter().filter(|name| has(handler, name));
    let Some(first) = given.next() else {
        return causes.required(path, "must specify a handler type");
    };
    one_handler(
        spec,
        &handler[first],
        first,
        &format!("{path}.{first}"),
        causes,
    );
    for extra in given {
        let own = format!("{path}.{extra}");
        causes.forbidden(own, "may not specify more than 1 handler type");
    }
}

fn one_handler(spec: &Value, body: &Value, kind: &str, path: &str, causes: &mut Causes) {
    match kind {
        "exec" if items(body, "command").is_empty() => {
            causes.required(format!("{path}.command"), "");
        }
        "httpGet" => http_get(body, path, causes),
        "tcpSocket" | "grpc" => port(&body["port"], &format!("{path}.port"), causes),
        "sleep" => sleep(spec, body, path, causes),
        _ => {}
    }
}

fn http_get(body: &Value, path: &str, causes: &mut Causes) {
    const SCHEMES: [&str; 2] = ["HTTP", "HTTPS"];
    if text(body, "path").is_empty() {
        causes.required(format!("{path}.path"), "");
    }
    port(&body["port"], &format!("{path}.port"), causes);
    let scheme = text(body, "scheme");
    if !SCHEMES.contains(&scheme) {
        causes.unsupported(format!("{path}.scheme"), scheme, &SCHEMES);
    }
    for header in items(body, "httpHeaders") {
        if causes.is_full() {
            return;
        }
        let name = text(header, "name");
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || !name.bytes().all(fine) {
            causes.invalid(format!("{path}.httpHeaders"), name, "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')");
        }
    }
}

/// A hook sleeps no longer than the pod has time to end.
fn sleep(spec: &Value, body: &Value, path: &str, causes: &mut Causes) {
    let seconds = number(body, "seconds").unwrap_or_default();
    let Some(grace) = number(spec, "terminationGracePeriodSeconds") else {
        return;
    };
    if !(0..=grace).contains(&seconds) {
        let detail =
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        causes.invalid(path, seconds, &detail);
    }
}

/// A number or the name of a container port.
pub fn port(value: &Value, path: &str, causes: &mut Causes) {
    match value {
        Value::String(name) => names::report(names::port_name(name), name, path, causes),
        value => names::port(value.as_i64().unwrap_or_default(), path, causes),
    }
}
