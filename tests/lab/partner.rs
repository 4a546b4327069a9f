//! A program of somebody else that takes part in the API: a webhook or an aggregated server.

use std::{error::Error, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::{BodyExt, Full};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::Value;
use vetch::pki::{Leaf, Pki, Usage};

/// A server on this host that takes part in the API: its port, and the authority behind it.
pub async fn partner(
    dir: &std::path::Path,
    address: std::net::IpAddr,
    name: &str,
    answer: fn(http::request::Parts, Value) -> Value,
) -> Result<(u16, String), Box<dyn Error + Send + Sync>> {
    let pki = Pki::open(dir)?;
    let leaf = Leaf {
        names: vec![name.to_owned()],
        usages: vec![Usage::Server],
        ..Leaf::client("partner", &[])
    };
    let identity = pki.issue(&leaf)?;
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()?
    .with_no_client_auth()
    .with_single_cert(
        CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
            .collect::<Result<_, _>>()?,
        PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?,
    )?;
    let tls = Arc::new(tls);
    let listener = tokio::net::TcpListener::bind((address, 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = tokio_rustls::TlsAcceptor::from(tls.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(
                    async |request: http::Request<hyper::body::Incoming>| {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        let said = answer(parts, serde_json::from_slice(&body).unwrap_or_default());
                        let mut response =
                            http::Response::new(Full::new(bytes::Bytes::from(said.to_string())));
                        if said.is_null() {
                            *response.status_mut() = http::StatusCode::NOT_FOUND;
                        }
                        Ok::<_, hyper::Error>(response)
                    },
                );
                if let Ok(stream) = acceptor.accept(stream).await {
                    let io = hyper_util::rt::TokioIo::new(stream);
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(io, service).await;
                }
            });
        }
    });
    Ok((port, BASE64_STANDARD.encode(pki.ca_pem())))
}
