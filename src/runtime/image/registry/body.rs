//! What a registry sends, with patience and within the size that is expected.
//!
//! Always true: no more than one piece is in memory; a sender that is silent or trickles is given up.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

use super::super::digest::{Check, Digest};

/// How long a registry is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, with TLS.
    pub connect: Duration,
    /// For the head of an answer.
    pub head: Duration,
    /// For all of a manifest, a configuration or a token.
    pub document: Duration,
    /// While a layer comes, at least `least` bytes in each `window` of waiting.
    pub window: Duration,
    pub least: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            head: Duration::from_secs(60),
            document: Duration::from_secs(60),
            window: Duration::from_secs(60),
            least: 64 << 10,
        }
    }
}

/// Why what was sent is of no use.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Trouble {
    #[error("it sends more than {0} bytes")]
    TooLarge(u64),
    #[error("it sends more than the {0} bytes that it announced")]
    More(u64),
    #[error("it sends {0} bytes fewer than it announced")]
    Fewer(u64),
    #[error("it sends other content than the digest says")]
    Digest,
    #[error("it sends too slowly: fewer than {least} bytes in {window:?}")]
    Slow { least: u64, window: Duration },
    #[error("it does not end within {0:?}")]
    Late(Duration),
    #[error("the connection broke: {0}")]
    Broken(String),
}

/// The body of an answer.
pub struct Body {
    incoming: Incoming,
    patience: Patience,
    /// Of the window that has begun: the time waited for the registry, not for our disk.
    waited: Duration,
    came: u64,
}

impl Body {
    pub fn new(incoming: Incoming, patience: Patience) -> Self {
        Self {
            incoming,
            patience,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        let Patience { window, least, .. } = self.patience;
        loop {
            let begun = Instant::now();
            let left = window.saturating_sub(self.waited);
            let Ok(frame) = timeout(left, self.incoming.frame()).await else {
                if self.came < least {
                    return Err(Trouble::Slow { least, window });
                }
                (self.waited, self.came) = (Duration::ZERO, 0);
                continue;
            };
            self.waited += begun.elapsed();
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Trouble::Broken(crate::causes::causes(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.came += data.len() as u64;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// All of it.
    pub async fn whole(mut self, limit: u64) -> Result<Vec<u8>, Trouble> {
        let deadline = self.patience.document;
        let read = async {
            let mut whole = Vec::new();
            while let Some(piece) = self.next().await? {
                if whole.len() as u64 + piece.len() as u64 > limit {
                    return Err(Trouble::TooLarge(limit));
                }
                whole.extend_from_slice(&piece);
            }
            Ok(whole)
        };
        timeout(deadline, read)
            .await
            .unwrap_or(Err(Trouble::Late(deadline)))
    }

    /// As much as there is of a text that is only told.
    pub async fn beginning(mut self, most: usize) -> Vec<u8> {
        let deadline = self.patience.head.min(Duration::from_secs(10));
        let mut beginning = Vec::new();
        let read = async {
            while beginning.len() < most
                && let Ok(Some(piece)) = self.next().await
            {
                let room = most - beginning.len();
                beginning.extend_from_slice(&piece[..piece.len().min(room)]);
            }
        };
        let _ = timeout(deadline, read).await;
        beginning
    }
}

/// A blob as a blocking reader that fails unless it is what was announced. For blocking threads of
/// the async runtime.
pub struct Download {
    body: Body,
    runtime: Handle,
    piece: Bytes,
    size: u64,
    left: u64,
    /// Until the end was seen.
    check: Option<Check>,
    trouble: TroubleSlot,
    counted: Arc<dyn Fn(u64) + Send + Sync>,
}

/// Where the reason of a failed [`Download`] is found: those who read it pass on their own.
#[derive(Clone, Debug, Default)]
pub struct TroubleSlot(Arc<Mutex<Option<Trouble>>>);

impl TroubleSlot {
    pub fn take(&self) -> Option<Trouble> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Download {
    pub fn new(
        body: Body,
        digest: &Digest,
        size: u64,
        counted: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> (Self, TroubleSlot) {
        let trouble = TroubleSlot::default();
        let download = Self {
            body,
            runtime: Handle::current(),
            piece: Bytes::new(),
            size,
            left: size,
            check: Some(digest.check()),
            trouble: trouble.clone(),
            counted,
        };
        (download, trouble)
    }

    /// False at the end, which is the right one.
    fn advance(&mut self) -> Result<bool, Trouble> {
        if self.check.is_none() {
            return Ok(false);
        }
        let Some(piece) = self.runtime.block_on(self.body.next())? else {
            if self.left > 0 {
                return Err(Trouble::Fewer(self.left));
            }
            return match self.check.take().is_some_and(Check::holds) {
                true => Ok(false),
                false => Err(Trouble::Digest),
            };
        };
        let length = piece.len() as u64;
        let Some(left) = self.left.checked_sub(length) else {
            return Err(Trouble::More(self.size));
        };
        self.left = left;
        if let Some(check) = &mut self.check {
            check.add(&piece);
        }
        (self.counted)(length);
        self.piece = piece;
        Ok(true)
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(trouble) => {
                    let text = trouble.to_string();
                    *self
                        .trouble
                        .0
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner) = Some(trouble);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece[..count]);
        self.piece.advance(count);
        Ok(count)
    }
}
