//! Which protocol a client and the kubelet have in common. Pure.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    channels::{Encoding, Report},
    websocket::HalfClose,
};
use crate::kubelet::server::answer::{self, Body};

const SPDY_VERSION: &str = "SPDY/3.1";
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";

/// Channels of a WebSocket, as agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channelled {
    pub encoding: Encoding,
    pub half_close: HalfClose,
    pub report: Report,
}

/// What of SPDY is agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streamed {
    pub report: Report,
    /// Terminal sizes have a stream of their own.
    pub resize: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    WebSocket(Channelled),
    Spdy(Streamed),
    /// SPDY inside WebSocket.
    Tunnel,
}

/// A name that clients know a protocol by.
type Known = (&'static str, Protocol);

const fn channelled(encoding: Encoding, report: Report, half_close: HalfClose) -> Protocol {
    Protocol::WebSocket(Channelled {
        encoding,
        half_close,
        report,
    })
}

const PLAIN: Protocol = channelled(Encoding::Binary, Report::Text, HalfClose::Unknown);
const PLAIN_TEXT: Protocol = channelled(Encoding::Base64, Report::Text, HalfClose::Unknown);
const V4: Protocol = channelled(Encoding::Binary, Report::Status, HalfClose::Unknown);
const V4_TEXT: Protocol = channelled(Encoding::Base64, Report::Status, HalfClose::Unknown);
const V5: Protocol = channelled(Encoding::Binary, Report::Status, HalfClose::Known);

const fn streamed(report: Report, resize: bool) -> Protocol {
    Protocol::Spdy(Streamed { report, resize })
}

/// The protocols of one kind of request.
pub struct Offered {
    websocket: &'static [Known],
    spdy: &'static [Known],
}

/// Exec and attach.
pub const COMMANDS: Offered = Offered {
    websocket: &[
        ("v5.channel.k8s.io", V5),
        ("v4.channel.k8s.io", V4),
        ("v4.base64.channel.k8s.io", V4_TEXT),
        ("channel.k8s.io", PLAIN),
        ("base64.channel.k8s.io", PLAIN_TEXT),
    ],
    spdy: &[
        ("v4.channel.k8s.io", streamed(Report::Status, true)),
        ("v3.channel.k8s.io", streamed(Report::Text, true)),
        ("v2.channel.k8s.io", streamed(Report::Text, false)),
        ("channel.k8s.io", streamed(Report::Text, false)),
    ],
};

pub const PORT_FORWARD: Offered = Offered {
    websocket: &[
        ("SPDY/3.1+portforward.k8s.io", Protocol::Tunnel),
        ("v4.channel.k8s.io", V4),
        ("v4.base64.channel.k8s.io", V4_TEXT),
        ("channel.k8s.io", PLAIN),
        ("base64.channel.k8s.io", PLAIN_TEXT),
    ],
    spdy: &[("portforward.k8s.io", streamed(Report::Text, false))],
};

/// What to answer, and what to speak then.
#[derive(Debug, PartialEq, Eq)]
pub struct Agreed {
    pub protocol: Protocol,
    headers: Vec<(&'static str, String)>,
}

/// Why there is nothing to be upgraded to.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    status: StatusCode,
    message: String,
    headers: Vec<(&'static str, String)>,
}

impl Offered {
    pub fn negotiate(&self, method: &Method, headers: &HeaderMap) -> Result<Agreed, Refused> {
        let upgrading = list(headers, "connection")
            .iter()
            .any(|word| word.eq_ignore_ascii_case("upgrade"));
        let wanted = list(headers, "upgrade");
        let wants = |name: &str| wanted.iter().any(|word| word.eq_ignore_ascii_case(name));
        if upgrading && wants("websocket") {
            return self.over_websocket(method, headers);
        }
        if upgrading && wants(SPDY_VERSION) {
            return self.over_spdy(headers);
        }
        Err(Refused::bad_request(format!(
            "unable to upgrade: missing upgrade headers in request: {:?}",
            wanted.join(", ")
        )))
    }

    fn over_websocket(&self, method: &Method, headers: &HeaderMap) -> Result<Agreed, Refused> {
        let key = headers.get("sec-websocket-key").map(HeaderValue::as_bytes);
        let version = headers.get("sec-websocket-version");
        let (Some(key), true) = (key, version.is_some_and(|version| version == "13")) else {
            return Err(Refused::bad_request("not a WebSocket handshake"));
        };
        if method != Method::GET {
            return Err(Refused::bad_request("a WebSocket handshake is a GET"));
        }
        let asked = list(headers, "sec-websocket-protocol");
        let (name, protocol) = match first_known(&asked, self.websocket) {
            Some((name, protocol)) => (Some(name), protocol),
            None if asked.is_empty() => (None, PLAIN),
            None => return Err(Refused::disagreed(&asked, self.websocket)),
        };
        let mut headers = vec![
            ("connection", "Upgrade".to_owned()),
            ("upgrade", "websocket".to_owned()),
            ("sec-websocket-accept", derive_accept_key(key)),
        ];
        headers.extend(name.map(|name| ("sec-websocket-protocol", name.to_owned())));
        Ok(Agreed { protocol, headers })
    }

    fn over_spdy(&self, headers: &HeaderMap) -> Result<Agreed, Refused> {
        let asked = list(headers, STREAM_PROTOCOL);
        if asked.is_empty() {
            let message = "unable to upgrade: X-Stream-Protocol-Version is required";
            return Err(Refused::bad_request(message));
        }
        let Some((name, protocol)) = first_known(&asked, self.spdy) else {
            return Err(Refused::disagreed(&asked, self.spdy));
        };
        let headers = vec![
            ("connection", "Upgrade".to_owned()),
            ("upgrade", SPDY_VERSION.to_owned()),
            (STREAM_PROTOCOL, name.to_owned()),
        ];
        Ok(Agreed { protocol, headers })
    }
}

impl Agreed {
    pub fn response(&self) -> Response<Body> {
        with_headers(
            StatusCode::SWITCHING_PROTOCOLS,
            answer::empty(),
            &self.headers,
        )
    }
}

impl Refused {
    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    fn disagreed(asked: &[String], known: &[Known]) -> Self {
        let accepted: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let headers = accepted
            .iter()
            .map(|name| (ACCEPTED_PROTOCOLS, (*name).to_owned()));
        Self {
            status: StatusCode::FORBIDDEN,
            headers: headers.collect(),
            message: format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server \
                 accepts [{}]",
                asked.join(" "),
                accepted.join(" ")
            ),
        }
    }

    pub fn response(self) -> Response<Body> {
        with_headers(self.status, answer::full(self.message), &self.headers)
    }
}

fn with_headers(
    status: StatusCode,
    body: Body,
    headers: &[(&'static str, String)],
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().append(*name, value);
        }
    }
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, text);
    }
    response
}

/// The client's first that is known: its order counts.
fn first_known(asked: &[String], known: &[Known]) -> Option<Known> {
    asked
        .iter()
        .find_map(|asked| known.iter().find(|(name, _)| name == asked).copied())
}

/// All values of a header, those in one line too.
fn list(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn websocket(protocols: &'static str) -> HeaderMap {
        let mut map = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        if !protocols.is_empty() {
            map.insert(
                "sec-websocket-protocol",
                HeaderValue::from_static(protocols),
            );
        }
        map
    }

    #[test]
    fn websocket_protocols() {
        for (offered, asked, want) in [
            (&COMMANDS, "v5.channel.k8s.io", Some(V5)),
            (
                &COMMANDS,
                "v9.x, v4.channel.k8s.io, v5.channel.k8s.io",
                Some(V4),
            ),
            (&COMMANDS, "base64.channel.k8s.io", Some(PLAIN_TEXT)),
            (&COMMANDS, "", Some(PLAIN)),
            (&COMMANDS, "SPDY/3.1+portforward.k8s.io", None),
            (
                &PORT_FORWARD,
                "SPDY/3.1+portforward.k8s.io",
                Some(Protocol::Tunnel),
            ),
            // What the `kube` crate offers.
            (
                &PORT_FORWARD,
                "v5.channel.k8s.io,v4.channel.k8s.io",
                Some(V4),
            ),
        ] {
            let got = offered.negotiate(&Method::GET, &websocket(asked));
            match (got, want) {
                (Ok(agreed), Some(want)) => {
                    assert_eq!(agreed.protocol, want, "{asked}");
                    let response = agreed.response();
                    assert_eq!(response.status(), 101);
                    let accept = &response.headers()["sec-websocket-accept"];
                    assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                    let echoed = response.headers().contains_key("sec-websocket-protocol");
                    assert_eq!(echoed, !asked.is_empty());
                }
                (Err(refused), None) => assert_eq!(refused.status, 403),
                (got, _) => panic!("{asked}: {got:?}"),
            }
        }
        let post = COMMANDS.negotiate(&Method::POST, &websocket(""));
        assert_eq!(post.unwrap_err().status, 400);
    }

    #[test]
    fn spdy_protocols() {
        for (offered, asked, want) in [
            (
                &COMMANDS,
                &["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"][..],
                Ok(streamed(Report::Status, true)),
            ),
            (
                &COMMANDS,
                &["channel.k8s.io"],
                Ok(streamed(Report::Text, false)),
            ),
            (&COMMANDS, &["x"], Err(403)),
            (&COMMANDS, &[], Err(400)),
            (
                &PORT_FORWARD,
                &["portforward.k8s.io"],
                Ok(streamed(Report::Text, false)),
            ),
        ] {
            let mut map = headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
            for asked in asked {
                map.append(STREAM_PROTOCOL, HeaderValue::from_static(asked));
            }
            let got = offered.negotiate(&Method::POST, &map);
            let got = got
                .map(|agreed| agreed.protocol)
                .map_err(|refused| refused.response().status().as_u16());
            assert_eq!(got, want, "{asked:?}");
        }
        assert!(COMMANDS.negotiate(&Method::GET, &headers(&[])).is_err());
    }
}
