//! Queries of other zones, to the servers that the node itself asks.
//!
//! Always true: a query ends within [`DEADLINE`], and an answer is taken only from the server that was
//! asked, with the number it was asked with, to the question that was asked.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Mutex,
    time::timeout,
};

/// For one server, and for all of them: clients give up after five seconds.
const PATIENCE: Duration = Duration::from_millis(1500);
const DEADLINE: Duration = Duration::from_millis(4500);
/// As many as a resolv.conf may name.
const MOST_SERVERS: usize = 3;
const READ_AGAIN: Duration = Duration::from_secs(1);
/// A longer answer by UDP comes by TCP.
const DATAGRAM: usize = 4096;
const HEADER: usize = 12;

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
    read: Mutex<Servers>,
    /// The server that answered last goes first: a dead one costs one query its patience, not all.
    good: AtomicUsize,
}

#[derive(Debug, Default)]
struct Servers {
    looked: Option<Instant>,
    changed: Option<SystemTime>,
    addresses: Vec<SocketAddr>,
}

impl Forwarder {
    pub fn new(file: PathBuf, own: Vec<IpAddr>) -> Self {
        Self {
            file,
            own,
            read: Mutex::default(),
            good: AtomicUsize::new(0),
        }
    }

    /// The answer of the first server that has one.
    pub async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let servers = self.servers().await;
        let asked = self.ask_in_turn(&servers, query, transport);
        timeout(DEADLINE, asked).await.ok().flatten()
    }

    async fn ask_in_turn(
        &self,
        servers: &[SocketAddr],
        query: &[u8],
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let first = self.good.load(Ordering::Relaxed);
        for step in 0..servers.len() {
            let at = (first + step) % servers.len();
            let server = servers[at];
            let asked = async {
                match transport {
                    Transport::Udp => udp(server, query).await,
                    Transport::Tcp => tcp(server, query).await,
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => {
                    self.good.store(at, Ordering::Relaxed);
                    return Some(answer);
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "upstream failed"),
                Err(_) => tracing::debug!(%server, "upstream is silent"),
            }
        }
        None
    }

    async fn servers(&self) -> Vec<SocketAddr> {
        let mut read = self.read.lock().await;
        if read.looked.is_some_and(|at| at.elapsed() < READ_AGAIN) {
            return read.addresses.clone();
        }
        read.looked = Some(Instant::now());
        let metadata = tokio::fs::metadata(&self.file).await;
        let changed = metadata.and_then(|metadata| metadata.modified()).ok();
        if changed.is_none() || read.changed != changed {
            let text = tokio::fs::read_to_string(&self.file).await;
            read.addresses = parse(&text.unwrap_or_default(), &self.own);
            read.changed = changed;
        }
        read.addresses.clone()
    }
}

/// The `nameserver` lines of a resolv.conf.
fn parse(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse().ok())
        .filter(|address| !own.contains(address))
        .map(|address| SocketAddr::new(address, 53))
        .take(MOST_SERVERS)
        .collect()
}

/// From a port that the kernel draws, so that neither port nor number can be guessed.
async fn udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let sent = renumber(query)?;
    socket.send(&sent).await?;
    let mut buffer = vec![0; DATAGRAM + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = &buffer[..length];
        if !answers(answer, &sent) {
            continue; // a late one, or a forged one
        }
        return Ok(match length > DATAGRAM {
            true => restore(&cut(answer, &sent), query),
            false => restore(answer, query),
        });
    }
}

async fn tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let sent = renumber(query)?;
    let length = u16::try_from(sent.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], &sent].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut answer = Vec::new();
    stream.take(length.into()).read_to_end(&mut answer).await?;
    match answer.len() == usize::from(length) && answers(&answer, &sent) {
        true => Ok(restore(&answer, query)),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The query with a number that nobody can guess from the client's.
fn renumber(query: &[u8]) -> io::Result<Vec<u8>> {
    let id: [u8; 2] = rand::random();
    let rest = query.get(2..).ok_or(io::ErrorKind::InvalidInput)?;
    Ok([&id[..], rest].concat())
}

fn restore(answer: &[u8], query: &[u8]) -> Vec<u8> {
    [&query[..2], &answer[2..]].concat()
}

/// Whether this is a response with the query's number, of its kind, to its question.
fn answers(answer: &[u8], query: &[u8]) -> bool {
    const RESPONSE: u8 = 0x80;
    const OPCODE: u8 = 0x78;
    let (Some(header), Some(asked)) = (answer.get(..HEADER), query.get(..HEADER)) else {
        return false;
    };
    let same_kind = header[2] & RESPONSE != 0 && header[2] & OPCODE == asked[2] & OPCODE;
    if header[..2] != asked[..2] || !same_kind {
        return false;
    }
    let end = question_end(query);
    match (&header[4..6], answer.get(HEADER..end)) {
        // Servers that cannot read a question leave it out of the error.
        ([0, 0], _) => header[3] & 0x0f != 0,
        ([0, 1], Some(question)) => question.eq_ignore_ascii_case(&query[HEADER..end]),
        _ => false,
    }
}

/// Where the first question of a query that was read before ends.
fn question_end(query: &[u8]) -> usize {
    let mut at = HEADER;
    while let Some(length) = query.get(at).copied().filter(|length| *length != 0) {
        at += 1 + usize::from(length);
    }
    (at + 5).min(query.len())
}

/// Header and question of an answer, with the sign to come back by TCP.
fn cut(answer: &[u8], query: &[u8]) -> Vec<u8> {
    const TRUNCATED: u8 = 0x02;
    let mut cut = answer[..question_end(query).min(answer.len())].to_vec();
    cut[2] |= TRUNCATED;
    cut[6..HEADER].fill(0);
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_a_resolv_conf() {
        let own = [IpAddr::from([10, 0, 0, 1])];
        let text = "search a b\nnameserver 10.0.0.1\nnameserver  1.1.1.1\n#nameserver 9.9.9.9\n";
        assert_eq!(parse(text, &own), [SocketAddr::from(([1, 1, 1, 1], 53))]);
        let many = "nameserver 192.0.2.1\n".repeat(100);
        assert_eq!(parse(&many, &own).len(), MOST_SERVERS);
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let name =
            |name: &str| [&[name.len() as u8][..], name.as_bytes(), &[0, 0, 1, 0, 1]].concat();
        let message = |id: u8, flags: [u8; 2], name: &[u8]| {
            [
                &[7, id, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, 0][..],
                name,
            ]
            .concat()
        };
        let query = message(9, [1, 0], &name("example"));
        for (answer, want) in [
            (message(9, [0x81, 0], &name("example")), true),
            (message(9, [0x81, 0], &name("EXAMPLE")), true),
            (message(8, [0x81, 0], &name("example")), false), // another number
            (message(9, [0x01, 0], &name("example")), false), // a query
            (message(9, [0x81, 0], &name("exampl3")), false), // another question
            (message(9, [0x89, 0], &name("example")), false), // another kind
            (vec![7, 9, 0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0], true), // not understood
            (vec![7, 9, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0], false), // nothing, to nothing
            (vec![7, 9], false),
        ] {
            assert_eq!(answers(&answer, &query), want, "{answer:?}");
        }
        let long = [message(9, [0x81, 0], &name("example")), vec![1; 5000]].concat();
        assert_eq!(cut(&long, &query), message(9, [0x83, 0], &name("example")));
    }
}
