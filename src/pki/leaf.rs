//! What a certificate is for, and what a given certificate says.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, pem::Pem, x509::X509Name,
};

use super::der;

/// What the holder may do with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    Server,
    Client,
}

/// A certificate wished for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The common name.
    pub user: String,
    /// The organizations.
    pub groups: Vec<String>,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub usages: Vec<Usage>,
}

impl Leaf {
    /// A user, by certificate.
    pub fn client(user: &str, groups: &[&str]) -> Self {
        Self {
            user: user.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            names: Vec::new(),
            addresses: Vec::new(),
            usages: vec![Usage::Client],
        }
    }

    /// The user a node's kubelet is.
    pub fn node_client(node: &str) -> Self {
        Self::client(&format!("system:node:{node}"), &["system:nodes"])
    }

    /// The API server on `node`. `addresses`: the host's and the `kubernetes` service's;
    /// the loopback addresses are added.
    pub fn api_server(node: &str, addresses: &[IpAddr], names: &[String]) -> Self {
        let fixed = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            node,
        ];
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Self {
            user: "kube-apiserver".to_owned(),
            groups: Vec::new(),
            names: distinct(
                fixed
                    .iter()
                    .map(|name| (*name).to_owned())
                    .chain(names.iter().cloned()),
            ),
            addresses: distinct(loopback.into_iter().chain(addresses.iter().copied())),
            usages: vec![Usage::Server],
        }
    }

    /// A kubelet's own endpoint.
    pub fn kubelet_serving(node: &str, addresses: &[IpAddr]) -> Self {
        Self {
            user: format!("system:node:{node}"),
            groups: vec!["system:nodes".to_owned()],
            names: vec![node.to_owned()],
            addresses: distinct(addresses.iter().copied()),
            usages: vec![Usage::Server],
        }
    }

    /// The certificate's DER.
    pub(super) fn sign(
        &self,
        key: &impl PublicKeyData,
        ca: &Issuer<'_, KeyPair>,
        validity: Validity,
    ) -> Result<Vec<u8>, rcgen::Error> {
        let mut params = CertificateParams::default();
        for name in &self.names {
            let name = name.as_str().try_into()?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = self.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = self
            .usages
            .iter()
            .map(|usage| match usage {
                Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
                Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            })
            .collect();
        let subject = der::subject(&self.user, &self.groups);
        signed(params, key, ca, validity, &subject)
    }
}

/// From when to when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: SystemTime,
    pub to: SystemTime,
}

/// A certificate's DER: of `key`, named `subject`, never an authority.
pub(super) fn signed(
    mut params: CertificateParams,
    key: &impl PublicKeyData,
    ca: &Issuer<'_, KeyPair>,
    validity: Validity,
    subject: &[u8],
) -> Result<Vec<u8>, rcgen::Error> {
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes()));
    params.not_before = validity.from.into();
    params.not_after = validity.to.into();
    let certificate = params.signed_by(key, ca)?;
    der::with_subject(certificate.der(), subject, ca.key())
}

fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut kept = Vec::new();
    for item in items {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}

/// What matters of a certificate that exists.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    names: BTreeSet<String>,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) usages: Vec<Usage>,
    pub(super) validity: Validity,
    /// SubjectPublicKeyInfo.
    pub(super) public_key: Vec<u8>,
}

impl Facts {
    pub(super) fn read(pem: &str) -> Option<Self> {
        with_certificate(pem, |certificate| {
            let (names, addresses) = alternative_names(certificate);
            let usage = certificate.extended_key_usage().ok().flatten();
            let usages = [
                (
                    Usage::Server,
                    usage.as_ref().is_some_and(|usage| usage.value.server_auth),
                ),
                (
                    Usage::Client,
                    usage.as_ref().is_some_and(|usage| usage.value.client_auth),
                ),
            ];
            let time =
                |seconds: i64| Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?));
            let validity = certificate.validity();
            Some(Self {
                user: common_name(certificate.subject())?,
                groups: organizations(certificate.subject()),
                names,
                addresses,
                usages: usages
                    .into_iter()
                    .filter_map(|(usage, set)| set.then_some(usage))
                    .collect(),
                validity: Validity {
                    from: time(validity.not_before.timestamp())?,
                    to: time(validity.not_after.timestamp())?,
                },
                public_key: certificate.public_key().raw.to_vec(),
            })
        })
        .flatten()
    }

    /// Whether it says what `leaf` wants, no more and no less.
    pub(super) fn fits(&self, leaf: &Leaf) -> bool {
        self.user == leaf.user
            && self.groups == leaf.groups
            && self.names == leaf.names.iter().cloned().collect()
            && self.addresses == leaf.addresses.iter().copied().collect()
            && self.usages == leaf.usages
    }
}

fn with_certificate<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let pem = Pem::iter_from_buffer(pem.as_bytes()).next()?.ok()?;
    let certificate = pem.parse_x509().ok()?;
    Some(look(&certificate))
}

/// Whether the key of the certificate `ca` made the signature on `certificate`.
pub(super) fn signed_by(certificate: &str, ca: &str) -> bool {
    let verified = with_certificate(ca, |ca| {
        with_certificate(certificate, |certificate| {
            certificate.verify_signature(Some(ca.public_key())).is_ok()
        })
    });
    verified.flatten().unwrap_or(false)
}

pub(super) fn common_name(name: &X509Name<'_>) -> Option<String> {
    let attribute = name.iter_common_name().last()?;
    Some(attribute.as_str().ok()?.to_owned())
}

pub(super) fn organizations(name: &X509Name<'_>) -> Vec<String> {
    name.iter_organization()
        .filter_map(|attribute| Some(attribute.as_str().ok()?.to_owned()))
        .collect()
}

fn alternative_names(certificate: &X509Certificate<'_>) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let extension = certificate.subject_alternative_name().ok().flatten();
    for name in extension
        .iter()
        .flat_map(|found| &found.value.general_names)
    {
        match name {
            GeneralName::DNSName(name) => {
                names.insert((*name).to_owned());
            }
            GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
            _ => {}
        }
    }
    (names, addresses)
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(bytes.into());
    }
    Some(<[u8; 16]>::try_from(bytes).ok()?.into())
}
