//! Ports of containers that are there twice, or in each other's way.

use std::collections::{HashMap, hash_map::Entry};

use serde_json::Value;

use super::{Said, containers};
use crate::apiserver::registry::kinds::value::{items, number, text};

/// The ports of all containers of one number and protocol, as far as others can meet them.
#[derive(Default)]
struct Ports<'a> {
    first: Option<String>,
    without_host: Option<String>,
    exact: HashMap<(i64, &'a str), String>,
    /// By the host's port: the first without an address, and the first with one.
    by_host: HashMap<i64, [Option<String>; 2]>,
}

pub fn of(spec: &Value, path: &str, said: &mut Said) {
    let mut all: HashMap<(i64, &str), Ports<'_>> = HashMap::new();
    for (at, container) in containers(spec) {
        for (index, port) in items(container, "ports").iter().enumerate() {
            let own = format!("{path}.{at}.ports[{index}]");
            let host = number(port, "hostPort").unwrap_or_default();
            let ip = text(port, "hostIP");
            let number = number(port, "containerPort").unwrap_or_default();
            let protocol = text(port, "protocol");
            if !ip.is_empty() && host == 0 {
                let name = text(port, "name");
                said.that(format!("{own}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{number} Protocol:{protocol} HostIP:{ip}}}"));
            }
            let known = all.entry((number, protocol)).or_default();
            meet(known, (host, ip), own, said);
        }
    }
}

fn meet<'a>(known: &mut Ports<'a>, (host, ip): (i64, &'a str), own: String, said: &mut Said) {
    let zero = known.without_host.as_ref();
    let overlapping = match host {
        0 => known.first.as_ref(),
        _ => zero,
    };
    let has_ip = usize::from(!ip.is_empty());
    let ambiguous = known
        .by_host
        .get(&host)
        .and_then(|both| both[1 - has_ip].as_ref());
    if let Some(other) = known.exact.get(&(host, ip)) {
        said.that(format!("{own}: duplicate port definition with {other}"));
    } else if let Some(other) = overlapping {
        said.that(format!("{own}: overlapping port definition with {other}"));
    } else if let Some(other) = ambiguous {
        said.that(format!(
            "{own}: dangerously ambiguous port definition with {other}"
        ));
    }
    if host == 0 {
        known.without_host.get_or_insert_with(|| own.clone());
    }
    known.first.get_or_insert_with(|| own.clone());
    known.by_host.entry(host).or_default()[has_ip].get_or_insert_with(|| own.clone());
    if let Entry::Vacant(free) = known.exact.entry((host, ip)) {
        free.insert(own);
    }
}
