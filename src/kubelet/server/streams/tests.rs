//! Sessions of real processes, with the protocols' own codecs at the client's end.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::{io::DuplexStream, sync::oneshot};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tokio_util::codec::{FramedRead, FramedWrite};

use super::{
    channels::{Encoding, Report},
    negotiate::{Channelled, Streamed},
    spdy::{Frame, FrameDecoder, FrameEncoder, Headers},
    websocket::HalfClose,
    *,
};
use crate::runtime::{Exit, Session};

const DEADLINE: Duration = Duration::from_secs(10);
const ALL: Wanted = Wanted {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};
/// Says what it is told, and then goodbye.
const SCRIPT: &str = "cat; echo bye >&2; exit 7";

fn session(script: &str) -> Session {
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (told, exit) = oneshot::channel();
    std::thread::spawn(move || {
        let status = child.wait().unwrap();
        let _ = told.send(Ok(Exit {
            code: status.code().unwrap_or(-1),
            signal: None,
            oom_killed: false,
            error: String::new(),
        }));
    });
    Session {
        stdin: stdin.map(Into::into),
        stdout: stdout.map(Into::into),
        stderr: stderr.map(Into::into),
        resize: None,
        exit,
    }
}

fn exit_code(status: &[u8]) -> String {
    let status: serde_json::Value = serde_json::from_slice(status).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
    status["details"]["causes"][0]["message"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_process_over_websocket() {
    let agreed = Channelled {
        encoding: Encoding::Binary,
        half_close: HalfClose::Known,
        report: Report::Status,
    };
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let (channels, link) = open_websocket(far, agreed, ALL).await;
    let serving = tokio::spawn(exec::run(Kind::Exec, Ok(session(SCRIPT)), channels, link));
    // The session has begun.
    let first = client.next().await.unwrap().unwrap();
    assert_eq!(first, Message::binary(vec![STDOUT]));
    let long = "x".repeat(100_000);
    let text = format!("\0{long}");
    client
        .send(Message::binary(text.into_bytes()))
        .await
        .unwrap();
    client
        .send(Message::binary(vec![255, STDIN]))
        .await
        .unwrap();
    let mut said: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    let all = async {
        while let Some(Ok(message)) = client.next().await {
            if let Message::Binary(bytes) = message {
                said.entry(bytes[0]).or_default().extend(&bytes[1..]);
            }
        }
    };
    tokio::time::timeout(DEADLINE, all).await.unwrap();
    assert_eq!(said[&STDOUT], long.as_bytes());
    assert_eq!(said[&STDERR], b"bye\n");
    assert_eq!(exit_code(&said[&ERROR]), "7");
    serving.await.unwrap();
}

struct SpdyClient {
    reader: FramedRead<tokio::io::ReadHalf<DuplexStream>, FrameDecoder>,
    writer: FramedWrite<tokio::io::WriteHalf<DuplexStream>, FrameEncoder>,
}

impl SpdyClient {
    fn new(near: DuplexStream) -> Self {
        let (reader, writer) = tokio::io::split(near);
        Self {
            reader: FramedRead::new(reader, FrameDecoder::new()),
            writer: FramedWrite::new(writer, FrameEncoder::new().unwrap()),
        }
    }

    async fn open(&mut self, stream: u32, kind: &str) {
        let headers = Headers(vec![("streamtype".to_owned(), kind.to_owned())]);
        let fin = false;
        let frame = Frame::SynStream {
            stream,
            headers,
            fin,
        };
        self.writer.send(frame).await.unwrap();
    }

    /// All data by stream, until all of `streams` have ended.
    async fn read(&mut self, mut streams: Vec<u32>) -> BTreeMap<u32, Vec<u8>> {
        let mut said: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        while !streams.is_empty() {
            let next = tokio::time::timeout(DEADLINE, self.reader.next());
            if let Frame::Data { stream, bytes, fin } = next.await.unwrap().unwrap().unwrap() {
                said.entry(stream).or_default().extend(&bytes);
                streams.retain(|open| !(fin && *open == stream));
            }
        }
        said
    }
}

#[tokio::test]
async fn a_process_over_spdy() {
    let agreed = Streamed {
        report: Report::Status,
        resize: true,
    };
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut client = SpdyClient::new(near);
    let opening = tokio::spawn(open_spdy(far, agreed, ALL));
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(stream, kind).await;
    }
    let (channels, link) = opening.await.unwrap().unwrap();
    let serving = tokio::spawn(exec::run(Kind::Exec, Ok(session(SCRIPT)), channels, link));
    let bytes = Bytes::from_static(b"hello");
    let (stream, fin) = (3, true);
    client
        .writer
        .send(Frame::Data { stream, bytes, fin })
        .await
        .unwrap();
    let said = client.read(vec![1, 5, 7]).await;
    assert_eq!(said[&5], b"hello");
    assert_eq!(said[&7], b"bye\n");
    assert_eq!(exit_code(&said[&1]), "7");
    drop(client);
    serving.await.unwrap();
}

#[tokio::test]
async fn output_held_open_by_another_process_does_not_hold_the_end() {
    let agreed = Channelled {
        encoding: Encoding::Binary,
        half_close: HalfClose::Unknown,
        report: Report::Status,
    };
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let (channels, link) = open_websocket(far, agreed, ALL).await;
    // Ends by itself when the pipe to it is closed.
    let session = session("exec 3<&0; cat <&3 >&2 & echo started");
    let serving = tokio::spawn(exec::run(Kind::Exec, Ok(session), channels, link));
    let mut said = Vec::new();
    let all = async {
        while let Some(Ok(message)) = client.next().await {
            said.extend_from_slice(&message.into_data());
        }
    };
    tokio::time::timeout(DEADLINE, all).await.unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(
        said.contains("started\n") && said.contains("Success"),
        "{said:?}"
    );
    serving.await.unwrap();
}

#[test]
fn streams_asked_for() {
    for (query, want) in [
        (
            "input=1&output=1&error=1&tty=1",
            Some((true, true, false, true)),
        ),
        ("output=1&error=true", Some((false, true, true, false))),
        ("error=1&tty=1", None),
        ("", None),
    ] {
        let got = Wanted::parse(&Query::from_text(query)).ok();
        let got = got.map(|w| (w.stdin, w.stdout, w.stderr, w.tty));
        assert_eq!(got, want, "{query}");
    }
}

#[test]
fn ports_asked_for() {
    for (query, want) in [
        ("port=80,443&port=1", Some(vec![80, 443, 1])),
        ("ports=8080", Some(vec![8080])),
        ("", Some(vec![])),
        ("port=0", None),
        ("port=x", None),
    ] {
        assert_eq!(ports(&Query::from_text(query)).ok(), want, "{query}");
    }
}
