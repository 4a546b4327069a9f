//! Exec and attach: a connection of its own for each, which ends the session when it closes.

use std::os::fd::OwnedFd;

use tokio::sync::{mpsc, oneshot};

use super::{
    Error, Exit, Session,
    link::{Gone, Link},
    protocol::{Call, Failure, Frame, Request, Streams},
    records::PodDir,
    sys,
};

/// What a session needs to report errors in the words of its container.
pub struct Target<'a> {
    pub pod: &'a str,
    pub container: &'a str,
    pub dir: &'a PodDir,
}

pub fn gone(pod: &str, gone: &Gone) -> Error {
    Error::Supervisor {
        pod: pod.into(),
        message: gone.to_string(),
    }
}

pub fn failed(pod: &str, container: &str, failure: Failure) -> Error {
    match failure {
        Failure::NoContainer => Error::NoContainer(container.into()),
        Failure::WrongPhase(phase) => Error::WrongPhase {
            id: container.into(),
            phase: match phase.as_str() {
                "running" => "running",
                "exited" => "exited",
                "not started" => "not started",
                _ => "there already",
            },
        },
        Failure::Start { stage, message, .. } if stage == super::container::USER_STAGE => {
            Error::User(message)
        }
        Failure::Start { stage, message, .. } => Error::Start { stage, message },
        Failure::Other(message) => Error::Supervisor {
            pod: pod.into(),
            message,
        },
    }
}

/// Opens a session. With `whole_terminal` the terminal is also its input and output.
pub async fn open(
    target: Target<'_>,
    call: Call,
    whole_terminal: bool,
    wanted: (bool, bool),
) -> Result<Session, Error> {
    let lost = |error: Gone| gone(target.pod, &error);
    let connected = Link::connect(&target.dir.0).await;
    let (link, _) = connected.map_err(|error| lost(error.into()))?;
    let request = Request { number: 1, call };
    link.send(&request)
        .await
        .map_err(|error| lost(Gone(error.to_string())))?;
    let (granted, fds) = loop {
        match link.receive().await {
            Ok(Some((Frame::Answer { result, .. }, fds))) => break (result, fds),
            Ok(Some(_)) => {} // changes of containers, until the session begins
            Ok(None) => return Err(lost(Gone("it ended before it answered".into()))),
            Err(error) => return Err(lost(Gone(error.to_string()))),
        }
    };
    let granted = granted.map_err(|failure| failed(target.pod, target.container, failure))?;
    let (sender, exit) = oneshot::channel();
    let pod = target.pod.to_owned();
    let mut session = hand_over(granted, fds, exit);
    if let Some(terminal) = session.terminal.take() {
        if whole_terminal {
            let copy = || {
                terminal.try_clone().map_err(|source| Error::Io {
                    action: "duplicate the terminal".into(),
                    source,
                })
            };
            session.session.stdin = wanted.0.then(copy).transpose()?;
            session.session.stdout = wanted.1.then(copy).transpose()?;
        }
        session.session.resize = Some(resizer(terminal));
    }
    tokio::spawn(wait(link, sender, pod));
    Ok(session.session)
}

struct HandedOver {
    session: Session,
    terminal: Option<OwnedFd>,
}

fn hand_over(
    granted: Streams,
    fds: Vec<OwnedFd>,
    exit: oneshot::Receiver<Result<Exit, Error>>,
) -> HandedOver {
    let mut fds = fds.into_iter();
    let mut take = |on: bool| if on { fds.next() } else { None };
    let (stdin, stdout, stderr) = (
        take(granted.stdin),
        take(granted.stdout),
        take(granted.stderr),
    );
    HandedOver {
        terminal: take(granted.terminal),
        session: Session {
            stdin,
            stdout,
            stderr,
            resize: None,
            exit,
        },
    }
}

/// Applies sizes until the sender is dropped.
fn resizer(terminal: OwnedFd) -> mpsc::Sender<(u16, u16)> {
    let (sender, mut sizes) = mpsc::channel(8);
    tokio::spawn(async move {
        use std::os::fd::AsFd;
        while let Some((columns, rows)) = sizes.recv().await {
            if let Err(error) = sys::resize_terminal(terminal.as_fd(), columns, rows) {
                tracing::debug!(%error, "terminal not resized");
            }
        }
    });
    sender
}

/// Waits for the end; a caller that is gone closes the connection, and with it the session.
async fn wait(link: Link, mut sender: oneshot::Sender<Result<Exit, Error>>, pod: String) {
    let end = async {
        loop {
            match link.receive().await {
                Ok(Some((Frame::Ended { exit }, _))) => return Ok(exit),
                Ok(Some(_)) => {}
                Ok(None) => return Err(Gone("it ended before the session did".into())),
                Err(error) => return Err(Gone(error.to_string())),
            }
        }
    };
    let result = tokio::select! {
        result = end => result,
        () = sender.closed() => return,
    };
    let _ = sender.send(result.map_err(|error| gone(&pod, &error)));
}
