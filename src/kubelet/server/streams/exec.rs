//! Exec and attach: a runtime session's descriptors joined with a client's channels.
//!
//! Always true: the client hears how it ended only after all output that was there at the end;
//! what a client that went away had started is let go of at once.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    channels::{Channels, Ending, Gone, Input, Output},
    descriptor::Descriptor,
    link::Link,
};
use crate::{
    causes::causes,
    runtime::{self, Exit, Session},
};

const PIECE_BYTES: usize = 16 * 1024;
/// After the end, output that another process of the container still holds open is waited for
/// only as long as something comes.
const QUIET: Duration = Duration::from_millis(500);

/// What the client started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Exec,
    /// An attached container's exit code is told in the pod's status.
    Attach,
}

/// Serves the session to its end, or until the client is gone.
pub async fn run(
    kind: Kind,
    session: Result<Session, runtime::Error>,
    channels: Channels,
    link: Link,
) {
    let (report, error) = (channels.report, channels.error.clone());
    let ending = match session {
        Err(failure) => ending(kind, Err(causes(&failure))),
        Ok(session) => tokio::select! {
            ending = join(kind, session, channels) => ending,
            () = link.gone() => return,
        },
    };
    let told = report.encode(&ending);
    if !told.is_empty() {
        // Who is gone need not know.
        let _ = error.send(told).await;
    }
    error.end().await;
    link.close().await;
}

async fn join(kind: Kind, session: Session, channels: Channels) -> Ending {
    let Channels {
        stdin,
        stdout,
        stderr,
        resize,
        ..
    } = channels;
    let (Ok(input), Ok(output), Ok(errors)) = (
        descriptor(session.stdin),
        descriptor(session.stdout),
        descriptor(session.stderr),
    ) else {
        return ending(kind, Err("open the container's streams".to_owned()));
    };
    let exited = CancellationToken::new();
    // These end with the session, whatever they wait for.
    let _stdin = AbortOnDropHandle::new(tokio::spawn(feed(stdin, input)));
    let _resize = AbortOnDropHandle::new(tokio::spawn(sizes(resize, session.resize)));
    let exit = async {
        let exit = session.exit.await;
        exited.cancel();
        exit
    };
    let (exit, (), ()) = tokio::join!(
        exit,
        drain(output, stdout, &exited),
        drain(errors, stderr, &exited),
    );
    ending(
        kind,
        match exit {
            Ok(Ok(exit)) => Ok(exit),
            Ok(Err(error)) => Err(causes(&error)),
            Err(_) => Err("the pod's supervisor is gone".to_owned()),
        },
    )
}

fn descriptor(fd: Option<std::os::fd::OwnedFd>) -> io::Result<Option<Descriptor>> {
    fd.map(Descriptor::new).transpose()
}

fn ending(kind: Kind, exit: Result<Exit, String>) -> Ending {
    match (kind, exit) {
        (Kind::Attach, Ok(_)) => Ending::Success,
        (Kind::Exec, Ok(exit)) if !exit.error.is_empty() => Ending::Failed(format!(
            "error executing command in container: {}",
            exit.error
        )),
        (Kind::Exec, Ok(exit)) if exit.code == 0 => Ending::Success,
        (Kind::Exec, Ok(exit)) => Ending::Code(exit.code),
        (Kind::Exec, Err(error)) => {
            Ending::Failed(format!("error executing command in container: {error}"))
        }
        (Kind::Attach, Err(error)) => {
            Ending::Failed(format!("error attaching to container: {error}"))
        }
    }
}

/// The client's input to the process; its end is passed on too.
async fn feed(client: Option<Input>, process: Option<Descriptor>) {
    let (Some(mut client), Some(mut process)) = (client, process) else {
        return;
    };
    while let Some(bytes) = client.recv().await {
        if let Err(error) = process.write_all(&bytes).await {
            return tracing::debug!(%error, "the process takes no more input");
        }
    }
}

/// The process's output to the client, until its end or, once the process has exited, silence.
async fn drain(process: Option<Descriptor>, client: Option<Output>, exited: &CancellationToken) {
    if let Some(mut process) = process {
        let mut piece = BytesMut::new();
        loop {
            piece.reserve(PIECE_BYTES);
            let quiet = async {
                exited.cancelled().await;
                tokio::time::sleep(QUIET).await;
            };
            tokio::select! {
                biased;
                read = process.read_buf(&mut piece) => match read {
                    Ok(0) => break,
                    Err(error) => {
                        tracing::debug!(%error, "read the process's output");
                        break;
                    }
                    Ok(_) => {}
                },
                () = quiet => break,
            }
            if let Some(client) = &client
                && client.send(piece.split().freeze()).await == Err(Gone)
            {
                break;
            }
            piece.clear();
        }
    }
    if let Some(client) = client {
        client.end().await;
    }
}

/// Most that `/run` answers with, of either output; the rest is read and dropped.
const MAX_COLLECTED_BYTES: usize = 1024 * 1024;

/// All that a process says on either output, once it has ended well.
pub async fn collect(session: Session) -> Result<Vec<u8>, String> {
    let exited = CancellationToken::new();
    let exit = async {
        let exit = session.exit.await;
        exited.cancel();
        exit
    };
    let (out, errors, exit) = tokio::join!(
        gather(session.stdout, MAX_COLLECTED_BYTES, &exited),
        gather(session.stderr, MAX_COLLECTED_BYTES, &exited),
        exit,
    );
    let mut said = out.map_err(|error| error.to_string())?;
    said.extend(errors.map_err(|error| error.to_string())?);
    let exit = exit.map_err(|_| "the pod's supervisor is gone".to_owned())?;
    match exit.map_err(|error| causes(&error))? {
        Exit { code: 0, .. } => Ok(said),
        Exit { code, .. } => Err(format!(
            "command exited with {code}: {}",
            String::from_utf8_lossy(&said)
        )),
    }
}

/// The beginning of what comes out of one end, which is read to its end or, once the process has
/// exited, silence.
async fn gather(
    end: Option<std::os::fd::OwnedFd>,
    most: usize,
    exited: &CancellationToken,
) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    let Some(mut stream) = descriptor(end)? else {
        return Ok(said);
    };
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let quiet = async {
            exited.cancelled().await;
            tokio::time::sleep(QUIET).await;
        };
        let count = tokio::select! {
            biased;
            read = stream.read(&mut piece) => read?,
            () = quiet => 0,
        };
        if count == 0 {
            return Ok(said);
        }
        let room = most - said.len();
        said.extend_from_slice(&piece[..count.min(room)]);
    }
}

/// A terminal's size, as clients tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Of sizes that came and were not read yet.
const MAX_SIZES_BYTES: usize = 64 * 1024;

async fn sizes(client: Option<Input>, terminal: Option<mpsc::Sender<(u16, u16)>>) {
    let (Some(mut client), Some(terminal)) = (client, terminal) else {
        return;
    };
    let mut text = BytesMut::new();
    while let Some(bytes) = client.recv().await {
        if text.len() + bytes.len() > MAX_SIZES_BYTES {
            return tracing::debug!("terminal sizes without end");
        }
        text.extend_from_slice(&bytes);
        let Some(sizes) = complete_sizes(&mut text) else {
            return tracing::debug!("a terminal size that is none");
        };
        for size in sizes {
            if terminal.send((size.width, size.height)).await.is_err() {
                return;
            }
        }
    }
}

/// Takes all whole sizes off the front; `None` if it is no size at all.
fn complete_sizes(text: &mut BytesMut) -> Option<Vec<Size>> {
    let whole: Bytes = text.clone().freeze();
    let mut values = serde_json::Deserializer::from_slice(&whole).into_iter::<Size>();
    let mut sizes = Vec::new();
    let mut used = 0;
    loop {
        match values.next() {
            Some(Ok(size)) => {
                sizes.push(size);
                used = values.byte_offset();
            }
            Some(Err(error)) if error.is_eof() => break,
            Some(Err(_)) => return None,
            None => {
                used = whole.len();
                break;
            }
        }
    }
    let _ = text.split_to(used);
    Some(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_whole_or_in_pieces() {
        let mut text = BytesMut::new();
        for (piece, want) in [
            (r#"{"Width":80,"Height":24}"#, Some(vec![(80, 24)])),
            ("\n", Some(vec![])),
            (r#"{"Width":1,"#, Some(vec![])),
            (
                r#""Height":2}{"Width":3,"Height":4}{"#,
                Some(vec![(1, 2), (3, 4)]),
            ),
            ("nonsense", None),
        ] {
            text.extend_from_slice(piece.as_bytes());
            let got = complete_sizes(&mut text);
            let got = got.map(|sizes| sizes.iter().map(|s| (s.width, s.height)).collect());
            assert_eq!(got, want, "{piece}");
        }
    }

    #[tokio::test]
    async fn output_without_end_is_read_and_dropped() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let writing = std::thread::spawn(move || {
            let piece = [b'x'; 64 << 10];
            for _ in 0..64 {
                nix::unistd::write(&writer, &piece).unwrap();
            }
        });
        let said = gather(Some(reader), 1000, &CancellationToken::new()).await;
        assert_eq!(said.unwrap().len(), 1000);
        writing.join().unwrap();
        // A process that lives on holds the other end.
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let exited = CancellationToken::new();
        exited.cancel();
        let said = tokio::time::timeout(10 * QUIET, gather(Some(reader), 1000, &exited));
        assert!(said.await.unwrap().unwrap().is_empty());
    }

    #[test]
    fn how_it_ended() {
        let exit = |code| Exit {
            code,
            signal: None,
            oom_killed: false,
            error: String::new(),
        };
        for (kind, exit, want) in [
            (Kind::Exec, Ok(exit(0)), Ending::Success),
            (Kind::Exec, Ok(exit(137)), Ending::Code(137)),
            (Kind::Attach, Ok(exit(1)), Ending::Success),
            (
                Kind::Exec,
                Err("gone".to_owned()),
                Ending::Failed("error executing command in container: gone".to_owned()),
            ),
        ] {
            assert_eq!(ending(kind, exit), want);
        }
    }

    #[tokio::test]
    async fn sizes_without_end_are_not_taken() {
        let (send, client) = mpsc::channel(1);
        let (terminal, mut seen) = mpsc::channel(1);
        let taking = tokio::spawn(sizes(Some(client), Some(terminal)));
        send.send(Bytes::from(r#"{"Width":80,"Height":24}"#))
            .await
            .unwrap();
        assert_eq!(seen.recv().await, Some((80, 24)));
        // The beginning of one size, again and again.
        let piece = Bytes::from(vec![b' '; MAX_SIZES_BYTES / 4]);
        send.send(Bytes::from(r#"{"Width":"#)).await.unwrap();
        for _ in 0..3 {
            send.send(piece.clone()).await.unwrap();
        }
        assert!(!taking.is_finished());
        send.send(piece).await.unwrap();
        taking.await.unwrap();
        assert_eq!(seen.recv().await, None);
    }
}
