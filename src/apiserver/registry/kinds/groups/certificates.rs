//! Certificate signing requests.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    apiserver::{
        metadata::{self, label_problem, subdomain_problem},
        registry::{
            Behaviour, Causes, PLAIN, Resource, SpecialSubresource,
            Subresource::{Special, Status},
            kinds::{
                cells::{NONE, short_duration, text_or_none},
                names,
                row::{self, AGE, column, field, read, special},
                value::{
                    at, default_text, has, items, items_mut, keep, number, remove, set, text, texts,
                },
            },
        },
        status::CauseType,
    },
    pki::Request,
};

const APPROVAL: SpecialSubresource = special(
    "approval",
    &["get", "patch", "update"],
    "certificates.k8s.io",
    "v1",
    "CertificateSigningRequest",
);
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub const ROW: Resource = Resource {
    short_names: &["csr"],
    subresources: &[Special(&APPROVAL), Status],
    columns: &[
        AGE,
        column("SignerName", |csr| text_or_none(csr, "spec.signerName")),
        column("Requestor", |csr| row::cell(csr, "spec.username")),
        column("RequestedDuration", |csr| {
            number(csr, "spec.expirationSeconds")
                .map_or_else(|| NONE.into(), |seconds| short_duration(seconds).into())
        }),
        column("Condition", |csr| condition(csr).into()),
    ],
    fields: &[field("spec.signerName", |csr| read(csr, "spec.signerName"))],
    behaviour: Behaviour {
        // Who asks is written by the admission plugin, which knows the user.
        prepare_create: |csr| set(csr, "status", json!({})),
        prepare_update: |new, old| keep(new, old, "spec"),
        prepare_subresource,
        validate,
        validate_subresource,
        ..PLAIN
    },
    ..row::cluster(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
        "io.k8s.api.certificates.v1.CertificateSigningRequest",
    )
};

/// Conditions that say what was decided: true when they are there, and they stay.
const DECISIONS: [&str; 3] = ["Approved", "Denied", "Failed"];
const LEGACY: &str = "kubernetes.io/legacy-unknown";
const MAX_DOMAIN: usize = 253;
const MAX_SIGNER: usize = MAX_DOMAIN + 1 + 253 + 63 + 1;

fn validate(csr: &Value, causes: &mut Causes) {
    names::object_name(csr, names::path_segment, causes);
    let request = text(csr, "spec.request");
    let read = match BASE64_STANDARD.decode(request) {
        Ok(pem) => Request::parse(&pem)
            .map(drop)
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(why) = read {
        let shown = request.get(..MAX_SHOWN).unwrap_or(request);
        causes.invalid("spec.request", shown, &why);
    }
    validate_signer(text(csr, "spec.signerName"), "spec.signerName", causes);
    let usages = texts(csr, "spec.usages");
    if usages.is_empty() {
        causes.required("spec.usages", "");
    }
    for (index, usage) in usages.iter().enumerate() {
        if !USAGES.contains(usage) {
            causes.unsupported(format!("spec.usages[{index}]"), usage, &USAGES);
        }
        if usages[..index].contains(usage) {
            causes.duplicate(format!("spec.usages[{index}]"), usage);
        }
    }
    if number(csr, "spec.expirationSeconds").is_some_and(|seconds| seconds < 600) {
        causes.invalid(
            "spec.expirationSeconds",
            at(csr, "spec.expirationSeconds"),
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
    validate_conditions(csr, causes);
    if let Err(why) = certificate_problem(text(csr, "status.certificate")) {
        causes.invalid("status.certificate", "<certificate data>", &why);
    }
}

/// Of a request that cannot be read, so much is repeated in the answer.
const MAX_SHOWN: usize = 4 << 10;

/// The name of a signer at `field`.
pub fn validate_signer(signer: &str, field: &str, causes: &mut Causes) {
    if signer.is_empty() {
        return causes.required(field, "");
    }
    let mut invalid = |value: &str, why: &str| causes.invalid(field, value, why);
    if signer == LEGACY {
        let why = "the legacy signerName is not allowed via this API version";
        return invalid(signer, why);
    }
    let segments: Vec<&str> = signer.split('/').collect();
    let [domain, path] = segments.as_slice() else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return invalid(signer, why);
    };
    let labels: Vec<&str> = domain.split('.').collect();
    if let Some((label, why)) = first_problem(&labels, label_problem) {
        invalid(domain, &format!("validating label {label:?}: {why}"));
    }
    if labels.len() < 2 {
        let why = "should be a domain with at least two segments separated by dots";
        invalid(domain, why);
    }
    let labels: Vec<&str> = path.split('.').collect();
    if let Some((label, why)) = first_problem(&labels, subdomain_problem) {
        invalid(path, &format!("validating label {label:?}: {why}"));
    }
    for (value, most) in [(*domain, MAX_DOMAIN), (signer, MAX_SIGNER)] {
        if value.len() > most {
            let message = format!("Too long: may not be more than {most} bytes");
            causes.push(CauseType::FieldValueTooLong, field, message);
        }
    }
}

fn first_problem<'a>(
    labels: &[&'a str],
    problem: fn(&str) -> Option<String>,
) -> Option<(&'a str, String)> {
    labels
        .iter()
        .find_map(|label| Some((*label, problem(label)?)))
}

fn validate_conditions(csr: &Value, causes: &mut Causes) {
    let conditions = items(csr, "status.conditions");
    let kinds: Vec<&str> = conditions.iter().map(|one| text(one, "type")).collect();
    for (index, condition) in conditions.iter().enumerate() {
        let field = |name: &str| format!("status.conditions[{index}].{name}");
        let (kind, status) = (kinds[index], text(condition, "status"));
        if kind.is_empty() {
            causes.required(field("type"), "");
        }
        let allowed: &[&str] = match DECISIONS.contains(&kind) {
            true => &["True"],
            false => &["False", "True", "Unknown"],
        };
        if status.is_empty() {
            causes.required(field("status"), "");
        } else if !allowed.contains(&status) {
            causes.unsupported(field("status"), status, allowed);
        }
        let before = &kinds[..index];
        let other = match kind {
            "Approved" => Some("Denied"),
            "Denied" => Some("Approved"),
            _ => None,
        };
        if other.is_some_and(|other| before.contains(&other)) {
            let why = "Approved and Denied conditions are mutually exclusive";
            causes.invalid(field("type"), kind, why);
        }
        if before.contains(&kind) {
            causes.duplicate(field("type"), kind);
        }
    }
}

/// What is wrong with a certificate in base64, if it is not PEM blocks of certificates alone.
fn certificate_problem(encoded: &str) -> Result<(), String> {
    if encoded.is_empty() {
        return Ok(());
    }
    let pem = BASE64_STANDARD.decode(encoded);
    let pem = pem.map_err(|error| error.to_string())?;
    let mut blocks = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(&pem) {
        let block = block.map_err(|error| error.to_string())?;
        if block.label != "CERTIFICATE" {
            let label = block.label;
            return Err(format!(
                "only CERTIFICATE PEM blocks are allowed, found {label:?}"
            ));
        }
        block.parse_x509().map_err(|error| error.to_string())?;
        blocks += 1;
    }
    // The parser passes over headers, which say nothing that a certificate needs.
    if pem_has_headers(&pem) {
        return Err("no PEM block headers are permitted".to_owned());
    }
    match blocks {
        0 => Err("must contain at least one CERTIFICATE PEM block".to_owned()),
        _ => Ok(()),
    }
}

fn pem_has_headers(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    let mut inside = false;
    text.lines().any(|line| {
        if line.starts_with("-----BEGIN ") {
            inside = true;
        } else if line.starts_with("-----END ") {
            inside = false;
        }
        inside && !line.starts_with("-----") && line.contains(':')
    })
}

/// Each endpoint changes its own part; what was asked for and by whom is never changed.
fn prepare_subresource(part: &str, new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    let mut conditions = items(new, "status.conditions").to_vec();
    match part {
        "approval" => keep(new, old, "status"),
        _ => keep_decisions(&mut conditions, old),
    }
    match conditions.is_empty() {
        true => drop(remove(new, "status.conditions")),
        false => set(new, "status.conditions", conditions),
    }
    date_conditions(new, old, &metadata::now());
}

/// The conditions that `/approval` makes stay as they were.
fn keep_decisions(conditions: &mut [Value], old: &Value) {
    for condition in conditions {
        let kind = text(condition, "type").to_owned();
        if matches!(&*kind, "Approved" | "Denied")
            && let Some(before) = find(old, &kind)
        {
            *condition = before.clone();
        }
    }
}

fn find<'a>(csr: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut conditions = items(csr, "status.conditions").iter();
    conditions.find(|one| text(one, "type") == kind)
}

fn date_conditions(new: &mut Value, old: &Value, now: &str) {
    for condition in items_mut(new, "status.conditions") {
        default_text(condition, "lastUpdateTime", now);
        let same = find(old, text(condition, "type"))
            .filter(|before| text(before, "status") == text(condition, "status"));
        let since = same.map_or("", |before| text(before, "lastTransitionTime"));
        let since = if since.is_empty() { now } else { since }.to_owned();
        default_text(condition, "lastTransitionTime", &since);
    }
}

fn validate_subresource(part: &str, new: &Value, old: &Value, causes: &mut Causes) {
    let count = |csr: &Value, kind: &str| {
        let conditions = items(csr, "status.conditions").iter();
        conditions.filter(|one| text(one, "type") == kind).count()
    };
    let conditions = "status.conditions";
    for kind in DECISIONS {
        let (before, after) = (count(old, kind), count(new, kind));
        if after < before {
            let why = format!("updates may not remove a condition of type {kind:?}");
            causes.forbidden(conditions, &why);
        }
        if part != "approval" && kind != "Failed" {
            if after > before {
                let why = format!("updates may not add a condition of type {kind:?}");
                causes.forbidden(conditions, &why);
            } else if after == before && find(new, kind) != find(old, kind) {
                let why = format!("updates may not modify a condition of type {kind:?}");
                causes.forbidden(conditions, &why);
            }
        }
    }
    let certificate = "status.certificate";
    if text(new, certificate) != text(old, certificate) {
        if part != "status" {
            causes.forbidden(certificate, "updates may not set certificate content");
        } else if !text(old, certificate).is_empty() {
            causes.forbidden(
                certificate,
                "updates may not modify existing certificate content",
            );
        }
    }
}

fn condition(csr: &Value) -> String {
    let has_type = |kind: &str| {
        items(csr, "status.conditions")
            .iter()
            .any(|condition| text(condition, "type") == kind)
    };
    let mut shown = match (has_type("Denied"), has_type("Approved")) {
        (true, _) => "Denied".to_owned(),
        (false, true) => "Approved".to_owned(),
        (false, false) => "Pending".to_owned(),
    };
    if has_type("Failed") {
        shown.push_str(",Failed");
    }
    if has(csr, "status.certificate") && !text(csr, "status.certificate").is_empty() {
        shown.push_str(",Issued");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csr(conditions: &[(&str, &str)], certificate: &str) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, status)| {
                json!({"type": kind, "status": status, "reason": "r",
                "lastUpdateTime": "t", "lastTransitionTime": "t"})
            })
            .collect();
        json!({"metadata": {"name": "c"}, "spec": {"username": "jane"},
            "status": {"conditions": conditions, "certificate": BASE64_STANDARD.encode(certificate)}})
    }

    #[test]
    fn names_of_signers() {
        for (signer, good) in [
            ("kubernetes.io/kubelet-serving", true),
            ("example.com/a.b", true),
            (LEGACY, false),
            ("", false),
            ("example.com", false),
            ("example.com/a/b", false),
            ("com/a", false),
            ("Example.com/a", false),
            ("example.com/A", false),
            ("example.com/", false),
        ] {
            let mut causes = Causes::default();
            validate_signer(signer, "spec.signerName", &mut causes);
            assert_eq!(causes.0.is_empty(), good, "{signer}: {:?}", causes.0);
        }
    }

    #[test]
    fn what_each_endpoint_may_change() {
        let approved = [("Approved", "True")];
        let denied = [("Denied", "True")];
        for (part, old, new, want) in [
            ("approval", csr(&[], ""), csr(&approved, ""), ""),
            (
                "approval",
                csr(&approved, ""),
                csr(&[], ""),
                "updates may not remove",
            ),
            (
                "approval",
                csr(&approved, ""),
                csr(&denied, ""),
                "updates may not remove",
            ),
            ("approval", csr(&[], ""), csr(&approved, "x"), ""), // kept as it was
            (
                "status",
                csr(&[], ""),
                csr(&approved, ""),
                "updates may not add",
            ),
            (
                "status",
                csr(&denied, ""),
                csr(&[], ""),
                "updates may not remove",
            ),
            ("status", csr(&[], ""), csr(&[("Failed", "True")], ""), ""),
            ("status", csr(&approved, ""), csr(&approved, "x"), ""),
            (
                "status",
                csr(&approved, "x"),
                csr(&approved, "y"),
                "may not modify existing",
            ),
            (
                "status",
                csr(&approved, "x"),
                csr(&approved, ""),
                "may not modify existing",
            ),
        ] {
            let (mut new, mut causes) = (new, Causes::default());
            new["spec"]["username"] = json!("root");
            prepare_subresource(part, &mut new, &old);
            assert_eq!(new["spec"], old["spec"], "who asked is immutable");
            validate_subresource(part, &new, &old, &mut causes);
            let got = causes.0.first().map_or("", |cause| &cause.message);
            let fits = got.contains(want) && got.is_empty() == want.is_empty();
            assert!(fits, "{part} {old} {new}: {got}");
        }
    }

    #[test]
    fn conditions_and_certificates() {
        let dir = tempfile::tempdir().expect("a folder");
        let pki = crate::pki::Pki::open(dir.path()).expect("made");
        let headers = pki
            .ca_pem()
            .replacen("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1);
        let key = pki.ca_pem().replace("CERTIFICATE", "PRIVATE KEY");
        for (conditions, certificate, good) in [
            (&[("Approved", "True")][..], "", true),
            (&[("Approved", "False")], "", false),
            (&[("Approved", "")], "", false),
            (&[("", "True")], "", false),
            (&[("Other", "Unknown")], "", true),
            (&[("Approved", "True"), ("Denied", "True")], "", false),
            (&[("Denied", "True"), ("Denied", "True")], "", false),
            (&[], pki.ca_pem(), true),
            (&[], &format!("{0}{0}", pki.ca_pem()), true),
            (&[], &key, false),
            (&[], &headers, false),
            (&[], "nonsense", false),
        ] {
            let (csr, mut causes) = (csr(conditions, certificate), Causes::default());
            validate_conditions(&csr, &mut causes);
            let certificate = certificate_problem(text(&csr, "status.certificate"));
            let got = causes.0.is_empty() && certificate.is_ok();
            assert_eq!(got, good, "{conditions:?} {certificate:?}");
        }
    }

    #[test]
    fn conditions_are_dated() {
        let old = json!({"status": {"conditions": [
            {"type": "Approved", "status": "True", "lastTransitionTime": "before"}]}});
        let mut new = json!({"status": {"conditions": [
            {"type": "Approved", "status": "True"}, {"type": "Failed", "status": "True"}]}});
        date_conditions(&mut new, &old, "now");
        let times: Vec<(&str, &str)> = items(&new, "status.conditions")
            .iter()
            .map(|one| (text(one, "lastTransitionTime"), text(one, "lastUpdateTime")))
            .collect();
        assert_eq!(times, [("before", "now"), ("now", "now")]);
    }
}
