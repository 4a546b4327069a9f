//! The daemon's own socket: what other `vetch` commands ask of a running daemon.
//!
//! One JSON request line per connection, answered by JSON lines: any number of `Progress`, then
//! one `Done` or `Failed`. The socket lies in a folder that only root may enter.

use std::{
    future::Future,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use crate::accepting::Failures;

/// Requests are short; a longer one is nonsense.
const MAX_REQUEST_BYTES: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Stop the daemon; with `pods`, stop and remove all pods of this node first.
    Stop {
        pods: bool,
    },
    ImagePull {
        reference: String,
        username: Option<String>,
        password: Option<String>,
    },
    ImageImport {
        path: PathBuf,
    },
    ImageList,
    ImageRemove {
        reference: String,
    },
    /// Makes a part of the daemon fail.
    #[cfg(feature = "test-hooks")]
    Provoke {
        part: String,
        how: crate::supervision::hooks::How,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Progress { done: u64, total: u64 },
    Done(Outcome),
    Failed { message: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Nothing,
    Images(Vec<ImageLine>),
}

/// An image as `vetch image ls` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLine {
    pub id: String,
    pub names: Vec<String>,
    pub size_bytes: u64,
    /// Of a pull: which hosts were asked, and what came.
    #[serde(default)]
    pub tried: Vec<String>,
}

/// Sends `request` to the daemon behind `socket`; `None` when there is none, or it is just dying.
pub async fn call(
    socket: &Path,
    request: &Request,
    mut progress: impl FnMut(u64, u64),
) -> Result<Option<Outcome>, super::Error> {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        // Reset: it was killed in this very moment.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
            ) =>
        {
            return Ok(None);
        }
        Err(error) => {
            return Err(format!("connect to the daemon at {}: {error}", socket.display()).into());
        }
    };
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    match write.write_all(&line).await {
        Err(error) if is_cut(&error) => return Ok(None),
        result => result?,
    }
    let mut lines = BufReader::new(read).lines();
    loop {
        let line = match lines.next_line().await {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) if is_cut(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match serde_json::from_str(&line)? {
            Reply::Progress { done, total } => progress(done, total),
            Reply::Done(outcome) => return Ok(Some(outcome)),
            Reply::Failed { message } => return Err(message.into()),
        }
    }
    Err("the daemon ended before it answered; see `vetch logs`".into())
}

/// Nobody took the connection from the queue: a daemon that still runs would.
fn is_cut(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Listens on `socket`, readable by root only.
pub fn bind(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers requests with `handler` until dropped.
pub async fn serve<H, F>(listener: UnixListener, handler: H)
where
    H: Fn(Request, mpsc::Sender<Reply>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Outcome, super::Error>> + Send + 'static,
{
    let handler = Arc::new(handler);
    let mut failures = Failures::new("control");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                failures.over();
                let handler = handler.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, handler.as_ref()).await {
                        tracing::debug!(%error, "control connection ended");
                    }
                });
            }
            Err(error) => {
                tokio::time::sleep(failures.rest(&error, tokio::time::Instant::now())).await;
            }
        }
    }
}

async fn answer<H, F>(stream: UnixStream, handler: &H) -> Result<(), super::Error>
where
    H: Fn(Request, mpsc::Sender<Reply>) -> F,
    F: Future<Output = Result<Outcome, super::Error>>,
{
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_REQUEST_BYTES))
        .read_line(&mut line)
        .await?;
    let request: Request = serde_json::from_str(&line)?;
    let (progress, mut told) = mpsc::channel(16);
    let work = handler(request, progress);
    tokio::pin!(work);
    let last = loop {
        tokio::select! {
            Some(reply) = told.recv() => send(&mut write, &reply).await?,
            result = &mut work => break match result {
                Ok(outcome) => Reply::Done(outcome),
                Err(error) => Reply::Failed { message: crate::causes::causes(error.as_ref()) },
            },
        }
    };
    // What was told before the end is told before the end.
    while let Ok(reply) = told.try_recv() {
        send(&mut write, &reply).await?;
    }
    send(&mut write, &last).await
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> Result<(), super::Error> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(write.write_all(&line).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn progress_then_an_answer_or_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        assert!(
            call(&socket, &Request::ImageList, |_, _| {})
                .await
                .unwrap()
                .is_none()
        );
        let listener = bind(&socket).unwrap();
        let server = tokio::spawn(serve(listener, |request, progress| async move {
            progress.send(Reply::Progress { done: 1, total: 2 }).await?;
            match request {
                Request::Stop { .. } => Ok(Outcome::Nothing),
                _ => Err("no such image".into()),
            }
        }));
        let mut seen = Vec::new();
        let outcome = call(&socket, &Request::Stop { pods: true }, |done, total| {
            seen.push((done, total))
        })
        .await;
        assert_eq!(outcome.unwrap(), Some(Outcome::Nothing));
        assert_eq!(seen, [(1, 2)]);
        let error = call(&socket, &Request::ImageList, |_, _| {})
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "no such image");
        server.abort();
    }
}
