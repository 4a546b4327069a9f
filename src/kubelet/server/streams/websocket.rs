//! Channels over WebSocket: every message starts with the number of its channel.
//!
//! Also the tunnel of port-forward, in which the messages are but pieces of a SPDY connection.

use std::{collections::BTreeMap, io};

use bytes::Bytes;
use futures::{
    SinkExt, StreamExt, future,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::{
    channels::{Encoding, Input, Output, QUEUED_PIECES},
    link::{Life, Link},
};

/// From version 5 on, a message on this channel ends the channel that it names.
const CLOSE_CHANNEL: u8 = 255;
/// Messages that wait to be sent.
const QUEUED_MESSAGES: usize = 32;
/// Clients send pieces of 32 KiB; a paste into a terminal may come in one.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Whether the client can end one channel and leave the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfClose {
    Known,
    Unknown,
}

pub struct Socket {
    pub link: Link,
    encoding: Encoding,
    queue: mpsc::Sender<Message>,
    inputs: BTreeMap<u8, Input>,
}

impl Socket {
    /// Speaks WebSocket on a connection that is already upgraded. Messages on other channels than
    /// `inputs` are dropped.
    pub async fn start<S>(io: S, encoding: Encoding, close: HalfClose, inputs: &[u8]) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (writer, reader) = upgraded(io).await.split();
        let (queue, messages) = mpsc::channel(QUEUED_MESSAGES);
        let mut senders = BTreeMap::new();
        let mut receivers = BTreeMap::new();
        for channel in inputs {
            let (sender, receiver) = mpsc::channel(QUEUED_PIECES);
            senders.insert(*channel, sender);
            receivers.insert(*channel, receiver);
        }
        let receiver = Receiver {
            inputs: senders,
            encoding,
            close,
        };
        let link = Link::start(|life| speak(reader, writer, receiver, messages, life));
        Self {
            link,
            encoding,
            queue,
            inputs: receivers,
        }
    }

    /// What the client sends on one of the channels named at the start; once for each.
    pub fn input(&mut self, channel: u8) -> Option<Input> {
        self.inputs.remove(&channel)
    }

    pub fn output(&self, channel: u8) -> Output {
        Output::WebSocket {
            channel,
            encoding: self.encoding,
            queue: self.queue.clone(),
        }
    }
}

async fn upgraded<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
    mut reader: SplitStream<WebSocketStream<S>>,
    writer: SplitSink<WebSocketStream<S>, Message>,
    mut receiver: Receiver,
    messages: mpsc::Receiver<Message>,
    life: Life,
) {
    let receive = async {
        tokio::select! {
            () = life.closing.cancelled() => {}
            () = receiver.run(&mut reader, &life) => life.gone.cancel(),
        }
        receiver.inputs.clear();
    };
    tokio::join!(receive, send(writer, messages, &life));
    // The client answers the close, then hangs up.
    while let Some(Ok(_)) = reader.next().await {
        life.touch();
    }
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    mut writer: SplitSink<WebSocketStream<S>, Message>,
    mut messages: mpsc::Receiver<Message>,
    life: &Life,
) {
    let mut closing = false;
    let sent = async {
        loop {
            let message = tokio::select! {
                biased;
                () = life.closing.cancelled(), if !closing => {
                    closing = true;
                    messages.close();
                    continue;
                }
                message = messages.recv() => match message {
                    Some(message) => message,
                    None => break,
                },
            };
            writer.feed(message).await?;
            if messages.is_empty() {
                writer.flush().await?;
            }
            life.touch();
        }
        let normal = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        writer.send(Message::Close(Some(normal))).await
    };
    let over = tokio::select! {
        sent = sent => sent,
        () = life.gone.cancelled() => Ok(()),
    };
    if let Err(error) = over {
        tracing::debug!(%error, "WebSocket connection");
        life.gone.cancel();
    }
}

struct Receiver {
    inputs: BTreeMap<u8, mpsc::Sender<Bytes>>,
    encoding: Encoding,
    close: HalfClose,
}

impl Receiver {
    /// Returns when the client has hung up.
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        reader: &mut SplitStream<WebSocketStream<S>>,
        life: &Life,
    ) {
        while let Some(message) = reader.next().await {
            life.touch();
            match message {
                Ok(Message::Binary(bytes)) => self.take(bytes).await,
                Ok(Message::Text(text)) => self.take(text.into()).await,
                Ok(Message::Close(_)) => return,
                // Pings are answered below us.
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Err(error) => return tracing::debug!(%error, "WebSocket connection"),
            }
        }
    }

    async fn take(&mut self, message: Bytes) {
        let Some((channel, bytes)) = self.encoding.read(message) else {
            return;
        };
        if channel == CLOSE_CHANNEL && self.close == HalfClose::Known {
            if let Some(ended) = bytes.first() {
                self.inputs.remove(ended);
            }
            return;
        }
        if let Some(input) = self.inputs.get(&channel)
            && !bytes.is_empty()
        {
            // A process that has closed its input takes no more; the client need not know.
            let _ = input.send(bytes).await;
        }
    }
}

/// The bytes inside a WebSocket's messages, as one stream each way.
pub async fn tunnel<S>(
    io: S,
) -> (
    impl AsyncRead + Send + Unpin + 'static,
    impl AsyncWrite + Send + Unpin + 'static,
)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (writer, reader) = upgraded(io).await.split();
    let bytes = reader
        .take_while(|message| future::ready(!ends(message)))
        .filter_map(|message| {
            future::ready(match message {
                Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
                Ok(_) => None,
                Err(error) => Some(Err(io::Error::other(error))),
            })
        });
    let messages = writer
        .sink_map_err(io::Error::other)
        .with(|bytes: Bytes| future::ready(Ok::<_, io::Error>(Message::Binary(bytes))));
    (
        StreamReader::new(bytes),
        SinkWriter::new(CopyToBytes::new(messages)),
    )
}

fn ends(message: &Result<Message, tungstenite::Error>) -> bool {
    matches!(
        message,
        Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed)
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    async fn client(near: DuplexStream) -> WebSocketStream<DuplexStream> {
        WebSocketStream::from_raw_socket(near, Role::Client, None).await
    }

    #[tokio::test]
    async fn channels_carry_both_ways_and_half_close() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut client = client(near).await;
        let mut socket = Socket::start(far, Encoding::Binary, HalfClose::Known, &[0]).await;
        let mut stdin = socket.input(0).unwrap();
        for message in [&b"\x00hello"[..], b"\x00", b"\x07lost", b"\xff\x00"] {
            client.send(Message::binary(message)).await.unwrap();
        }
        assert_eq!(stdin.recv().await.unwrap(), "hello");
        assert_eq!(stdin.recv().await, None);
        let stdout = socket.output(1);
        stdout.send(Bytes::from_static(b"out")).await.unwrap();
        socket
            .output(3)
            .send(Bytes::from_static(b"{}"))
            .await
            .unwrap();
        tokio::spawn(socket.link.close());
        let mut got = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            got.push(message);
        }
        assert_eq!(
            got[..2],
            [
                Message::binary(&b"\x01out"[..]),
                Message::binary(&b"\x03{}"[..])
            ]
        );
        assert!(matches!(&got[2], Message::Close(Some(close)) if close.code == CloseCode::Normal));
    }

    #[tokio::test]
    async fn base64_channels_and_a_client_that_leaves() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut client = client(near).await;
        let mut socket = Socket::start(far, Encoding::Base64, HalfClose::Unknown, &[0]).await;
        let mut stdin = socket.input(0).unwrap();
        client.send(Message::text("0aGVsbG8=")).await.unwrap();
        assert_eq!(stdin.recv().await.unwrap(), "hello");
        drop(client);
        socket.link.gone().await;
        assert_eq!(stdin.recv().await, None);
    }

    #[tokio::test]
    async fn a_tunnel_is_a_stream_of_bytes() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut client = client(near).await;
        let (mut reader, mut writer) = tunnel(far).await;
        client.send(Message::binary(&b"ab"[..])).await.unwrap();
        client.send(Message::binary(&b"cd"[..])).await.unwrap();
        let mut four = [0; 4];
        reader.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"abcd");
        writer.write_all(b"ef").await.unwrap();
        writer.flush().await.unwrap();
        let got = client.next().await.unwrap().unwrap();
        assert_eq!(got, Message::binary(&b"ef"[..]));
        client.close(None).await.unwrap();
        assert_eq!(reader.read(&mut four).await.unwrap(), 0);
    }
}
