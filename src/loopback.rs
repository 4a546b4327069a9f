//! Ports of the node on 127.0.0.1 and ::1 that lead to pods, over TCP.
//!
//! The kernel only lets packets for loopback addresses leave for elsewhere with `route_localnet`, which opens the
//! node's own loopback services to its neighbours, and for `::1` not at all. So rules of nf_tables lead such
//! connections to a listener on the same address, whatever their port, which passes their bytes on to the port that
//! was meant. Used by the proxy for node ports and by the pod network for host ports.
//!
//! Always true: only programs of the node come here, only for ports that the rules have led here, and there are
//! no more connections than [`CONNECTIONS`].

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::{
    accepting::{self, Failures},
    addresses::family::{Family, OfFamily},
    listener::Limits,
};

/// Of each family; each takes two descriptors, and all of them no more than this part of the process's. Further
/// ones wait to be accepted.
const CONNECTIONS: usize = 512;
const OF_DESCRIPTORS: u64 = 32;
/// To a backend.
const CONNECT: Duration = Duration::from_secs(10);

/// How the port that was meant is reached, by an address of the node.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// The same port of this address.
    To(IpAddr),
    /// The port itself, from this address: rules lead to pods what comes from there.
    From(IpAddr),
}

/// The listener of one family.
#[derive(Debug)]
pub struct Forwarder {
    family: Family,
    listener: TcpListener,
    port: u16,
    way: Way,
}

impl Forwarder {
    /// On the loopback address of the same family.
    pub fn listen(way: Way) -> io::Result<Self> {
        let (Way::To(address) | Way::From(address)) = way;
        let family = address.family();
        let listener = accepting::listen((family.loopback(), 0).into())?;
        let port = listener.local_addr()?.port();
        Ok(Self {
            family,
            listener,
            port,
            way,
        })
    }

    /// Where the rules lead connections.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Passes connections on until it is dropped.
    pub async fn run(&self) {
        let places = Limits::new(CONNECTIONS, OF_DESCRIPTORS).total();
        let places = Arc::new(Semaphore::new(places));
        let mut connections = JoinSet::new();
        let mut failures = Failures::new("ports on loopback");
        loop {
            // Never closed.
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let client = match self.listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    let rest = failures.rest(&error, tokio::time::Instant::now());
                    tokio::time::sleep(rest).await;
                    continue;
                }
            };
            failures.over();
            while connections.try_join_next().is_some() {}
            let (way, port) = (self.way, self.meant(&client));
            connections.spawn(async move {
                if let Err(error) = pass(client, way, port).await {
                    tracing::debug!(%error, "a connection to a port on loopback");
                }
                drop(place);
            });
        }
    }

    /// The port that the client has asked for.
    fn meant(&self, client: &TcpStream) -> io::Result<u16> {
        let asked = match self.family {
            Family::V4 => getsockopt(client, sockopt::OriginalDst).map(|to| to.sin_port),
            Family::V6 => getsockopt(client, sockopt::Ip6tOriginalDst).map(|to| to.sin6_port),
        };
        match u16::from_be(asked?) {
            // By the own port, which is nobody's.
            port if port == self.port => Err(io::ErrorKind::ConnectionRefused.into()),
            port => Ok(port),
        }
    }
}

impl Way {
    async fn connect(self, port: u16) -> io::Result<TcpStream> {
        match self {
            Self::To(node) => TcpStream::connect((node, port)).await,
            Self::From(node) => {
                let socket = match node {
                    IpAddr::V4(_) => TcpSocket::new_v4()?,
                    IpAddr::V6(_) => TcpSocket::new_v6()?,
                };
                socket.bind((node, 0).into())?;
                let loopback = node.family().loopback();
                socket.connect((loopback, port).into()).await
            }
        }
    }
}

/// Until both sides have said all; a side that breaks off breaks the other.
async fn pass(mut client: TcpStream, way: Way, port: io::Result<u16>) -> io::Result<()> {
    let passed = async {
        let connected = timeout(CONNECT, way.connect(port?)).await;
        let mut backend = connected.map_err(|_| io::ErrorKind::TimedOut)??;
        for stream in [&client, &backend] {
            accepting::set_options(stream);
        }
        let passed = copy_bidirectional(&mut client, &mut backend).await;
        if passed.is_err() {
            reset(&backend);
        }
        passed.map(|_| ())
    };
    let passed = passed.await;
    if passed.is_err() {
        reset(&client);
    }
    passed
}

/// Has the connection end with a reset when it is dropped.
fn reset(stream: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let _ = setsockopt(stream, sockopt::Linger, &linger);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn ends() -> io::Result<(TcpStream, TcpStream)> {
        let listener = accepting::listen((LOOPBACK, 0).into())?;
        let client = TcpStream::connect(listener.local_addr()?).await?;
        Ok((client, listener.accept().await?.0))
    }

    #[tokio::test]
    async fn a_reset_is_passed_on() -> io::Result<()> {
        let backend = accepting::listen((LOOPBACK, 0).into())?;
        let (mut client, accepted) = ends().await?;
        let port = backend.local_addr().map(|at| at.port());
        let passing = tokio::spawn(pass(accepted, Way::To(LOOPBACK), port));
        let (led, _) = backend.accept().await?;
        reset(&led);
        drop(led);
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(passing.await?.is_err());
        Ok(())
    }

    #[tokio::test]
    async fn one_side_may_have_said_all_before_the_other() -> io::Result<()> {
        let backend = accepting::listen((LOOPBACK, 0).into())?;
        let (mut client, accepted) = ends().await?;
        let port = backend.local_addr().map(|at| at.port());
        let passing = tokio::spawn(pass(accepted, Way::To(LOOPBACK), port));
        client.write_all(b"question").await?;
        client.shutdown().await?;
        let (mut led, _) = backend.accept().await?;
        let mut said = String::new();
        led.read_to_string(&mut said).await?;
        led.write_all(said.replace("question", "answer").as_bytes())
            .await?;
        drop(led);
        said.clear();
        client.read_to_string(&mut said).await?;
        assert_eq!(said, "answer");
        passing.await?
    }

    #[tokio::test]
    async fn who_comes_by_the_own_port_is_turned_away() -> io::Result<()> {
        let forwarder = Forwarder::listen(Way::To(LOOPBACK))?;
        let port = forwarder.port();
        let _running = tokio::spawn(async move { forwarder.run().await });
        let mut client = TcpStream::connect((LOOPBACK, port)).await?;
        assert!(client.read(&mut [0]).await.is_err());
        Ok(())
    }
}
