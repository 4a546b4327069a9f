//! `exec`: a command in the container; exit code 0 is a good answer.

use std::{os::fd::OwnedFd, time::Duration};

use k8s_openapi::api::core::v1::ExecAction;
use tokio::{io::AsyncReadExt, net::unix::pipe};

use crate::runtime::{ExecConfig, Runtime};

/// So much of the output is told; the rest is read and dropped.
const MAX_OUTPUT: usize = 10 << 10;

pub async fn run(
    runtime: &Runtime,
    container_id: &str,
    action: &ExecAction,
    timeout: Duration,
) -> Result<(), String> {
    let config = ExecConfig {
        argv: action.command.clone().unwrap_or_default(),
        stdout: true,
        stderr: true,
        ..ExecConfig::default()
    };
    // Dropping the session kills the command.
    match tokio::time::timeout(timeout, command(runtime, container_id, config)).await {
        Ok(result) => result,
        Err(_) => Err(format!("command timed out after {}s", timeout.as_secs())),
    }
}

async fn command(runtime: &Runtime, container_id: &str, config: ExecConfig) -> Result<(), String> {
    let session = runtime
        .exec(container_id, config)
        .await
        .map_err(|error| error.to_string())?;
    drop(session.stdin);
    let (stdout, stderr) = tokio::join!(read(session.stdout), read(session.stderr));
    let exit = session
        .exit
        .await
        .map_err(|_| "the command's end was not seen".to_owned())?
        .map_err(|error| error.to_string())?;
    match exit.code {
        0 => Ok(()),
        _ => {
            let mut output = stdout;
            output.extend(stderr);
            output.truncate(MAX_OUTPUT);
            Err(String::from_utf8_lossy(&output).into_owned())
        }
    }
}

/// What the command says until it closes its end.
async fn read(end: Option<OwnedFd>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut pipe) = end.and_then(|end| pipe::Receiver::from_owned_fd(end).ok()) else {
        return kept;
    };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        let room = MAX_OUTPUT - kept.len();
        kept.extend(buffer.iter().take(length.min(room)));
    }
    kept
}
