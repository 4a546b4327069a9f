//! Which addresses a backend may have, and the connection to one of them.
//!
//! Tenants and nodes say where pods, services and nodes are. A name is resolved once, every address
//! that it has is judged, and only judged addresses are connected to.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;

use super::pass::Error;
use crate::addresses::{self, Scope, may_be_proxied_to};

/// A backend that does not take the connection in this time is not there.
pub const CONNECT: Duration = Duration::from_secs(10);
/// A peer that vanished is noticed after this, and as many probes as the kernel sends.
const KEEP_ALIVE_SECONDS: u32 = 60;

/// Whom an address is to belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Workloads: never this host's inside, nor what is only on its links.
    Workload,
    /// A kubelet: also at this address of the server's own, whatever it is.
    Kubelet { own: IpAddr },
}

impl Reach {
    pub fn allows(self, address: IpAddr) -> bool {
        let own = match self {
            Self::Workload => false,
            Self::Kubelet { own } => {
                let same = addresses::canonical(own) == addresses::canonical(address);
                // A host without a network has its only node there.
                same && matches!(
                    addresses::scope(own),
                    Scope::Loopback | Scope::Private | Scope::Global
                )
            }
        };
        own || may_be_proxied_to(address)
    }
}

/// The addresses of `host` that may be connected to; [`Error::NotAllowed`] if it has others only.
pub async fn resolve(host: &str, port: u16, reach: Reach) -> Result<Vec<SocketAddr>, Error> {
    let address = host_port(host, port);
    let found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => tokio::time::timeout(CONNECT, tokio::net::lookup_host((host, port)))
            .await
            .map_err(|_| Error::dial(&address, "lookup: i/o timeout"))?
            .map_err(|error| Error::dial(&address, format!("lookup {host}: {error}")))?
            .collect(),
    };
    let none = found.is_empty();
    let allowed: Vec<SocketAddr> = found
        .into_iter()
        .filter(|found| reach.allows(found.ip()))
        .collect();
    match allowed.is_empty() {
        true if none => Err(Error::dial(
            &address,
            format!("lookup {host}: no such host"),
        )),
        true => Err(Error::NotAllowed),
        false => Ok(allowed),
    }
}

/// Connects to the first that takes the connection.
pub async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Error> {
    let mut last = Error::dial("", "no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Keystrokes of an exec are small and wanted at once.
                let _ = stream.set_nodelay(true);
                let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
                let _ = setsockopt(&stream, sockopt::TcpKeepIdle, &KEEP_ALIVE_SECONDS);
                return Ok(stream);
            }
            Err(error) => {
                last = Error::dial(&address.to_string(), format!("connect: {error}"));
            }
        }
    }
    Err(last)
}

/// `host:port`, with brackets where there must be.
pub fn host_port(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn what_may_be_reached() {
        let own = Reach::Kubelet {
            own: IpAddr::from([127, 0, 0, 1]),
        };
        let link = Reach::Kubelet {
            own: IpAddr::from([169, 254, 169, 254]),
        };
        for (host, reach, good) in [
            ("10.1.0.2", Reach::Workload, true),
            ("fd00::2", Reach::Workload, true),
            ("127.0.0.1", Reach::Workload, false),
            ("127.0.0.1", own, true), // a node on a host without a network
            ("127.0.0.2", own, false),
            ("::ffff:127.0.0.1", own, true),
            ("10.1.0.2", own, true),
            ("169.254.169.254", link, false),
            // The same in every spelling, names among them.
            ("localhost", Reach::Workload, false),
            ("::1", Reach::Workload, false),
            ("::ffff:127.0.0.1", Reach::Workload, false),
            ("::ffff:7f00:1", Reach::Workload, false),
            ("64:ff9b::127.0.0.1", Reach::Workload, false),
            ("127.1", Reach::Workload, false),
            ("2130706433", Reach::Workload, false),
            ("0x7f000001", Reach::Workload, false),
            ("0.0.0.0", Reach::Workload, false),
            ("0", Reach::Workload, false),
            ("::", Reach::Workload, false),
            ("169.254.169.254", Reach::Workload, false),
            ("fe80::1", Reach::Workload, false),
            ("224.0.0.1", Reach::Workload, false),
        ] {
            let found = resolve(host, 80, reach).await;
            assert_eq!(found.is_ok(), good, "{host} {reach:?}: {found:?}");
            assert!(
                good || matches!(found, Err(Error::NotAllowed)),
                "{host}: {found:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_host_that_vanished_is_noticed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = connect(&[listener.local_addr().unwrap()]).await.unwrap();
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        let idle = getsockopt(&stream, sockopt::TcpKeepIdle).unwrap();
        assert_eq!(idle, KEEP_ALIVE_SECONDS);
    }
}
