//! What `fieldRef` and `resourceFieldRef` answer, in variables and downward API files. Pure.

use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Facts, resources};

/// The pod's field at `path`; `None` if there is no such field.
pub fn field(pod: &Pod, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return None,
        };
        let value = map.as_ref().and_then(|map| map.get(key)).cloned();
        return Some(value.unwrap_or_default());
    }
    let text = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(lines(meta.labels.as_ref())),
        "metadata.annotations" => Some(lines(meta.annotations.as_ref())),
        // `spec.host` is its first name.
        "spec.nodeName" | "spec.host" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.hostIP" => status.and_then(|status| status.host_ip.clone()),
        "status.podIP" => status.and_then(|status| status.pod_ip.clone()),
        "status.hostIPs" => status
            .and_then(|status| status.host_ips.as_ref())
            .map(|ips| join(ips.iter().map(|one| one.ip.as_str()))),
        "status.podIPs" => status
            .and_then(|status| status.pod_ips.as_ref())
            .map(|ips| join(ips.iter().map(|one| one.ip.as_str()))),
        _ => return None,
    };
    Some(text.unwrap_or_default())
}

fn join<'a>(addresses: impl Iterator<Item = &'a str>) -> String {
    addresses.collect::<Vec<_>>().join(",")
}

/// `metadata.labels['key']` in two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let quoted = |quote| key.strip_prefix(quote)?.strip_suffix(quote);
    Some((map, quoted('\'').or_else(|| quoted('"'))?))
}

/// `key="value"` a line, as Go prints quoted text.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| {
        let mut line = format!("{key}=\"");
        for character in value.chars() {
            quote(character, &mut line);
        }
        line + "\""
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn quote(character: char, out: &mut String) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        '\'' => out.push('\''),
        other => {
            let code = u32::from(other);
            let printable = !other.escape_debug().eq(other.escape_unicode());
            // Writing to a String cannot fail.
            let _ = match (printable, code) {
                (true, _) => write!(out, "{other}"),
                (false, ..=0x7f) => write!(out, "\\x{code:02x}"),
                (false, ..=0xffff) => write!(out, "\\u{code:04x}"),
                (false, _) => write!(out, "\\U{code:08x}"),
            };
        }
    }
}

/// A container's request or limit in units of the divisor, rounded up. A limit that is not set is
/// what the node has.
pub fn resource_field(
    container: &Container,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, String> {
    let unsupported = || format!("unsupported container resource : {}", selector.resource);
    let (list, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let known =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    let given = container.resources.as_ref().and_then(|all| match list {
        "limits" => all.limits.as_ref()?.get(name),
        _ => all.requests.as_ref()?.get(name),
    });
    if !known || !matches!(list, "limits" | "requests") {
        return Err(unsupported());
    }
    let milli = name == "cpu";
    let unit = |quantity: &Quantity| match milli {
        true => resources::milli(quantity),
        false => resources::bytes(quantity),
    };
    let divisor = selector.divisor.as_ref().map_or(0, unit);
    let divisor = match (divisor, milli) {
        (0, true) => 1000,
        (0, false) => 1,
        (divisor, _) => divisor,
    };
    let amount = match (given.map(unit).filter(|amount| *amount != 0), list, name) {
        (Some(amount), ..) => amount,
        (None, "limits", "cpu") => facts.cpu_milli,
        (None, "limits", "memory") => facts.memory_bytes,
        (None, "limits", "ephemeral-storage") => {
            return Err("limits.ephemeral-storage: the container has no such limit".into());
        }
        _ => 0,
    };
    Ok(amount.div_ceil(divisor).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_pods() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "labels": {"b": "2", "a": "q\"u\no\u{7f}te'é"}},
            "spec": {"nodeName": "node", "containers": []},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        }))
        .unwrap();
        for (path, want) in [
            ("metadata.name", Some("p")),
            (
                "metadata.labels",
                Some("a=\"q\\\"u\\no\\x7fte'é\"\nb=\"2\""),
            ),
            ("metadata.labels['b']", Some("2")),
            ("metadata.labels['none']", Some("")),
            ("metadata.annotations", Some("")),
            ("spec.nodeName", Some("node")),
            ("spec.host", Some("node")),
            ("status.podIPs", Some("10.0.0.1,fd00::1")),
            ("status.hostIP", Some("")),
            ("spec.containers", None),
        ] {
            assert_eq!(field(&pod, path).as_deref(), want, "{path}");
        }
    }

    #[test]
    fn of_resources() {
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}},
        }))
        .unwrap();
        let facts = Facts {
            cpu_milli: 4000,
            memory_bytes: 1 << 30,
            ..Facts::default()
        };
        let none = Container::default();
        for (container, resource, divisor, want) in [
            (&container, "limits.cpu", "", "2"), // rounded up to whole CPUs
            (&container, "limits.cpu", "1m", "1500"),
            (&container, "requests.cpu", "1", "1"),
            (&container, "limits.memory", "1Mi", "64"),
            (&container, "limits.memory", "", "67108864"),
            (&none, "limits.cpu", "1", "4"),
            (&none, "limits.memory", "1Gi", "1"),
            (&none, "requests.memory", "1", "0"),
        ] {
            let selector = ResourceFieldSelector {
                resource: resource.into(),
                divisor: (!divisor.is_empty()).then(|| Quantity(divisor.into())),
                container_name: None,
            };
            let got = resource_field(container, &selector, &facts);
            assert_eq!(got.as_deref(), Ok(want), "{resource} / {divisor}");
        }
    }
}
