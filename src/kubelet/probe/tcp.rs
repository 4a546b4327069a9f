//! `tcpSocket`: a connection that can be made is a good answer.

use std::{io, net::SocketAddr, time::Duration};

use k8s_openapi::api::core::v1::TCPSocketAction;
use tokio::net::TcpStream;

use super::Target;

pub async fn run(
    target: &Target,
    action: &TCPSocketAction,
    timeout: Duration,
) -> Result<(), String> {
    let port = target.port(&action.port)?;
    connect(target, action.host.as_deref(), port, timeout)
        .await
        .map(drop)
}

/// Connects to the pod, or to the host that the handler names. The error is worded as Go would.
pub async fn connect(
    target: &Target,
    host: Option<&str>,
    port: u16,
    timeout: Duration,
) -> Result<TcpStream, String> {
    let name = match host.filter(|host| !host.is_empty()) {
        Some(host) => host.to_owned(),
        None => target.address()?.to_string(),
    };
    let shown = match name.contains(':') {
        true => format!("[{name}]:{port}"),
        false => format!("{name}:{port}"),
    };
    let connected = tokio::time::timeout(timeout, open(&name, port)).await;
    match connected {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {shown}: {}", why(&error))),
        Err(_) => Err(format!("dial tcp {shown}: i/o timeout")),
    }
}

async fn open(name: &str, port: u16) -> io::Result<TcpStream> {
    let stream = match name.parse() {
        Ok(address) => TcpStream::connect(SocketAddr::new(address, port)).await?,
        Err(_) => TcpStream::connect((name, port)).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_open_port_and_a_closed_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = crate::kubelet::probe::target("127.0.0.1".parse().unwrap(), json!([]));
        let action = TCPSocketAction {
            host: None,
            port: IntOrString::Int(port.into()),
        };
        let second = Duration::from_secs(1);
        assert_eq!(run(&target, &action, second).await, Ok(()));
        drop(listener);
        let error = run(&target, &action, second).await.unwrap_err();
        assert_eq!(
            error,
            format!("dial tcp 127.0.0.1:{port}: connect: connection refused")
        );
    }
}
