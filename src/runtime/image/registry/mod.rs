//! A client of one registry for one pull: the reading half of the distribution protocol.
//!
//! Called by `pull.rs`. Everything that comes back is somebody else's. Always true:
//! - Nothing is read past its limit, and no wait is without an end.
//! - The hosts of a registry are asked in their order, and an error says of each what was asked of it
//!   and what came.

mod access;
mod body;
mod challenge;
mod dial;
mod endpoint;
mod redirects;
mod tls;
mod token;

pub use body::{Body, Download, Patience, Trouble};

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use http::{HeaderMap, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    Error, Outcome,
    digest::Digest,
    hosts::{Asked, Host, Settings},
    json::excerpt,
    keyring::Keyring,
    manifest::{self, Descriptor, Document, MAX_MANIFEST_BYTES},
    reference::Name,
};
use endpoint::Endpoint;

/// Hosts that are told of, and of each.
const MOST_TOLD: usize = 16;
const LONGEST_TOLD: usize = 1000;
const LONGEST_ERROR: usize = 4000;

pub struct Registry<'a> {
    name: &'a Name,
    /// In the order in which they are asked.
    places: Vec<Place>,
    patience: Patience,
    /// What was asked until the image was there.
    tried: Mutex<Vec<String>>,
}

/// A host, and what this pull has found of it.
struct Place {
    endpoint: Endpoint,
    /// It cannot be reached, and is passed over where there is another.
    gone: AtomicBool,
    /// It does not speak TLS.
    no_tls: AtomicBool,
}

/// What came of asking one host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Came {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Denied(String),
    /// No connection came about; `no_tls`: since the host does not speak TLS.
    #[error("{said}")]
    Unreachable { no_tls: bool, said: String },
    #[error("{0}")]
    Failed(String),
}

/// How far a search over the hosts has come.
#[derive(Debug, Default)]
pub struct Search {
    next: usize,
    /// The host that answered last, and what it was asked.
    last: Option<String>,
    tried: Vec<(String, Came)>,
}

impl Search {
    /// What the host that answered last gave was of no use.
    pub fn failed(&mut self, reason: String) {
        if let Some(asked) = self.last.take() {
            self.tried.push((asked, Came::Failed(reason)));
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    what: &'static str,
    by: &'a str,
    accept: &'static str,
}

impl<'a> Registry<'a> {
    /// Reads the certificates that the hosts are configured with.
    pub async fn new(
        name: &'a Name,
        hosts: Vec<Host>,
        settings: Arc<Settings>,
        keyring: &Keyring,
        patience: Patience,
    ) -> Result<Self, Error> {
        let (of, keyring) = (name.clone(), keyring.clone());
        let read = move || -> Result<Vec<Place>, Error> {
            let authorities = tls::system_authorities();
            let endpoint = |host: Host| -> Result<Place, Error> {
                let target = host.credentials_for(of.registry(), of.path());
                let credentials = keyring.matching(&target, host.is_registry(of.registry()));
                let (settings, authorities) = (settings.clone(), authorities.clone());
                let endpoint =
                    Endpoint::new(host, &of, credentials, settings, authorities, patience)?;
                Ok(Place {
                    endpoint,
                    gone: AtomicBool::default(),
                    no_tls: AtomicBool::default(),
                })
            };
            hosts.into_iter().map(endpoint).collect()
        };
        Ok(Self {
            name,
            places: super::blocking(read).await?,
            patience,
            tried: Mutex::default(),
        })
    }

    /// Hosts that were asked in vain, and the one that named the image.
    pub fn tried(self) -> Vec<String> {
        let tried = self.tried.into_inner();
        tried.unwrap_or_else(PoisonError::into_inner)
    }

    /// A manifest or index by tag or digest, and its digest. `called`: its media type where an index
    /// named it.
    pub async fn manifest(
        &self,
        by: &str,
        called: Option<&Descriptor>,
    ) -> Result<(Document, Digest), Error> {
        let wanted = Wanted {
            what: "manifests",
            by,
            accept: manifest::ACCEPT,
        };
        let mut search = Search::default();
        loop {
            let response = self.next(&mut search, wanted).await?;
            match self.read_manifest(response, by, called).await {
                Ok(read) => return Ok(read),
                Err(reason) => search.failed(reason),
            }
        }
    }

    async fn read_manifest(
        &self,
        response: Response<Incoming>,
        by: &str,
        called: Option<&Descriptor>,
    ) -> Result<(Document, Digest), String> {
        let content_type = text_of(response.headers(), &header::CONTENT_TYPE);
        let body = Body::new(response.into_body(), self.patience);
        let limit = MAX_MANIFEST_BYTES.min(called.map_or(u64::MAX, |called| called.size));
        let bytes = body.whole(limit).await.map_err(|t| t.to_string())?;
        let called = match called.map(|called| called.media_type.as_str()) {
            None | Some("") => content_type,
            Some(media_type) => media_type.to_owned(),
        };
        let named = Digest::parse(by);
        // Megabytes are not parsed where others wait for their turn.
        let read = move || {
            let digest = named.unwrap_or_else(|| Digest::of(&bytes));
            match digest.matches(&bytes) {
                true => Ok((manifest::parse(&bytes, &called)?, digest)),
                false => Err(Trouble::Digest.to_string()),
            }
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// A small blob, whole.
    pub async fn small_blob(
        &self,
        what: &str,
        blob: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, Error> {
        if blob.size > limit {
            return Err(Error::Malformed {
                what: self.name.to_string(),
                reason: format!("{what} of {} bytes, more than {limit}", blob.size),
            });
        }
        let mut search = Search::default();
        loop {
            let body = self.blob(blob, &mut search).await?;
            let reason = match body.whole(blob.size).await {
                Ok(bytes) if blob.digest.matches(&bytes) => return Ok(bytes),
                Ok(_) => Trouble::Digest,
                Err(Trouble::TooLarge(size)) => Trouble::More(size),
                Err(trouble) => trouble,
            };
            search.failed(format!("{what}: {reason}"));
        }
    }

    /// A blob's content, to be compared with its descriptor by whoever reads it: from the next host
    /// of the search that has it.
    pub async fn blob(&self, blob: &Descriptor, search: &mut Search) -> Result<Body, Error> {
        let wanted = Wanted {
            what: "blobs",
            by: blob.digest.as_str(),
            accept: "*/*",
        };
        let response = self.next(search, wanted).await?;
        Ok(Body::new(response.into_body(), self.patience))
    }

    /// The next host that gives out what is wanted.
    async fn next(
        &self,
        search: &mut Search,
        wanted: Wanted<'_>,
    ) -> Result<Response<Incoming>, Error> {
        let name = self.name.path();
        let by_digest = wanted.by.contains(':');
        while let Some(place) = self.places.get(search.next) {
            let in_plain = place.endpoint.host.asked == Asked::InPlain;
            let in_vain = in_plain && !self.spoke_no_tls(search.next);
            search.next += 1;
            let host = &place.endpoint.host;
            let may = match by_digest {
                true => host.capabilities.pull,
                false => host.capabilities.resolve,
            };
            let gone = place.gone.load(Ordering::Relaxed) && search.next < self.places.len();
            if !may || in_vain || gone {
                continue;
            }
            let path = host.request(name, wanted.what, wanted.by);
            let asked = excerpt(&format!("GET {}{path}", host.base()), 500);
            match place.endpoint.get(&path, wanted.accept).await {
                Ok(response) => {
                    self.note(search, &asked, response.status());
                    search.last = Some(asked);
                    return Ok(response);
                }
                Err(came) => {
                    if let Came::Unreachable { no_tls, .. } = came {
                        place.gone.store(true, Ordering::Relaxed);
                        place.no_tls.store(no_tls, Ordering::Relaxed);
                    }
                    search.tried.push((asked, came));
                }
            }
        }
        Err(self.in_vain(search))
    }

    /// Keeps for the user, and in the log, what was asked in vain before.
    fn note(&self, search: &Search, asked: &str, status: StatusCode) {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let first = tried.is_empty();
        for one in &search.tried {
            let line = excerpt(&format!("{}: {}", one.0, one.1), LONGEST_TOLD);
            if !is_same_in_plain(one, asked) && !tried.contains(&line) && tried.len() < MOST_TOLD {
                tracing::warn!("passed over for {asked}: {line}");
                tried.push(line);
            }
        }
        if first {
            tried.push(format!("{asked}: {status}"));
        }
    }

    /// Whether the host before, which is the same over TLS, does not speak it.
    fn spoke_no_tls(&self, at: usize) -> bool {
        let before = at.checked_sub(1).and_then(|before| self.places.get(before));
        before.is_some_and(|place| place.no_tls.load(Ordering::Relaxed))
    }

    /// What all hosts said.
    fn in_vain(&self, search: &Search) -> Error {
        let all = |is: fn(&Came) -> bool| search.tried.iter().all(|(_, came)| is(came));
        let any = |is: fn(&Came) -> bool| search.tried.iter().any(|(_, came)| is(came));
        let outcome = if search.tried.is_empty() {
            Outcome::NoHost
        } else if all(|came| matches!(came, Came::NotFound(_))) {
            Outcome::NotFound
        } else if any(|came| matches!(came, Came::Denied(_))) {
            Outcome::Denied
        } else {
            Outcome::Failed
        };
        let told: Vec<String> = search
            .tried
            .iter()
            .enumerate()
            .filter(|(at, one)| {
                let next = search.tried.get(at + 1);
                !next.is_some_and(|(next, _)| is_same_in_plain(one, next))
            })
            .map(|(_, (asked, came))| excerpt(&format!("{asked}: {came}"), LONGEST_TOLD))
            .take(MOST_TOLD)
            .collect();
        Error::Hosts {
            reference: self.name.to_string(),
            outcome,
            tried: excerpt(&told.join("; "), LONGEST_ERROR),
        }
    }
}

/// Whether a host that does not speak TLS was asked the same again in plain: what came then says it all.
fn is_same_in_plain((asked, came): &(String, Came), again: &str) -> bool {
    let rest = asked.strip_prefix("GET https://");
    matches!(came, Came::Unreachable { no_tls: true, .. })
        && rest.is_some()
        && rest == again.strip_prefix("GET http://")
}

fn text_of(headers: &HeaderMap, name: &header::HeaderName) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
