//! Sources that become files: of ConfigMaps, Secrets, the pod itself, tokens and certificates.

use std::collections::HashSet;

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        groups::certificates,
        names,
        pods::{
            fields::{self, From},
            paths,
        },
        selector,
        value::{at, has, items, number, text},
    },
};

const KEY_TYPES: [&str; 6] = [
    "RSA3072",
    "RSA4096",
    "ECDSAP256",
    "ECDSAP384",
    "ECDSAP521",
    "ED25519",
];
const SHORTEST_TOKEN: i64 = 600;
const LONGEST_TOKEN: i64 = 1 << 32;
const SHORTEST_CERTIFICATE: i64 = 3600;
/// 91 days; a day from signers of Kubernetes itself.
const LONGEST_CERTIFICATE: i64 = 91 * 86400;
const LONGEST_OWN_CERTIFICATE: i64 = 86400;

/// A `secret`, `configMap`, `downwardAPI` or `projected` volume's source.
pub fn source(body: &Value, kind: &str, path: &str, causes: &mut Causes) {
    mode(body, "defaultMode", path, causes);
    match kind {
        "downwardAPI" => {
            for file in items(body, "items") {
                if causes.is_full() {
                    return;
                }
                downward(file, path, causes);
            }
        }
        "projected" => projected(body, path, causes),
        _ => keys(body, path, causes),
    }
}

/// `items[]` of a ConfigMap or Secret.
fn keys(body: &Value, path: &str, causes: &mut Causes) {
    for (index, item) in items(body, "items").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.items[{index}]");
        if text(item, "key").is_empty() {
            causes.required(format!("{path}.key"), "");
        }
        target(item, "path", &path, causes);
        mode(item, "mode", &path, causes);
    }
}

/// A file of the downward API. What is wrong is said of the whole list: so the API always had it.
fn downward(file: &Value, path: &str, causes: &mut Causes) {
    target(file, "path", path, causes);
    let (field, resource) = (at(file, "fieldRef"), at(file, "resourceFieldRef"));
    match (field, resource) {
        (Some(field), resource) => {
            let own = format!("{path}.fieldRef");
            fields::field(field, From::Volume, &own, causes);
            if resource.is_some() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                causes.invalid(path, "resource", detail);
            }
        }
        (None, Some(resource)) => {
            let own = format!("{path}.resourceFieldRef");
            fields::resource(resource, From::Volume, &own, causes);
        }
        (None, None) => {
            causes.required(path, "one of fieldRef and resourceFieldRef is required");
        }
    }
    mode(file, "mode", path, causes);
}

fn target(item: &Value, field: &str, path: &str, causes: &mut Causes) {
    let target = text(item, field);
    let own = format!("{path}.{field}");
    if target.is_empty() {
        causes.required(&own, "");
    }
    paths::local(target, &own, causes);
}

fn mode(body: &Value, field: &str, path: &str, causes: &mut Causes) {
    if let Some(mode) = number(body, field).filter(|mode| !(0..=0o777).contains(mode)) {
        causes.invalid(
            format!("{path}.{field}"),
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}

/// The paths of all sources of one volume, which differ.
struct Taken<'a> {
    paths: HashSet<&'a str>,
    volume: &'a str,
}

impl<'a> Taken<'a> {
    fn take(&mut self, target: &'a str, shown: &str, causes: &mut Causes) {
        if !self.paths.insert(target) {
            causes.invalid(self.volume, shown, "conflicting duplicate paths");
        }
    }
}

fn projected(body: &Value, path: &str, causes: &mut Causes) {
    let mut taken = Taken {
        paths: HashSet::new(),
        volume: path,
    };
    for (index, source) in items(body, "sources").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let own = format!("{path}.sources[{index}]");
        let mut count = 0;
        for kind in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            let Some(one) = at(source, kind) else {
                continue;
            };
            count += 1;
            let own = format!("{own}.{kind}");
            match kind {
                "secret" | "configMap" => {
                    let name = text(one, "name");
                    if name.is_empty() {
                        causes.required(format!("{own}.name"), "");
                    }
                    keys(one, &own, causes);
                    for target in targets(one) {
                        taken.take(target, name, causes);
                    }
                }
                "downwardAPI" => {
                    for file in items(one, "items") {
                        if causes.is_full() {
                            return;
                        }
                        downward(file, &own, causes);
                    }
                    for target in targets(one) {
                        taken.take(target, target, causes);
                    }
                }
                "serviceAccountToken" => token(one, path, &own, causes),
                "clusterTrustBundle" => {
                    bundle(one, &own, causes);
                    let target = text(one, "path");
                    taken.take(target, target, causes);
                }
                _ => certificate(one, &own, &mut taken, causes),
            }
        }
        if count > 1 {
            causes.forbidden(own, "may not specify more than 1 volume type per source");
        }
    }
}

fn targets(source: &Value) -> impl Iterator<Item = &str> {
    let all = items(source, "items").iter();
    all.map(|item| text(item, "path"))
        .filter(|path| !path.is_empty())
}

fn token(body: &Value, volume: &str, path: &str, causes: &mut Causes) {
    let own = format!("{path}.expirationSeconds");
    match number(body, "expirationSeconds") {
        None => causes.required(own, ""),
        Some(seconds) if seconds < SHORTEST_TOKEN => {
            let detail = "may not specify a duration less than 10 minutes";
            causes.invalid(own, seconds, detail);
        }
        Some(seconds) if seconds > LONGEST_TOKEN => {
            let detail = "may not specify a duration larger than 2^32 seconds";
            causes.invalid(own, seconds, detail);
        }
        Some(_) => {}
    }
    target(body, "path", volume, causes);
}

fn bundle(body: &Value, path: &str, causes: &mut Causes) {
    let (name, signer) = (text(body, "name"), text(body, "signerName"));
    match (has(body, "name"), has(body, "signerName")) {
        (true, true) => causes.invalid(path, body, "only one of name and signerName may be used"),
        (true, false) => {
            let own = format!("{path}.name");
            if name.is_empty() {
                causes.required(&own, "must be a valid object name");
            }
            // After the signer, whose slash is a colon here, comes the name proper.
            let proper = name.rsplit(':').next().unwrap_or(name);
            for why in names::dns_subdomain(proper) {
                let detail = format!("not a valid clustertrustbundlename: {why}");
                causes.invalid(&own, name, &detail);
            }
            if has(body, "labelSelector") {
                causes.invalid(
                    format!("{path}.labelSelector"),
                    &body["labelSelector"],
                    "labelSelector must be unset if name is specified",
                );
            }
        }
        (false, true) => {
            let own = format!("{path}.signerName");
            if signer.is_empty() {
                causes.required(&own, "must be a valid signer name");
            }
            certificates::validate_signer(signer, &own, causes);
            if has(body, "labelSelector") {
                let own = format!("{path}.labelSelector");
                selector::validate(&body["labelSelector"], &own, causes);
            }
        }
        (false, false) => {
            causes.required(path, "either name or signerName must be specified");
        }
    }
    target(body, "path", path, causes);
}

fn certificate<'a>(body: &'a Value, path: &str, taken: &mut Taken<'a>, causes: &mut Causes) {
    let signer = text(body, "signerName");
    certificates::validate_signer(signer, &format!("{path}.signerName"), causes);
    let kind = text(body, "keyType");
    if !KEY_TYPES.contains(&kind) {
        causes.unsupported(format!("{path}.keyType"), kind, &KEY_TYPES);
    }
    if let Some(seconds) = number(body, "maxExpirationSeconds") {
        let own = format!("{path}.maxExpirationSeconds");
        let most = match signer.starts_with("kubernetes.io/") {
            true => LONGEST_OWN_CERTIFICATE,
            false => LONGEST_CERTIFICATE,
        };
        if seconds < SHORTEST_CERTIFICATE {
            let detail = "if provided, maxExpirationSeconds must be >= 3600";
            causes.invalid(own, seconds, detail);
        } else if seconds > most {
            let detail = format!("if provided, maxExpirationSeconds must be <= {most}");
            causes.invalid(own, seconds, &detail);
        }
    }
    let mut count = 0;
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let target = text(body, field);
        if target.is_empty() {
            continue;
        }
        count += 1;
        paths::local(target, &format!("{path}.{field}"), causes);
        taken.take(target, target, causes);
    }
    if count == 0 {
        let detail =
            "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        causes.required(path, detail);
    }
}
