//! Finding out by which certificate authority a cluster is known.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use http::{Request, Uri};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Client, Config, client::Body, config::Kubeconfig};

use crate::bootstrap_token::{
    BootstrapToken,
    signature::{Unverified, verified},
};

const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const WITHIN: Duration = Duration::from_secs(10);
/// A new token has been signed by then, also on a busy server.
const SIGNED_WITHIN: Duration = Duration::from_secs(3);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Who answers is not known yet.
const MAX_BYTES: usize = 1 << 20;

/// Where a cluster is and by what it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// As it was asked for: the address that it tells of itself may not be reached from here.
    pub server: Uri,
    pub ca_pem: String,
}

/// Why a cluster was not found out about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{server} does not answer: is the address right, and does a firewall let TCP through?")]
    Unreachable {
        server: Uri,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{server} did not answer within {within:?}")]
    Late { server: Uri, within: Duration },
    #[error(
        "{server} answers {status} where a cluster tells of itself: is it an API server that takes machines by token?"
    )]
    NotACluster {
        server: Uri,
        status: http::StatusCode,
    },
    #[error("{server}: {what} cannot be read")]
    Unreadable { server: Uri, what: &'static str },
    #[error("{server}")]
    Unverified {
        server: Uri,
        #[source]
        source: Unverified,
    },
}

impl Error {
    /// Whether the server may say something else when it has come so far.
    fn may_be_early(&self) -> bool {
        matches!(
            self,
            Self::Unverified {
                source: Unverified::Empty | Unverified::UnknownToken(_),
                ..
            }
        )
    }
}

/// Asks the server, whose certificate is not known, and checks what it says with the token. One that it does not
/// know may have been made a moment ago: then it is asked again for a while.
pub async fn discover(server: &Uri, token: &BootstrapToken) -> Result<Cluster, Error> {
    let end = Instant::now() + SIGNED_WITHIN;
    loop {
        let data = ask_within(server, WITHIN).await?;
        match read(server.clone(), &data, token) {
            Err(error) if error.may_be_early() && Instant::now() < end => {}
            found => return found,
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn ask_within(server: &Uri, within: Duration) -> Result<BTreeMap<String, String>, Error> {
    let late = |_| Error::Late {
        server: server.clone(),
        within,
    };
    let asked = tokio::time::timeout(within, ask(server)).await;
    asked.map_err(late)?
}

async fn ask(server: &Uri) -> Result<BTreeMap<String, String>, Error> {
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| Error::Unreachable {
        server: server.clone(),
        source,
    };
    let unreadable = || Error::Unreadable {
        server: server.clone(),
        what: "what it tells of itself",
    };
    let mut config = Config::new(server.clone());
    // Whether it is the right one is told by the token's signature.
    config.accept_invalid_certs = true;
    // Nor by any authority that this machine may know: it need not know one.
    config.root_cert = Some(Vec::new());
    let client = Client::try_from(config).map_err(|error| unreachable(error.into()))?;
    let request = Request::get(CLUSTER_INFO).body(Body::empty());
    let request = request.map_err(|error| unreachable(error.into()))?;
    let sent = client.send(request).await;
    let response = sent.map_err(|error| unreachable(error.into()))?;
    let status = response.status();
    if !status.is_success() {
        return Err(Error::NotACluster {
            server: server.clone(),
            status,
        });
    }
    let body = Limited::new(response.into_body(), MAX_BYTES)
        .collect()
        .await;
    let body = body.map_err(|_| unreadable())?.to_bytes();
    let map: ConfigMap = serde_json::from_slice(&body).map_err(|_| unreadable())?;
    Ok(map.data.unwrap_or_default())
}

/// What `cluster-info` says, if the token has signed it.
fn read(
    server: Uri,
    data: &BTreeMap<String, String>,
    token: &BootstrapToken,
) -> Result<Cluster, Error> {
    let text = match verified(data, token) {
        Ok(text) => text,
        Err(source) => return Err(Error::Unverified { server, source }),
    };
    match authority(text) {
        Some(ca_pem) => Ok(Cluster { server, ca_pem }),
        None => Err(Error::Unreadable {
            server,
            what: "the certificate authority that it tells",
        }),
    }
}

fn authority(kubeconfig: &str) -> Option<String> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let config = Kubeconfig::from_yaml(kubeconfig).ok()?;
    let cluster = config.clusters.into_iter().next()?.cluster?;
    let pem = BASE64_STANDARD
        .decode(cluster.certificate_authority_data?)
        .ok()?;
    String::from_utf8(pem).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bootstrap_token::{Expiration, KeptToken, signature::signed},
        pki::cluster_info,
    };

    #[test]
    fn what_is_taken_from_it() {
        let kept = KeptToken {
            token: "abcdef.0123456789abcdef".parse().expect("a token"),
            expiration: Expiration::Never,
            signing: true,
            authentication: true,
            groups: Vec::new(),
            description: String::new(),
        };
        let server: Uri = "https://192.0.2.7:6443".parse().expect("an address");
        let read = |kubeconfig: &str| {
            let tokens = std::slice::from_ref(&kept);
            let data = signed(&BTreeMap::new(), kubeconfig, tokens).expect("signed");
            super::read(server.clone(), &data, &kept.token)
        };
        // Where it was asked, wherever it says that it is.
        let cluster = read(&cluster_info("https://10.0.0.1:6443", "ca")).expect("a cluster");
        assert_eq!(cluster.server, server);
        assert_eq!(cluster.ca_pem, "ca");
        for bad in ["", "clusters: []", "clusters: [{name: x}]", "{"] {
            let error = read(bad).expect_err(bad);
            assert!(matches!(error, Error::Unreadable { .. }), "{bad}: {error}");
        }
        let error = super::read(server.clone(), &BTreeMap::new(), &kept.token);
        assert!(matches!(error, Err(Error::Unverified { .. })));
    }

    /// As the program does when it starts; another test may have been first.
    fn install_crypto() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }

    #[tokio::test]
    async fn nobody_there() {
        let token = "abcdef.0123456789abcdef".parse().expect("a token");
        install_crypto();
        // A port that nobody listens on: it was given back.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("a port").port();
        drop(free);
        let server = format!("https://127.0.0.1:{port}")
            .parse()
            .expect("an address");
        let error = discover(&server, &token).await.expect_err("nobody");
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }

    /// Whoever asks gets these bytes for as long as he reads.
    async fn endless(head: &'static str, piece: &'static str) -> Uri {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("a port");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(head.as_bytes()).await;
                while !piece.is_empty() && stream.write_all(piece.as_bytes()).await.is_ok() {}
                tokio::time::sleep(WITHIN).await;
            }
        });
        format!("http://{address}").parse().expect("an address")
    }

    #[tokio::test]
    async fn a_token_that_is_signed_a_moment_later_is_known() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        install_crypto();
        let kept = KeptToken {
            token: "abcdef.0123456789abcdef".parse().expect("a token"),
            expiration: Expiration::Never,
            signing: true,
            authentication: true,
            groups: Vec::new(),
            description: String::new(),
        };
        let text = cluster_info("https://10.0.0.1:6443", "ca");
        let said = |tokens: &[KeptToken]| {
            let data = signed(&BTreeMap::new(), &text, tokens).expect("signed");
            let body = serde_json::json!({"data": data}).to_string();
            let length = body.len();
            format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            )
        };
        let answers = [said(&[]), said(std::slice::from_ref(&kept))];
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("a port");
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let server = format!("http://{address}").parse().expect("an address");
        let cluster = discover(&server, &kept.token).await.expect("a cluster");
        assert_eq!(cluster.ca_pem, "ca");
    }

    #[tokio::test]
    async fn who_answers_without_an_end_is_given_up() {
        install_crypto();
        let short = Duration::from_millis(200);
        let silent = endless("", "").await;
        let error = ask_within(&silent, short).await.expect_err("no answer");
        assert!(matches!(error, Error::Late { .. }), "{error}");

        let large = endless(
            "HTTP/1.1 200 OK\r\n\r\n",
            "                                ",
        )
        .await;
        let error = ask_within(&large, WITHIN).await.expect_err("too large");
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");

        let other = endless("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "").await;
        let error = ask_within(&other, WITHIN).await.expect_err("no cluster");
        assert!(matches!(error, Error::NotACluster { .. }), "{error}");
    }
}
