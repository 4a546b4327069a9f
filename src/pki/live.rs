//! Certificates in use, each issued anew in good time for as long as it is used.
//!
//! Servers and clients take the certificate that they show from a [`Live`] at every handshake, so
//! that a new one needs no restart. [`renew_in_time`] is the one task that renews; a handshake
//! that finds a certificate which should have been renewed, because the clock was set, does so.
//! Always true: a certificate that cannot be renewed goes on being shown.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::{Instant, SystemTime},
};

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use super::{
    Authority, Error, Identity, Leaf, Pki,
    renewal::{Due, due},
    rounds::{LOOK, RETRY, Rounds},
    tls::certified,
};

/// One certificate with its key, renewed in time.
pub struct Live {
    pki: Pki,
    signer: Signer,
    leaf: Leaf,
    /// The files it is kept in.
    name: Option<String>,
    current: RwLock<Current>,
    /// Hears of each new one.
    publish: Mutex<Option<Publish>>,
}

type Publish = Box<dyn Fn(&Identity) + Send + Sync>;

/// Which authority vouches for it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signer {
    Cluster,
    FrontProxy,
}

struct Current {
    identity: Identity,
    key: Arc<CertifiedKey>,
    due: Wait,
}

/// The decision over a certificate, made once for it.
#[derive(Clone, Copy)]
struct Wait {
    validity: super::leaf::Validity,
    spread: u8,
    /// When it could not be renewed.
    failed: Option<Instant>,
}

impl Live {
    pub(super) fn new(
        pki: &Pki,
        signer: Signer,
        name: Option<&str>,
        leaf: Leaf,
    ) -> Result<Arc<Self>, Error> {
        let authority = pki.authority(signer);
        let identity = match name {
            Some(name) => pki.kept(authority, name, &leaf)?,
            None => authority.issue(&leaf)?,
        };
        let live = Arc::new(Self {
            pki: pki.clone(),
            signer,
            leaf,
            name: name.map(str::to_owned),
            current: RwLock::new(Current::new(identity)?),
            publish: Mutex::default(),
        });
        let mut all = pki
            .inner
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&live));
        Ok(live)
    }

    /// The certificate as it is now.
    pub fn identity(&self) -> Identity {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.identity.clone()
    }

    /// Calls `publish` with each certificate that takes the place of this one.
    pub fn on_renewal(&self, publish: impl Fn(&Identity) + Send + Sync + 'static) {
        let mut kept = self.publish.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(Box::new(publish));
    }

    /// What to show at `now`.
    fn shown(&self, now: SystemTime) -> Arc<CertifiedKey> {
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if self.due(&current, now) != Due::Now {
                return current.key.clone();
            }
        }
        self.renew(now);
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.key.clone()
    }

    fn due(&self, current: &Current, now: SystemTime) -> Due {
        let wait = current.due;
        if wait.failed.is_some_and(|at| at.elapsed() < RETRY) {
            return Due::At(now + RETRY);
        }
        due(
            wait.validity,
            self.authority().validity.to,
            wait.spread,
            now,
        )
    }

    fn authority(&self) -> &Authority {
        self.pki.authority(self.signer)
    }

    /// Issues it anew if that is due; when to look again.
    fn renew(&self, now: SystemTime) -> Due {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if self.due(&current, now) == Due::Now {
            let issued = match &self.name {
                Some(name) => self.pki.reissued(self.authority(), name, &self.leaf),
                None => self.authority().issue(&self.leaf),
            };
            let user = &self.leaf.user;
            match issued.and_then(Current::new) {
                Ok(issued) => {
                    tracing::info!(user, "certificate renewed");
                    *current = issued;
                    let publish = self.publish.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(publish) = &*publish {
                        publish(&current.identity);
                    }
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(user, error, "certificate not renewed");
                    current.due.failed = Some(Instant::now());
                }
            }
        }
        self.due(&current, now)
    }
}

impl Current {
    fn new(identity: Identity) -> Result<Self, Error> {
        let facts = super::leaf::Facts::read(&identity.certificate)
            .ok_or_else(|| Error::Request("a certificate just issued cannot be read".to_owned()))?;
        Ok(Self {
            key: Arc::new(certified(&identity)?),
            due: Wait {
                validity: facts.validity,
                spread: rand::random(),
                failed: None,
            },
            identity,
        })
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Live").field("leaf", &self.leaf).finish()
    }
}

impl ResolvesServerCert for Live {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown(SystemTime::now()))
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.shown(SystemTime::now()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Pki {
    /// Renews all that is due at `now`; when the next will be.
    fn renew(&self, now: SystemTime) -> Option<SystemTime> {
        let all: Vec<Arc<Live>> = {
            let all = self
                .inner
                .live
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        let next = all.iter().filter_map(|live| match live.renew(now) {
            Due::At(at) => Some(at),
            Due::Now | Due::Never => None,
        });
        next.min()
    }
}

/// Renews every certificate in use, until `shutdown`.
pub async fn renew_in_time(pki: Pki, shutdown: CancellationToken) -> Result<(), JoinError> {
    let mut rounds = Rounds::new();
    loop {
        let renewing = pki.clone();
        // It writes files.
        let renewed = tokio::task::spawn_blocking(move || renewing.renew(SystemTime::now()));
        let next = renewed.await?;
        let wait = next.map_or(LOOK, |next| {
            next.duration_since(SystemTime::now()).unwrap_or(RETRY)
        });
        if !rounds.next(wait, &shutdown).await {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// The certificate that the client has shown, as the server knows it.
    async fn handshake(
        server: &Arc<rustls::ServerConfig>,
        client: &Arc<rustls::ClientConfig>,
    ) -> Vec<u8> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (near, far) = tokio::io::duplex(1 << 16);
        let serving = async {
            let acceptor = tokio_rustls::TlsAcceptor::from(server.clone());
            let mut accepted = acceptor.accept(far).await.expect("accepted");
            // By then the client has what it needs to take the session up again.
            accepted.write_all(b"hello").await.expect("written");
            let chain = accepted.get_ref().1.peer_certificates();
            chain.expect("a client's certificate")[0].to_vec()
        };
        let asking = async {
            let connector = tokio_rustls::TlsConnector::from(client.clone());
            let name = "kubernetes.default".try_into().expect("a name");
            let mut connected = connector.connect(name, near).await.expect("connected");
            connected.read_exact(&mut [0; 5]).await.expect("read");
        };
        tokio::join!(serving, asking).0
    }

    #[tokio::test]
    async fn each_handshake_shows_the_certificate_of_its_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let pki = Pki::open(dir.path()).expect("made");
        let leaf = Leaf::api_server("node-1", &[], &[]);
        let server = super::super::server_config(&pki, leaf).expect("server settings");
        let live = pki
            .live_in_memory(Leaf::client("jane", &[]))
            .expect("issued");
        let client = super::super::live_client_config(pki.ca_pem(), live.clone());
        let (server, client) = (Arc::new(server), Arc::new(client.expect("client settings")));
        let first = handshake(&server, &client).await;
        assert_eq!(handshake(&server, &client).await, first);
        // As when it was issued by a clock that was set back since.
        live.renew(SystemTime::now() - Duration::from_secs(36_000));
        assert_ne!(handshake(&server, &client).await, first);
    }

    #[test]
    fn a_certificate_in_use_is_renewed_and_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let pki = Pki::open(dir.path()).expect("made");
        let leaf = Leaf::client("admin", &["system:masters"]);
        let live = pki.live("admin", leaf.clone()).expect("issued");
        let memory = pki.live_in_memory(leaf.clone()).expect("issued");
        let first = live.identity();
        let (told, heard) = mpsc::channel();
        live.on_renewal(move |identity| told.send(identity.certificate.clone()).expect("heard"));

        let now = SystemTime::now();
        let day = |days: u64| now + Duration::from_secs(days * 86_400);
        let next = pki.renew(now).expect("a time");
        assert!(day(240) < next && next < day(282), "{next:?}");
        assert!(live.identity() == first, "too early");

        pki.renew(day(300));
        let second = live.identity();
        assert!(second != first, "renewed");
        assert_eq!(heard.recv().expect("told"), second.certificate);
        let kept = std::fs::read_to_string(dir.path().join("admin.crt")).expect("kept");
        assert_eq!(kept, second.certificate);
        // Whoever takes it from the files has the same one.
        assert!(pki.identity("admin", &leaf).expect("kept") == second);

        // A handshake after the clock was set forwards renews as well, and backwards too.
        let shown = memory.shown(now);
        assert!(!Arc::ptr_eq(&shown, &memory.shown(day(300))));
        let shown = memory.shown(now);
        assert!(!Arc::ptr_eq(
            &shown,
            &memory.shown(now - Duration::from_secs(3600))
        ));
        drop((live, memory));
        assert_eq!(pki.renew(now), None, "nobody uses them");
    }
}
