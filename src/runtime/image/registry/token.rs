//! What is said to a server for tokens, and what it answers. Pure.

use serde::Deserialize;

use crate::runtime::image::json;

/// It has to fit into the head of a request.
const MAX_TOKEN_BYTES: usize = 32 << 10;
const CLIENT_ID: &str = "vetch";

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The token that a server gives out.
pub fn read(answer: &[u8]) -> Result<String, String> {
    let token = json::read::<Token>(answer)?;
    match token.token.or(token.access_token) {
        Some(token) if token.is_empty() => Err("the token is empty".to_owned()),
        Some(token) if token.len() > MAX_TOKEN_BYTES => {
            Err(format!("the token has more than {MAX_TOKEN_BYTES} bytes"))
        }
        Some(token) => Ok(token),
        None => Err("it answers without a token".to_owned()),
    }
}

pub fn query(service: &str, scope: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if !service.is_empty() {
        query.append_pair("service", service);
    }
    query.append_pair("scope", scope).finish()
}

/// A token for a token, as OAuth 2 has it.
pub fn refresh_form(service: &str, scope: &str, token: &str) -> String {
    form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("service", service)
        .append_pair("scope", scope)
        .append_pair("client_id", CLIENT_ID)
        .append_pair("refresh_token", token)
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let long = format!("{{\"token\": \"{}\"}}", "a".repeat(MAX_TOKEN_BYTES + 1));
        for (answer, want) in [
            (r#"{"token": "t"}"#, Ok("t")),
            (r#"{"access_token": "a", "expires_in": 300}"#, Ok("a")),
            (r#"{"token": "t", "access_token": "a"}"#, Ok("t")),
            (r#"{"token": ""}"#, Err("empty")),
            ("{}", Err("without a token")),
            (&long, Err("more than 32768 bytes")),
            ("<html>", Err("expected value")),
        ] {
            match (read(answer.as_bytes()), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(got), Err(want)) => assert!(got.contains(want), "{answer}: {got}"),
                (got, _) => panic!("{answer}: {got:?}"),
            }
        }
    }

    #[test]
    fn what_is_posted() {
        assert_eq!(
            refresh_form("s", "repository:a/b:pull", "t&"),
            "grant_type=refresh_token&service=s&scope=repository%3Aa%2Fb%3Apull&client_id=vetch\
             &refresh_token=t%26"
        );
        assert_eq!(query("", "x"), "scope=x");
    }
}
