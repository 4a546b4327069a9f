//! Port-forward: connections to the pod's own loopback, one per pair of streams or channels.
//!
//! Always true: the pod's network namespace is entered on a thread that ends with it; the socket
//! made there goes on being of that namespace.

use std::{
    collections::HashMap,
    future, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::Instant,
};

use super::{
    channels::{Input, Output},
    link::Link,
    spdy::{Connection, Stream},
    websocket::Socket,
};
use crate::{causes::causes, runtime::Runtime};

const PIECE_BYTES: usize = 32 * 1024;
/// Loopback answers at once, unless the program's queue is full.
const CONNECT: Duration = Duration::from_secs(10);
/// The second stream of a pair must follow the first in this time.
pub const PAIRING: Duration = Duration::from_secs(30);

/// Makes connections into one pod.
#[derive(Clone)]
pub struct Forwarder {
    pub runtime: Runtime,
    /// As the runtime knows it.
    pub uid: String,
    /// `name_namespace`, for messages.
    pub pod: String,
}

impl Forwarder {
    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let failed = |reason: String| {
            format!(
                "error forwarding port {port} to pod {}, uid {}: {reason}",
                self.pod, self.uid
            )
        };
        let netns = self
            .runtime
            .netns(&self.uid)
            .await
            .map_err(|error| failed(causes(&error)))?;
        let dialled = tokio::task::spawn_blocking(move || match netns {
            Some(netns) => netns::Namespace::from(netns)
                .run(|| dial(port))
                .map_err(|error| causes(&error))?,
            None => dial(port),
        });
        let stream = dialled
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(failed)?;
        TcpStream::from_std(stream).map_err(|error| failed(error.to_string()))
    }
}

/// To whichever loopback address answers, in the namespace of the calling thread.
fn dial(port: u16) -> Result<std::net::TcpStream, String> {
    let connect = |address: IpAddr| -> io::Result<std::net::TcpStream> {
        let address = SocketAddr::new(address, port);
        let stream = std::net::TcpStream::connect_timeout(&address, CONNECT)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    connect(Ipv4Addr::LOCALHOST.into()).or_else(|v4| {
        connect(Ipv6Addr::LOCALHOST.into())
            .map_err(|v6| format!("failed to connect to localhost:{port}: IPv4: {v4}, IPv6: {v6}"))
    })
}

/// Serves pairs of streams until the client is gone.
pub async fn over_spdy(forwarder: Forwarder, mut connection: Connection) {
    let mut pairs = Pairs::default();
    let mut forwards = JoinSet::new();
    loop {
        let late = async {
            match pairs.next_deadline() {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => future::pending().await,
            }
        };
        let stream = tokio::select! {
            stream = connection.streams.recv() => stream,
            () = connection.link.gone() => return,
            () = late => {
                for stream in pairs.expired(Instant::now()) {
                    stream.reject().await;
                }
                continue;
            }
            Some(_) = forwards.join_next() => continue,
        };
        let Some(stream) = stream else { return };
        match pairs.add(stream, Instant::now()) {
            Added::Waiting => {}
            Added::Pair(pair) => {
                forwards.spawn(forward(forwarder.clone(), *pair));
            }
            Added::Wrong(stream) => stream.reject().await,
        }
    }
}

/// The two streams of one connection.
struct Pair {
    port: u16,
    data: Stream,
    error: Stream,
}

async fn forward(forwarder: Forwarder, pair: Pair) {
    let Pair { port, data, error } = pair;
    let stream = match forwarder.connect(port).await {
        Ok(stream) => stream,
        Err(reason) => {
            let _ = error.output.send(reason.into()).await;
            data.output.end().await;
            return error.output.end().await;
        }
    };
    let (reader, writer) = stream.into_split();
    let down = async {
        let read = from_pod(reader, &data.output).await;
        data.output.end().await;
        match read {
            // kubectl ends all of its connections when one of them failed, but an application that
            // resets one of its own is no failure of ours.
            Err(failure) if failure.kind() != io::ErrorKind::ConnectionReset => {
                let reason = format!("error forwarding port {port}: {failure}");
                let _ = error.output.send(reason.into()).await;
            }
            _ => {}
        }
        // The client waits for this end, whatever it still sends.
        error.output.end().await;
    };
    let both = async { tokio::join!(down, to_pod(data.input, writer)) };
    tokio::select! {
        _ = both => {}
        () = data.reset.cancelled() => {}
    }
}

async fn from_pod(mut reader: OwnedReadHalf, client: &Output) -> io::Result<()> {
    let mut piece = BytesMut::new();
    loop {
        piece.reserve(PIECE_BYTES);
        if reader.read_buf(&mut piece).await? == 0 {
            return Ok(());
        }
        if client.send(piece.split().freeze()).await.is_err() {
            return Ok(());
        }
    }
}

async fn to_pod(mut client: Input, mut writer: OwnedWriteHalf) {
    while let Some(bytes) = client.recv().await {
        if let Err(error) = writer.write_all(&bytes).await {
            return tracing::debug!(%error, "forwarded connection");
        }
    }
    // Dropping the half shuts it down.
}

/// Serves one connection for each port, over two channels each, until all have ended.
pub async fn over_websocket(forwarder: Forwarder, mut socket: Socket, ports: Vec<u16>) {
    let mut forwards = JoinSet::new();
    for (port, channel) in ports.into_iter().zip((0..).step_by(2)) {
        let (data, error) = (socket.output(channel), socket.output(channel + 1));
        let (forwarder, input) = (forwarder.clone(), socket.input(channel));
        forwards.spawn(async move {
            // Both channels begin with the port they are of.
            for output in [&data, &error] {
                let port = Bytes::copy_from_slice(&port.to_le_bytes());
                let _ = output.send(port).await;
            }
            let stream = match forwarder.connect(port).await {
                Ok(stream) => stream,
                Err(reason) => {
                    let _ = error.send(reason.into()).await;
                    return;
                }
            };
            let (reader, writer) = stream.into_split();
            let up = async {
                if let Some(input) = input {
                    to_pod(input, writer).await;
                }
                future::pending::<()>().await;
            };
            tokio::select! {
                read = from_pod(reader, &data) => if let Err(failure) = read {
                    let reason = format!("error forwarding port {port}: {failure}");
                    let _ = error.send(reason.into()).await;
                },
                () = up => {}
            }
        });
    }
    let link: Link = socket.link;
    let all = async { while forwards.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = link.gone() => return,
    }
    link.close().await;
}

/// Streams that wait for their other half, by the client's number of the connection.
#[derive(Default)]
struct Pairs(HashMap<String, Half>);

struct Half {
    stream: Stream,
    kind: Kind,
    deadline: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

enum Added {
    Waiting,
    Pair(Box<Pair>),
    Wrong(Stream),
}

impl Pairs {
    fn add(&mut self, stream: Stream, now: Instant) -> Added {
        let kind = match stream.headers.get("streamtype") {
            Some("data") => Kind::Data,
            Some("error") => Kind::Error,
            _ => return Added::Wrong(stream),
        };
        let port = stream
            .headers
            .get("port")
            .and_then(|port| port.parse().ok());
        let Some(port) = port.filter(|port: &u16| *port > 0) else {
            return Added::Wrong(stream);
        };
        let id = match stream.headers.get("requestid") {
            Some(id) => id.to_owned(),
            // The oldest clients give none, but open the error stream and the data stream next.
            None => match kind {
                Kind::Error => stream.id.to_string(),
                Kind::Data => stream.id.saturating_sub(2).to_string(),
            },
        };
        let Some(half) = self.0.remove(&id) else {
            let deadline = now + PAIRING;
            let half = Half {
                stream,
                kind,
                deadline,
            };
            self.0.insert(id, half);
            return Added::Waiting;
        };
        let (data, error) = match (kind, half.kind) {
            (Kind::Data, Kind::Error) => (stream, half.stream),
            (Kind::Error, Kind::Data) => (half.stream, stream),
            _ => {
                self.0.insert(id, half);
                return Added::Wrong(stream);
            }
        };
        Added::Pair(Box::new(Pair { port, data, error }))
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.0.values().map(|half| half.deadline).min()
    }

    fn expired(&mut self, now: Instant) -> Vec<Stream> {
        let late = self.0.extract_if(|_, half| half.deadline <= now);
        late.map(|(_, half)| half.stream).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::kubelet::server::streams::spdy::Headers;

    fn stream(id: u32, pairs: &[(&str, &str)]) -> Stream {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Stream {
            id,
            headers: Headers(pairs.iter().map(own).collect()),
            input: mpsc::channel(1).1,
            output: Output::Spdy {
                stream: id,
                queue: mpsc::channel(1).0,
            },
            reset: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn streams_find_their_other_half() {
        let now = Instant::now();
        let mut pairs = Pairs::default();
        let error = [("streamtype", "error"), ("port", "80"), ("requestid", "0")];
        let data = [("streamtype", "data"), ("port", "80"), ("requestid", "0")];
        assert!(matches!(pairs.add(stream(1, &error), now), Added::Waiting));
        assert!(matches!(pairs.add(stream(3, &error), now), Added::Wrong(_)));
        let Added::Pair(pair) = pairs.add(stream(5, &data), now) else {
            panic!("no pair");
        };
        assert_eq!((pair.port, pair.data.id, pair.error.id), (80, 5, 1));
        // Without numbers, as the oldest clients do it.
        assert!(matches!(
            pairs.add(stream(7, &error[..2]), now),
            Added::Waiting
        ));
        assert!(matches!(
            pairs.add(stream(9, &data[..2]), now),
            Added::Pair(_)
        ));
        for wrong in [
            &[("streamtype", "x"), ("port", "1")],
            &[("streamtype", "data"), ("port", "0")],
        ] {
            assert!(matches!(pairs.add(stream(11, wrong), now), Added::Wrong(_)));
        }
        pairs.add(stream(13, &error), now);
        assert_eq!(pairs.next_deadline(), Some(now + PAIRING));
        assert!(pairs.expired(now).is_empty());
        assert_eq!(pairs.expired(now + PAIRING).len(), 1);
    }
}
