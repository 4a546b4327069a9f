//! `healthCheckNodePort`: by it a load balancer learns whether this node has endpoints of a Service.
//!
//! A small HTTP server for each Service that asks for one, with the original's answer. Called by the
//! proxy with every change.

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{model::Plan, render::Notice};
use crate::{
    accepting,
    informer::Key,
    listener::{Limits, Listener},
};

const DRAIN: Duration = Duration::from_secs(1);
/// Of one Service's health check; and no more than this part of the process's descriptors.
const CONNECTIONS: usize = 16;
const OF_DESCRIPTORS: u64 = 64;

/// The servers that run.
#[derive(Debug, Default)]
pub struct HealthChecks(HashMap<Key, Check>);

#[derive(Debug)]
struct Check {
    port: u16,
    endpoints: watch::Sender<usize>,
    _end: DropGuard,
}

impl HealthChecks {
    /// Brings the Service's server to the new plan; says so if it cannot.
    pub async fn update(&mut self, key: &Key, plan: &Plan) -> Option<Notice> {
        let Some(port) = plan.health_port else {
            self.0.remove(key);
            return None;
        };
        let endpoints = plan.local.len();
        if let Some(check) = self.0.get(key).filter(|check| check.port == port) {
            check.endpoints.send_replace(endpoints);
            return None;
        }
        self.0.remove(key);
        let socket = match accepting::listen((Ipv4Addr::UNSPECIFIED, port).into()) {
            Ok(socket) => socket,
            Err(error) => {
                return Some(Notice {
                    service: key.clone(),
                    uid: plan.since.1.clone(),
                    message: format!("the health check is not served on port {port}: {error}"),
                });
            }
        };
        let (sender, receiver) = watch::channel(endpoints);
        let shutdown = CancellationToken::new();
        let end = shutdown.clone().drop_guard();
        let listener = Listener {
            socket,
            shutdown,
            drain: DRAIN,
            limits: Limits::new(CONNECTIONS, OF_DESCRIPTORS),
        };
        let name = key.clone();
        tokio::spawn(listener.plain(move |_| {
            let answer = answer(&name, *receiver.borrow());
            async { answer }
        }));
        let check = Check {
            port,
            endpoints: sender,
            _end: end,
        };
        self.0.insert(key.clone(), check);
        None
    }
}

fn answer(service: &Key, endpoints: usize) -> Response<Full<Bytes>> {
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::from(body.to_string()));
    if endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    let json = header::HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let nosniff = header::HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    headers.insert("X-Load-Balancing-Endpoint-Weight", endpoints.into());
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_node_without_endpoints_says_so() -> Result<(), Box<dyn std::error::Error>> {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await?
            .local_addr()?
            .port();
        let plan = |last: Option<u8>| Plan {
            health_port: Some(free),
            local: last
                .map(|last| [10, 0, 0, last].into())
                .into_iter()
                .collect(),
            ..Plan::default()
        };
        let ask = async || -> Result<String, std::io::Error> {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", free)).await?;
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
                .await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok(text)
        };
        let key = Key::new("n", "s");
        let mut checks = HealthChecks::default();
        assert_eq!(checks.update(&key, &plan(None)).await, None);
        assert!(ask().await?.starts_with("HTTP/1.1 503"));
        assert_eq!(checks.update(&key, &plan(Some(2))).await, None);
        let said = ask().await?;
        assert!(said.starts_with("HTTP/1.1 200") && said.contains("\"localEndpoints\":1"));
        // Another one cannot have the port.
        let other = checks.update(&Key::new("n", "t"), &plan(Some(2))).await;
        assert!(other.is_some());
        assert_eq!(checks.update(&key, &Plan::default()).await, None);
        assert!(checks.0.is_empty());
        Ok(())
    }
}
