//! A client of one registry for one pull: the reading half of the distribution protocol.
//!
//! Called by `pull.rs`. Everything that comes back is somebody else's. Always true:
//! - Nothing is read past its limit, and no wait is without an end.
//! - What the registry was given (passwords, tokens) goes to the registry, and to the HTTPS server
//!   that it names for tokens; never along with a redirect to another host.
//! - Neither a redirect nor a server for tokens leads to this host or a private network (`dial.rs`).

mod body;
mod challenge;
mod dial;

pub use body::{Body, Download, Patience, Trouble};

use std::sync::{Mutex, PoisonError};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Deserialize;

use super::{
    Credentials, Error,
    digest::Digest,
    json::{self, excerpt},
    manifest::{self, Descriptor, Document, MAX_MANIFEST_BYTES},
    reference::Name,
};
use crate::causes::causes;
use challenge::Challenge;

const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 100;
const MAX_TOKEN_ANSWER_BYTES: u64 = 1 << 20;
/// It has to fit into the head of a request.
const MAX_TOKEN_BYTES: usize = 32 << 10;
const MAX_REDIRECTS: usize = 5;
/// So much of an error is read, and so much told.
const MAX_ERROR_BYTES: usize = 64 << 10;
const TOLD_OF_AN_ERROR: usize = 400;

pub struct Registry<'a> {
    name: &'a Name,
    /// `https://host[:port]`, without a path.
    home: Uri,
    client: Client<dial::Connector, Empty<Bytes>>,
    credentials: &'a Credentials,
    /// What the registry let us in with last.
    authorization: Mutex<Option<HeaderValue>>,
    patience: Patience,
}

/// An answer, and who gave it.
struct Answer {
    response: Response<Incoming>,
    from_home: bool,
}

impl<'a> Registry<'a> {
    pub async fn new(
        name: &'a Name,
        credentials: &'a Credentials,
        patience: Patience,
    ) -> Result<Self, Error> {
        // Plain HTTP only to this machine itself.
        let scheme = if name.is_loopback() { "http" } else { "https" };
        let refuse = |message: String| Error::Registry {
            reference: name.to_string(),
            message,
        };
        let home = format!("{scheme}://{}/", name.host());
        let home: Uri = home
            .parse()
            .map_err(|error| refuse(format!("{}: {error}", name.host())))?;
        let (place, deadline) = (home.clone(), patience.connect);
        let connector = tokio::task::spawn_blocking(move || dial::connector(place, deadline))
            .await
            .map_err(|error| refuse(error.to_string()))?
            .map_err(refuse)?;
        let client = Client::builder(TokioExecutor::new())
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .http1_max_headers(MAX_HEADERS)
            .build(connector);
        let registry = Self {
            name,
            home,
            client,
            credentials,
            authorization: Mutex::new(None),
            patience,
        };
        if let Credentials::Bearer(token) = credentials {
            registry.let_in_with(&format!("Bearer {token}"))?;
        }
        Ok(registry)
    }

    /// A manifest or index by tag or digest, and its digest. `called`: its media type where an index
    /// named it.
    pub async fn manifest(
        &self,
        by: &str,
        called: Option<&Descriptor>,
    ) -> Result<(Document, Digest), Error> {
        let path = format!("/v2/{}/manifests/{by}", self.name.path());
        let response = self.get(&path, manifest::ACCEPT, by).await?;
        let content_type = text_of(response.headers(), &header::CONTENT_TYPE);
        let body = Body::new(response.into_body(), self.patience);
        let limit = MAX_MANIFEST_BYTES.min(called.map_or(u64::MAX, |called| called.size));
        let bytes = body
            .whole(limit)
            .await
            .map_err(|trouble| self.trouble(&format!("manifest {by}"), &trouble))?;
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
            .map_err(|reason| self.malformed(&format!("manifest {by}: {reason}")))
    }

    /// A small blob, whole.
    pub async fn small_blob(
        &self,
        what: &str,
        blob: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, Error> {
        if blob.size > limit {
            return Err(
                self.malformed(&format!("{what} of {} bytes, more than {limit}", blob.size))
            );
        }
        let trouble = |trouble| self.trouble(&format!("{what} {}", blob.digest), &trouble);
        let bytes = self.blob(blob).await?.whole(blob.size).await;
        let bytes = bytes.map_err(|found| match found {
            Trouble::TooLarge(size) => trouble(Trouble::More(size)),
            found => trouble(found),
        })?;
        match blob.digest.matches(&bytes) {
            true => Ok(bytes),
            false => Err(trouble(Trouble::Digest)),
        }
    }

    /// A blob's content, to be compared with its descriptor by whoever reads it.
    pub async fn blob(&self, blob: &Descriptor) -> Result<Body, Error> {
        let digest = blob.digest.as_str();
        let path = format!("/v2/{}/blobs/{digest}", self.name.path());
        let response = self.get(&path, "*/*", digest).await?;
        Ok(Body::new(response.into_body(), self.patience))
    }

    /// Asks the registry, as often as it takes to be let in once.
    async fn get(
        &self,
        path: &str,
        accept: &'static str,
        what: &str,
    ) -> Result<Response<Incoming>, Error> {
        let uri = self.at_home(path)?;
        let mut answered = false;
        loop {
            let authorization = self.authorization();
            let answer = self.follow(uri.clone(), accept, authorization).await?;
            let response = answer.response;
            match response.status() {
                status if status.is_success() => return Ok(response),
                StatusCode::UNAUTHORIZED if answer.from_home && !answered => {
                    self.be_let_in(response.headers()).await?;
                    answered = true;
                }
                _ => return Err(self.refusal(response, what).await),
            }
        }
    }

    fn at_home(&self, path: &str) -> Result<Uri, Error> {
        let mut parts = self.home.clone().into_parts();
        parts.path_and_query = Some(path.parse().map_err(|_| self.malformed("a bad path"))?);
        Uri::from_parts(parts).map_err(|error| self.malformed(&error.to_string()))
    }

    /// Asks and goes where the answer leads.
    async fn follow(
        &self,
        mut uri: Uri,
        accept: &'static str,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, Error> {
        // A password or token goes to where it was meant for, and to nobody whom that one names.
        let addressee = uri.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::get(uri.clone())
                .header(header::ACCEPT, accept)
                .header(
                    header::USER_AGENT,
                    concat!("vetch/", env!("CARGO_PKG_VERSION")),
                );
            if let Some(authorization) = &authorization
                && dial::is_home(&addressee, &uri)
            {
                request = request.header(header::AUTHORIZATION, authorization.clone());
            }
            let request = request
                .body(Empty::new())
                .map_err(|error| self.malformed(&error.to_string()))?;
            let deadline = self.patience.connect + self.patience.head;
            let response = match tokio::time::timeout(deadline, self.client.request(request)).await
            {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(self.failed(&said_of(&error))),
                Err(_) => {
                    let host = uri.authority().map_or("", |authority| authority.as_str());
                    return Err(self.failed(&format!("{host} does not answer within {deadline:?}")));
                }
            };
            let Some(next) = redirection(&response) else {
                let from_home = dial::is_home(&self.home, &uri);
                return Ok(Answer {
                    response,
                    from_home,
                });
            };
            let next = next.and_then(|location| target(&uri, &location));
            let told = |reason: String| self.failed(&format!("it redirects: {reason}"));
            let next = next.map_err(told)?;
            dial::may_be_asked(&self.home, &next)
                .map_err(|reason| told(format!("{}: {reason}", place(&next))))?;
            uri = next;
        }
        Err(self.failed(&format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// Answers a challenge; the next request carries what it takes.
    async fn be_let_in(&self, headers: &HeaderMap) -> Result<(), Error> {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE);
        let challenge = challenge::choose(challenges.iter().filter_map(|one| one.to_str().ok()));
        match (challenge, self.credentials) {
            (Some(Challenge::Basic), Credentials::Basic { username, password }) => {
                self.let_in_with(&basic(username, password))
            }
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                Credentials::Basic { .. } | Credentials::Anonymous,
            ) => {
                let token = self.token(&realm, &service, &scope).await?;
                self.let_in_with(&format!("Bearer {token}"))
            }
            _ => Err(self.denied("the registry wants credentials, or other ones".to_owned())),
        }
    }

    /// A token from the server that the registry names.
    async fn token(&self, realm: &str, service: &str, scope: &str) -> Result<String, Error> {
        let told = |reason: String| {
            let realm = excerpt(realm, 200);
            self.failed(&format!("its server for tokens, {realm:?}: {reason}"))
        };
        let joint = if realm.contains('?') { '&' } else { '?' };
        let query = token_query(service, &challenge::scope(scope, self.name.path()));
        let uri: Uri = format!("{realm}{joint}{query}")
            .parse()
            .map_err(|_| told("not an address".to_owned()))?;
        dial::may_be_asked(&self.home, &uri).map_err(told)?;
        let credentials = match self.credentials {
            Credentials::Basic { username, password } => {
                Some(self.secret(&basic(username, password))?)
            }
            Credentials::Anonymous | Credentials::Bearer(_) => None,
        };
        let answer = Box::pin(self.follow(uri, "application/json", credentials)).await;
        let response = answer.map_err(|error| told(self.bare(error)))?.response;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let said = self.said(response).await;
                return Err(self.denied(format!("no token is given out: {said}")));
            }
            _ => return Err(told(self.said(response).await)),
        }
        let body = Body::new(response.into_body(), self.patience);
        let bytes = body
            .whole(MAX_TOKEN_ANSWER_BYTES)
            .await
            .map_err(|trouble| told(trouble.to_string()))?;
        let token = json::read::<Token>(&bytes).map_err(told)?;
        match token.token.or(token.access_token) {
            Some(token) if token.is_empty() => Err(told("the token is empty".to_owned())),
            Some(token) if token.len() > MAX_TOKEN_BYTES => Err(told(format!(
                "the token has more than {MAX_TOKEN_BYTES} bytes"
            ))),
            Some(token) => Ok(token),
            None => Err(told("it answers without a token".to_owned())),
        }
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let held = self.authorization.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn let_in_with(&self, authorization: &str) -> Result<(), Error> {
        let value = self.secret(authorization)?;
        let held = self.authorization.lock();
        *held.unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    fn secret(&self, value: &str) -> Result<HeaderValue, Error> {
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| self.denied("what lets us in holds forbidden characters".to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Why the registry does not give `what` out.
    async fn refusal(&self, response: Response<Incoming>, what: &str) -> Error {
        let status = response.status();
        match status {
            StatusCode::NOT_FOUND if what == self.name.version() => Error::NotFound {
                reference: self.name.to_string(),
            },
            StatusCode::NOT_FOUND => Error::NotFound {
                reference: format!("{}: {what}", self.name),
            },
            StatusCode::UNAUTHORIZED => {
                self.denied("the registry wants credentials, or other ones".to_owned())
            }
            StatusCode::FORBIDDEN => self.denied(self.said(response).await),
            _ => self.failed(&self.said(response).await),
        }
    }

    /// The status, and the errors in the protocol's form; nothing else of a body is passed on.
    async fn said(&self, response: Response<Incoming>) -> String {
        let status = response.status();
        let body = Body::new(response.into_body(), self.patience);
        let bytes = body.beginning(MAX_ERROR_BYTES).await;
        let errors = json::read::<Said>(&bytes).unwrap_or_default().errors;
        let messages: Vec<String> = errors
            .into_iter()
            .map(|error| error.message.unwrap_or_default())
            .filter(|message| !message.is_empty())
            .take(8)
            .collect();
        match messages.as_slice() {
            [] => format!("the registry answers {status}"),
            messages => {
                let messages = excerpt(&messages.join("; "), TOLD_OF_AN_ERROR);
                format!("the registry answers {status}: {messages}")
            }
        }
    }

    pub fn trouble(&self, what: &str, trouble: &Trouble) -> Error {
        self.failed(&format!("{what}: {trouble}"))
    }

    fn failed(&self, message: &str) -> Error {
        Error::Registry {
            reference: self.name.to_string(),
            message: excerpt(message, 1000),
        }
    }

    fn denied(&self, reason: String) -> Error {
        Error::Denied {
            reference: self.name.to_string(),
            reason,
        }
    }

    fn malformed(&self, reason: &str) -> Error {
        Error::Malformed {
            what: self.name.to_string(),
            reason: reason.to_owned(),
        }
    }

    /// An error's text without the image's name, which is told once.
    fn bare(&self, error: Error) -> String {
        match error {
            Error::Registry { message, .. } => message,
            error => error.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Default, Deserialize)]
struct Said {
    #[serde(default)]
    errors: Vec<SaidError>,
}

#[derive(Deserialize)]
struct SaidError {
    message: Option<String>,
}

fn token_query(service: &str, scope: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if !service.is_empty() {
        query.append_pair("service", service);
    }
    query.append_pair("scope", scope).finish()
}

fn basic(username: &str, password: &str) -> String {
    let pair = BASE64_STANDARD.encode(format!("{username}:{password}"));
    format!("Basic {pair}")
}

fn text_of(headers: &HeaderMap, name: &header::HeaderName) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

fn place(uri: &Uri) -> String {
    let (scheme, authority) = (uri.scheme_str(), uri.authority());
    let authority = authority.map_or("", |authority| authority.as_str());
    excerpt(
        &format!("{}://{authority}", scheme.unwrap_or_default()),
        200,
    )
}

/// Where an answer sends us, if it does.
fn redirection(response: &Response<Incoming>) -> Option<Result<String, String>> {
    match response.status().as_u16() {
        301 | 302 | 303 | 307 | 308 => {}
        _ => return None,
    }
    let location = response.headers().get(header::LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    Some(
        location
            .map(str::to_owned)
            .ok_or_else(|| "to no address".to_owned()),
    )
}

/// A location relative to where it was given.
fn target(from: &Uri, location: &str) -> Result<Uri, String> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = from.scheme_str().unwrap_or_default();
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let full = match location {
        _ if location.contains("://") && !location.starts_with('/') => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => {
            let folder = from
                .path()
                .rsplit_once('/')
                .map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        }
    };
    let bad = || format!("{:?} is not an address", excerpt(location, 200));
    let uri: Uri = full.parse().map_err(|_| bad())?;
    match (uri.scheme(), uri.authority()) {
        (Some(_), Some(_)) => Ok(uri),
        _ => Err(bad()),
    }
}

/// Where no connection came about, the reason says it all.
fn said_of(error: &hyper_util::client::legacy::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) if error.is_connect() => causes(cause),
        _ => causes(error),
    }
}

#[cfg(test)]
mod tests;
