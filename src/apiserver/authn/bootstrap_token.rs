//! Users of bootstrap tokens.

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::Value;

use super::{AUTHENTICATED, Rejected};
use crate::{
    apiserver::{objects::Lookup, request::User},
    bootstrap_token::{BootstrapToken, KeptToken, NAMESPACE},
};

/// The user of a token that a Secret in `kube-system` says is good.
pub async fn user(token: &BootstrapToken, lookup: &dyn Lookup) -> Result<User, Rejected> {
    let name = token.secret_name();
    let kept = lookup.get("secrets", NAMESPACE, &name).await;
    kept.and_then(|kept| check(&kept, token, Timestamp::now()))
        .ok_or_else(|| Rejected("invalid bootstrap token".to_owned()))
}

fn check(secret: &Value, token: &BootstrapToken, now: Timestamp) -> Option<User> {
    let datum = |key: &str| {
        let bytes = BASE64_STANDARD.decode(secret["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let kept = KeptToken::read(&token.secret_name(), secret["type"].as_str()?, datum)?;
    let good = secret["metadata"]["deletionTimestamp"].is_null()
        && same(kept.token.secret().as_bytes(), token.secret().as_bytes())
        && kept.authentication
        && !kept.expiration.is_over(now);
    if !good {
        return None;
    }
    let mut groups = vec!["system:bootstrappers".to_owned()];
    groups.extend(kept.groups);
    groups.push(AUTHENTICATED.to_owned());
    Some(User {
        name: format!("system:bootstrap:{}", token.id()),
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
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a time");
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
        let token = |text: &str| text.parse::<BootstrapToken>().expect("a token");
        let given = token("abcdef.0123456789abcdef");
        let user = check(&good, &given, now).expect("accepted");
        assert_eq!(user.name, "system:bootstrap:abcdef");
        let groups = [
            "system:bootstrappers",
            "system:bootstrappers:lab",
            AUTHENTICATED,
        ];
        assert_eq!(user.groups, groups);
        assert!(check(&good, &token("abcdef.0123456789abcdex"), now).is_none());
        assert!(check(&good, &token("ghijkl.0123456789abcdef"), now).is_none());
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
            let user = check(&bad, &given, now);
            assert!(user.is_none(), "{path}");
        }
    }
}
