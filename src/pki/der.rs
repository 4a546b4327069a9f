//! The few bytes of DER that rcgen cannot write: a subject with several organizations (groups),
//! and a certificate with such a subject.

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{KeyPair, SigningKey};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const BIT_STRING: u8 = 0x03;
const ECDSA_WITH_SHA256: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];

fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        out.push(0x80 | (bytes.len() - zeros) as u8);
        out.extend_from_slice(&bytes[zeros..]);
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// The attributes of a subject that are carried into a certificate. All are `2.5.4.<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attribute {
    CommonName = 3,
    SerialNumber = 5,
    Country = 6,
    Locality = 7,
    Province = 8,
    Street = 9,
    Organization = 10,
    Unit = 11,
    PostalCode = 17,
}

/// In the order in which upstream writes them.
pub const ATTRIBUTES: [Attribute; 9] = [
    Attribute::Country,
    Attribute::Organization,
    Attribute::Unit,
    Attribute::Locality,
    Attribute::Province,
    Attribute::Street,
    Attribute::PostalCode,
    Attribute::CommonName,
    Attribute::SerialNumber,
];

/// An X.509 name of these attributes, one after the other.
pub fn name<'a>(attributes: impl IntoIterator<Item = (Attribute, &'a str)>) -> Vec<u8> {
    let names: Vec<Vec<u8>> = attributes
        .into_iter()
        .map(|(kind, value)| {
            // X.520 has countries and serial numbers printable only.
            let tag = match kind {
                Attribute::Country | Attribute::SerialNumber => PRINTABLE_STRING,
                _ => UTF8_STRING,
            };
            let identifier = [0x06, 0x03, 0x55, 0x04, kind as u8];
            let value = element(tag, &[value.as_bytes()]);
            element(SET, &[&element(SEQUENCE, &[&identifier, &value])])
        })
        .collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    element(SEQUENCE, &names)
}

/// An X.509 name: each group as an organization, then the user as common name.
pub fn subject(user: &str, groups: &[String]) -> Vec<u8> {
    let groups = groups
        .iter()
        .map(|group| (Attribute::Organization, group.as_str()));
    name(groups.chain([(Attribute::CommonName, user)]))
}

/// `certificate` with another subject, signed by the P-256 key `ca`.
pub fn with_subject(
    certificate: &[u8],
    subject: &[u8],
    ca: &KeyPair,
) -> Result<Vec<u8>, rcgen::Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
    let to_be_signed = parsed.tbs_certificate.as_ref();
    let old = parsed.tbs_certificate.subject().as_raw();
    let start = old.as_ptr() as usize - to_be_signed.as_ptr() as usize;
    let content = header_length(to_be_signed);
    let new = element(
        SEQUENCE,
        &[
            &to_be_signed[content..start],
            subject,
            &to_be_signed[start + old.len()..],
        ],
    );
    let signature = element(BIT_STRING, &[&[0], &ca.sign(&new)?]);
    Ok(element(SEQUENCE, &[&new, ECDSA_WITH_SHA256, &signature]))
}

/// Bytes of tag and length before an element's content.
fn header_length(element: &[u8]) -> usize {
    match element.get(1) {
        Some(length) if *length >= 0x80 => 2 + usize::from(length & 0x7f),
        _ => 2,
    }
}

pub fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
