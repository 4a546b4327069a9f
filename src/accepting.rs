//! Listeners, and what each does when it cannot accept connections: out of descriptors, say.
//!
//! Always true:
//! - Many connections at once wait for their turn: none is turned away unseen.
//! - A listener that cannot accept rests, longer each time, and its log gets a line a minute at most.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::Instant,
};

/// Connections that wait to be accepted; the kernel takes `net.core.somaxconn` if that is less. Who finds
/// no place tries again after a second.
const WAITING: u32 = 4096;

/// Takes a port. [`TcpListener::bind`] has 128 places.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    take(socket, address)
}

/// Takes a port on every address of this machine, of both families where it has both. Clients by IPv4 show as
/// IPv4-mapped then: [`std::net::IpAddr::to_canonical`] tells who they are.
pub fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    let both = || {
        let socket = TcpSocket::new_v6()?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
        take(socket, (Ipv6Addr::UNSPECIFIED, port).into())
    };
    match both() {
        // A machine whose kernel was told to do without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            listen((Ipv4Addr::UNSPECIFIED, port).into())
        }
        taken => taken,
    }
}

/// Takes a port on every IPv6 address of this machine and leaves IPv4 to others.
pub fn listen_ipv6_only(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    take(socket, (Ipv6Addr::UNSPECIFIED, port).into())
}

fn take(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpListener> {
    // What the last daemon's connections have left does not hold up the next.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING)
}

/// For a connection that is passed on or answered: small pieces go at once (keystrokes of an exec), and a peer
/// that is gone is noticed.
pub fn set_options(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &30);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &15);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &4);
}

const REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(1);
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Failures to accept, in a row.
#[derive(Debug)]
pub struct Failures {
    /// What the connections are for.
    what: &'static str,
    rest: Duration,
    untold: u64,
    told: Option<Instant>,
}

impl Failures {
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            rest: Duration::ZERO,
            untold: 0,
            told: None,
        }
    }

    /// A connection was accepted.
    pub fn over(&mut self) {
        self.rest = Duration::ZERO;
    }

    /// How long to rest now; logs the failure if that is due.
    pub fn rest(&mut self, error: &io::Error, now: Instant) -> Duration {
        if let Some(times) = self.due(now) {
            let what = self.what;
            tracing::warn!(%error, what, times, "connections cannot be accepted");
        }
        self.rest = (self.rest * 2).clamp(REST, LONGEST_REST);
        self.rest
    }

    /// Counts a failure; how many there were since the last line, if it is time for another.
    fn due(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now < told + TELL_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[tokio::test]
    async fn many_connections_at_once_find_a_place() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        // Nobody accepts; a full queue would leave the next one waiting.
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500));
        let clients: Vec<_> = (0..400).map(|_| connect().unwrap()).collect();
        assert_eq!(clients.len(), 400);
    }

    #[tokio::test]
    async fn every_address_of_both_families() {
        let listener = listen_everywhere(0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken = listen_everywhere(port).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let has_v6 = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let v6 = has_v6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST));
        for address in [v4].into_iter().chain(v6) {
            let client = std::net::TcpStream::connect((address, port)).unwrap();
            let (_, from) = listener.accept().await.unwrap();
            assert_eq!(from.ip().to_canonical(), client.local_addr().unwrap().ip());
        }
    }

    #[test]
    fn a_line_a_minute_and_longer_rests() {
        let begun = Instant::now();
        let mut failures = Failures::new("tests");
        for (seconds, want) in [
            (0, Some(1)),
            (1, None),
            (59, None),
            (60, Some(3)),
            (61, None),
        ] {
            let now = begun + Duration::from_secs(seconds);
            assert_eq!(failures.due(now), want, "after {seconds} s");
        }
        let error = io::Error::other("none left");
        let rests = [(); 7].map(|()| failures.rest(&error, begun).as_millis());
        assert_eq!(rests, [50, 100, 200, 400, 800, 1000, 1000]);
        failures.over();
        assert_eq!(failures.rest(&error, begun), REST);
    }
}
