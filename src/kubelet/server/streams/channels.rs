//! A session's streams, whatever protocol carries them.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::spdy::Frame;

/// Pieces that wait between a connection and who works on them, in either direction.
pub const QUEUED_PIECES: usize = 16;

/// What the client sends; ends when it says that no more will come, or is gone.
pub type Input = mpsc::Receiver<Bytes>;

/// What is sent to the client.
#[derive(Clone)]
pub enum Output {
    Spdy {
        stream: u32,
        queue: mpsc::Sender<Frame>,
    },
    WebSocket {
        channel: u8,
        encoding: Encoding,
        queue: mpsc::Sender<Message>,
    },
}

/// How a WebSocket message holds its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Base64,
}

/// The client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl Output {
    pub async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        match self {
            Self::Spdy { stream, queue } => {
                let frame = Frame::Data {
                    stream: *stream,
                    bytes,
                    fin: false,
                };
                queue.send(frame).await.map_err(|_| Gone)
            }
            Self::WebSocket {
                channel,
                encoding,
                queue,
            } => {
                let message = encoding.message(*channel, &bytes);
                queue.send(message).await.map_err(|_| Gone)
            }
        }
    }

    /// Nothing more will be sent. Over WebSocket only the end of everything can be told.
    pub async fn end(self) {
        if let Self::Spdy { stream, queue } = self {
            let frame = Frame::Data {
                stream,
                bytes: Bytes::new(),
                fin: true,
            };
            // Who is gone needs no end.
            let _ = queue.send(frame).await;
        }
    }
}

impl Encoding {
    /// The channel's number comes first, as a byte or as a digit.
    pub fn message(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.put_u8(channel);
                message.extend_from_slice(bytes);
                Message::Binary(message.freeze())
            }
            Self::Base64 => {
                let text = format!("{channel}{}", BASE64_STANDARD.encode(bytes));
                Message::Text(text.into())
            }
        }
    }

    /// Channel and bytes of a message; `None` if it is none of ours.
    pub fn read(self, mut message: Bytes) -> Option<(u8, Bytes)> {
        if message.is_empty() {
            return None;
        }
        let channel = message.split_to(1)[0];
        match self {
            Self::Binary => Some((channel, message)),
            Self::Base64 => {
                let bytes = BASE64_STANDARD.decode(&message).ok()?;
                Some((channel.checked_sub(b'0')?, bytes.into()))
            }
        }
    }
}

/// How the end of a session is told on its error stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Protocol versions 1 to 3: an error's text; success is silence.
    Text,
    /// From version 4 on: a `Status` in any case.
    Status,
}

/// How an exec or attach ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Success,
    Code(i32),
    Failed(String),
}

impl Report {
    pub fn encode(self, ending: &Ending) -> Bytes {
        let status = status(ending);
        match self {
            Self::Status => serde_json::to_vec(&status).unwrap_or_default().into(),
            Self::Text => match ending {
                Ending::Success => Bytes::new(),
                _ => status.message.unwrap_or_default().into(),
            },
        }
    }
}

fn status(ending: &Ending) -> Status {
    let failure = |message: String, reason: &str, cause: StatusCause| Status {
        status: Some("Failure".to_owned()),
        message: Some(message),
        reason: Some(reason.to_owned()),
        details: Some(StatusDetails {
            causes: Some(vec![cause]),
            ..StatusDetails::default()
        }),
        ..Status::default()
    };
    match ending {
        Ending::Success => Status {
            status: Some("Success".to_owned()),
            ..Status::default()
        },
        Ending::Code(code) => failure(
            format!("command terminated with non-zero exit code: exit status {code}"),
            "NonZeroExitCode",
            StatusCause {
                reason: Some("ExitCode".to_owned()),
                message: Some(code.to_string()),
                field: None,
            },
        ),
        Ending::Failed(message) => Status {
            code: Some(500),
            ..failure(
                format!("Internal error occurred: {message}"),
                "InternalError",
                StatusCause {
                    message: Some(message.clone()),
                    ..StatusCause::default()
                },
            )
        },
    }
}

/// Streams of an exec or attach; those not asked for are absent.
pub struct Channels {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub error: Output,
    /// Terminal sizes as JSON objects.
    pub resize: Option<Input>,
    pub report: Report,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_either_encoding() {
        for (encoding, channel, bytes, wire) in [
            (Encoding::Binary, 1, &b"hi"[..], &b"\x01hi"[..]),
            (Encoding::Binary, 3, b"", b"\x03"),
            (Encoding::Base64, 1, b"hi", b"1aGk="),
            (Encoding::Base64, 0, b"", b"0"),
        ] {
            let message = encoding.message(channel, bytes);
            assert_eq!(message.is_text(), encoding == Encoding::Base64);
            let got = message.into_data();
            assert_eq!(got, wire);
            let read = encoding.read(got);
            assert_eq!(read, Some((channel, Bytes::from_static(bytes))));
        }
        assert_eq!(Encoding::Binary.read(Bytes::new()), None);
        assert_eq!(Encoding::Base64.read(Bytes::from_static(b"1*")), None);
    }

    #[test]
    fn how_an_end_is_told() {
        let code = r#"{"apiVersion":"v1","details":{"causes":[{"message":"7","reason":"ExitCode"}]},"kind":"Status","message":"command terminated with non-zero exit code: exit status 7","metadata":{},"reason":"NonZeroExitCode","status":"Failure"}"#;
        for (report, ending, want) in [
            (Report::Text, Ending::Success, ""),
            (
                Report::Text,
                Ending::Code(7),
                "command terminated with non-zero exit code: exit status 7",
            ),
            (
                Report::Status,
                Ending::Success,
                r#"{"apiVersion":"v1","kind":"Status","metadata":{},"status":"Success"}"#,
            ),
            (Report::Status, Ending::Code(7), code),
        ] {
            let got = report.encode(&ending);
            if report == Report::Text {
                assert_eq!(got, want);
                continue;
            }
            let got: serde_json::Value = serde_json::from_slice(&got).unwrap();
            assert_eq!(
                got,
                serde_json::from_str::<serde_json::Value>(want).unwrap()
            );
        }
        let failed = Report::Status.encode(&Ending::Failed("no".to_owned()));
        let failed: serde_json::Value = serde_json::from_slice(&failed).unwrap();
        assert_eq!(failed["message"], "Internal error occurred: no");
        assert_eq!(failed["reason"], "InternalError");
    }
}
