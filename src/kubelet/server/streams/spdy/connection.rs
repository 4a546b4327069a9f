//! The server's end of one SPDY connection: streams that the client opens.
//!
//! Always true:
//! - A stream is answered (SYN_REPLY) before any data is sent on it.
//! - A stream whose data nobody takes holds up the others after [`QUEUED_PIECES`]; the clients in
//!   the field know no windows.
//! - Windows of clients that do know them are opened again as data is taken; theirs are not
//!   waited for, because most never open them.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_util::{
    codec::{FramedRead, FramedWrite},
    sync::CancellationToken,
};

use super::{
    Error, Frame,
    frame::{FrameDecoder, FrameEncoder, Reset},
    headers::Headers,
};
use crate::kubelet::server::streams::{
    channels::{Input, Output, QUEUED_PIECES},
    link::{Life, Link},
};

/// Streams that a client may have open at once.
const MAX_STREAMS: usize = 1024;
/// So much taken from a stream opens its window again: half of what it is at first.
const WINDOW_STEP: u32 = 32 * 1024;
/// Frames that wait to be sent.
const QUEUED_FRAMES: usize = 32;

/// A stream that the client opened.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub input: Input,
    pub output: Output,
    /// Set when the client cuts the stream off.
    pub reset: CancellationToken,
}

impl Stream {
    /// Cuts the stream off: it is not one that is understood.
    pub async fn reject(self) {
        if let Output::Spdy { stream, queue } = self.output {
            let status = Reset::PROTOCOL_ERROR;
            // Who is gone need not know.
            let _ = queue.send(Frame::RstStream { stream, status }).await;
        }
    }
}

pub struct Connection {
    pub streams: mpsc::Receiver<Stream>,
    pub link: Link,
}

impl Connection {
    pub fn start<R, W>(reader: R, writer: W) -> Result<Self, Error>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let reader = FramedRead::new(reader, FrameDecoder::new());
        let writer = FramedWrite::new(writer, FrameEncoder::new()?);
        let (announce, streams) = mpsc::channel(QUEUED_FRAMES);
        let link = Link::start(|life| speak(reader, writer, life, announce));
        Ok(Self { streams, link })
    }
}

async fn speak<R, W>(
    mut reader: FramedRead<R, FrameDecoder>,
    writer: FramedWrite<W, FrameEncoder>,
    life: Life,
    announce: mpsc::Sender<Stream>,
) where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    let (queue, frames) = mpsc::channel(QUEUED_FRAMES);
    let receive = async {
        let mut receiver = Receiver::new(queue, announce, life.clone());
        let ended = tokio::select! {
            () = life.closing.cancelled() => Ok(()),
            ended = receiver.run(&mut reader) => {
                life.gone.cancel();
                ended
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "SPDY connection");
        }
    };
    tokio::join!(receive, send(writer, frames, &life));
    while let Some(Ok(_)) = reader.next().await {
        life.touch();
    }
}

/// Sends until the session is over and the queue empty, or the client gone.
async fn send<W: AsyncWrite + Unpin>(
    mut writer: FramedWrite<W, FrameEncoder>,
    mut frames: mpsc::Receiver<Frame>,
    life: &Life,
) {
    let mut closing = false;
    let sent = async {
        loop {
            let frame = tokio::select! {
                biased;
                () = life.closing.cancelled(), if !closing => {
                    closing = true;
                    frames.close();
                    continue;
                }
                frame = frames.recv() => match frame {
                    Some(frame) => frame,
                    None => break,
                },
            };
            writer.feed(frame).await?;
            if frames.is_empty() {
                writer.flush().await?;
            }
            life.touch();
        }
        let farewell = Frame::GoAway {
            last_stream: 0,
            status: 0,
        };
        writer.send(farewell).await?;
        writer.close().await
    };
    let over = tokio::select! {
        sent = sent => sent,
        () = life.gone.cancelled() => Ok(()),
    };
    if let Err(error) = over {
        tracing::debug!(%error, "SPDY connection");
        life.gone.cancel();
    }
}

/// What the client may still send on an open stream.
struct Open {
    input: mpsc::Sender<Bytes>,
    reset: CancellationToken,
    /// Bytes taken since the window was opened last.
    taken: u32,
}

struct Receiver {
    queue: mpsc::Sender<Frame>,
    announce: mpsc::Sender<Stream>,
    life: Life,
    open: HashMap<u32, Open>,
    last: u32,
    /// As [`Open::taken`], of the connection as a whole.
    taken: u32,
}

impl Receiver {
    fn new(queue: mpsc::Sender<Frame>, announce: mpsc::Sender<Stream>, life: Life) -> Self {
        Self {
            queue,
            announce,
            life,
            open: HashMap::new(),
            last: 0,
            taken: 0,
        }
    }

    /// Returns when the client has hung up.
    async fn run<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut FramedRead<R, FrameDecoder>,
    ) -> Result<(), Error> {
        while let Some(frame) = reader.next().await {
            self.life.touch();
            match frame? {
                Frame::SynStream {
                    stream,
                    headers,
                    fin,
                } => self.opened(stream, headers, fin).await,
                Frame::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await,
                Frame::Headers {
                    stream, fin: true, ..
                } => {
                    self.open.remove(&stream);
                }
                Frame::RstStream { stream, .. } => {
                    if let Some(open) = self.open.remove(&stream) {
                        open.reset.cancel();
                    }
                }
                // The client's own have odd numbers.
                Frame::Ping(id) if id % 2 == 1 => self.answer(Frame::Ping(id)).await,
                Frame::Ping(_)
                | Frame::Headers { .. }
                | Frame::SynReply { .. }
                | Frame::Settings(_)
                | Frame::GoAway { .. }
                | Frame::WindowUpdate { .. } => {}
            }
        }
        Ok(())
    }

    async fn opened(&mut self, id: u32, headers: Headers, fin: bool) {
        if id.is_multiple_of(2) || id <= self.last {
            return self.refuse(id, Reset::PROTOCOL_ERROR).await;
        }
        self.last = id;
        if self.open.len() >= MAX_STREAMS {
            return self.refuse(id, Reset::REFUSED_STREAM).await;
        }
        // Nobody waits for streams any more.
        let Ok(place) = self.announce.clone().reserve_owned().await else {
            return self.refuse(id, Reset::REFUSED_STREAM).await;
        };
        let (sender, input) = mpsc::channel(QUEUED_PIECES);
        let reset = CancellationToken::new();
        if !fin {
            let open = Open {
                input: sender,
                reset: reset.clone(),
                taken: 0,
            };
            self.open.insert(id, open);
        }
        let reply = Frame::SynReply {
            stream: id,
            headers: Headers::default(),
            fin: false,
        };
        self.answer(reply).await;
        place.send(Stream {
            id,
            headers,
            input,
            output: Output::Spdy {
                stream: id,
                queue: self.queue.clone(),
            },
            reset,
        });
    }

    async fn data(&mut self, id: u32, bytes: Bytes, fin: bool) {
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(size);
        if self.taken >= WINDOW_STEP {
            let delta = std::mem::take(&mut self.taken);
            self.answer(Frame::WindowUpdate { stream: 0, delta }).await;
        }
        let Some(open) = self.open.get_mut(&id) else {
            if id > self.last {
                self.refuse(id, Reset::INVALID_STREAM).await;
            }
            return;
        };
        if !bytes.is_empty() {
            // A process that has closed its input takes no more; the client need not know.
            let _ = open.input.send(bytes).await;
            open.taken = open.taken.saturating_add(size);
        }
        let delta = open.taken;
        if fin {
            self.open.remove(&id);
        } else if delta >= WINDOW_STEP {
            open.taken = 0;
            self.answer(Frame::WindowUpdate { stream: id, delta }).await;
        }
    }

    async fn refuse(&self, stream: u32, status: Reset) {
        self.answer(Frame::RstStream { stream, status }).await;
    }

    async fn answer(&self, frame: Frame) {
        // The sending half ends only when the connection does.
        let _ = self.queue.send(frame).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    struct Client {
        reader: FramedRead<tokio::io::ReadHalf<DuplexStream>, FrameDecoder>,
        writer: FramedWrite<tokio::io::WriteHalf<DuplexStream>, FrameEncoder>,
    }

    fn connected() -> (Client, Connection) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(far);
        let connection = Connection::start(reader, writer).unwrap();
        let (reader, writer) = tokio::io::split(near);
        let client = Client {
            reader: FramedRead::new(reader, FrameDecoder::new()),
            writer: FramedWrite::new(writer, FrameEncoder::new().unwrap()),
        };
        (client, connection)
    }

    impl Client {
        async fn open(&mut self, stream: u32, kind: &str) {
            let headers = Headers(vec![("streamtype".to_owned(), kind.to_owned())]);
            let frame = Frame::SynStream {
                stream,
                headers,
                fin: false,
            };
            self.writer.send(frame).await.unwrap();
        }

        async fn data(&mut self, stream: u32, bytes: &'static [u8], fin: bool) {
            let bytes = Bytes::from_static(bytes);
            let frame = Frame::Data { stream, bytes, fin };
            self.writer.send(frame).await.unwrap();
        }

        async fn next(&mut self) -> Option<Frame> {
            self.reader.next().await.map(Result::unwrap)
        }
    }

    #[tokio::test]
    async fn streams_carry_both_ways_and_end() {
        let (mut client, mut connection) = connected();
        client.open(1, "stdin").await;
        let mut stream = connection.streams.recv().await.unwrap();
        assert_eq!(stream.headers.get("streamtype"), Some("stdin"));
        assert!(matches!(
            client.next().await,
            Some(Frame::SynReply { stream: 1, .. })
        ));
        client.data(1, b"ping", false).await;
        client.data(1, b"", true).await;
        assert_eq!(stream.input.recv().await.unwrap(), "ping");
        assert_eq!(stream.input.recv().await, None);
        stream
            .output
            .send(Bytes::from_static(b"pong"))
            .await
            .unwrap();
        stream.output.end().await;
        tokio::spawn(connection.link.close());
        let mut text = Vec::new();
        loop {
            match client.next().await.unwrap() {
                Frame::Data { bytes, fin, .. } => {
                    text.extend_from_slice(&bytes);
                    if fin {
                        break;
                    }
                }
                frame => panic!("{frame:?}"),
            }
        }
        assert_eq!(text, b"pong");
        assert!(matches!(client.next().await, Some(Frame::GoAway { .. })));
    }

    #[tokio::test]
    async fn windows_are_opened_again_and_pings_answered() {
        const CHUNK: &[u8] = &[7; 20 * 1024];
        let (mut client, mut connection) = connected();
        client.open(1, "data").await;
        let _stream = connection.streams.recv().await.unwrap();
        client.next().await;
        client.data(1, CHUNK, false).await;
        client.data(1, CHUNK, false).await;
        for want in [0, 1] {
            let Some(Frame::WindowUpdate { stream, delta }) = client.next().await else {
                panic!("no window update");
            };
            assert!(stream == want && delta >= WINDOW_STEP);
        }
        client.writer.send(Frame::Ping(3)).await.unwrap();
        assert_eq!(client.next().await, Some(Frame::Ping(3)));
    }

    #[tokio::test]
    async fn wrong_streams_are_refused() {
        let (mut client, mut connection) = connected();
        client.open(2, "data").await;
        assert!(matches!(
            client.next().await,
            Some(Frame::RstStream { stream: 2, .. })
        ));
        client.open(3, "data").await;
        let stream = connection.streams.recv().await.unwrap();
        client.next().await;
        let reset = Frame::RstStream {
            stream: 3,
            status: Reset(5),
        };
        client.writer.send(reset).await.unwrap();
        stream.reset.cancelled().await;
        connection.streams.close();
        client.open(5, "data").await;
        assert!(matches!(
            client.next().await,
            Some(Frame::RstStream { stream: 5, .. })
        ));
        drop(client);
        connection.link.gone().await;
    }
}
