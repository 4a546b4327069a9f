//! A certificate that somebody else signs, as servers and clients of this process show it.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{
    Error, Identity,
    leaf::{Facts, Validity},
    renewal::{Due, due},
    tls::certified,
};

/// A certificate with its key, which another one takes the place of in time ([`Held::replace`]). Every
/// handshake shows the newest.
pub struct Held(RwLock<Current>);

struct Current {
    identity: Identity,
    key: Arc<CertifiedKey>,
    validity: Validity,
    addresses: BTreeSet<IpAddr>,
    spread: u8,
}

impl Current {
    fn new(identity: Identity) -> Result<Self, Error> {
        let facts = Facts::read(&identity.certificate)
            .ok_or_else(|| Error::Request("the certificate cannot be read".to_owned()))?;
        Ok(Self {
            key: Arc::new(certified(&identity)?),
            validity: facts.validity,
            addresses: facts.addresses,
            spread: rand::random(),
            identity,
        })
    }
}

impl Held {
    pub fn new(identity: Identity) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self(RwLock::new(Current::new(identity)?))))
    }

    pub fn identity(&self) -> Identity {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.identity.clone()
    }

    pub fn replace(&self, identity: Identity) -> Result<(), Error> {
        let new = Current::new(identity)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// When another one shall be asked for, of an authority that ends then.
    pub fn due(&self, authority_ends: SystemTime, now: SystemTime) -> Due {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        due(current.validity, authority_ends, current.spread, now)
    }

    /// Whether it is one for all of these addresses.
    pub fn is_for(&self, addresses: &[IpAddr]) -> bool {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        addresses.iter().all(|one| current.addresses.contains(one))
    }

    /// Whether it is worth nothing any more.
    pub fn has_ended(&self, now: SystemTime) -> bool {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        now >= current.validity.to
    }

    fn shown(&self) -> Arc<CertifiedKey> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.key.clone()
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Held").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Held {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown())
    }
}

impl ResolvesClientCert for Held {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.shown())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pki::{Leaf, Pki};

    #[test]
    fn the_newest_is_shown() {
        let dir = tempfile::tempdir().expect("a folder");
        let pki = Pki::open(dir.path()).expect("made");
        let issued = || pki.issue(&Leaf::node_client("n")).expect("issued");
        let (first, second) = (issued(), issued());
        let held = Held::new(first.clone()).expect("usable");
        assert!(held.identity() == first);
        let shown = held.shown();
        held.replace(second.clone()).expect("usable");
        assert!(held.identity() == second);
        assert!(!Arc::ptr_eq(&shown, &held.shown()));

        let now = SystemTime::now();
        let day = |days: u64| now + Duration::from_secs(days * 86_400);
        let ends = day(3650);
        assert!(matches!(held.due(ends, now), Due::At(at) if day(240) < at && at < day(282)));
        assert_eq!(held.due(ends, day(300)), Due::Now);
        assert!(!held.has_ended(day(364)) && held.has_ended(day(366)));
        let broken = Identity {
            certificate: "no".to_owned(),
            ..second.clone()
        };
        assert!(held.replace(broken).is_err());
        assert!(held.identity() == second, "what is there stays");

        let [own, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().expect("one"));
        let serving = pki.issue(&Leaf::kubelet_serving("n", &[own]));
        held.replace(serving.expect("issued")).expect("usable");
        assert!(held.is_for(&[own]) && held.is_for(&[]));
        assert!(!held.is_for(&[own, other]));
    }
}
