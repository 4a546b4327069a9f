//! Certificate signing requests.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource, SpecialSubresource,
    Subresource::{Special, Status},
    kinds::{
        cells::{NONE, short_duration, text_or_none},
        names,
        row::{self, AGE, column, field, read, special},
        value::{at, has, items, keep, number, set, text, texts},
    },
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
        validate,
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

fn validate(csr: &Value, causes: &mut Causes) {
    names::object_name(csr, names::path_segment, causes);
    let pem = BASE64_STANDARD
        .decode(text(csr, "spec.request"))
        .unwrap_or_default();
    let parsed = x509_parser::pem::parse_x509_pem(&pem)
        .is_ok_and(|(_, pem)| pem.label == "CERTIFICATE REQUEST");
    if !parsed {
        causes.invalid(
            "spec.request",
            text(csr, "spec.request"),
            "PEM block type must be CERTIFICATE REQUEST",
        );
    }
    let signer = text(csr, "spec.signerName");
    if signer.is_empty() {
        causes.required("spec.signerName", "");
    } else if !signer.contains('/') {
        causes.invalid(
            "spec.signerName",
            signer,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
    }
    let usages = texts(csr, "spec.usages");
    if usages.is_empty() {
        causes.required("spec.usages", "usages must be provided");
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
    let has_condition = |kind: &str| {
        items(csr, "status.conditions")
            .iter()
            .any(|condition| text(condition, "type") == kind)
    };
    if has_condition("Approved") && has_condition("Denied") {
        causes.invalid(
            "status.conditions",
            "Denied",
            "Approved and Denied conditions are mutually exclusive",
        );
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
