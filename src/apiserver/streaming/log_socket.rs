//! A log over WebSocket: here, unlike with exec, the API server itself is the other end, and the
//! kubelet is asked over plain HTTP. Each piece of the log is a message; the end is a close.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::apiserver::{
    response::{Body, full},
    status::Status,
};

/// What a client may say at once: nothing that it says is read.
const MAX_SAID_BYTES: usize = 64 << 10;

/// How bytes stand in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Base64,
}

/// The client's wish for a WebSocket, understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Wish {
    encoding: Encoding,
    /// What to name in the answer, if the client named any.
    protocol: Option<&'static str>,
    accept: String,
}

impl Wish {
    /// `None`: the client wants no WebSocket. Pure.
    pub fn read(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let wanted = text(header::UPGRADE).unwrap_or_default().split(',');
        if !{ wanted }.any(|one| one.trim().eq_ignore_ascii_case("websocket")) {
            return Ok(None);
        }
        let key = headers
            .get(header::SEC_WEBSOCKET_KEY)
            .ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
        let asked: Vec<&str> = headers
            .get_all(header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        let known = [
            ("binary.k8s.io", Encoding::Binary),
            ("base64.binary.k8s.io", Encoding::Base64),
        ];
        let agreed = asked
            .iter()
            .find_map(|asked| known.iter().find(|(name, _)| name == asked));
        let (protocol, encoding) = match (agreed, asked.as_slice()) {
            (Some((name, encoding)), _) => (Some(*name), *encoding),
            (None, []) => (None, Encoding::Binary),
            (None, asked) => {
                let what = format!("requested protocol(s) are not supported: {asked:?}");
                return Err(Status::bad_request(what));
            }
        };
        Ok(Some(Self {
            encoding,
            protocol,
            accept: derive_accept_key(key.as_bytes()),
        }))
    }

    /// Takes the upgrade, then sends the log until either side ends.
    pub fn grant(self, upgrade: OnUpgrade, log: Body) -> Result<Response<Body>, Status> {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let accept = HeaderValue::from_str(&self.accept).map_err(Status::internal)?;
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(protocol) = self.protocol {
            let protocol = HeaderValue::from_static(protocol);
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let encoding = self.encoding;
        tokio::spawn(async move {
            match upgrade.await {
                Ok(io) => {
                    if let Err(error) = send(TokioIo::new(io), encoding, log).await {
                        tracing::debug!(%error, "a log over WebSocket was cut off");
                    }
                }
                Err(error) => tracing::debug!(%error, "an upgrade did not happen"),
            }
        });
        Ok(response)
    }
}

async fn send<S>(io: S, encoding: Encoding, mut log: Body) -> Result<(), tungstenite::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_SAID_BYTES))
        .max_frame_size(Some(MAX_SAID_BYTES));
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await;
    let (mut writer, mut reader) = socket.split();
    loop {
        tokio::select! {
            frame = log.frame() => match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        writer.send(message(encoding, data)).await?;
                    }
                }
                // Cut off or at its end: the client gets what there is.
                Some(Err(_)) | None => break,
            },
            // Nothing is to be said; reading answers pings and notices a hang-up.
            said = reader.next() => match said {
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
            },
        }
    }
    let end = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    writer.send(Message::Close(Some(end))).await
}

fn message(encoding: Encoding, data: Bytes) -> Message {
    match encoding {
        Encoding::Binary => Message::Binary(data),
        Encoding::Base64 => Message::Text(BASE64_STANDARD.encode(data).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wished_for() {
        for (upgrade, protocols, want) in [
            ("", "", Ok(None)),
            ("SPDY/3.1", "", Ok(None)),
            ("websocket", "", Ok(Some((Encoding::Binary, None)))),
            (
                "WebSocket",
                "binary.k8s.io",
                Ok(Some((Encoding::Binary, Some("binary.k8s.io")))),
            ),
            (
                "websocket",
                "x, base64.binary.k8s.io",
                Ok(Some((Encoding::Base64, Some("base64.binary.k8s.io")))),
            ),
            ("websocket", "v4.channel.k8s.io", Err(400)),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [
                (header::UPGRADE, upgrade),
                (header::SEC_WEBSOCKET_PROTOCOL, protocols),
                (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
            let got = Wish::read(&headers);
            let got = got.map(|wish| wish.map(|wish| (wish.encoding, wish.protocol)));
            assert_eq!(
                got.map_err(|status| status.code),
                want,
                "{upgrade} {protocols}"
            );
        }
    }

    #[tokio::test]
    async fn a_log_comes_in_messages_and_ends_with_a_close() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let sent = tokio::spawn(send(near, Encoding::Base64, full("alive\n")));
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let first = client.next().await.expect("a message").expect("no error");
        assert_eq!(first.into_text().expect("text").as_str(), "YWxpdmUK");
        let last = client.next().await.expect("a message").expect("no error");
        assert!(last.is_close());
        sent.await.expect("no panic").expect("sent");
    }

    #[tokio::test]
    async fn a_client_has_little_to_say() {
        for (bytes, good) in [(MAX_SAID_BYTES, true), (MAX_SAID_BYTES + 1, false)] {
            let (near, far) = tokio::io::duplex(1 << 20);
            let (log, lines) = tokio::io::duplex(64);
            let lines = tokio_util::io::ReaderStream::new(lines);
            let body = http_body_util::StreamBody::new(
                lines.map(|piece| piece.map(http_body::Frame::data).map_err(Into::into)),
            );
            let sent = tokio::spawn(send(near, Encoding::Binary, body.boxed_unsync()));
            let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
            client
                .send(Message::Binary(vec![0; bytes].into()))
                .await
                .expect("taken");
            if good {
                drop(log);
                let last = client.next().await.expect("a message").expect("no error");
                assert!(last.is_close());
            }
            assert_eq!(sent.await.expect("no panic").is_ok(), good, "{bytes}");
        }
    }
}
