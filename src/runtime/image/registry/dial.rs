//! Connections to registries, and to where they send us.
//!
//! Always true: an address is judged after its name was resolved, on what is connected to, so that
//! no name, spelling or changed answer of a name server leads elsewhere. Only the registry that the
//! image's name gives, and hosts that the node's owner has written down, may lie on this host or in a
//! private network. Plain HTTP is for loopback, and for where the owner wrote it.

use std::{
    collections::HashSet,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::Service;

use super::super::hosts::Asked;
use crate::addresses::{Scope, scope};

/// One address of several gets so long.
const ONE_ADDRESS: Duration = Duration::from_secs(10);
/// On loopback a server that says nothing to a greeting of TLS does not speak it.
const TLS_ON_LOOPBACK: Duration = Duration::from_secs(3);

/// Connects on behalf of one pull to one host, and to where that sends us.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

struct Shared {
    /// The host itself.
    home: Uri,
    asked: Asked,
    /// Where the host was found.
    reached: Mutex<HashSet<IpAddr>>,
    /// Other hosts that the node's owner has written down: `host:port`.
    known: Mutex<HashSet<String>>,
    /// The proxies that the daemon's environment names.
    proxies: Matcher,
    deadline: Duration,
}

impl Dialer {
    pub fn new(home: Uri, asked: Asked, deadline: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                home,
                asked,
                reached: Mutex::default(),
                known: Mutex::default(),
                proxies: Matcher::from_env(),
                deadline,
            }),
        }
    }

    /// For the host itself.
    pub fn to_home(&self, tls: ClientConfig) -> Connector {
        let deadline = match self.shared.asked {
            Asked::OnLoopback => self.shared.deadline.min(TLS_ON_LOOPBACK),
            _ => self.shared.deadline,
        };
        self.connector(tls, deadline)
    }

    /// For where the host sends us.
    pub fn to_elsewhere(&self, tls: ClientConfig) -> Connector {
        self.connector(tls, self.shared.deadline)
    }

    fn connector(&self, tls: ClientConfig, deadline: Duration) -> Connector {
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(self.clone());
        Connector { https, deadline }
    }

    /// From now on this place may be on a private network too.
    pub fn know(&self, uri: &Uri) {
        let known = self.shared.known.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        known.insert(key(uri));
    }
}

/// Connects, and greets with TLS, within a deadline.
#[derive(Clone)]
pub struct Connector {
    https: HttpsConnector<Dialer>,
    deadline: Duration,
}

impl Service<Uri> for Connector {
    type Response = <HttpsConnector<Dialer> as Service<Uri>>::Response;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.https.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, deadline) = (self.https.call(uri), self.deadline);
        Box::pin(async move {
            let late = |_| {
                let text = format!("no connection within {deadline:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, text).into())
            };
            tokio::time::timeout(deadline, connecting)
                .await
                .unwrap_or_else(late)
        })
    }
}

fn key(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    format!("{host}:{}", port(uri))
}

/// How the place of a request relates to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The host itself, over plain HTTP.
    PlainHome,
    Home,
    /// Another host that the node's owner has written down.
    Known,
    /// Another port of the registry's host.
    SameHost,
    Elsewhere,
}

fn place(home: &Uri, uri: &Uri) -> Option<Place> {
    let same_scheme = home.scheme() == uri.scheme();
    match uri.scheme_str() {
        Some("http") if same_scheme && is_same(home, uri) => Some(Place::PlainHome),
        Some("https") if same_scheme && is_same(home, uri) => Some(Place::Home),
        Some("https") if home.host().is_some() && home.host() == uri.host() => {
            Some(Place::SameHost)
        }
        Some("https") => Some(Place::Elsewhere),
        _ => None,
    }
}

fn is_same(one: &Uri, other: &Uri) -> bool {
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    host(one) == host(other) && port(one) == port(other)
}

fn port(uri: &Uri) -> u16 {
    let usual = if uri.scheme_str() == Some("http") {
        80
    } else {
        443
    };
    uri.port_u16().unwrap_or(usual)
}

/// Whether requests to `uri` go to the registry itself, which alone gets what it gave out.
pub fn is_home(home: &Uri, uri: &Uri) -> bool {
    matches!(place(home, uri), Some(Place::Home | Place::PlainHome))
}

/// Whether a registry may send us there at all, as far as the text tells.
pub fn may_be_asked(home: &Uri, uri: &Uri) -> Result<(), String> {
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err("a user name in the address is refused".to_owned());
    }
    match place(home, uri) {
        Some(_) => Ok(()),
        None => Err("only HTTPS is allowed there".to_owned()),
    }
}

/// Whether an address may be connected to, for a place. `literal`: it is written in the URL itself.
fn may_be_reached(
    place: Place,
    asked: Asked,
    address: IpAddr,
    reached: &HashSet<IpAddr>,
    literal: bool,
) -> bool {
    match (place, scope(address)) {
        (_, Scope::Unspecified | Scope::Multicast | Scope::Broadcast) => false,
        (Place::PlainHome | Place::Home, scope) => match asked {
            Asked::Configured => true,
            // What nobody proves who it is leaves this host under no name.
            Asked::OnLoopback | Asked::InPlain => scope == Scope::Loopback,
            Asked::ByName => place == Place::Home && (scope != Scope::LinkLocal || literal),
        },
        (Place::Known, scope) => scope != Scope::LinkLocal,
        (Place::SameHost, Scope::Private) => reached.contains(&address),
        (_, scope) => scope == Scope::Global,
    }
}

impl Shared {
    async fn connect(&self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let connecting = async {
            let place = self
                .place(&uri)
                .ok_or_else(|| io::Error::other("only HTTPS is allowed there"))?;
            match self.proxies.intercept(&uri) {
                Some(proxy) if self.may_use_proxy(place) => self.tunnel(&proxy, place, uri).await,
                _ => self.direct(place, &uri).await,
            }
        };
        match tokio::time::timeout(self.deadline, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {:?}", self.deadline),
            )),
        }
    }

    fn place(&self, uri: &Uri) -> Option<Place> {
        match place(&self.home, uri)? {
            Place::SameHost | Place::Elsewhere if self.is_known(uri) => Some(Place::Known),
            place => Some(place),
        }
    }

    fn is_known(&self, uri: &Uri) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&key(uri))
    }

    /// What must be this machine is not asked for elsewhere.
    fn may_use_proxy(&self, place: Place) -> bool {
        let home = matches!(place, Place::Home | Place::PlainHome);
        !(home && matches!(self.asked, Asked::OnLoopback | Asked::InPlain))
    }

    async fn direct(&self, place: Place, uri: &Uri) -> io::Result<TokioIo<TcpStream>> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let literal = host.parse::<IpAddr>().is_ok();
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port(uri))).await?.collect();
        let mut failed = io::Error::other(format!("{host} has no address"));
        for address in found {
            if !self.may_reach(place, address.ip(), literal) {
                failed = refused(host, address.ip());
                continue;
            }
            match tokio::time::timeout(ONE_ADDRESS, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    if matches!(place, Place::Home | Place::PlainHome) {
                        self.reached().insert(address.ip());
                    }
                    return Ok(TokioIo::new(stream));
                }
                Ok(Err(error)) => {
                    failed = io::Error::new(error.kind(), format!("connect to {address}: {error}"));
                }
                Err(_) => {
                    let text = format!("connect to {address}: no answer");
                    failed = io::Error::new(io::ErrorKind::TimedOut, text);
                }
            }
        }
        Err(failed)
    }

    /// Through a proxy, which resolves names itself: addresses are judged as they are written.
    async fn tunnel(
        &self,
        proxy: &Intercept,
        place: Place,
        uri: Uri,
    ) -> io::Result<TokioIo<TcpStream>> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse::<IpAddr>()
            && !self.may_reach(place, address, true)
        {
            return Err(refused(host, address));
        }
        if proxy.uri().scheme_str() != Some("http") {
            let text = format!("a proxy that is asked by {:?}", proxy.uri().scheme_str());
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), HttpConnector::new());
        if let Some(credentials) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(credentials.clone());
        }
        std::future::poll_fn(|context| tunnel.poll_ready(context))
            .await
            .map_err(io::Error::other)?;
        tunnel.call(uri).await.map_err(io::Error::other)
    }

    fn may_reach(&self, place: Place, address: IpAddr, literal: bool) -> bool {
        may_be_reached(place, self.asked, address, &self.reached(), literal)
    }

    fn reached(&self) -> std::sync::MutexGuard<'_, HashSet<IpAddr>> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(host: &str, address: IpAddr) -> io::Error {
    let kind = match scope(address) {
        Scope::Unspecified => "an unspecified",
        Scope::Loopback => "a loopback",
        Scope::LinkLocal => "a link-local",
        Scope::Multicast => "a multicast",
        Scope::Broadcast => "a broadcast",
        Scope::Private => "a private",
        Scope::Global => "a public",
    };
    let leads = match host.parse::<IpAddr>() {
        Ok(_) => "is".to_owned(),
        Err(_) => format!("leads to {address},"),
    };
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("{host} {leads} {kind} address, which is refused"),
    )
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move { shared.connect(uri).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_go_home_alone() {
        for (home, uri, want) in [
            ("https://a.b", "https://a.b/x", true),
            ("https://a.b", "https://A.B:443/x", true),
            ("https://a.b", "https://a.b:444/x", false),
            ("https://a.b", "http://a.b/x", false),
            ("https://a.b", "https://x.a.b/x", false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000/x", true),
            ("http://127.0.0.1:5000", "http://localhost:5000/x", false),
            ("http://127.0.0.1:5000", "http://127.0.0.1/x", false),
        ] {
            let (home, uri): (Uri, Uri) = (home.parse().unwrap(), uri.parse().unwrap());
            assert_eq!(is_home(&home, &uri), want, "{home} {uri}");
        }
    }

    #[test]
    fn where_a_registry_may_send_us() {
        let reached: HashSet<IpAddr> = ["10.0.0.5".parse().unwrap()].into();
        for (home, uri, address, want) in [
            // The registry itself, as its owner wrote it.
            (
                "http://127.0.0.1:5000",
                "http://127.0.0.1:5000/x",
                "127.0.0.1",
                true,
            ),
            (
                "http://localhost:5000",
                "http://localhost:5000/x",
                "8.8.8.8",
                false,
            ),
            ("https://a.b", "https://a.b/x", "8.8.8.8", true),
            ("https://a.b", "https://A.b:443/x", "10.0.0.5", true),
            ("https://a.b", "https://a.b/x", "127.0.0.1", true),
            ("https://a.b", "https://a.b/x", "169.254.169.254", false),
            ("https://a.b", "https://a.b/x", "0.0.0.0", false),
            // Elsewhere.
            ("https://a.b", "https://c.d/x", "8.8.8.8", true),
            ("https://a.b", "https://c.d/x", "10.0.0.5", false),
            ("https://a.b", "https://c.d/x", "127.0.0.1", false),
            ("https://a.b", "https://c.d/x", "::ffff:127.0.0.1", false),
            ("https://a.b", "https://c.d/x", "169.254.169.254", false),
            ("https://a.b", "https://c.d/x", "fe80::1", false),
            ("https://a.b", "https://c.d/x", "224.0.0.1", false),
            // Another port of the same host: where it was found, but for this host itself.
            ("https://a.b", "https://a.b:6443/x", "10.0.0.5", true),
            ("https://a.b", "https://a.b:6443/x", "10.0.0.6", false),
            ("https://a.b", "https://a.b:6443/x", "127.0.0.1", false),
            (
                "http://127.0.0.1:5000",
                "https://127.0.0.1:6443/x",
                "127.0.0.1",
                false,
            ),
            // Plain HTTP is for the registry on loopback alone.
            ("https://a.b", "http://a.b/x", "8.8.8.8", false),
            ("https://a.b", "http://c.d/x", "8.8.8.8", false),
            (
                "http://127.0.0.1:5000",
                "http://127.0.0.1:10248/x",
                "127.0.0.1",
                false,
            ),
            (
                "http://127.0.0.1:5000",
                "http://127.0.0.1/x",
                "127.0.0.1",
                false,
            ),
            ("https://a.b", "ftp://c.d/x", "8.8.8.8", false),
        ] {
            let (home, uri): (Uri, Uri) = (home.parse().unwrap(), uri.parse().unwrap());
            let address = address.parse().unwrap();
            let asked = match home.scheme_str() {
                Some("http") => Asked::InPlain,
                _ => Asked::ByName,
            };
            let got = place(&home, &uri)
                .is_some_and(|place| may_be_reached(place, asked, address, &reached, false));
            assert_eq!(got, want, "{home} {uri} {address}");
        }
    }

    #[test]
    fn what_the_owner_has_written_down_may_be_anywhere() {
        let nowhere = HashSet::new();
        for (place, asked, address, want) in [
            (Place::PlainHome, Asked::Configured, "10.0.0.1", true),
            (Place::PlainHome, Asked::Configured, "8.8.8.8", true),
            (Place::PlainHome, Asked::Configured, "0.0.0.0", false),
            (Place::Home, Asked::Configured, "127.0.0.1", true),
            (Place::Home, Asked::OnLoopback, "127.0.0.1", true),
            // Its certificate is not checked, so it must be this machine.
            (Place::Home, Asked::OnLoopback, "10.0.0.1", false),
            (Place::PlainHome, Asked::ByName, "127.0.0.1", false),
            (Place::Known, Asked::ByName, "10.0.0.1", true),
            (Place::Known, Asked::ByName, "169.254.169.254", false),
            (Place::Elsewhere, Asked::Configured, "10.0.0.1", false),
        ] {
            let address = address.parse().unwrap();
            let got = may_be_reached(place, asked, address, &nowhere, false);
            assert_eq!(got, want, "{place:?} {asked:?} {address}");
        }
    }
}
