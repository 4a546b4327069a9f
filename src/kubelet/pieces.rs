//! What the kubelet consists of: pieces that all run until it ends.
//!
//! Always true: one that ends before, by itself, with an error or in a panic, is noticed by whoever
//! started it, which then ends too: the kubelet is made anew as a whole by its supervisor.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::Error;
use crate::supervision::{Panic, Reason, caught, hooks, pulse};

/// A piece that fails takes along others that work with it, and they may be seen to end first: what
/// ends within this time is told together.
const TOGETHER: Duration = Duration::from_millis(200);

/// How a piece's task ended.
type Ended = (Arc<str>, Result<Result<(), Error>, Panic>);

/// A piece that has ended, and how.
#[derive(Debug)]
pub struct End {
    pub name: Arc<str>,
    pub reason: Reason,
}

/// Pieces that have ended, in the order in which that was seen; never none.
#[derive(Debug)]
pub struct Ends(Vec<End>);

impl Ends {
    /// All have returned, as pieces do at shutdown.
    pub fn are_plain(&self) -> bool {
        self.0.iter().all(|end| end.reason == Reason::Ended)
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, End { name, reason }) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{name}: {reason}")?;
        }
        Ok(())
    }
}

/// Pieces that end together: with the drop of this at the latest.
#[derive(Debug, Default)]
pub struct Pieces {
    running: JoinSet<Ended>,
    /// What has ended and was not told yet.
    ended: Vec<End>,
    /// When that is told.
    due: Option<Instant>,
}

impl Pieces {
    /// `name` is said when it ends, or does not turn any more.
    pub fn start(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        let name: Arc<str> = format!("part/kubelet/{name}").into();
        let running = pulse::piece(name.clone(), work);
        self.running.spawn(async move {
            let ended = caught(hooks::unless_provoked(&name, running)).await;
            (name, ended)
        });
    }

    /// As [`Pieces::start`], for what never fails.
    pub fn start_plain(&mut self, name: &str, work: impl Future<Output = ()> + Send + 'static) {
        self.start(name, async {
            work.await;
            Ok(())
        });
    }

    /// The next that end, and how; none when all have ended. Nothing is lost when it is dropped.
    pub async fn ended(&mut self) -> Option<Ends> {
        if self.ended.is_empty() {
            self.next().await?;
        }
        let due = *self.due.get_or_insert_with(|| Instant::now() + TOGETHER);
        while let Ok(Some(())) = timeout_at(due, self.next()).await {}
        self.due = None;
        Some(Ends(std::mem::take(&mut self.ended)))
    }

    async fn next(&mut self) -> Option<()> {
        match self.running.join_next().await? {
            // Pieces of this piece.
            Ok((_, Ok(Err(Error::Pieces(ends))))) => self.ended.extend(ends.0),
            Ok((name, ended)) => self.ended.push(End {
                reason: Reason::of(ended),
                name,
            }),
            // Nobody aborts one.
            Err(error) => self.ended.push(End {
                name: "part/kubelet".into(),
                reason: Reason::Error(error.to_string()),
            }),
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn every_end_of_a_piece_is_noticed() {
        let mut pieces = Pieces::default();
        pieces.start_plain("stays", std::future::pending());
        for (name, want) in [
            ("ends", "part/kubelet/ends: it ended by itself"),
            ("panics", "part/kubelet/panics: panic: a defect"),
            ("fails", "part/kubelet/fails: tests is not supported"),
        ] {
            pieces.start(name, async move {
                match name {
                    "ends" => Ok(()),
                    "panics" => panic!("a defect"),
                    _ => Err(Error::Unsupported("tests")),
                }
            });
            let ends = pieces.ended().await.expect("one has ended");
            assert_eq!(ends.to_string(), want);
            assert_eq!(ends.are_plain(), name == "ends");
        }
    }

    #[tokio::test]
    async fn the_cause_is_told_with_what_it_took_along() {
        let mut pieces = Pieces::default();
        let (works, partner) = oneshot::channel::<()>();
        pieces.start_plain("partner", async { drop(partner.await) });
        pieces.start("whole", async {
            let mut inner = Pieces::default();
            inner.start_plain("inner", async { panic!("a defect") });
            let ends = inner.ended().await.expect("one has ended");
            // Who works with it sees that first.
            drop(works);
            tokio::task::yield_now().await;
            Err(Error::Pieces(ends))
        });
        let ends = pieces.ended().await.expect("both have ended");
        assert_eq!(
            ends.to_string(),
            "part/kubelet/partner: it ended by itself; part/kubelet/inner: panic: a defect"
        );
        assert!(pieces.ended().await.is_none());
    }
}
