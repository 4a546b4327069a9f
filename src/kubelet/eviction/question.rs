//! Asking what may hang: a disk of the network, say.

use std::time::Duration;

use tokio::task::JoinHandle;

/// One question at a time, whose answer may never come.
#[derive(Debug)]
pub struct Question<T>(Option<JoinHandle<T>>);

impl<T> Default for Question<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Send + 'static> Question<T> {
    /// The answer, if it comes within that time. As long as an earlier question has none, it is waited for
    /// that one instead: what hangs must not take a thread for each question.
    pub async fn ask(
        &mut self,
        question: impl FnOnce() -> T + Send + 'static,
        within: Duration,
    ) -> Option<T> {
        let asked = self
            .0
            .get_or_insert_with(|| tokio::task::spawn_blocking(question));
        let answer = tokio::time::timeout(within, asked).await.ok()?;
        self.0 = None;
        answer
            .inspect_err(|error| tracing::error!(%error, "measuring failed"))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_hangs_is_asked_once_and_left_out() {
        let (answer, waits) = mpsc::channel();
        let mut question = Question::default();
        let short = Duration::from_millis(20);
        let hangs = move || waits.recv().unwrap_or(0);
        assert_eq!(question.ask(hangs, short).await, None);
        // Nobody is asked again.
        assert_eq!(question.ask(|| 2, short).await, None);
        answer.send(1).expect("it waits");
        let long = Duration::from_secs(10);
        assert_eq!(question.ask(|| 3, long).await, Some(1));
        assert_eq!(question.ask(|| 4, long).await, Some(4));
    }
}
