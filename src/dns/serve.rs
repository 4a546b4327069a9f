//! UDP and TCP on the listen addresses.
//!
//! Always true: what memory can answer never waits for what upstream must; nobody has more than a share
//! of the connections and of the queries under way upstream, nor more than so many queries a second;
//! clients that ask by UDP take turns; who is not of the cluster gets no answer.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::Name,
};
use ipnet::IpNet;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    answer::{Answer, answer, encode, reply_to},
    datagrams::{self, Received, Replies},
    quick,
    rate::Rates,
    records::Index,
    shares::{Place, Shares},
    turns::{Datagram, Turns},
    upstream::{Asked, Transport, Upstream},
};
use crate::accepting::Failures;

/// TCP connections, and queries waiting for upstream (a descriptor each, and some more): of all clients together,
/// and of one.
const CONNECTIONS: (usize, usize) = (1024, 128);
const UPSTREAM: (usize, usize) = (1024, 256);
/// Datagrams taken before some are answered.
const TAKEN: usize = 256;
/// Between two queries of a connection, and for a reply to be taken.
const IDLE: Duration = Duration::from_secs(10);
/// No query is longer, not even by TCP.
const QUERY: usize = 4096;

/// What every socket shares.
#[derive(Debug)]
pub struct Server {
    pub domain: String,
    index: RwLock<Index>,
    pub upstream: Upstream,
    /// Who is answered.
    clients: Vec<IpNet>,
    connections: Arc<Shares>,
    waiting: Arc<Shares>,
    idle: Duration,
}

impl Server {
    pub fn new(domain: String, upstream: Upstream, clients: Vec<IpNet>) -> Self {
        Self {
            domain,
            index: RwLock::default(),
            upstream,
            clients,
            connections: Shares::new(CONNECTIONS.0, CONNECTIONS.1),
            waiting: Shares::new(UPSTREAM.0, UPSTREAM.1),
            idle: IDLE,
        }
    }

    /// With another time between two queries of a connection.
    #[cfg(test)]
    pub fn with_idle(self, idle: Duration) -> Self {
        Self { idle, ..self }
    }

    fn answers(&self, client: IpAddr) -> bool {
        self.clients.iter().any(|range| range.contains(&client))
    }

    /// Answers datagrams until the task is dropped. What has arrived is taken before anything is
    /// answered: a full socket would drop anybody's, not only those of who filled it.
    pub async fn udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let (mut rates, mut turns) = (Rates::default(), Turns::default());
        let (mut received, mut replies) = (Received::new(QUERY), Replies::default());
        loop {
            for _ in 0..TAKEN / datagrams::AT_ONCE {
                match received.take(&socket) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => continue, // an ICMP error of an earlier answer
                }
                let now = Instant::now();
                for (bytes, from) in received.iter() {
                    let client = from.ip();
                    if self.answers(client) && rates.allow(client, now) {
                        turns.add(bytes, from);
                    }
                }
                if !received.is_full() {
                    break;
                }
            }
            if turns.is_empty() {
                let _ = socket.readable().await;
            }
            let answered = self.answer_some(&socket, &mut turns, &mut replies);
            replies.send(&socket);
            // As if they had been answered one by one: all others of the daemon want their turns too.
            for _ in 0..answered.max(1) {
                tokio::task::consume_budget().await;
            }
        }
    }

    /// Answers some whose turn it is, at once or when upstream has; returns how many. One that is not usual is the
    /// last: the socket has room for all clients, and fills up while few of them are served.
    fn answer_some(
        self: &Arc<Self>,
        socket: &Arc<UdpSocket>,
        turns: &mut Turns,
        replies: &mut Replies,
    ) -> usize {
        let index = self.index();
        for answered in 0..datagrams::AT_ONCE {
            let Some(Datagram { bytes, from }) = turns.take() else {
                return answered;
            };
            if quick::answer(&bytes, &index, &self.domain, replies.next()) {
                replies.add(from);
                turns.reuse(bytes);
                continue;
            }
            if let Some(reply) = self.answer_slowly(socket, &bytes, from, &index) {
                replies.next().extend(reply);
                replies.add(from);
            }
            return answered + 1;
        }
        datagrams::AT_ONCE
    }

    /// `None`: no reply is due, or it comes when upstream has it.
    fn answer_slowly(
        self: &Arc<Self>,
        socket: &Arc<UdpSocket>,
        bytes: &[u8],
        from: SocketAddr,
        index: &Index,
    ) -> Option<Vec<u8>> {
        let remote = match self.local(bytes, Transport::Udp, index) {
            Local::Done(reply) => return reply,
            Local::Remote(remote) => remote,
        };
        let Some(place) = self.waiting.take(from.ip()) else {
            return remote.failed(Transport::Udp);
        };
        let (server, socket) = (self.clone(), socket.clone());
        tokio::spawn(async move {
            let reply = server.remote(*remote, Transport::Udp, &place);
            send(&socket, reply.await, from);
        });
        None
    }

    /// As it is now. Held for as long as some answers take, and never while waiting.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To change it, a few names at a time: nobody is answered meanwhile.
    pub fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn tcp(self: Arc<Self>, listener: TcpListener) {
        let mut failures = Failures::new("DNS");
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    let now = tokio::time::Instant::now();
                    tokio::time::sleep(failures.rest(&error, now)).await;
                    continue;
                }
            };
            failures.over();
            if !self.answers(from.ip()) {
                continue;
            }
            let Some(place) = self.connections.take(from.ip()) else {
                continue; // it has its share
            };
            let server = self.clone();
            tokio::spawn(async move {
                tokio::select! {
                    // The client hung up, or was too slow.
                    _ = server.connection(stream, from.ip()) => {}
                    () = place.evicted() => {}
                }
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
        let mut rates = Rates::default();
        loop {
            let bytes = timeout(self.idle, read(&mut stream)).await??;
            if !rates.allow(client, Instant::now()) {
                return Ok(());
            }
            let local = self.local(&bytes, Transport::Tcp, &self.index());
            let reply = match local {
                Local::Done(reply) => reply,
                Local::Remote(remote) => match self.waiting.take(client) {
                    None => remote.failed(Transport::Tcp),
                    Some(place) => self.remote(*remote, Transport::Tcp, &place).await,
                },
            };
            let Some(reply) = reply else { return Ok(()) };
            let length = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            let framed = [&length.to_be_bytes()[..], &reply].concat();
            timeout(self.idle, stream.write_all(&framed)).await??;
        }
    }

    fn local(&self, bytes: &[u8], transport: Transport, index: &Index) -> Local {
        let Ok(query) = Message::from_vec(bytes) else {
            return Local::Done(malformed(bytes));
        };
        if query.metadata.message_type != hickory_proto::op::MessageType::Query {
            return Local::Done(None);
        }
        match answer(&query, index, &self.domain) {
            Answer::Reply(reply) => {
                Local::Done(encode(&query, &reply, transport == Transport::Udp))
            }
            Answer::Forward => match Asked::read(bytes) {
                None => Local::Done(malformed(bytes)),
                Some(asked) => match self.upstream.remembered(&asked, transport) {
                    Some(reply) => Local::Done(Some(reply)),
                    None => Local::Remote(Box::new(Remote::Forward { asked })),
                },
            },
            Answer::Chase { reply, target } => Local::Remote(Box::new(Remote::Chase {
                query,
                reply: Box::new(reply),
                target,
            })),
        }
    }

    /// What upstream says; a failure, if somebody else needs the place.
    async fn remote(&self, remote: Remote, transport: Transport, place: &Place) -> Option<Vec<u8>> {
        let said = tokio::select! {
            said = self.said(&remote, transport, place.client()) => said,
            () = place.evicted() => None,
        };
        said.or_else(|| remote.failed(transport))
    }

    async fn said(&self, remote: &Remote, transport: Transport, client: IpAddr) -> Option<Vec<u8>> {
        match remote {
            Remote::Forward { asked } => Some(self.upstream.ask(asked, transport, client).await),
            Remote::Chase {
                query,
                reply,
                target,
            } => {
                let asked = target_of(query, target.clone())?;
                let found = self.upstream.ask(&asked, transport, client).await;
                let found = Message::from_vec(&found).ok()?;
                let mut reply = (**reply).clone();
                reply.metadata.response_code = found.metadata.response_code;
                reply.metadata.truncation = found.metadata.truncation;
                reply.add_answers(found.answers);
                encode(query, &reply, transport == Transport::Udp)
            }
        }
    }
}

/// The question for the target of an alias.
fn target_of(query: &Message, target: Name) -> Option<Asked> {
    let kind = query.queries.first()?.query_type();
    let mut question = Message::query();
    question.metadata.op_code = OpCode::Query;
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(target, kind));
    Asked::read(&question.to_vec().ok()?)
}

enum Local {
    /// `None`: no reply is due.
    Done(Option<Vec<u8>>),
    Remote(Box<Remote>),
}

enum Remote {
    Forward {
        asked: Asked,
    },
    Chase {
        query: Message,
        reply: Box<Message>,
        target: Name,
    },
}

impl Remote {
    fn failed(&self, transport: Transport) -> Option<Vec<u8>> {
        match self {
            Self::Forward { asked } => Some(Upstream::failure(asked, transport)),
            Self::Chase { query, .. } => {
                let mut reply = reply_to(query);
                reply.metadata.response_code = ResponseCode::ServFail;
                encode(query, &reply, transport == Transport::Udp)
            }
        }
    }
}

/// One query; memory is taken as its bytes come.
async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    if usize::from(length) > QUERY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    let read = stream.take(length.into()).read_to_end(&mut bytes).await?;
    match read == usize::from(length) {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Never waits: the client asks again.
fn send(socket: &UdpSocket, reply: Option<Vec<u8>>, to: SocketAddr) {
    if let Some(reply) = reply {
        let _ = socket.try_send_to(&reply, to);
    }
}

/// A reply to what cannot be read, as long as it has a number.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)
        .to_vec()
        .ok()
}
