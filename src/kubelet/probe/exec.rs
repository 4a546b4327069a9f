//! `exec`: a command in the container; exit code 0 is a good answer.

use std::{os::fd::OwnedFd, time::Duration};

use k8s_openapi::api::core::v1::ExecAction;
use tokio::{io::AsyncReadExt, net::unix::pipe};
use tokio_util::sync::CancellationToken;

use crate::runtime::{ExecConfig, Runtime};

/// So much of the output is told; the rest is read and dropped.
const MAX_OUTPUT: usize = 10 << 10;
/// Once the command has ended, as much as a pipe holds is of it.
const READS_AT_END: usize = 16;

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
    let exited = CancellationToken::new();
    let exit = async {
        let exit = session.exit.await;
        exited.cancel();
        exit
    };
    let (stdout, stderr, exit) = tokio::join!(
        read(session.stdout, &exited),
        read(session.stderr, &exited),
        exit
    );
    let exit = exit
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

/// What the command says until it has ended. What it has left running may hold its end open, and is
/// not waited for.
async fn read(end: Option<OwnedFd>, exited: &CancellationToken) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut pipe) = end.and_then(|end| pipe::Receiver::from_owned_fd(end).ok()) else {
        return kept;
    };
    let mut buffer = [0; 4096];
    let mut keep = |piece: &[u8]| {
        let room = MAX_OUTPUT - kept.len();
        kept.extend(piece.iter().take(room));
    };
    loop {
        let read = tokio::select! {
            read = pipe.read(&mut buffer) => read,
            () = exited.cancelled() => break,
        };
        match read {
            Ok(length @ 1..) => keep(buffer.get(..length).unwrap_or_default()),
            _ => return kept,
        }
    }
    // Straight from the pipe, which does not block: what was said before the end is there.
    for _ in 0..READS_AT_END {
        match nix::unistd::read(&pipe, &mut buffer) {
            Ok(length @ 1..) => keep(buffer.get(..length).unwrap_or_default()),
            _ => break,
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_read_until_the_command_has_ended() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let exited = CancellationToken::new();
        exited.cancel();
        nix::unistd::write(&writer, b"said").unwrap();
        // The writer lives on.
        let read = tokio::time::timeout(Duration::from_secs(5), read(Some(reader), &exited));
        assert_eq!(read.await.unwrap(), b"said");
    }

    #[tokio::test]
    async fn no_more_is_kept_than_is_told() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let writing = std::thread::spawn(move || {
            for _ in 0..64 {
                nix::unistd::write(&writer, &[b'x'; 64 << 10]).unwrap();
            }
        });
        let kept = read(Some(reader), &CancellationToken::new()).await;
        assert_eq!(kept.len(), MAX_OUTPUT);
        writing.join().unwrap();
    }
}
