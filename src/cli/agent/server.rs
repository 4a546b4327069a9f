//! Where a cluster is, as typed.

use http::Uri;

const PORT: u16 = 6443;

/// `https://HOST:PORT`; without a port the usual one.
pub fn address(text: &str) -> Result<Uri, String> {
    let wanted = "must be https://HOST:PORT";
    let uri: Uri = text.parse().map_err(|error| format!("{error}: {wanted}"))?;
    let plain = uri.path_and_query().is_none_or(|path| path == "/");
    let (Some("https"), Some(host), true) = (uri.scheme_str(), uri.host(), plain) else {
        return Err(wanted.to_owned());
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let port = match authority.strip_prefix(host) {
        Some("") => PORT,
        // A user before the host, a port that is none.
        _ => uri
            .port_u16()
            .filter(|port| authority == format!("{host}:{port}"))
            .ok_or_else(|| wanted.to_owned())?,
    };
    if host.is_empty() {
        return Err(wanted.to_owned());
    }
    let address = format!("https://{host}:{port}");
    address
        .parse()
        .map_err(|error| format!("{error}: {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, want) in [
            ("https://192.0.2.1:6443", Some("https://192.0.2.1:6443/")),
            ("https://192.0.2.1", Some("https://192.0.2.1:6443/")),
            (
                "https://host.example.org:443/",
                Some("https://host.example.org:443/"),
            ),
            (
                "https://[2001:db8::1]:6443",
                Some("https://[2001:db8::1]:6443/"),
            ),
            ("http://192.0.2.1:6443", None),
            ("192.0.2.1:6443", None),
            ("host", None),
            ("https://host:6443/api", None),
            ("https://a@host:6443", None),
            ("https://host:99999", None),
            ("", None),
        ] {
            let got = address(text).ok().map(|uri| uri.to_string());
            assert_eq!(got.as_deref(), want, "{text}");
        }
    }
}
