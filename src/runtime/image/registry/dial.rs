//! Connections to registries, and to where they send us.
//!
//! Always true: an address is judged after its name was resolved, on what is connected to, so that
//! no name, spelling or changed answer of a name server leads elsewhere. Only the registry that the
//! image's name gives may lie on this host or in a private network, for its owner asked for that.

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
use tokio::net::TcpStream;
use tower::Service;

use crate::addresses::{Scope, scope};

pub type Connector = HttpsConnector<Dialer>;

/// One address of several gets so long.
const ONE_ADDRESS: Duration = Duration::from_secs(10);

/// Connects on behalf of one pull.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

struct Shared {
    /// The registry itself.
    home: Uri,
    /// Where the registry was found.
    reached: Mutex<HashSet<IpAddr>>,
    /// The proxies that the daemon's environment names.
    proxies: Matcher,
    deadline: Duration,
}

/// Blocking: reads the host's certificates.
pub fn connector(home: Uri, deadline: Duration) -> Result<Connector, String> {
    let mut authorities = rustls::RootCertStore::empty();
    authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    let dialer = Dialer {
        shared: Arc::new(Shared {
            home,
            reached: Mutex::default(),
            proxies: Matcher::from_env(),
            deadline,
        }),
    };
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(dialer))
}

/// How the place of a request relates to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The registry itself, over plain HTTP.
    PlainHome,
    Home,
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

/// Whether an address may be connected to, for a place.
fn may_be_reached(place: Place, address: IpAddr, reached: &HashSet<IpAddr>, literal: bool) -> bool {
    match (place, scope(address)) {
        (_, Scope::Unspecified | Scope::Multicast | Scope::Broadcast) => false,
        // Plain HTTP leaves this host under no name.
        (Place::PlainHome, scope) => scope == Scope::Loopback,
        (Place::Home, Scope::LinkLocal) => literal,
        (Place::Home, _) => true,
        (Place::SameHost, Scope::Private) => reached.contains(&address),
        (_, scope) => scope == Scope::Global,
    }
}

impl Shared {
    async fn connect(&self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let connecting = async {
            let place = place(&self.home, &uri)
                .ok_or_else(|| io::Error::other("only HTTPS is allowed there"))?;
            match self.proxies.intercept(&uri) {
                Some(proxy) if place != Place::PlainHome => self.tunnel(&proxy, place, uri).await,
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
        may_be_reached(place, address, &self.reached(), literal)
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
            let got = place(&home, &uri)
                .is_some_and(|place| may_be_reached(place, address, &reached, false));
            assert_eq!(got, want, "{home} {uri} {address}");
        }
    }
}
