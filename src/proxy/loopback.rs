//! Node ports on 127.0.0.1 and ::1, over TCP.
//!
//! The kernel only lets packets for loopback addresses leave for elsewhere with `route_localnet`, which opens the
//! node's own loopback services to its neighbours, and for `::1` not at all. So the rules lead such connections to
//! one listener per family on the same address, whatever their port, which passes their bytes on to that port of an
//! address of the node: policies and affinity are those of the node as a client.
//!
//! Always true: only programs of the node come here, only for ports that the rules have led here, and there are
//! no more connections than [`CONNECTIONS`].

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::{
    accepting::{self, Failures},
    addresses::family::Family,
    listener::Limits,
};

/// Of each family; each takes two descriptors, and all of them no more than this part of the process's. Further
/// ones wait to be accepted.
const CONNECTIONS: usize = 512;
const OF_DESCRIPTORS: u64 = 32;
/// To a backend.
const CONNECT: Duration = Duration::from_secs(10);

/// The listener of one family.
#[derive(Debug)]
pub struct Forwarder {
    family: Family,
    listener: TcpListener,
    port: u16,
    /// An address of the node where node ports answer.
    node: IpAddr,
}

impl Forwarder {
    pub fn listen(node: IpAddr, family: Family) -> io::Result<Self> {
        let listener = accepting::listen((family.loopback(), 0).into())?;
        let port = listener.local_addr()?.port();
        Ok(Self {
            family,
            listener,
            port,
            node,
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
    pub async fn run(self) {
        let places = Limits::new(CONNECTIONS, OF_DESCRIPTORS).total();
        let places = Arc::new(Semaphore::new(places));
        let mut connections = JoinSet::new();
        let mut failures = Failures::new("node ports on loopback");
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
            let to = self.destination(&client);
            connections.spawn(async move {
                if let Err(error) = pass(client, to).await {
                    tracing::debug!(%error, "a connection to a node port on loopback");
                }
                drop(place);
            });
        }
    }

    /// Where the client's connection shall go: to the port that it has asked for.
    fn destination(&self, client: &TcpStream) -> io::Result<SocketAddr> {
        let asked = match self.family {
            Family::V4 => getsockopt(client, sockopt::OriginalDst).map(|to| to.sin_port),
            Family::V6 => getsockopt(client, sockopt::Ip6tOriginalDst).map(|to| to.sin6_port),
        };
        let port = u16::from_be(asked?);
        if port == self.port {
            // By its own port, which is nobody's.
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(SocketAddr::new(self.node, port))
    }
}

/// Until both sides have said all; a side that breaks off breaks the other.
async fn pass(mut client: TcpStream, to: io::Result<SocketAddr>) -> io::Result<()> {
    let passed = async {
        let connected = timeout(CONNECT, TcpStream::connect(to?)).await;
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

    async fn ends() -> io::Result<(TcpStream, TcpStream)> {
        let listener = accepting::listen((Family::V4.loopback(), 0).into())?;
        let client = TcpStream::connect(listener.local_addr()?).await?;
        Ok((client, listener.accept().await?.0))
    }

    #[tokio::test]
    async fn a_reset_is_passed_on() -> io::Result<()> {
        let backend = accepting::listen((Family::V4.loopback(), 0).into())?;
        let (mut client, accepted) = ends().await?;
        let passing = tokio::spawn(pass(accepted, backend.local_addr()));
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
        let backend = accepting::listen((Family::V4.loopback(), 0).into())?;
        let (mut client, accepted) = ends().await?;
        let passing = tokio::spawn(pass(accepted, backend.local_addr()));
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
        let forwarder = Forwarder::listen(Family::V4.loopback(), Family::V4)?;
        let port = forwarder.port();
        let _running = tokio::spawn(forwarder.run());
        let mut client = TcpStream::connect((Family::V4.loopback(), port)).await?;
        assert!(client.read(&mut [0]).await.is_err());
        Ok(())
    }
}
