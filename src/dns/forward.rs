//! Queries of other zones, to the servers that the node itself asks.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Mutex,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(2);

/// How a query came, and so how it goes on: what is too long for the one is for the other too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// The upstream servers, as the node's file names them at the time of asking.
#[derive(Debug)]
pub struct Forwarder {
    file: PathBuf,
    /// Our own addresses: asking them would never end.
    own: Vec<IpAddr>,
    read: Mutex<(Option<SystemTime>, Vec<SocketAddr>)>,
}

impl Forwarder {
    pub fn new(file: PathBuf, own: Vec<IpAddr>) -> Self {
        Self {
            file,
            own,
            read: Mutex::default(),
        }
    }

    /// The answer of the first server that has one.
    pub async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        for server in self.servers().await {
            let asked = async {
                match transport {
                    Transport::Udp => udp(server, query).await,
                    Transport::Tcp => tcp(server, query).await,
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "upstream failed"),
                Err(_) => tracing::debug!(%server, "upstream is silent"),
            }
        }
        None
    }

    async fn servers(&self) -> Vec<SocketAddr> {
        let metadata = tokio::fs::metadata(&self.file).await;
        let changed = metadata.and_then(|metadata| metadata.modified()).ok();
        let mut read = self.read.lock().await;
        if changed.is_none() || read.0 != changed {
            let text = tokio::fs::read_to_string(&self.file).await;
            *read = (changed, parse(&text.unwrap_or_default(), &self.own));
        }
        read.1.clone()
    }
}

/// The `nameserver` lines of a resolv.conf.
fn parse(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse().ok())
        .filter(|address| !own.contains(address))
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

async fn udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let (id, sent) = renumber(query)?;
    socket.send(&sent).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if buffer[..length].starts_with(&id) {
            return Ok(restore(&buffer[..length], query));
        }
    }
}

async fn tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], query].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The query with a number that nobody can guess from the client's.
fn renumber(query: &[u8]) -> std::io::Result<([u8; 2], Vec<u8>)> {
    let id: [u8; 2] = rand::random();
    let rest = query.get(2..).ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok((id, [&id[..], rest].concat()))
}

fn restore(answer: &[u8], query: &[u8]) -> Vec<u8> {
    [&query[..2], &answer[2..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_a_resolv_conf() {
        let own = [IpAddr::from([10, 0, 0, 1])];
        let text = "search a b\nnameserver 10.0.0.1\nnameserver  1.1.1.1\n#nameserver 9.9.9.9\n";
        assert_eq!(parse(text, &own), [SocketAddr::from(([1, 1, 1, 1], 53))]);
    }
}
