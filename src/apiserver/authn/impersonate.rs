//! Acting as somebody else: the `Impersonate-*` headers.

use std::collections::BTreeMap;

use http::{HeaderMap, request::Parts};

use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use crate::apiserver::{
    request::{Attributes, Target, User},
    status::Status,
};

/// A wish to act as `user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonation {
    pub user: User,
    /// What the requester must be allowed, all of it, before the wish is granted.
    pub checks: Vec<Attributes>,
}

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// What all of them begin with.
const ANY: &str = "impersonate-";

/// Reads the headers. `None` if there are none; the caller removes them before anything else
/// sees the request.
pub fn impersonation(parts: &Parts) -> Result<Option<Impersonation>, Status> {
    let headers = &parts.headers;
    if !headers.keys().any(|name| name.as_str().starts_with(ANY)) {
        return Ok(None);
    }
    // The first of several counts, as in the original.
    let name = text(headers, USER)?.into_iter().next().unwrap_or_default();
    let groups = text(headers, GROUP)?;
    let uid = text(headers, UID)?.into_iter().next();
    let extra = extra(headers)?;
    if name.is_empty() {
        return if groups.is_empty() && uid.is_none() && extra.is_empty() {
            Ok(None)
        } else {
            Err(Status::bad_request(
                "requested to impersonate groups, a uid or extra without impersonating a user",
            ))
        };
    }
    let mut checks = vec![user_check(&name)];
    checks.extend(
        groups
            .iter()
            .map(|group| check("", "groups", None, None, group)),
    );
    let authentication = "authentication.k8s.io";
    checks.extend(
        uid.iter()
            .map(|uid| check(authentication, "uids", None, None, uid)),
    );
    for (key, values) in &extra {
        let values = values.iter();
        checks.extend(
            values.map(|value| check(authentication, "userextras", Some(key), None, value)),
        );
    }
    let user = User {
        groups: all_groups(&name, groups),
        name,
        uid,
        extra,
    };
    Ok(Some(Impersonation { user, checks }))
}

fn text(headers: &HeaderMap, name: &str) -> Result<Vec<String>, Status> {
    headers
        .get_all(name)
        .iter()
        .map(|value| {
            let value = value.to_str().map_err(|_| bad_header(name))?;
            Ok(value.to_owned())
        })
        .collect()
}

fn bad_header(name: &str) -> Status {
    Status::bad_request(format!("header {name} is not text"))
}

fn extra(headers: &HeaderMap) -> Result<BTreeMap<String, Vec<String>>, Status> {
    let mut extra = BTreeMap::new();
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix(EXTRA) else {
            continue;
        };
        let key = unescape(key).ok_or_else(|| bad_header(name.as_str()))?;
        extra.insert(key, text(headers, name.as_str())?);
    }
    Ok(extra)
}

/// Undoes percent escapes.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
            out.push(u8::try_from(value).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// A service account by its user name; what only begins like one is a user.
fn service_account(name: &str) -> Option<(&str, &str)> {
    let pair = name.strip_prefix("system:serviceaccount:")?.split_once(':');
    pair.filter(|(namespace, name)| {
        !namespace.is_empty() && !name.is_empty() && !name.contains(':')
    })
}

fn user_check(name: &str) -> Attributes {
    match service_account(name) {
        Some((namespace, account)) => check("", "serviceaccounts", None, Some(namespace), account),
        None => check("", "users", None, None, name),
    }
}

fn check(
    group: &str,
    resource: &str,
    subresource: Option<&str>,
    namespace: Option<&str>,
    name: &str,
) -> Attributes {
    Attributes {
        verb: "impersonate".to_owned(),
        target: Target::Resource {
            group: group.to_owned(),
            version: if group.is_empty() { "" } else { "v1" }.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.map(str::to_owned),
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
        },
        fields: Vec::new(),
    }
}

/// The groups asked for, and those that come by themselves.
fn all_groups(name: &str, mut groups: Vec<String>) -> Vec<String> {
    if groups.is_empty()
        && let Some((namespace, _)) = service_account(name)
    {
        groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    let has = |wanted: &str| groups.iter().any(|group| group == wanted);
    let missing = if name == ANONYMOUS {
        (!has(UNAUTHENTICATED)).then_some(UNAUTHENTICATED)
    } else {
        (!has(AUTHENTICATED) && !has(UNAUTHENTICATED)).then_some(AUTHENTICATED)
    };
    groups.extend(missing.map(str::to_owned));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, &str)]) -> Result<Option<Impersonation>, Status> {
        let mut request = http::Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        impersonation(&parts)
    }

    #[test]
    fn nothing_asked_nothing_done() {
        assert_eq!(read(&[]).expect("fine"), None);
        assert!(read(&[("Impersonate-Group", "a")]).is_err_and(|status| status.code == 400));
    }

    #[test]
    fn everything_asked_is_checked() {
        let wish = read(&[
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "devs"),
            ("Impersonate-Group", "ops"),
            ("Impersonate-Uid", "7"),
            ("Impersonate-Extra-Example.com%2fScope", "view"),
        ])
        .expect("fine")
        .expect("a wish");
        assert_eq!(wish.user.groups, ["devs", "ops", AUTHENTICATED]);
        assert_eq!(wish.user.extra["example.com/scope"], ["view"]);
        let checks: Vec<String> = wish
            .checks
            .iter()
            .map(|check| match &check.target {
                Target::Resource {
                    resource,
                    subresource,
                    name,
                    ..
                } => {
                    let sub = subresource.as_deref().unwrap_or_default();
                    format!("{resource} {sub} {}", name.as_deref().unwrap_or_default())
                }
                Target::Path(path) => path.clone(),
            })
            .collect();
        let expected = [
            "users  jane",
            "groups  devs",
            "groups  ops",
            "uids  7",
            "userextras example.com/scope view",
        ];
        assert_eq!(checks, expected);
    }

    #[test]
    fn a_service_account_brings_its_groups() {
        let wish = read(&[("Impersonate-User", "system:serviceaccount:shop:till")])
            .expect("fine")
            .expect("a wish");
        let groups = [
            "system:serviceaccounts",
            "system:serviceaccounts:shop",
            AUTHENTICATED,
        ];
        assert_eq!(wish.user.groups, groups);
        assert_eq!(
            wish.checks,
            [check("", "serviceaccounts", None, Some("shop"), "till")]
        );
    }

    #[test]
    fn repeated_and_odd_headers() {
        let user = |headers: &[(&str, &str)]| read(headers).map(|wish| wish.map(|w| w.user));
        let jane = user(&[("Impersonate-User", "jane"), ("IMPERSONATE-USER", "admin")]);
        assert_eq!(jane.expect("fine").expect("a wish").name, "jane");
        assert_eq!(user(&[("Impersonate-User", "")]), Ok(None));
        for refused in [
            &[
                ("Impersonate-User", ""),
                ("Impersonate-User", "admin"),
                ("Impersonate-Group", "x"),
            ][..],
            &[
                ("Impersonate-User", ""),
                ("Impersonate-Group", "system:masters"),
            ],
            &[("Impersonate-Uid", "1")],
            &[("Impersonate-Extra-Scopes", "x")],
        ] {
            assert!(user(refused).is_err(), "{refused:?}");
        }
        // Not an account of `a`, and in none of its groups.
        let wish = read(&[("Impersonate-User", "system:serviceaccount:a:b:c")]);
        let wish = wish.expect("fine").expect("a wish");
        assert_eq!(
            wish.checks,
            [check("", "users", None, None, &wish.user.name)]
        );
        assert_eq!(wish.user.groups, [AUTHENTICATED]);
    }
}
