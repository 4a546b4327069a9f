//! What the kubelet consists of: pieces that all run until it ends.
//!
//! Always true: one that ends before, by itself, with an error or in a panic, is noticed by whoever
//! started it, which then ends too: the kubelet is made anew as a whole by its supervisor.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::Error;
use crate::supervision::{Panic, Reason, caught, hooks, pulse};

/// Which piece has ended, and how.
type Ended = (Arc<str>, Result<Result<(), Error>, Panic>);

/// Pieces that end together: with the drop of this at the latest.
#[derive(Debug, Default)]
pub struct Pieces(JoinSet<Ended>);

impl Pieces {
    /// `name` is said when it ends, or does not turn any more.
    pub fn start(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        let name: Arc<str> = format!("part/kubelet/{name}").into();
        let running = pulse::piece(name.clone(), work);
        self.0.spawn(async move {
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

    /// The next that ends, and how; none when all have ended.
    pub async fn ended(&mut self) -> Option<Error> {
        let ended = self.0.join_next().await?;
        Some(match ended {
            Ok((_, Ok(Err(error)))) => error,
            Ok((name, ended)) => Error::Piece {
                reason: Reason::of(ended),
                name,
            },
            // Nobody aborts one.
            Err(error) => super::during("run a part of the kubelet")(error.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_end_of_a_piece_is_noticed() {
        let mut pieces = Pieces::default();
        pieces.start_plain("stays", std::future::pending());
        for (name, want) in [
            ("ends", "part/kubelet/ends: it ended by itself"),
            ("panics", "part/kubelet/panics: panic: a defect"),
            ("fails", "tests is not supported"),
        ] {
            pieces.start(name, async move {
                match name {
                    "ends" => Ok(()),
                    "panics" => panic!("a defect"),
                    _ => Err(Error::Unsupported("tests")),
                }
            });
            let error = pieces.ended().await.expect("one has ended");
            assert_eq!(error.to_string(), want);
        }
    }
}
