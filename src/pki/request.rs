//! Certificate signing requests.

use std::time::Duration;

use rcgen::{CertificateSigningRequestParams, PublicKey};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use super::{
    Error, Leaf, Pki, Usage, der,
    leaf::{address, common_name, organizations},
};

/// A request whose signature was checked: whoever made it holds the key.
pub struct Request {
    /// What it asks for. `usages` is what the signer grants, so it is empty here.
    pub leaf: Leaf,
    /// Asks for names of a sort that no signer of ours grants (e-mail, URI).
    pub other_names: bool,
    key: PublicKey,
}

impl Request {
    /// Reads a PEM request.
    pub fn parse(pem: &str) -> Result<Self, Error> {
        let checked = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|error| Error::Request(error.to_string()))?;
        let unreadable = |reason: &str| Error::Request(reason.to_owned());
        let (_, block) =
            x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| unreadable("not PEM"))?;
        let (_, request) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|_| unreadable("not a signing request"))?;
        let subject = &request.certification_request_info.subject;
        let mut leaf = Leaf {
            user: common_name(subject).ok_or_else(|| unreadable("no common name"))?,
            groups: organizations(subject),
            names: Vec::new(),
            addresses: Vec::new(),
            usages: Vec::new(),
        };
        let mut other_names = false;
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else {
                continue;
            };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => leaf.names.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => leaf.addresses.extend(address(bytes)),
                    _ => other_names = true,
                }
            }
        }
        Ok(Self {
            leaf,
            other_names,
            key: checked.public_key,
        })
    }
}

impl Pki {
    /// Signs what `request` asks for, for `usages` and `life` only. Whether it may have that is
    /// the caller's to decide. PEM.
    pub fn sign(
        &self,
        request: &Request,
        usages: Vec<Usage>,
        life: Duration,
    ) -> Result<String, Error> {
        let leaf = Leaf {
            usages,
            ..request.leaf.clone()
        };
        let signed = leaf.sign(&request.key, &self.inner.cluster.issuer, life);
        let signed = signed.map_err(|source| Error::Issue {
            action: "sign",
            subject: leaf.user,
            source,
        })?;
        Ok(der::pem("CERTIFICATE", &signed))
    }
}
