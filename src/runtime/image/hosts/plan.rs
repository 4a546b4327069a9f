//! From a registry and what is configured for it to the hosts that are asked, in order. Pure.

use std::{net::IpAddr, time::Duration};

use http::{HeaderName, HeaderValue};

use super::file::{self, Capabilities, File, Scheme, Tls, Url};

/// A host that serves a registry's images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub scheme: Scheme,
    /// `host[:port]`.
    pub authority: String,
    /// What comes before the repository in a request's path.
    pub path: String,
    pub capabilities: Capabilities,
    pub tls: Tls,
    /// Sent with every request to the host itself.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub dial_timeout: Option<Duration>,
    /// The registry that a mirror is asked for, as it stands in image names.
    pub namespace: Option<String>,
    pub asked: Asked,
}

/// How a host came to be in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The node's owner wrote it down, with its scheme.
    Configured,
    /// The image's name gives it.
    ByName,
    /// The image's name gives it, and it is this machine itself: no certificate is asked for.
    OnLoopback,
    /// The same over plain HTTP, if the one before does not speak TLS.
    InPlain,
}

impl Host {
    /// Where a manifest or blob of the registry is asked for: `what` is `manifests` or `blobs`.
    pub fn request(&self, repository: &str, what: &str, by: &str) -> String {
        let query = match &self.namespace {
            None => String::new(),
            Some(registry) => form_urlencoded::Serializer::for_suffix("?".to_owned(), 1)
                .append_pair("ns", registry)
                .finish(),
        };
        format!("{}/{repository}/{what}/{by}{query}", self.path)
    }

    pub fn base(&self) -> String {
        format!("{}://{}", self.scheme.name(), self.authority)
    }

    /// Whether this is the registry itself, which the credentials for the registry are meant for.
    pub fn is_registry(&self, registry: &str) -> bool {
        let usual = usual(registry);
        let with_port = format!("{usual}:443");
        self.authority == usual || self.scheme == Scheme::Https && self.authority == with_port
    }

    /// What credentials for this host must cover: host and path as a `config.json` names them.
    pub fn credentials_for(&self, registry: &str, repository: &str) -> String {
        if self.is_registry(registry) {
            return format!("{registry}/{repository}");
        }
        let folder = self.path.strip_prefix("/v2").unwrap_or(&self.path);
        let folder = folder.strip_suffix("/v2").unwrap_or(folder);
        format!("{}{folder}/{repository}", self.authority)
    }
}

/// The hosts to ask, in order; none where the file leaves none. `registry` is as in image names.
pub fn hosts(registry: &str, file: Option<File>) -> Vec<Host> {
    let Some(File { hosts, server }) = file else {
        return themselves(registry, &file::Host::default());
    };
    let mut plan: Vec<Host> = hosts
        .into_iter()
        .filter_map(|host| Some(written(registry, host.url.clone()?, host)))
        .collect();
    match server.url.clone() {
        Some(url) => plan.push(written(registry, url, server)),
        None => plan.extend(themselves(registry, &server)),
    }
    plan
}

fn written(registry: &str, url: Url, host: file::Host) -> Host {
    let mut planned = Host {
        scheme: url.scheme,
        authority: usual(&url.authority),
        path: url.path,
        capabilities: host.capabilities,
        tls: host.tls,
        headers: host.headers,
        dial_timeout: host.dial_timeout,
        namespace: None,
        asked: Asked::Configured,
    };
    if !planned.is_registry(registry) {
        planned.namespace = Some(registry.to_owned());
    }
    planned
}

/// The registry itself: over HTTPS; on loopback also without a certificate, and in plain.
fn themselves(registry: &str, settings: &file::Host) -> Vec<Host> {
    let host = |scheme, asked| Host {
        scheme,
        authority: usual(registry),
        path: "/v2".to_owned(),
        capabilities: settings.capabilities,
        tls: settings.tls.clone(),
        headers: settings.headers.clone(),
        dial_timeout: settings.dial_timeout,
        namespace: None,
        asked,
    };
    // Whoever says how its certificate is checked wants TLS.
    if !is_loopback(registry) || settings.tls != Tls::default() {
        return vec![host(Scheme::Https, Asked::ByName)];
    }
    vec![
        Host {
            tls: Tls {
                skip_verify: true,
                ..Tls::default()
            },
            ..host(Scheme::Https, Asked::OnLoopback)
        },
        host(Scheme::Http, Asked::InPlain),
    ]
}

/// The host that serves a registry.
fn usual(registry: &str) -> String {
    match registry {
        "docker.io" => "registry-1.docker.io".to_owned(),
        registry => registry.to_ascii_lowercase(),
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn requests(registry: &str, text: Option<&str>, what: &str) -> Vec<String> {
        let file = text.map(|text| file::parse(text, Path::new("/c")).unwrap());
        let plan = hosts(registry, file);
        let may = |host: &&Host| match what {
            "manifests" => host.capabilities.resolve,
            _ => host.capabilities.pull,
        };
        plan.iter()
            .filter(may)
            .map(|host| host.base() + &host.request("team/app", what, "1"))
            .collect()
    }

    #[test]
    fn which_requests_a_configuration_leads_to() {
        let mirror = "[host.\"https://m.example\"]";
        for (registry, text, want) in [
            // Nothing configured.
            (
                "r.example",
                None,
                vec!["https://r.example/v2/team/app/manifests/1"],
            ),
            (
                "docker.io",
                None,
                vec!["https://registry-1.docker.io/v2/team/app/manifests/1"],
            ),
            (
                "10.0.0.1:5000",
                None,
                vec!["https://10.0.0.1:5000/v2/team/app/manifests/1"],
            ),
            // TLS first on loopback, plain only there.
            (
                "localhost:5000",
                None,
                vec![
                    "https://localhost:5000/v2/team/app/manifests/1",
                    "http://localhost:5000/v2/team/app/manifests/1",
                ],
            ),
            (
                "[::1]:5000",
                None,
                vec![
                    "https://[::1]:5000/v2/team/app/manifests/1",
                    "http://[::1]:5000/v2/team/app/manifests/1",
                ],
            ),
            (
                "localhost:5000",
                Some("ca = \"x\""),
                vec!["https://localhost:5000/v2/team/app/manifests/1"],
            ),
            // A mirror, then the registry; the mirror is told whose image it is.
            (
                "docker.io",
                Some(mirror),
                vec![
                    "https://m.example/v2/team/app/manifests/1?ns=docker.io",
                    "https://registry-1.docker.io/v2/team/app/manifests/1",
                ],
            ),
            (
                "r.example:5000",
                Some(mirror),
                vec![
                    "https://m.example/v2/team/app/manifests/1?ns=r.example%3A5000",
                    "https://r.example:5000/v2/team/app/manifests/1",
                ],
            ),
            // Only what is written down.
            (
                "r.example",
                Some("server = \"http://plain.example:80\""),
                vec!["http://plain.example:80/v2/team/app/manifests/1?ns=r.example"],
            ),
            (
                "docker.io",
                Some("server = \"https://registry-1.docker.io\""),
                vec!["https://registry-1.docker.io/v2/team/app/manifests/1"],
            ),
            (
                "r.example",
                Some(
                    "server = \"https://r.example\"\n[host.\"https://m/v2/proxy\"]\noverride_path = true",
                ),
                vec![
                    "https://m/v2/proxy/team/app/manifests/1?ns=r.example",
                    "https://r.example/v2/team/app/manifests/1",
                ],
            ),
            (
                "r.example",
                Some("[host.\"https://m/proxy\"]"),
                vec![
                    "https://m/proxy/v2/team/app/manifests/1?ns=r.example",
                    "https://r.example/v2/team/app/manifests/1",
                ],
            ),
            (
                "docker.io",
                Some("server = \"https://docker.io\""),
                vec!["https://registry-1.docker.io/v2/team/app/manifests/1"],
            ),
            // A mirror that is not believed what a tag stands for.
            (
                "r.example",
                Some("[host.\"https://m\"]\ncapabilities = [\"pull\"]"),
                vec!["https://r.example/v2/team/app/manifests/1"],
            ),
        ] {
            assert_eq!(
                requests(registry, text, "manifests"),
                want,
                "{registry} {text:?}"
            );
        }
        let text = "server = \"https://s\"\ncapabilities = [\"resolve\"]\n[host.\"https://m\"]\ncapabilities = [\"pull\"]";
        assert_eq!(
            requests("r.example", Some(text), "blobs"),
            ["https://m/v2/team/app/blobs/1?ns=r.example"]
        );
    }

    #[test]
    fn whose_credentials_a_host_gets() {
        let file =
            "[host.\"https://m.example/v2/hub\"]\noverride_path = true\n[host.\"http://n:80/a\"]";
        let file = file::parse(file, Path::new("/c")).unwrap();
        let plan = hosts("docker.io", Some(file));
        let want: Vec<String> = plan
            .iter()
            .map(|host| host.credentials_for("docker.io", "library/x"))
            .collect();
        let all = [
            "m.example/hub/library/x",
            "n:80/a/library/x",
            "docker.io/library/x",
        ];
        assert_eq!(want, all);
    }

    #[test]
    fn loopback_registries() {
        for (text, want) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]", true),
            ("docker.io", false),
            ("localhost.example", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(text), want, "{text}");
        }
    }
}
