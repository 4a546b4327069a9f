//! Certificate signing requests: what they ask for, and signing them.
//!
//! Read by the API server, which refuses those that cannot be read, and by the signer of approved
//! ones: both see the same request because both read it here.
//! Always true: what was read carries a signature by the key it asks a certificate for; what is
//! signed is never an authority and never outlives the authority.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData, SanType,
    SubjectPublicKeyInfo,
};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    x509::X509Name,
};

use super::{
    BACKDATE, Error, Pki,
    der::{self, ATTRIBUTES, Attribute},
    leaf::{self, Leaf, Usage, address},
    usages::{Purpose, purpose},
};

/// The PEM block that a request is.
const LABEL: &str = "CERTIFICATE REQUEST";
/// A larger request is not read.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Certificates that live shorter than this end when they were asked to; longer ones end earlier
/// by as much as they begin earlier.
const SHORT: Duration = Duration::from_secs(8 * 60 * 60);
const SHA1_WITH_RSA: &str = "1.2.840.113549.1.1.5";

/// A request whose signature was checked: whoever made it holds the key.
pub struct Request {
    /// Empty where the subject has none; the last where it has several.
    pub common_name: String,
    pub organizations: Vec<String>,
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    /// The subject as certificates get it.
    subject: Vec<u8>,
    key: SubjectPublicKeyInfo,
}

/// Whom an earlier certificate of a request's key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    pub user: String,
    pub groups: Vec<String>,
    /// When it was issued, by the authority's clock.
    pub issued: SystemTime,
}

/// A request for others to sign, with its key, both as PEM.
pub struct SigningRequest {
    pub pem: String,
    pub key: String,
}

impl SigningRequest {
    /// With a new key, for all that `leaf` says but its usages, which go beside the request.
    pub fn new(leaf: &Leaf) -> Result<Self, Error> {
        Self::of(leaf, KeyPair::generate())
    }

    /// The same with a key that an earlier certificate is for.
    pub fn with_key(leaf: &Leaf, key_pem: &str) -> Result<Self, Error> {
        Self::of(leaf, KeyPair::from_pem(key_pem))
    }

    fn of(leaf: &Leaf, key: Result<KeyPair, rcgen::Error>) -> Result<Self, Error> {
        let failed = |source| Error::Issue {
            action: "ask for",
            subject: leaf.user.clone(),
            source,
        };
        let key = key.map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for group in &leaf.groups {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params
            .distinguished_name
            .push(DnType::CommonName, &leaf.user);
        for name in &leaf.names {
            let name = name.as_str().try_into().map_err(failed)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = leaf.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        let request = params.serialize_request(&key).map_err(failed)?;
        Ok(Self {
            pem: request.pem().map_err(failed)?,
            key: key.serialize_pem(),
        })
    }
}

fn unreadable(reason: impl Into<String>) -> Error {
    Error::Request(reason.into())
}

impl Request {
    /// Reads the first PEM block.
    pub fn parse(pem: &[u8]) -> Result<Self, Error> {
        if pem.len() > MAX_REQUEST_BYTES {
            let reason = format!("a request may not be larger than {MAX_REQUEST_BYTES} bytes");
            return Err(unreadable(reason));
        }
        let block = x509_parser::pem::parse_x509_pem(pem).map(|(_, block)| block);
        let block = block
            .ok()
            .filter(|block| block.label == LABEL)
            .ok_or_else(|| unreadable(format!("PEM block type must be {LABEL}")))?;
        let (rest, request) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|error| unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("bytes follow the request"));
        }
        if request.signature_algorithm.algorithm.to_id_string() == SHA1_WITH_RSA {
            return Err(unreadable("a signature with SHA-1 proves nothing"));
        }
        request.verify_signature().map_err(|error| {
            unreadable(format!("the request is not signed by its own key: {error}"))
        })?;
        let info = &request.certification_request_info;
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|error| unreadable(format!("public key: {error}")))?;
        let mut subject = subject(&info.subject)?;
        let mut read = Self {
            subject: der::name(ATTRIBUTES.iter().flat_map(|kind| {
                let values = subject.get(kind).into_iter().flatten();
                values.map(move |value| (*kind, value.as_str()))
            })),
            common_name: subject
                .get(&Attribute::CommonName)
                .and_then(|all| all.last().cloned())
                .unwrap_or_default(),
            organizations: subject.remove(&Attribute::Organization).unwrap_or_default(),
            names: Vec::new(),
            addresses: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
            key,
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            match extension {
                ParsedExtension::SubjectAlternativeName(names) => {
                    read.take_names(&names.general_names)?;
                }
                ParsedExtension::ParseError { error } => {
                    return Err(unreadable(format!("extension: {error}")));
                }
                // No signer grants what is asked for in other extensions.
                _ => {}
            }
        }
        Ok(read)
    }

    /// Names of other sorts are not carried into certificates.
    fn take_names(&mut self, names: &[GeneralName<'_>]) -> Result<(), Error> {
        for name in names {
            match name {
                GeneralName::DNSName(name) => self.names.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => self.emails.push((*name).to_owned()),
                GeneralName::URI(name) => self.uris.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let wrong = || unreadable(format!("an IP address of {} bytes", bytes.len()));
                    self.addresses.push(address(bytes).ok_or_else(wrong)?);
                }
                GeneralName::Invalid(..) => {
                    return Err(unreadable("a subject alternative name that is not text"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// See [`Pki::former`].
    pub(super) fn former(&self, certificate: &str, ca: &str) -> Option<Former> {
        let facts = leaf::Facts::read(certificate)?;
        let counts = facts.public_key == self.key.subject_public_key_info()
            && facts.usages.contains(&Usage::Client)
            && leaf::signed_by(certificate, ca);
        counts.then(|| Former {
            issued: facts.validity.from + BACKDATE,
            user: facts.user,
            groups: facts.groups,
        })
    }

    fn alternative_names(&self) -> Result<Vec<SanType>, rcgen::Error> {
        let mut names = Vec::new();
        for name in &self.names {
            names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        for name in &self.emails {
            names.push(SanType::Rfc822Name(name.as_str().try_into()?));
        }
        for name in &self.uris {
            names.push(SanType::URI(name.as_str().try_into()?));
        }
        names.extend(self.addresses.iter().copied().map(SanType::IpAddress));
        Ok(names)
    }
}

/// The attributes that certificates carry. One that is not text is an error: it would be another
/// for each who reads it.
fn subject(name: &X509Name<'_>) -> Result<BTreeMap<Attribute, Vec<String>>, Error> {
    let mut values: BTreeMap<Attribute, Vec<String>> = BTreeMap::new();
    for attribute in name.iter_attributes() {
        let id = attribute.attr_type().to_id_string();
        let known = |kind: &&Attribute| id == format!("2.5.4.{}", **kind as u8);
        let Some(kind) = ATTRIBUTES.iter().find(known) else {
            continue;
        };
        let value = attribute
            .as_str()
            .map_err(|_| unreadable(format!("attribute {id} of the subject is not text")))?;
        let all = values.entry(*kind).or_default();
        // A subject has one of these; the last is the one that counts.
        if matches!(kind, Attribute::CommonName | Attribute::SerialNumber) {
            all.clear();
        }
        all.push(value.to_owned());
    }
    Ok(values)
}

impl Pki {
    /// Signs what `request` asks for, for `usages` (in the API's words) and `life`, at most until
    /// the authority's own end. Whether it may have that is the caller's to decide. PEM.
    pub fn sign(
        &self,
        request: &Request,
        usages: &[&str],
        life: Duration,
        now: SystemTime,
    ) -> Result<String, Error> {
        let authority = &self.inner.cluster;
        if now >= authority.validity.to {
            return Err(unreadable("the cluster's authority has expired"));
        }
        let mut params = CertificateParams::default();
        for usage in usages {
            match purpose(usage) {
                Some(Purpose::Key(purpose)) if !params.key_usages.contains(&purpose) => {
                    params.key_usages.push(purpose);
                }
                Some(Purpose::Extended(purpose)) => params.insert_extended_key_usage(purpose),
                Some(Purpose::Key(_)) => {}
                None => return Err(unreadable(format!("unrecognized usage {usage:?}"))),
            }
        }
        let failed = |source| Error::Issue {
            action: "sign",
            subject: request.common_name.clone(),
            source,
        };
        params.subject_alt_names = request.alternative_names().map_err(failed)?;
        let validity = granted(life, now, authority.validity.to);
        let signed = leaf::signed(
            params,
            &request.key,
            &authority.issuer,
            validity,
            &request.subject,
        );
        Ok(der::pem("CERTIFICATE", &signed.map_err(failed)?))
    }
}

/// From when to when a certificate of this life holds. Pure.
fn granted(life: Duration, now: SystemTime, authority_ends: SystemTime) -> leaf::Validity {
    let to = match life < SHORT {
        true => now + life,
        false => now + life - BACKDATE,
    };
    leaf::Validity {
        from: now - BACKDATE,
        to: to.min(authority_ends),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn how_long_a_certificate_holds() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let now = at(1_000_000);
        let far = at(1 << 32);
        for (life, authority_ends, from, to) in [
            (600, far, 999_700, 1_000_600),
            (8 * 3600 - 1, far, 999_700, 1_028_799),
            // Beginning five minutes early, it ends five minutes early.
            (8 * 3600, far, 999_700, 1_028_500),
            (86_400, far, 999_700, 1_086_100),
            // Nobody vouches for it any longer than the authority lives.
            (86_400, at(1_000_001), 999_700, 1_000_001),
        ] {
            let got = granted(Duration::from_secs(life), now, authority_ends);
            assert_eq!((got.from, got.to), (at(from), at(to)), "{life}");
        }
    }

    #[test]
    fn what_is_asked_for_is_what_is_read() {
        let address = "192.0.2.7".parse().unwrap();
        for leaf in [
            Leaf::node_client("n"),
            Leaf::kubelet_serving("n", &[address]),
        ] {
            let made = SigningRequest::new(&leaf).unwrap();
            let read = Request::parse(made.pem.as_bytes()).unwrap();
            assert_eq!(read.common_name, leaf.user);
            assert_eq!(read.organizations, leaf.groups);
            assert_eq!((read.names, read.addresses), (leaf.names, leaf.addresses));
            assert!(KeyPair::from_pem(&made.key).is_ok());
        }
    }

    #[test]
    fn an_earlier_certificate_counts_for_its_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let [pki, strangers] = ["ours", "theirs"].map(|name| {
            let dir = dir.path().join(name);
            Pki::open(&dir).unwrap()
        });
        let leaf = Leaf::node_client("n");
        let first = SigningRequest::new(&leaf).unwrap();
        let day = Duration::from_secs(86_400);
        let long_ago = SystemTime::now() - 30 * day;
        let sign = |pki: &Pki, pem: &str, usages: &[&str]| {
            let request = Request::parse(pem.as_bytes()).unwrap();
            pki.sign(&request, usages, day, long_ago).unwrap()
        };
        let client = ["client auth", "digital signature"];
        let expired = sign(&pki, &first.pem, &client);
        let again = SigningRequest::with_key(&leaf, &first.key).unwrap();
        let other = SigningRequest::new(&leaf).unwrap();
        for (certificate, request, want) in [
            (&expired, &again, true),
            (&expired, &other, false),
            (&sign(&strangers, &first.pem, &client), &again, false),
            (&sign(&pki, &first.pem, &["server auth"]), &again, false),
            (&"x".to_owned(), &again, false),
        ] {
            let request = Request::parse(request.pem.as_bytes()).unwrap();
            let former = pki.former(certificate, &request);
            assert_eq!(former.is_some(), want);
            if let Some(former) = former {
                assert_eq!(former.user, "system:node:n");
                assert_eq!(former.groups, ["system:nodes"]);
                let late = long_ago.duration_since(former.issued).unwrap();
                assert!(late < Duration::from_secs(1), "{late:?}");
            }
        }
        // Their threads write into the folders.
        for pki in [pki, strangers] {
            pki.token_keys().signing().unwrap();
        }
    }

    /// A request that openssl makes for a new key.
    fn made(options: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let command =
            format!("openssl req -new -nodes -keyout key -subj /CN=a {options} 2>/dev/null");
        let mut shell = std::process::Command::new("sh");
        let made = shell
            .args(["-c", &command])
            .current_dir(folder.path())
            .output();
        made.unwrap().stdout
    }

    #[test]
    fn which_keys_are_taken() {
        for (options, good) in [
            ("-newkey rsa:2048", true),
            ("-newkey rsa:1024", false),
            ("-newkey rsa:2048 -sha1", false),
            ("-newkey ec -pkeyopt ec_paramgen_curve:P-256", true),
            ("-newkey ec -pkeyopt ec_paramgen_curve:P-384 -sha384", true),
            ("-newkey ec -pkeyopt ec_paramgen_curve:secp256k1", false),
            ("-newkey ed25519", true),
            ("-newkey ed448", false),
        ] {
            let pem = made(options);
            assert!(!pem.is_empty(), "openssl makes none with {options}");
            let request = Request::parse(&pem);
            assert_eq!(request.is_ok(), good, "{options}: {:?}", request.err());
        }
    }
}
