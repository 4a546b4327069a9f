//! Where a request carries its token.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{header, request::Parts};

/// Browsers cannot set headers on a WebSocket; they smuggle the token in as a subprotocol.
const WEBSOCKET_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of the `Authorization` header or of a WebSocket subprotocol.
pub fn bearer_token(parts: &Parts) -> Option<String> {
    authorization(parts).or_else(|| subprotocol(parts))
}

fn authorization(parts: &Parts) -> Option<String> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

fn subprotocol(parts: &Parts) -> Option<String> {
    let offered = parts.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let encoded = offered
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_PREFIX))?;
    String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_token_is() {
        for (name, value, token) in [
            ("authorization", "Bearer abc", Some("abc")),
            ("authorization", "bearer  abc ", Some("abc")),
            ("authorization", "Bearer ", None),
            ("authorization", "Basic YTpi", None), // not a token; the request is anonymous
            (
                "sec-websocket-protocol",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj",
                Some("abc"),
            ),
        ] {
            let request = http::Request::builder().header(name, value).body(());
            let (parts, ()) = request.expect("a request").into_parts();
            assert_eq!(bearer_token(&parts).as_deref(), token, "{name}: {value}");
        }
    }
}
