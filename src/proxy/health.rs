//! `healthCheckNodePort`: by it a load balancer learns whether this node has endpoints of a Service.
//!
//! A small HTTP server for each Service that asks for one, in each family that the cluster has, with the
//! original's answer. Called by the proxy with every change.

use std::{collections::HashMap, io, net::Ipv4Addr, time::Duration};

use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{model::Plan, step::Notice};
use crate::{
    accepting,
    addresses::family::Family,
    informer::Key,
    listener::{Limits, Listener},
};

const DRAIN: Duration = Duration::from_secs(1);
/// Of one Service's health check; and no more than this part of the process's descriptors.
const CONNECTIONS: usize = 16;
const OF_DESCRIPTORS: u64 = 64;

/// The servers that run.
#[derive(Debug, Default)]
pub struct HealthChecks(HashMap<Key, Vec<Check>>);

/// A server on the node's addresses of one family.
#[derive(Debug)]
struct Check {
    family: Family,
    port: u16,
    endpoints: watch::Sender<usize>,
    _end: DropGuard,
}

impl HealthChecks {
    /// Brings the Service's servers to the new plans, one for each family that the cluster has; says so where
    /// it cannot. Each answers for its own family, if the Service is of it.
    pub async fn update(&mut self, key: &Key, plans: &[&Plan]) -> Vec<Notice> {
        let mut before = self.0.remove(key).unwrap_or_default();
        let mut now = Vec::new();
        let mut notices = Vec::new();
        let asking = plans.iter().find(|plan| plan.health_port.is_some());
        let Some(asking) = asking else {
            return notices;
        };
        for plan in plans {
            let counted = match plan.health_port {
                Some(_) => plan,
                None => asking,
            };
            let Some(port) = counted.health_port else {
                continue;
            };
            let endpoints = counted.local.len();
            let same = |check: &Check| (check.family, check.port) == (plan.family, port);
            if let Some(at) = before.iter().position(same) {
                let check = before.swap_remove(at);
                check.endpoints.send_replace(endpoints);
                now.push(check);
                continue;
            }
            // Of another port, say, which another Service may want.
            before.retain(|check| check.family != plan.family);
            match Check::start(key, plan.family, port, endpoints) {
                Ok(check) => now.push(check),
                Err(error) => notices.push(Notice {
                    service: key.clone(),
                    uid: counted.since.1.clone(),
                    message: format!(
                        "the health check is not served on port {port} over {}: {error}",
                        plan.family
                    ),
                }),
            }
        }
        if !now.is_empty() {
            self.0.insert(key.clone(), now);
        }
        notices
    }
}

impl Check {
    fn start(service: &Key, family: Family, port: u16, endpoints: usize) -> io::Result<Self> {
        let socket = match family {
            Family::V4 => accepting::listen((Ipv4Addr::UNSPECIFIED, port).into()),
            Family::V6 => accepting::listen_ipv6_only(port),
        }?;
        let (sender, receiver) = watch::channel(endpoints);
        let shutdown = CancellationToken::new();
        let end = shutdown.clone().drop_guard();
        let listener = Listener {
            socket,
            shutdown,
            drain: DRAIN,
            limits: Limits::new(CONNECTIONS, OF_DESCRIPTORS),
        };
        let name = service.clone();
        tokio::spawn(listener.plain(move |_| {
            let answer = answer(&name, *receiver.borrow());
            async { answer }
        }));
        Ok(Self {
            family,
            port,
            endpoints: sender,
            _end: end,
        })
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const BOTH: [Family; 2] = Family::ALL;

    fn plan(family: Family, port: Option<u16>, endpoints: &[&str]) -> Plan {
        Plan {
            health_port: port,
            local: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
            ..Plan::nothing(family)
        }
    }

    async fn ask(address: &str, port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect((address, port)).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// How many endpoints the one who answers there tells of.
    async fn told(address: &str, port: u16) -> io::Result<usize> {
        let said = ask(address, port).await?;
        let status = if said.contains("\"localEndpoints\":0") {
            503
        } else {
            200
        };
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{said}");
        let (_, rest) = said.split_once("\"localEndpoints\":").unwrap();
        Ok(rest.split([',', '}']).next().unwrap().parse().unwrap())
    }

    #[tokio::test]
    async fn a_node_without_endpoints_says_so() -> Result<(), Box<dyn std::error::Error>> {
        for (family, address, endpoint) in [
            (Family::V4, "127.0.0.1", "10.0.0.2"),
            (Family::V6, "::1", "fd00::2"),
        ] {
            let free = TcpListener::bind((address, 0)).await?.local_addr()?.port();
            let plan = |endpoints: &[&str]| plan(family, Some(free), endpoints);
            let key = Key::new("n", "s");
            let mut checks = HealthChecks::default();
            assert_eq!(checks.update(&key, &[&plan(&[])]).await, []);
            assert_eq!(told(address, free).await?, 0);
            assert_eq!(checks.update(&key, &[&plan(&[endpoint])]).await, []);
            assert_eq!(told(address, free).await?, 1);
            // Another one cannot have the port.
            let other = Key::new("n", "t");
            let notices = checks.update(&other, &[&plan(&[endpoint])]).await;
            assert_eq!(notices.len(), 1);
            let gone = Plan::nothing(family);
            assert_eq!(checks.update(&key, &[&gone]).await, []);
            assert!(checks.0.is_empty());
        }
        Ok(())
    }

    #[tokio::test]
    async fn each_family_answers_for_itself() -> Result<(), Box<dyn std::error::Error>> {
        let free = TcpListener::bind("[::]:0").await?.local_addr()?.port();
        let key = Key::new("n", "s");
        let mut checks = HealthChecks::default();
        for (v4, v6, want) in [
            (Some(&["10.0.0.2"][..]), None, [1, 1]), // not of IPv6: who asks by it hears of IPv4
            (Some(&["10.0.0.2"]), Some(&[][..]), [1, 0]),
            (None, Some(&["fd00::2", "fd00::3"]), [2, 2]),
        ] {
            let of = |endpoints: Option<&[&str]>, family| {
                plan(family, endpoints.map(|_| free), endpoints.unwrap_or(&[]))
            };
            let [v4, v6] = [(v4, BOTH[0]), (v6, BOTH[1])].map(|(plan, family)| of(plan, family));
            assert_eq!(checks.update(&key, &[&v4, &v6]).await, []);
            let found = [told("127.0.0.1", free).await?, told("::1", free).await?];
            assert_eq!(found, want);
        }
        let gone = BOTH.map(Plan::nothing);
        assert_eq!(checks.update(&key, &[&gone[0], &gone[1]]).await, []);
        assert!(checks.0.is_empty());
        Ok(())
    }
}
