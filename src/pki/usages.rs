//! What a certificate may be used for, in the API's words.

use rcgen::{ExtendedKeyUsagePurpose as Extended, KeyUsagePurpose as Key};

/// A usage of a signing request, as certificates write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Key(Key),
    Extended(Extended),
}

/// `None`: no usage has this name.
pub(super) fn purpose(usage: &str) -> Option<Purpose> {
    let pkix = |last: u64| Extended::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, last]);
    Some(match usage {
        "signing" | "digital signature" => Purpose::Key(Key::DigitalSignature),
        "content commitment" => Purpose::Key(Key::ContentCommitment),
        "key encipherment" => Purpose::Key(Key::KeyEncipherment),
        "key agreement" => Purpose::Key(Key::KeyAgreement),
        "data encipherment" => Purpose::Key(Key::DataEncipherment),
        "cert sign" => Purpose::Key(Key::KeyCertSign),
        "crl sign" => Purpose::Key(Key::CrlSign),
        "encipher only" => Purpose::Key(Key::EncipherOnly),
        "decipher only" => Purpose::Key(Key::DecipherOnly),
        "any" => Purpose::Extended(Extended::Any),
        "server auth" => Purpose::Extended(Extended::ServerAuth),
        "client auth" => Purpose::Extended(Extended::ClientAuth),
        "code signing" => Purpose::Extended(Extended::CodeSigning),
        "email protection" | "s/mime" => Purpose::Extended(Extended::EmailProtection),
        "ipsec end system" => Purpose::Extended(pkix(5)),
        "ipsec tunnel" => Purpose::Extended(pkix(6)),
        "ipsec user" => Purpose::Extended(pkix(7)),
        "timestamping" => Purpose::Extended(Extended::TimeStamping),
        "ocsp signing" => Purpose::Extended(Extended::OcspSigning),
        "microsoft sgc" => {
            Purpose::Extended(Extended::Other(vec![1, 3, 6, 1, 4, 1, 311, 10, 3, 3]))
        }
        "netscape sgc" => Purpose::Extended(Extended::Other(vec![2, 16, 840, 1, 113_730, 4, 1])),
        _ => return None,
    })
}
