//! Bootstrap tokens `id.secret`: what a machine joins with before it has a certificate.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{AUTHENTICATED, Rejected};
use crate::apiserver::{objects::Lookup, request::User};

/// Six characters, a dot, sixteen characters.
pub fn looks_like(token: &str) -> bool {
    let word = |part: &str, length| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    token
        .split_once('.')
        .is_some_and(|(id, secret)| word(id, 6) && word(secret, 16))
}

/// The user of a token that a Secret in `kube-system` says is good.
pub async fn user(token: &str, lookup: &dyn Lookup) -> Result<User, Rejected> {
    let (id, secret) = token.split_once('.').unwrap_or_default();
    let name = format!("bootstrap-token-{id}");
    let kept = lookup.get("secrets", "kube-system", &name).await;
    let now = jiff::Timestamp::now();
    kept.and_then(|kept| check(&kept, id, secret, now))
        .ok_or_else(|| Rejected("invalid bootstrap token".to_owned()))
}

fn check(kept: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Option<User> {
    let datum = |key: &str| {
        let bytes = BASE64_STANDARD.decode(kept["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let good = kept["type"] == "bootstrap.kubernetes.io/token"
        && kept["metadata"]["deletionTimestamp"].is_null()
        && datum("token-id")? == id
        && same(datum("token-secret")?.as_bytes(), secret.as_bytes())
        && datum("usage-bootstrap-authentication")? == "true";
    if !good {
        return None;
    }
    if let Some(expiration) = datum("expiration")
        && expiration.parse::<jiff::Timestamp>().ok()? <= now
    {
        return None;
    }
    let mut groups = vec!["system:bootstrappers".to_owned()];
    let more = datum("auth-extra-groups").unwrap_or_default();
    groups.extend(
        more.split(',')
            .map(str::trim)
            .filter(|group| group.starts_with("system:bootstrappers:"))
            .map(str::to_owned),
    );
    groups.push(AUTHENTICATED.to_owned());
    Some(User {
        name: format!("system:bootstrap:{id}"),
        groups,
        ..User::default()
    })
}

/// Compares in a time that does not tell where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_counts_as_good() {
        let encode = |text: &str| BASE64_STANDARD.encode(text);
        let now: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().expect("a time");
        let good = json!({
            "type": "bootstrap.kubernetes.io/token",
            "metadata": {},
            "data": {
                "token-id": encode("abcdef"),
                "token-secret": encode("0123456789abcdef"),
                "usage-bootstrap-authentication": encode("true"),
                "expiration": encode("2030-01-02T00:00:00Z"),
                "auth-extra-groups": encode("system:bootstrappers:lab,other"),
            },
        });
        let user = check(&good, "abcdef", "0123456789abcdef", now).expect("accepted");
        assert_eq!(user.name, "system:bootstrap:abcdef");
        let groups = [
            "system:bootstrappers",
            "system:bootstrappers:lab",
            AUTHENTICATED,
        ];
        assert_eq!(user.groups, groups);
        assert!(check(&good, "abcdef", "0123456789abcdeX", now).is_none());
        for (path, value) in [
            ("/type", json!("Opaque")),
            ("/data/expiration", json!(encode("2029-12-31T00:00:00Z"))),
            ("/data/expiration", json!(encode("soon"))),
            (
                "/data/usage-bootstrap-authentication",
                json!(encode("false")),
            ),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(path).expect(path) = value;
            let user = check(&bad, "abcdef", "0123456789abcdef", now);
            assert!(user.is_none(), "{path}");
        }
        assert!(looks_like("abcdef.0123456789abcdef"));
        assert!(!looks_like("eyJhbGciOi.J9.x"));
    }
}
