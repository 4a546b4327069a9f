//! Address families of a Service: what it asks for, completed by what the cluster has. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::apiserver::{
    registry::{
        Causes,
        kinds::value::{default_text, has, members, set, text, texts},
    },
    status::Cause,
};

pub fn family(ip: &IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

pub fn of_range(range: &IpNet) -> &'static str {
    family(&range.network())
}

/// Sets `ipFamilies` and `ipFamilyPolicy`.
pub fn complete(service: &mut Value, cidrs: &[IpNet]) -> Result<(), Cause> {
    let have: Vec<&str> = cidrs.iter().map(of_range).collect();
    let mut causes = Causes::default();
    let headless = text(service, "spec.clusterIP") == "None"
        || texts(service, "spec.clusterIPs").first() == Some(&"None");
    let selects = members(service, "spec.selector").is_some_and(|selector| !selector.is_empty());
    if headless && !selects {
        // Its endpoints are written by hand and may be of any family.
        if !has(service, "spec.ipFamilies") {
            let mut both = have.clone();
            both.extend(
                ["IPv4", "IPv6"]
                    .into_iter()
                    .filter(|other| !have.contains(other)),
            );
            set(service, "spec.ipFamilies", json!(both));
        }
        default_text(service, "spec.ipFamilyPolicy", "RequireDualStack");
        return Ok(());
    }
    let mut wanted: Vec<String> = texts(service, "spec.ipFamilies")
        .iter()
        .map(|&family| family.to_owned())
        .collect();
    for (index, family) in wanted.iter().enumerate() {
        if !have.contains(&&**family) {
            causes.invalid(
                format!("spec.ipFamilies[{index}]"),
                family,
                &format!("not configured on this cluster: {family}"),
            );
        }
    }
    if wanted.is_empty() {
        let mut asked = texts(service, "spec.clusterIPs");
        if asked.is_empty() {
            asked.push(text(service, "spec.clusterIP"));
        }
        wanted = asked
            .iter()
            .filter_map(|ip| ip.parse::<IpAddr>().ok())
            .map(|ip| family(&ip).to_owned())
            .collect();
    }
    if wanted.is_empty() {
        wanted.extend(have.first().map(|&family| family.to_owned()));
    }
    default_text(
        service,
        "spec.ipFamilyPolicy",
        if wanted.len() > 1 {
            "RequireDualStack"
        } else {
            "SingleStack"
        },
    );
    let policy = text(service, "spec.ipFamilyPolicy");
    match policy {
        "RequireDualStack" if have.len() < 2 => causes.invalid(
            "spec.ipFamilyPolicy",
            policy,
            "this cluster is not configured for dual-stack services",
        ),
        "SingleStack" if wanted.len() > 1 => causes.invalid(
            "spec.ipFamilyPolicy",
            policy,
            "must be RequireDualStack or PreferDualStack when multiple ipFamilies are specified",
        ),
        "RequireDualStack" | "PreferDualStack" => {
            wanted.extend(
                have.iter()
                    .map(|&family| family.to_owned())
                    .filter(|family| !wanted.contains(family))
                    .collect::<Vec<_>>(),
            );
        }
        _ => {}
    }
    set(service, "spec.ipFamilies", wanted);
    match causes.0.into_iter().next() {
        Some(cause) => Err(cause),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_follow_the_cluster() {
        let single: Vec<IpNet> = vec!["10.0.0.0/16".parse().unwrap()];
        let dual: Vec<IpNet> = vec![
            "10.0.0.0/16".parse().unwrap(),
            "fd00::/108".parse().unwrap(),
        ];
        for (cidrs, spec, want) in [
            (&single, json!({}), Some((json!(["IPv4"]), "SingleStack"))),
            (
                &single,
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                Some((json!(["IPv4"]), "PreferDualStack")),
            ),
            (&single, json!({"ipFamilyPolicy": "RequireDualStack"}), None),
            (&single, json!({"ipFamilies": ["IPv6"]}), None),
            (
                &dual,
                json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}),
                Some((json!(["IPv6", "IPv4"]), "PreferDualStack")),
            ),
            (
                &single,
                json!({"clusterIP": "None"}),
                Some((json!(["IPv4", "IPv6"]), "RequireDualStack")),
            ),
            (
                &single,
                json!({"clusterIP": "None", "selector": {"a": "b"}}),
                Some((json!(["IPv4"]), "SingleStack")),
            ),
        ] {
            let mut service = json!({"spec": spec});
            let got = complete(&mut service, cidrs).ok();
            let got = got.map(|()| {
                (
                    service["spec"]["ipFamilies"].clone(),
                    text(&service, "spec.ipFamilyPolicy"),
                )
            });
            assert_eq!(got, want, "{spec}");
        }
    }
}
