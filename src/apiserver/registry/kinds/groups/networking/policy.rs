//! What a NetworkPolicy may say, in the original's words.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Causes,
    kinds::{
        ips, names, selector,
        value::{default_text, default_to, has, items, items_mut, set, text, texts},
    },
};

const DIRECTIONS: &[&str] = &["Egress", "Ingress"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub fn default(policy: &mut Value) {
    default_to(policy, "spec.podSelector", json!({}));
    if items(policy, "spec.policyTypes").is_empty() {
        let egress = !items(policy, "spec.egress").is_empty();
        let types = match egress {
            true => json!(["Ingress", "Egress"]),
            false => json!(["Ingress"]),
        };
        set(policy, "spec.policyTypes", types);
    }
    for list in ["spec.ingress", "spec.egress"] {
        for rule in items_mut(policy, list) {
            for port in items_mut(rule, "ports") {
                default_text(port, "protocol", "TCP");
            }
        }
    }
}

pub fn validate(policy: &Value, causes: &mut Causes) {
    names::object_name(policy, names::dns_subdomain, causes);
    selector::validate(&policy["spec"]["podSelector"], "spec.podSelector", causes);
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(&policy["spec"], list).iter().enumerate() {
            let path = format!("spec.{list}[{index}]");
            for (at, one) in items(rule, "ports").iter().enumerate() {
                port(one, &format!("{path}.ports[{at}]"), causes);
            }
            for (at, one) in items(rule, peers).iter().enumerate() {
                peer(one, &format!("{path}.{peers}[{at}]"), causes);
            }
        }
    }
    let types = texts(policy, "spec.policyTypes");
    if types.len() > DIRECTIONS.len() {
        causes.invalid(
            "spec.policyTypes",
            &types,
            "may not specify more than two policyTypes",
        );
        return;
    }
    for (at, kind) in types.iter().enumerate() {
        if !DIRECTIONS.contains(kind) {
            causes.unsupported(format!("spec.policyTypes[{at}]"), kind, DIRECTIONS);
        }
    }
}

fn port(port: &Value, path: &str, causes: &mut Causes) {
    let protocol = text(port, "protocol");
    if has(port, "protocol") && !PROTOCOLS.contains(&protocol) {
        causes.unsupported(format!("{path}.protocol"), protocol, PROTOCOLS);
    }
    let end = port["endPort"].as_i64();
    let end_path = format!("{path}.endPort");
    match (&port["port"], end) {
        (Value::Null, Some(end)) => causes.invalid(
            end_path,
            end,
            "may not be specified when `port` is not specified",
        ),
        (Value::String(name), end) => {
            if let Some(end) = end {
                causes.invalid(
                    end_path,
                    end,
                    "may not be specified when `port` is non-numeric",
                );
            }
            names::report(
                names::port_name(name),
                name,
                &format!("{path}.port"),
                causes,
            );
        }
        (Value::Number(number), end) => {
            let first = number.as_i64().unwrap_or_default();
            names::port(first, &format!("{path}.port"), causes);
            if let Some(end) = end {
                if end < first {
                    causes.invalid(&end_path, end, "must be greater than or equal to `port`");
                }
                names::port(end, &end_path, causes);
            }
        }
        _ => {}
    }
}

fn peer(peer: &Value, path: &str, causes: &mut Causes) {
    let mut others = false;
    for field in ["podSelector", "namespaceSelector"] {
        if has(peer, field) {
            others = true;
            selector::validate(&peer[field], &format!("{path}.{field}"), causes);
        }
    }
    match (has(peer, "ipBlock"), others) {
        (true, true) => causes.forbidden(path, "may not specify both ipBlock and another peer"),
        (false, false) => causes.required(path, "must specify a peer"),
        _ => {}
    }
    if has(peer, "ipBlock") {
        block(&peer["ipBlock"], &format!("{path}.ipBlock"), causes);
    }
}

fn block(block: &Value, path: &str, causes: &mut Causes) {
    let cidr_path = format!("{path}.cidr");
    let cidr = match text(block, "cidr") {
        "" => return causes.required(cidr_path, ""),
        cidr => match ips::strict_range(cidr) {
            Ok(cidr) => Some(cidr),
            Err(why) => {
                causes.invalid(cidr_path, cidr, &why);
                None
            }
        },
    };
    for (at, except) in texts(block, "except").iter().enumerate() {
        let path = format!("{path}.except[{at}]");
        match (cidr, ips::strict_range(except)) {
            (_, Err(why)) => causes.invalid(path, except, &why),
            (Some(cidr), Ok(hole))
                if !cidr.contains(&hole.network()) || cidr.prefix_len() >= hole.prefix_len() =>
            {
                causes.invalid(path, except, "must be a strict subset of `cidr`");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_policy_may_say() {
        let ingress = |rule: Value| json!({"spec": {"podSelector": {}, "ingress": [rule]}});
        let block = |block: Value| ingress(json!({"from": [{"ipBlock": block}]}));
        let port = |port: Value| ingress(json!({"ports": [port]}));
        for (policy, want) in [
            (ingress(json!({})), ""),
            (port(json!({"port": 80, "endPort": 90})), ""),
            (port(json!({"port": "web", "protocol": "UDP"})), ""),
            (
                block(json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]})),
                "",
            ),
            (block(json!({"cidr": "::/0", "except": ["fd00::/8"]})), ""),
            (
                json!({"spec": {"policyTypes": ["Ingress", "Up"]}}),
                "spec.policyTypes[1]: Unsupported value: \"Up\": supported values: \"Egress\", \"Ingress\"",
            ),
            (
                json!({"spec": {"policyTypes": ["Ingress", "Egress", "Egress"]}}),
                "spec.policyTypes: Invalid value: [\"Ingress\",\"Egress\",\"Egress\"]: may not specify more than two policyTypes",
            ),
            (
                port(json!({"port": 80, "endPort": 79})),
                "spec.ingress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`",
            ),
            (
                port(json!({"port": "web", "endPort": 79})),
                "spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when `port` is non-numeric",
            ),
            (
                port(json!({"endPort": 79})),
                "spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when `port` is not specified",
            ),
            (
                port(json!({"port": 0})),
                "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                port(json!({"port": 1, "protocol": "ICMP"})),
                "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ),
            (
                ingress(json!({"from": [{}]})),
                "spec.ingress[0].from[0]: Required value: must specify a peer",
            ),
            (
                ingress(json!({"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]})),
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                block(json!({})),
                "spec.ingress[0].from[0].ipBlock.cidr: Required value",
            ),
            (
                block(json!({"cidr": "10.0.0.1/8"})),
                "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length",
            ),
            (
                block(json!({"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]})),
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
            ),
            (
                block(json!({"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]})),
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            ),
        ] {
            let mut policy = policy;
            policy["metadata"] = json!({"name": "p", "namespace": "n"});
            let mut causes = Causes::default();
            validate(&policy, &mut causes);
            let told: Vec<String> = causes
                .0
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect();
            assert_eq!(told.join("; "), want, "{policy}");
        }
    }

    #[test]
    fn directions_that_nobody_names() {
        for (spec, want) in [
            (json!({}), json!(["Ingress"])),
            (json!({"egress": []}), json!(["Ingress"])),
            (json!({"egress": [{}]}), json!(["Ingress", "Egress"])),
            (json!({"policyTypes": ["Egress"]}), json!(["Egress"])),
        ] {
            let mut policy = json!({"spec": spec});
            default(&mut policy);
            assert_eq!(policy["spec"]["policyTypes"], want);
        }
    }
}
