//! Requests: what is authorized is what is served. Method, URI and the `Upgrade` header, a line
//! each; for selectors their text alone.

use http::{HeaderMap, HeaderValue, Method, Uri};
use serde_json::json;
use vetch::apiserver::{
    http::{Served, understand},
    registry::Scope,
    request::Target,
    selector::{Selection, Selector},
};

use super::documents;

const NAMES: [&str; 6] = ["", "a", "b", "public", "secret", "x"];

pub fn request(data: &[u8]) {
    let Some([method, uri, upgrade]) = documents(data) else {
        return;
    };
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), Uri::try_from(uri)) else {
        return;
    };
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(upgrade)
        && !value.is_empty()
    {
        headers.insert(http::header::UPGRADE, value);
    }
    check(&method, &uri, &headers);
}

fn check(method: &Method, uri: &Uri, headers: &HeaderMap) {
    let understood = understand(method, uri, headers);
    let main = understood.needed.first().expect("nothing is free");
    match (&understood.served, &main.target) {
        (Served::Refused(_) | Served::Discovery(_), _) => {}
        (Served::Document(path), Target::Path(allowed)) => assert_eq!(path, allowed),
        (
            Served::Resource {
                operation,
                row,
                subresource,
                namespace,
                name,
                selector,
            },
            Target::Resource {
                group,
                resource,
                subresource: part,
                namespace: place,
                name: one,
                ..
            },
        ) => {
            assert_eq!(*operation, main.verb);
            assert_eq!((row.group, row.plural), (&**group, &**resource));
            assert_eq!(subresource, part.as_deref().unwrap_or_default());
            if row.scope == Scope::Namespaced {
                assert_eq!(namespace, place.as_deref().unwrap_or_default());
            }
            let allowed = one.as_deref().unwrap_or_default();
            match selector {
                Some(selector) if name.is_empty() && !allowed.is_empty() => {
                    for other in NAMES.iter().filter(|other| **other != allowed) {
                        let object = json!({"metadata": {"name": other, "namespace": "n"}});
                        assert!(!selector.matches_value(row, &object, None), "{other}");
                    }
                }
                _ => assert_eq!(name, allowed),
            }
        }
        (
            Served::Connection {
                plural,
                subresource,
                namespace,
                name,
                upgrades,
                ..
            },
            Target::Resource {
                resource,
                subresource: part,
                namespace: place,
                name: one,
                ..
            },
        ) => {
            assert_eq!(*plural, resource);
            assert_eq!(subresource, part.as_deref().unwrap_or_default());
            assert_eq!(namespace, place.as_deref().unwrap_or_default());
            assert_eq!(name, one.as_deref().unwrap_or_default());
            let creates = understood.needed.iter().any(|right| right.verb == "create");
            let enters = ["exec", "attach", "portforward"].contains(&subresource.as_str());
            assert!(creates || !enters);
            assert!(creates || !upgrades || *plural != "nodes");
        }
        (served, allowed) => panic!("{allowed:?} is allowed, {served:?} is served"),
    }
}

/// The name that a field selector allows is the only one that it lets through.
pub fn selector(data: &[u8]) {
    let Some([labels, fields]) = documents(data) else {
        return;
    };
    let (Ok(labels), Ok(fields)) = (std::str::from_utf8(labels), std::str::from_utf8(fields))
    else {
        return;
    };
    let Ok(selection) = Selection::parse(labels, fields) else {
        return;
    };
    let Some(name) = selection.name().map(str::to_owned) else {
        return;
    };
    let row = super::pods();
    let Ok(selector) = Selector::new(row, selection) else {
        return;
    };
    for other in NAMES.iter().filter(|other| **other != name) {
        let object = json!({"metadata": {"name": other, "namespace": "n"}});
        assert!(!selector.matches_value(row, &object, None), "{other}");
    }
}
