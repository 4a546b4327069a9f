//! One server asked, by UDP or TCP.
//!
//! Always true: an answer is taken only from the server that was asked, with the number it was asked with, to the
//! question that was asked.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::message::{Asked, Said, Transport, answers, cut};

/// A longer answer by UDP comes by TCP.
const DATAGRAM: usize = 4096;
/// A query, or its answer, may be lost on the way.
const SENT_AGAIN: Duration = Duration::from_secs(1);

/// What the server says; without an answer this never ends.
pub async fn ask(server: SocketAddr, asked: &Asked, transport: Transport) -> io::Result<Said> {
    // With a number that nobody can guess from the client's.
    let query = asked.query(rand::random());
    let answer = match transport {
        Transport::Udp => udp(server, &query).await?,
        Transport::Tcp => tcp(server, &query).await?,
    };
    Said::read(&answer, asked).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// From a port that the kernel draws, so that neither port nor number can be guessed.
async fn udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    loop {
        socket.send(query).await?;
        if let Ok(answer) = timeout(SENT_AGAIN, answer_to(query, &socket)).await {
            return answer;
        }
    }
}

async fn answer_to(query: &[u8], socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; DATAGRAM + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = &buffer[..length];
        if !answers(answer, query) {
            continue; // a late one, or a forged one
        }
        return Ok(match length > DATAGRAM {
            true => cut(answer, query),
            false => answer.to_vec(),
        });
    }
}

async fn tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], query].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut answer = Vec::new();
    stream.take(length.into()).read_to_end(&mut answer).await?;
    match answer.len() == usize::from(length) && answers(&answer, query) {
        true => Ok(answer),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}
