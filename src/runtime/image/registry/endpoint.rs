//! One host of a registry: its requests, where they are redirected to, and how we are let in.
//!
//! Always true:
//! - What the host was given (passwords, tokens, headers, certificates of ours) goes to the host, and
//!   credentials to the HTTPS server that it names for tokens; never along with a redirect.
//! - Neither a redirect nor a server for tokens leads to this machine or a private network (`dial.rs`),
//!   but to places that the node's owner has a folder for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{client::legacy, rt::TokioExecutor};
use rustls::RootCertStore;
use serde::Deserialize;

use super::{
    Body, Came, Patience,
    access::{Access, basic, secret, whom},
    challenge::{self, Challenge},
    dial::{self, Connector, Dialer},
    redirects, tls, token,
};
use crate::{
    causes::causes,
    runtime::image::{
        Credentials, Error,
        hosts::{Host, Settings},
        json::{self, excerpt},
        reference::Name,
    },
};

const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 100;
const MAX_TOKEN_ANSWER_BYTES: u64 = 1 << 20;
const MAX_REDIRECTS: usize = 5;
/// Servers that a host sends us to which are configured too.
const MOST_KNOWN: usize = 16;
/// So much of an error is read, and so much told.
const MAX_ERROR_BYTES: usize = 64 << 10;
const TOLD_OF_AN_ERROR: usize = 400;

type Client = legacy::Client<Connector, Full<Bytes>>;

pub struct Endpoint {
    pub host: Host,
    /// `https://host[:port]/`.
    home: Uri,
    repository: String,
    dialer: Dialer,
    /// For the host itself, and for elsewhere.
    clients: (Client, Client),
    /// For elsewhere, where the node's owner has a folder for it: by authority.
    known: Mutex<HashMap<String, Option<Client>>>,
    settings: Arc<Settings>,
    authorities: RootCertStore,
    access: Access,
    patience: Patience,
}

/// An answer, and who gave it.
struct Answer {
    response: Response<Incoming>,
    from_home: bool,
}

/// What is asked, and how.
struct Question {
    accept: &'static str,
    authorization: Option<HeaderValue>,
    /// A form to post; without one it is a GET.
    form: Option<String>,
}

impl Endpoint {
    /// Blocking: reads certificates.
    pub fn new(
        host: Host,
        name: &Name,
        credentials: Vec<Credentials>,
        settings: Arc<Settings>,
        authorities: RootCertStore,
        patience: Patience,
    ) -> Result<Self, Error> {
        let home: Uri = format!("{}/", host.base())
            .parse()
            .map_err(|error| Error::Registry {
                reference: name.to_string(),
                message: format!("{}: {error}", host.base()),
            })?;
        let deadline = host.dial_timeout.unwrap_or(patience.connect);
        let dialer = Dialer::new(home.clone(), host.asked, deadline);
        let configs = tls::configs(&host.tls, authorities.clone())?;
        let clients = (
            client(dialer.to_home(configs.home)),
            client(dialer.to_elsewhere(configs.elsewhere)),
        );
        Ok(Self {
            host,
            home,
            repository: name.path().to_owned(),
            dialer,
            clients,
            known: Mutex::default(),
            settings,
            authorities,
            access: Access::new(credentials),
            patience,
        })
    }

    /// Asks the host for a manifest or a blob, as often as it takes to be let in once.
    pub async fn get(&self, path: &str, accept: &'static str) -> Result<Response<Incoming>, Came> {
        let uri = self.at_home(path)?;
        // What was said to the credentials says more than what is said without.
        let mut denied: Option<Came> = None;
        let mut answered = None;
        loop {
            let (candidate, authorization) = self.access.current();
            let question = Question {
                accept,
                authorization,
                form: None,
            };
            let answer = self.follow(uri.clone(), question).await?;
            let response = answer.response;
            let refused = match response.status() {
                status if status.is_success() => return Ok(response),
                StatusCode::UNAUTHORIZED if answer.from_home && answered != Some(candidate) => {
                    answered = Some(candidate);
                    match self.be_let_in(response, candidate).await {
                        Ok(()) => continue,
                        Err(refused) => refused,
                    }
                }
                _ => self.refusal(response, candidate).await,
            };
            match refused {
                Came::Denied(_) => {
                    denied.get_or_insert(refused);
                    if !self.access.move_on(candidate) {
                        return Err(denied.unwrap_or_else(|| Came::Denied(String::new())));
                    }
                }
                refused => return Err(denied.unwrap_or(refused)),
            }
        }
    }

    fn at_home(&self, path: &str) -> Result<Uri, Came> {
        let mut parts = self.home.clone().into_parts();
        let path = path
            .parse()
            .map_err(|_| Came::Failed("a bad path".to_owned()))?;
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).map_err(|error| Came::Failed(error.to_string()))
    }

    /// Asks and goes where the answer leads.
    async fn follow(&self, mut uri: Uri, question: Question) -> Result<Answer, Came> {
        // A password or token goes to where it was meant for, and to nobody whom that one names.
        let addressee = uri.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&addressee, &uri, &question).await?;
            let Some(next) = redirects::location(&response) else {
                let from_home = dial::is_home(&self.home, &uri);
                return Ok(Answer {
                    response,
                    from_home,
                });
            };
            let told = |reason: String| Came::Failed(format!("it redirects: {reason}"));
            if question.form.is_some() {
                return Err(told("what is posted goes to nobody else".to_owned()));
            }
            let next = next.and_then(|location| redirects::target(&uri, &location));
            let next = next.map_err(told)?;
            dial::may_be_asked(&self.home, &next)
                .map_err(|reason| told(format!("{}: {reason}", redirects::place(&next))))?;
            uri = next;
        }
        Err(Came::Failed(format!(
            "it redirects more than {MAX_REDIRECTS} times"
        )))
    }

    async fn ask(
        &self,
        addressee: &Uri,
        uri: &Uri,
        question: &Question,
    ) -> Result<Response<Incoming>, Came> {
        let agent = concat!("vetch/", env!("CARGO_PKG_VERSION"));
        let mut request = Request::builder()
            .uri(uri.clone())
            .header(header::ACCEPT, question.accept);
        let at_home = dial::is_home(&self.home, uri);
        let own = self.host.headers.iter().filter(|_| at_home);
        let mut has_agent = false;
        let mut has_authorization = false;
        for (name, value) in own {
            has_agent |= name == header::USER_AGENT;
            has_authorization |= name == header::AUTHORIZATION;
            request = request.header(name, value.clone());
        }
        if !has_agent {
            request = request.header(header::USER_AGENT, agent);
        }
        if let Some(authorization) = &question.authorization
            && !has_authorization
            && dial::is_home(addressee, uri)
        {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        let request = match &question.form {
            None => request.method(Method::GET).body(Full::default()),
            Some(form) => request
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Full::from(form.clone())),
        };
        let request = request.map_err(|error| Came::Failed(error.to_string()))?;
        let client = match at_home {
            true => self.clients.0.clone(),
            false => self.elsewhere(uri).await?,
        };
        let connect = self.host.dial_timeout.unwrap_or(self.patience.connect);
        let deadline = connect + self.patience.head;
        match tokio::time::timeout(deadline, client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let said = said_of(&error);
                let said = format!("{said}{}", tls::remedy(&said));
                match error.is_connect() {
                    true if at_home => Err(Came::Unreachable {
                        no_tls: tls::is_no_tls(&error),
                        said,
                    }),
                    _ => Err(Came::Failed(said)),
                }
            }
            Err(_) => {
                let host = uri.authority().map_or("", |authority| authority.as_str());
                Err(Came::Failed(format!(
                    "{host} does not answer within {deadline:?}"
                )))
            }
        }
    }

    /// The client for a place that is not the host itself.
    async fn elsewhere(&self, uri: &Uri) -> Result<Client, Came> {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let authority = authority.to_ascii_lowercase();
        if let Some(found) = self.known().get(&authority) {
            return Ok(found.clone().unwrap_or_else(|| self.clients.1.clone()));
        }
        let (settings, authorities) = (self.settings.clone(), self.authorities.clone());
        let place = authority.clone();
        let read = tokio::task::spawn_blocking(move || match settings.known(&place)? {
            Some(settings) => tls::configs(&settings, authorities).map(Some),
            None => Ok(None),
        });
        let configs = match read.await {
            Ok(read) => read.map_err(|error| Came::Failed(causes(&error)))?,
            Err(error) => return Err(Came::Failed(error.to_string())),
        };
        let found = configs.map(|configs| client(self.dialer.to_elsewhere(configs.home)));
        if found.is_some() {
            self.dialer.know(uri);
        }
        let mut known = self.known();
        if known.len() < MOST_KNOWN {
            known.insert(authority, found.clone());
        }
        drop(known);
        Ok(found.unwrap_or_else(|| self.clients.1.clone()))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<Client>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a challenge; the next request carries what it takes.
    async fn be_let_in(&self, response: Response<Incoming>, candidate: usize) -> Result<(), Came> {
        let credentials = self.access.credentials(candidate);
        let authorization = match (challenge_of(response.headers()), credentials) {
            (Some(Challenge::Basic), Credentials::Basic { username, password }) => {
                basic(username, password)
            }
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                Credentials::Basic { .. } | Credentials::Anonymous | Credentials::Refresh(_),
            ) => {
                let token = self.token(&realm, &service, &scope, credentials).await?;
                format!("Bearer {token}")
            }
            _ => return Err(self.refusal(response, candidate).await),
        };
        self.access.let_in(candidate, self.secret(&authorization)?);
        Ok(())
    }

    /// A token from the server that the host names.
    async fn token(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
        credentials: &Credentials,
    ) -> Result<String, Came> {
        let told = |reason: String| {
            let realm = excerpt(realm, 200);
            Came::Failed(format!("its server for tokens, {realm:?}: {reason}"))
        };
        let scope = challenge::scope(scope, &self.repository);
        let (uri, form) = match credentials {
            Credentials::Refresh(token) => (
                realm.to_owned(),
                Some(token::refresh_form(service, &scope, token)),
            ),
            _ => {
                let joint = if realm.contains('?') { '&' } else { '?' };
                (
                    format!("{realm}{joint}{}", token::query(service, &scope)),
                    None,
                )
            }
        };
        let uri: Uri = uri.parse().map_err(|_| told("not an address".to_owned()))?;
        dial::may_be_asked(&self.home, &uri).map_err(told)?;
        let authorization = match credentials {
            Credentials::Basic { username, password } => {
                Some(self.secret(&basic(username, password))?)
            }
            _ => None,
        };
        let question = Question {
            accept: "application/json",
            authorization,
            form,
        };
        let answer = Box::pin(self.follow(uri, question)).await;
        let response = answer.map_err(|came| told(came.to_string()))?.response;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let said = self.said(response).await;
                let realm = excerpt(realm, 200);
                return Err(Came::Denied(format!(
                    "its server for tokens, {realm:?}, gives none out: {said} ({})",
                    whom(credentials)
                )));
            }
            _ => return Err(told(self.said(response).await)),
        }
        let body = Body::new(response.into_body(), self.patience);
        let bytes = body
            .whole(MAX_TOKEN_ANSWER_BYTES)
            .await
            .map_err(|trouble| told(trouble.to_string()))?;
        token::read(&bytes).map_err(told)
    }

    fn secret(&self, value: &str) -> Result<HeaderValue, Came> {
        secret(value)
            .ok_or_else(|| Came::Denied("what lets us in holds forbidden characters".to_owned()))
    }

    /// Why the host does not give out what it was asked for.
    async fn refusal(&self, response: Response<Incoming>, candidate: usize) -> Came {
        let status = response.status();
        let said = self.said(response).await;
        match status {
            StatusCode::NOT_FOUND => Came::NotFound(said),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let whom = whom(self.access.credentials(candidate));
                Came::Denied(format!("{said} ({whom})"))
            }
            _ => Came::Failed(said),
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

fn client(connector: Connector) -> Client {
    legacy::Client::builder(TokioExecutor::new())
        .http1_max_buf_size(MAX_HEAD_BYTES)
        .http1_max_headers(MAX_HEADERS)
        .build(connector)
}

fn challenge_of(headers: &HeaderMap) -> Option<Challenge> {
    let challenges = headers.get_all(header::WWW_AUTHENTICATE);
    challenge::choose(challenges.iter().filter_map(|one| one.to_str().ok()))
}

/// Where no connection came about, the reason says it all.
fn said_of(error: &legacy::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) if error.is_connect() => causes(cause),
        _ => causes(error),
    }
}
