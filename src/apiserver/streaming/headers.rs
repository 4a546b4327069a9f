//! The head of what is passed on: which fields go no further than here. Pure.
//!
//! One function makes the head of every request to a backend, one that of every answer. Always true:
//! - What says who the client is stays here, in whatever form it came.
//! - What the client said, its `Connection` included, is dealt with before anything of ours is
//!   added, so that it cannot take ours away.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Which fields a rule is about; names in lower case.
#[derive(Clone, Copy, Debug)]
enum Fields {
    Named(&'static str),
    Starting(&'static str),
}

/// Why a field is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It speaks of one connection only.
    Connection,
    /// It proves who the client is, to us.
    Credential,
    /// It says who the client is; here only what we found out counts.
    Identity,
    /// We say it ourselves.
    Ours,
    /// It would rule over all that this server answers, not over one pod's pages.
    Origin,
}

use Fields::{Named, Starting};

/// Not passed on to a backend.
const REQUEST: [(Fields, Why); 18] = [
    (Named("connection"), Why::Connection),
    (Named("keep-alive"), Why::Connection),
    (Named("proxy-authenticate"), Why::Connection),
    (Named("proxy-connection"), Why::Connection),
    (Named("te"), Why::Connection),
    (Named("trailer"), Why::Connection),
    (Named("transfer-encoding"), Why::Connection),
    (Named("upgrade"), Why::Connection),
    (Named("http2-settings"), Why::Connection),
    (Named("expect"), Why::Connection),
    (Named("authorization"), Why::Credential),
    (Named("proxy-authorization"), Why::Credential),
    (Named("cookie"), Why::Credential),
    (Starting("x-remote-"), Why::Identity),
    (Starting("impersonate-"), Why::Identity),
    (Named("host"), Why::Ours),
    // The body knows its own length; that of an upgrade has none.
    (Named("content-length"), Why::Ours),
    (Named("audit-id"), Why::Ours),
];

/// Not passed on to a client.
const ANSWER: [(Fields, Why); 17] = [
    (Named("connection"), Why::Connection),
    (Named("keep-alive"), Why::Connection),
    (Named("proxy-authenticate"), Why::Connection),
    (Named("proxy-connection"), Why::Connection),
    (Named("te"), Why::Connection),
    (Named("trailer"), Why::Connection),
    (Named("transfer-encoding"), Why::Connection),
    (Named("upgrade"), Why::Connection),
    (Named("set-cookie"), Why::Origin),
    (Named("clear-site-data"), Why::Origin),
    (Named("strict-transport-security"), Why::Origin),
    (Named("alt-svc"), Why::Origin),
    (Named("service-worker-allowed"), Why::Origin),
    (Starting("access-control-allow-"), Why::Origin),
    (Named("access-control-expose-headers"), Why::Origin),
    (Named("access-control-max-age"), Why::Origin),
    (Named("audit-id"), Why::Ours),
];

/// A token that a browser, which cannot set other fields on a WebSocket, names as a protocol.
const BEARER_PROTOCOL: &[u8] = b"base64url.bearer.authorization.k8s.io.";

/// The fields of a request to a backend: what the client `said` without what stays here, then
/// `ours`. `upgrade`: the protocols to change to, if any.
pub fn request(
    mut said: HeaderMap,
    ours: HeaderMap,
    host: HeaderValue,
    upgrade: Option<&HeaderValue>,
) -> HeaderMap {
    strip(&mut said, &REQUEST);
    without_tokens(&mut said);
    let mut replaced = None;
    for (name, value) in ours {
        // A name comes with the first of its values only.
        match name {
            Some(name) => {
                said.insert(name.clone(), value);
                replaced = Some(name);
            }
            None => {
                if let Some(name) = &replaced {
                    said.append(name.clone(), value);
                }
            }
        }
    }
    said.insert(header::HOST, host);
    if let Some(protocols) = upgrade {
        said.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        said.insert(header::UPGRADE, protocols.clone());
    }
    said
}

/// Takes from a backend's answer what is not for the client.
pub fn answer(said: &mut HeaderMap) {
    strip(said, &ANSWER);
}

/// As [`answer`], for one that changes the protocol; `None` if it is to one that was not asked for.
pub fn switching(said: &mut HeaderMap, asked: &HeaderValue) -> Option<()> {
    let chosen = said.get(header::UPGRADE)?.clone();
    let same = |one: &[u8]| one.trim_ascii().eq_ignore_ascii_case(chosen.as_bytes());
    if !asked.as_bytes().split(|byte| *byte == b',').any(same) {
        return None;
    }
    answer(said);
    said.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    said.insert(header::UPGRADE, chosen);
    Some(())
}

/// Removes what the rules are about, and what `Connection` names.
fn strip(headers: &mut HeaderMap, rules: &[(Fields, Why)]) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let ruled = |name: &HeaderName| {
        rules.iter().any(|(fields, _)| match fields {
            Named(other) => name == other,
            Starting(start) => name.as_str().starts_with(start),
        })
    };
    let ruled: Vec<HeaderName> = headers.keys().filter(|name| ruled(name)).cloned().collect();
    for name in named.into_iter().chain(ruled) {
        headers.remove(name);
    }
}

/// Takes tokens from among the protocols of a WebSocket; the others stay as they are.
fn without_tokens(headers: &mut HeaderMap) {
    let is_token = |protocol: &[u8]| {
        let start = protocol.trim_ascii().get(..BEARER_PROTOCOL.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(BEARER_PROTOCOL))
    };
    let offered: Vec<HeaderValue> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .cloned()
        .collect();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    for value in offered {
        let protocols = value.as_bytes().split(|byte| *byte == b',');
        let kept: Vec<&[u8]> = protocols
            .map(<[u8]>::trim_ascii)
            .filter(|protocol| !protocol.is_empty() && !is_token(protocol))
            .collect();
        if kept.is_empty() {
            continue;
        }
        if let Ok(value) = HeaderValue::from_bytes(&kept.join(&b", "[..])) {
            headers.append(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.append(
                name,
                HeaderValue::from_bytes(value.as_bytes()).expect("a value"),
            );
        }
        map
    }

    fn shown(map: &HeaderMap) -> Vec<String> {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
        };
        let mut lines: Vec<String> = map.iter().map(line).collect();
        lines.sort();
        lines
    }

    fn sent(said: &[(&str, &str)], ours: &[(&str, &str)]) -> Vec<String> {
        let host = HeaderValue::from_static("10.1.0.2:80");
        let mut lines = shown(&request(map(said), map(ours), host, None));
        lines.retain(|line| line != "host: 10.1.0.2:80");
        lines
    }

    #[test]
    fn what_a_client_says_and_a_backend_hears() {
        let token = "base64url.bearer.authorization.k8s.io.c2VjcmV0";
        let two = format!("{token}, v4.channel.k8s.io");
        let shouted = token.to_uppercase();
        let blanks = format!("chat,,\t{token} ,  binary.k8s.io");
        let obscure = format!("\u{e9}, {token}");
        for (said, heard) in [
            (
                &[("accept", "*/*"), ("x-other", "1")][..],
                &["accept: */*", "x-other: 1"][..],
            ),
            // Credentials, in every form.
            (&[("Authorization", "Bearer secret")], &[]),
            (
                &[
                    ("authorization", "Basic eA=="),
                    ("AUTHORIZATION", "Bearer x"),
                ],
                &[],
            ),
            (&[("proxy-authorization", "Basic eA==")], &[]),
            (&[("cookie", "session=1"), ("Cookie", "b=2")], &[]),
            (&[("sec-websocket-protocol", token)], &[]),
            (
                &[("sec-websocket-protocol", &two)],
                &["sec-websocket-protocol: v4.channel.k8s.io"],
            ),
            (
                &[
                    ("sec-websocket-protocol", "a"),
                    ("Sec-WebSocket-Protocol", token),
                ],
                &["sec-websocket-protocol: a"],
            ),
            (&[("sec-websocket-protocol", &shouted)], &[]),
            (
                &[("sec-websocket-protocol", &blanks)],
                &["sec-websocket-protocol: chat, binary.k8s.io"],
            ),
            (
                &[("sec-websocket-protocol", &obscure)],
                &["sec-websocket-protocol: \u{e9}"],
            ),
            // Who the client says that it is.
            (
                &[("X-Remote-User", "root"), ("x-remote-extra-a%2fb", "c")],
                &[],
            ),
            (
                &[
                    ("Impersonate-User", "root"),
                    ("impersonate-extra-scopes", "all"),
                ],
                &[],
            ),
            // What concerns one connection, and what it names.
            (
                &[
                    ("connection", "keep-alive, X-Mine"),
                    ("x-mine", "1"),
                    ("keep-alive", "5"),
                ],
                &[],
            ),
            (
                &[
                    ("connection", "close"),
                    ("connection", "a\u{e9},x-mine"),
                    ("x-mine", "1"),
                ],
                &[],
            ),
            (
                &[
                    ("te", "trailers"),
                    ("trailer", "x"),
                    ("transfer-encoding", "chunked"),
                ],
                &[],
            ),
            (
                &[
                    ("upgrade", "websocket"),
                    ("http2-settings", "x"),
                    ("expect", "100-continue"),
                ],
                &[],
            ),
            (&[("content-length", "5"), ("host", "api:6443")], &[]),
        ] {
            assert_eq!(sent(said, &[]), heard, "{said:?}");
        }
    }

    #[test]
    fn nobody_takes_away_or_adds_to_what_is_ours() {
        let ours = [
            ("x-remote-user", "jane"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
        ];
        let want = [
            "x-remote-group: a",
            "x-remote-group: b",
            "x-remote-user: jane",
        ];
        for said in [
            &[][..],
            &[("connection", "x-remote-user, X-Remote-Group")],
            &[
                ("connection", "X-Remote-User"),
                ("connection", "x-remote-group"),
            ],
            &[
                ("x-remote-user", "root"),
                ("x-remote-group", "system:masters"),
            ],
        ] {
            assert_eq!(sent(said, &ours), want, "{said:?}");
        }
        let host = HeaderValue::from_static("10.1.0.2:80");
        let upgrade = HeaderValue::from_static("websocket");
        let said = map(&[
            ("connection", "host, upgrade, connection"),
            ("upgrade", "websocket"),
        ]);
        let sent = request(said, HeaderMap::new(), host, Some(&upgrade));
        let want = [
            "connection: Upgrade",
            "host: 10.1.0.2:80",
            "upgrade: websocket",
        ];
        assert_eq!(shown(&sent), want);
    }

    #[test]
    fn what_a_backend_says_and_a_client_hears() {
        for (said, heard) in [
            (
                &[("content-type", "text/html"), ("x-own", "1")][..],
                &["content-type: text/html", "x-own: 1"][..],
            ),
            (&[("set-cookie", "a=b; path=/"), ("set-cookie", "c=d")], &[]),
            (
                &[
                    ("alt-svc", "h2=\":443\""),
                    ("strict-transport-security", "max-age=1"),
                ],
                &[],
            ),
            (
                &[
                    ("access-control-allow-origin", "*"),
                    ("access-control-allow-credentials", "true"),
                ],
                &[],
            ),
            (
                &[
                    ("connection", "x-own"),
                    ("x-own", "1"),
                    ("audit-id", "forged"),
                ],
                &[],
            ),
            (&[("upgrade", "h2c"), ("proxy-authenticate", "Basic")], &[]),
        ] {
            let mut said = map(said);
            answer(&mut said);
            assert_eq!(shown(&said), heard);
        }
    }

    #[test]
    fn only_to_what_was_asked_for() {
        for (asked, chosen, good) in [
            ("websocket", "WebSocket", true),
            ("foo, websocket", "websocket", true),
            ("SPDY/3.1", "spdy/3.1", true),
            ("websocket", "h2c", false),
            ("websocket", "websocket, h2c", false),
            ("websocket", "", false),
        ] {
            let mut said = map(&[
                ("upgrade", chosen),
                ("connection", "upgrade"),
                ("set-cookie", "a=b"),
            ]);
            let asked = HeaderValue::from_static(asked);
            assert_eq!(
                switching(&mut said, &asked).is_some(),
                good,
                "{asked:?} {chosen}"
            );
            assert!(!good || said.len() == 2, "{said:?}");
        }
    }
}
