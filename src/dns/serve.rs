//! UDP and TCP on the listen addresses.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::Name,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{RwLock, Semaphore},
    time::{Instant, timeout},
};

use super::{
    answer::{Answer, answer, encode, reply_to},
    forward::{Forwarder, Transport},
    records::Index,
};
use crate::accepting::Failures;

/// Queries waiting for upstream and TCP connections, at most.
const IN_FLIGHT: usize = 2048;
const IDLE: Duration = Duration::from_secs(10);

/// What every socket shares.
#[derive(Debug)]
pub struct Server {
    pub domain: String,
    pub index: RwLock<Index>,
    pub forwarder: Forwarder,
    in_flight: Semaphore,
}

impl Server {
    pub fn new(domain: String, forwarder: Forwarder) -> Self {
        Self {
            domain,
            index: RwLock::default(),
            forwarder,
            in_flight: Semaphore::new(IN_FLIGHT),
        }
    }

    /// Answers datagrams until the task is dropped. What memory can answer never waits for what
    /// upstream must.
    pub async fn udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; 4096];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
                continue; // an ICMP error of an earlier answer
            };
            let bytes = &buffer[..length];
            match self.local(bytes, Transport::Udp).await {
                Local::Done(reply) => send(&socket, reply, from).await,
                Local::Remote(remote) => {
                    let (server, socket, bytes) = (self.clone(), socket.clone(), bytes.to_vec());
                    tokio::spawn(async move {
                        let Ok(_permit) = server.in_flight.try_acquire() else {
                            return; // the client asks again
                        };
                        let reply = server.remote(*remote, &bytes, Transport::Udp).await;
                        send(&socket, reply, from).await;
                    });
                }
            }
        }
    }

    pub async fn tcp(self: Arc<Self>, listener: TcpListener) {
        let mut failures = Failures::new("DNS");
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tokio::time::sleep(failures.rest(&error, Instant::now())).await;
                    continue;
                }
            };
            failures.over();
            let server = self.clone();
            tokio::spawn(async move {
                let Ok(_permit) = server.in_flight.try_acquire() else {
                    return;
                };
                let _ = server.connection(stream).await; // the client hung up
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let Ok(length) = timeout(IDLE, stream.read_u16()).await else {
                return Ok(());
            };
            let mut bytes = vec![0; length?.into()];
            timeout(IDLE, stream.read_exact(&mut bytes)).await??;
            let reply = match self.local(&bytes, Transport::Tcp).await {
                Local::Done(reply) => reply,
                Local::Remote(remote) => self.remote(*remote, &bytes, Transport::Tcp).await,
            };
            let Some(reply) = reply else { return Ok(()) };
            let length = u16::try_from(reply.len()).unwrap_or(u16::MAX).to_be_bytes();
            stream.write_all(&[&length[..], &reply].concat()).await?;
        }
    }

    async fn local(&self, bytes: &[u8], transport: Transport) -> Local {
        let Ok(query) = Message::from_vec(bytes) else {
            return Local::Done(malformed(bytes));
        };
        if query.metadata.message_type != hickory_proto::op::MessageType::Query {
            return Local::Done(None);
        }
        let answer = answer(&query, &*self.index.read().await, &self.domain);
        match answer {
            Answer::Reply(reply) => {
                Local::Done(encode(&query, &reply, transport == Transport::Udp))
            }
            Answer::Forward => Local::Remote(Box::new(Remote::Forward { query })),
            Answer::Chase { reply, target } => Local::Remote(Box::new(Remote::Chase {
                query,
                reply: Box::new(reply),
                target,
            })),
        }
    }

    async fn remote(&self, remote: Remote, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let udp = transport == Transport::Udp;
        match remote {
            Remote::Forward { query } => match self.forwarder.ask(bytes, transport).await {
                Some(reply) => Some(reply),
                None => {
                    let mut reply = reply_to(&query);
                    reply.metadata.response_code = ResponseCode::ServFail;
                    encode(&query, &reply, udp)
                }
            },
            Remote::Chase {
                query,
                mut reply,
                target,
            } => {
                match self.chase(&query, target, transport).await {
                    Some(found) => {
                        reply.add_answers(found.answers);
                    }
                    None => reply.metadata.response_code = ResponseCode::ServFail,
                }
                encode(&query, &reply, udp)
            }
        }
    }

    /// Asks upstream for the target of an alias.
    async fn chase(&self, query: &Message, target: Name, transport: Transport) -> Option<Message> {
        let kind = query.queries.first()?.query_type();
        let mut question = Message::query();
        question.metadata.id = rand::random();
        question.metadata.op_code = OpCode::Query;
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(target, kind));
        let answer = self
            .forwarder
            .ask(&question.to_vec().ok()?, transport)
            .await?;
        Message::from_vec(&answer).ok()
    }
}

enum Local {
    /// `None`: no reply is due.
    Done(Option<Vec<u8>>),
    Remote(Box<Remote>),
}

enum Remote {
    Forward {
        query: Message,
    },
    Chase {
        query: Message,
        reply: Box<Message>,
        target: Name,
    },
}

async fn send(socket: &UdpSocket, reply: Option<Vec<u8>>, to: SocketAddr) {
    if let Some(reply) = reply {
        let _ = socket.send_to(&reply, to).await; // the client asks again
    }
}

/// A reply to what cannot be read, as long as it has a number.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)
        .to_vec()
        .ok()
}
