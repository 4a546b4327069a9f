//! `grpc`: the health service of gRPC; `SERVING` is a good answer.

use std::time::Duration;

use ::http::{Request, header};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::GRPCAction;

use super::{Target, tcp};

const SERVING: u64 = 1;
const MAX_ANSWER: usize = 4096;

pub async fn run(target: &Target, action: &GRPCAction, timeout: Duration) -> Result<(), String> {
    let port = u16::try_from(action.port).map_err(|_| format!("no port {}", action.port))?;
    let service = action.service.as_deref().unwrap_or_default();
    match tokio::time::timeout(timeout, check(target, port, service, timeout)).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "timeout: failed to connect service \"{}:{port}\" within {timeout:?}",
            target.address()?
        )),
    }
}

async fn check(target: &Target, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let stream = tcp::connect(target, None, port, timeout).await?;
    let said = |error: hyper::Error| format!("health rpc failed: {error}");
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .map_err(said)?;
    let driver = tokio::spawn(connection);
    let authority = format!("{}:{port}", target.address()?);
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.37")
        .body(Full::new(question(service)))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(said)?;
    let of_headers = response.headers().get("grpc-status").cloned();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| format!("health rpc failed: {error}"))?;
    driver.abort();
    let of_trailers = body
        .trailers()
        .and_then(|trailers| trailers.get("grpc-status"))
        .cloned();
    let code = of_trailers.or(of_headers);
    match code.as_ref().and_then(|code| code.to_str().ok()) {
        Some("0") => {}
        Some("12") => {
            return Err(
                "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                    .into(),
            );
        }
        other => {
            return Err(format!(
                "health rpc failed with code {}",
                other.unwrap_or("unknown")
            ));
        }
    }
    match answer(&body.to_bytes()) {
        Some(SERVING) => Ok(()),
        other => Err(format!(
            "service unhealthy (responded with {:?})",
            name(other.unwrap_or(0))
        )),
    }
}

/// The framed `HealthCheckRequest`: its only field is the service's name.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length as u8 & 0x7f) | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}

/// The status in a framed `HealthCheckResponse`; without the field it is 0.
fn answer(frame: &[u8]) -> Option<u64> {
    let message = frame.get(5..)?;
    match message {
        [] => Some(0),
        [0x08, status, ..] => Some(u64::from(*status)),
        _ => None,
    }
}

fn name(status: u64) -> &'static str {
    match status {
        1 => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(question("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(
            question("ab").as_ref(),
            [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']
        );
        for (frame, want) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 0][..], Some(0)),
            (&[0, 0][..], None),
        ] {
            assert_eq!(answer(frame), want, "{frame:?}");
        }
    }
}
