//! The daemon's end of a connection to a supervisor.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{io::unix::AsyncFd, sync::oneshot};

use super::{
    protocol::{self, Call, Failure, Frame, Request, Streams},
    sys,
};
use crate::format;

/// A supervisor greets at once; one that does not in this time is stuck.
const GREETING: Duration = Duration::from_secs(30);

pub type Answer = (Result<Streams, Failure>, Vec<OwnedFd>);

/// The supervisor is gone, or never came up.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Gone(pub String);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum NoLink {
    #[error(transparent)]
    Gone(#[from] Gone),
    /// It runs, and is not understood.
    #[error("it speaks version {version} and understands none before {oldest}")]
    Version { version: u32, oldest: u32 },
    /// It may work in a moment.
    #[error(transparent)]
    Busy(io::Error),
}

impl From<NoLink> for Gone {
    fn from(error: NoLink) -> Self {
        match error {
            NoLink::Gone(gone) => gone,
            other => Self(other.to_string()),
        }
    }
}

#[derive(Debug)]
pub struct Link {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    /// Calls that wait for their answer; `None` once the peer is gone.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
}

/// Guards plain data that no panic leaves half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: sys::watch(socket)?,
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
        })
    }

    /// Connects to the supervisor of a pod and hears its greeting.
    pub async fn connect(pod_dir: &Path) -> Result<(Self, i32), NoLink> {
        let gone = |error: io::Error| match format::is_shortage(&error) {
            true => NoLink::Busy(error),
            false => NoLink::Gone(Gone(error.to_string())),
        };
        let socket = protocol::connect_to(pod_dir).map_err(gone)?;
        let link = Self::new(socket).map_err(gone)?;
        let pid = link.greeting().await?;
        Ok((link, pid))
    }

    /// The first frame: the supervisor's process, or why there is none.
    pub async fn greeting(&self) -> Result<i32, NoLink> {
        let gone = |message: String| Err(NoLink::Gone(Gone(message)));
        match tokio::time::timeout(GREETING, self.receive()).await {
            Err(_) => gone("it does not greet".into()),
            Ok(Ok(Some((hello @ Frame::Hello { .. }, _)))) => understood(&hello),
            Ok(Ok(Some((Frame::Fatal { message }, _)))) => gone(message),
            Ok(Ok(Some(_))) => gone("it does not greet".into()),
            Ok(Ok(None)) => gone("it ended before it was ready".into()),
            Ok(Err(error)) => gone(error.to_string()),
        }
    }

    /// The next frame; `None` when the supervisor is gone.
    pub async fn receive(&self) -> io::Result<Option<(Frame, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.socket.readable().await?;
            if let Ok(result) = ready.try_io(|socket| protocol::receive(socket.as_fd())) {
                return result;
            }
        }
    }

    pub async fn send(&self, request: &Request) -> io::Result<()> {
        loop {
            let mut ready = self.socket.writable().await?;
            if let Ok(result) = ready.try_io(|socket| protocol::send(socket.as_fd(), request, &[]))
            {
                return result;
            }
        }
    }

    /// Asks and waits for the answer, which [`Link::answered`] brings. For a supervisor that is
    /// stuck the caller sets the deadline.
    pub async fn call(&self, call: Call) -> Result<Answer, Gone> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match &mut *lock(&self.waiting) {
            Some(waiting) => waiting.insert(number, sender),
            None => return Err(Gone("it is gone".into())),
        };
        let request = Request { number, call };
        if let Err(error) = self.send(&request).await {
            if let Some(waiting) = &mut *lock(&self.waiting) {
                waiting.remove(&number);
            }
            return Err(Gone(error.to_string()));
        }
        receiver
            .await
            .map_err(|_| Gone("it ended before it answered".into()))
    }

    /// Hands an answer to whoever waits for it.
    pub fn answered(&self, number: u64, answer: Answer) {
        let waiter = lock(&self.waiting)
            .as_mut()
            .and_then(|waiting| waiting.remove(&number));
        if let Some(waiter) = waiter {
            let _ = waiter.send(answer); // the caller may have given up
        }
    }

    /// Nothing will be answered any more.
    pub fn close(&self) {
        lock(&self.waiting).take();
    }
}

/// The supervisor's process, if it speaks our language.
fn understood(hello: &Frame) -> Result<i32, NoLink> {
    match *hello {
        Frame::Hello {
            version,
            oldest,
            pid,
        } => match protocol::is_understood(version, oldest) {
            true => Ok(pid),
            false => Err(NoLink::Version {
                version,
                oldest: oldest.unwrap_or(version),
            }),
        },
        _ => Err(NoLink::Gone(Gone("it does not greet".into()))),
    }
}
