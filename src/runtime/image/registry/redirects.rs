//! Where the answers of a registry send us. Pure.

use http::{Response, Uri, header};
use hyper::body::Incoming;

use crate::runtime::image::json::excerpt;

/// Scheme and host of an address, for messages.
pub fn place(uri: &Uri) -> String {
    let (scheme, authority) = (uri.scheme_str(), uri.authority());
    let authority = authority.map_or("", |authority| authority.as_str());
    excerpt(
        &format!("{}://{authority}", scheme.unwrap_or_default()),
        200,
    )
}

/// Where an answer sends us, if it does.
pub fn location(response: &Response<Incoming>) -> Option<Result<String, String>> {
    match response.status().as_u16() {
        301 | 302 | 303 | 307 | 308 => {}
        _ => return None,
    }
    let location = response.headers().get(header::LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    Some(
        location
            .map(str::to_owned)
            .ok_or_else(|| "to no address".to_owned()),
    )
}

/// A location relative to where it was given.
pub fn target(from: &Uri, location: &str) -> Result<Uri, String> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = from.scheme_str().unwrap_or_default();
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let full = match location {
        _ if location.contains("://") && !location.starts_with('/') => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => {
            let folder = from
                .path()
                .rsplit_once('/')
                .map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        }
    };
    let bad = || format!("{:?} is not an address", excerpt(location, 200));
    let uri: Uri = full.parse().map_err(|_| bad())?;
    match (uri.scheme(), uri.authority()) {
        (Some(_), Some(_)) => Ok(uri),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_taken_from_where_they_are_given() {
        let from: Uri = "https://a.b:5000/v2/x/manifests/y".parse().unwrap();
        for (location, want) in [
            ("/z?q=1#f", "https://a.b:5000/z?q=1"),
            ("z", "https://a.b:5000/v2/x/manifests/z"),
            ("//c.d/z", "https://c.d/z"),
            ("https://c.d/z?u=http://e", "https://c.d/z?u=http://e"),
            ("/z?u=http://e", "https://a.b:5000/z?u=http://e"),
            ("file:///etc/passwd", ""),
            ("https://", ""),
            ("https://a b/", ""),
        ] {
            let got = target(&from, location).map(|uri| uri.to_string());
            assert_eq!(got.unwrap_or_default(), want, "{location}");
        }
    }
}
