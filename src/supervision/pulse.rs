//! Whether a part still turns: it is asked, and answers from where its work is done.
//!
//! Owns one [`Pulse`] for each run of a part, and one for each [`piece`] that the part runs in a task
//! of its own. Nothing is asked but by a health check, so that an idle part stays asleep.
//! Always true:
//! - A loop that has [`asked`] among the things that it waits for answers by coming round to it; only
//!   then, however well its task runs.
//! - What has no such loop answers whenever its task is run: it is silent when it blocks its thread.
//! - A question stays open until it is answered: whoever asks again does not wait again.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// No question is ever so late.
const ENDED: u64 = u64::MAX;

tokio::task_local! {
    static CURRENT: Pulse;
}

/// Of one run of a part, or of a piece of it. Cheap to clone; clones are the same one.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: Arc<str>,
    /// The number of the latest question, and when it was put.
    question: watch::Sender<(u64, Instant)>,
    /// The latest question that was answered.
    answered: watch::Sender<u64>,
    /// The answers come from a loop.
    has_loop: AtomicBool,
    pieces: Mutex<Vec<Weak<Inner>>>,
}

impl Pulse {
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(Arc::new(Inner {
            name: name.into(),
            question: watch::Sender::new((0, Instant::now())),
            answered: watch::Sender::new(0),
            has_loop: AtomicBool::new(false),
            pieces: Mutex::default(),
        }))
    }

    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Runs what shall answer. It is boxed before anything else: a part may be large, and each layer
    /// around it would have it on the stack once more.
    pub fn beat<W: Future>(&self, work: W) -> impl Future<Output = W::Output> + use<W> {
        self.clone().beat_boxed(Box::pin(work))
    }

    async fn beat_boxed<W: Future>(self, work: Pin<Box<W>>) -> W::Output {
        let answering = async {
            tokio::select! {
                biased;
                done = work => done,
                never = self.answer_for_want_of_a_loop() => match never {},
            }
        };
        let _ended = Ended(self.clone());
        CURRENT.scope(self.clone(), answering).await
    }

    async fn answer_for_want_of_a_loop(&self) -> std::convert::Infallible {
        let mut questions = self.0.question.subscribe();
        loop {
            let (number, _) = *questions.borrow_and_update();
            if !self.0.has_loop.load(Ordering::Relaxed) {
                self.answer(number);
            }
            if questions.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn answer(&self, number: u64) {
        self.0.answered.send_if_modified(|answered| {
            let is_later = number > *answered;
            *answered = number.max(*answered);
            is_later
        });
    }

    /// Names of what has not answered `within` that time: of this, or of pieces of it. Waits for answers,
    /// but no longer than `patience`: what is silent then is told by who asks later.
    pub async fn silent(&self, within: Duration, patience: Duration) -> Vec<Arc<str>> {
        let mut all = Vec::new();
        self.collect(&mut all);
        let answers = all.into_iter().map(|pulse| async move {
            let heard = pulse.is_heard(within, patience).await;
            (!heard).then(|| pulse.0.name.clone())
        });
        let silent = futures::future::join_all(answers).await;
        silent.into_iter().flatten().collect()
    }

    fn collect(&self, all: &mut Vec<Self>) {
        all.push(self.clone());
        let mut pieces = lock(&self.0.pieces);
        pieces.retain(|piece| piece.strong_count() > 0);
        let live: Vec<Self> = pieces.iter().filter_map(Weak::upgrade).map(Self).collect();
        drop(pieces);
        live.iter().for_each(|piece| piece.collect(all));
    }

    /// Whether the open question, or a new one, is answered in time, or may be yet. What has ended is not
    /// silent.
    async fn is_heard(&self, within: Duration, patience: Duration) -> bool {
        let mut answers = self.0.answered.subscribe();
        let answered = *answers.borrow_and_update();
        if answered == ENDED {
            return true;
        }
        self.0.question.send_if_modified(|(number, put)| {
            let is_new = *number <= answered;
            if is_new {
                (*number, *put) = (answered + 1, Instant::now());
            }
            is_new
        });
        let (number, put) = *self.0.question.borrow();
        let answer = answers.wait_for(|answered| *answered >= number);
        let (due, waited) = (put + within, Instant::now() + patience);
        timeout_at(due.min(waited), answer).await.is_ok() || waited < due
    }
}

/// What has ended has answered everything: that it is missed, others say.
struct Ended(Pulse);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.answer(ENDED);
    }
}

/// A piece of what runs now, to be run in a task of its own: where it is made it is asked too.
pub fn piece<T>(name: Arc<str>, work: impl Future<Output = T>) -> impl Future<Output = T> {
    let pulse = Pulse::new(name);
    // Without a part nobody asks.
    let _ = CURRENT.try_with(|whole| lock(&whole.0.pieces).push(Arc::downgrade(&pulse.0)));
    pulse.beat(work)
}

/// For a loop to wait for among other things: resolves when the loop is asked whether it still turns,
/// and is the answer.
pub async fn asked() {
    let Ok(pulse) = CURRENT.try_with(Pulse::clone) else {
        return std::future::pending().await;
    };
    pulse.0.has_loop.store(true, Ordering::Relaxed);
    let mut questions = pulse.0.question.subscribe();
    let open = questions.wait_for(|(number, _)| *number > *pulse.0.answered.borrow());
    let number = open.await.map(|question| question.0);
    if let Ok(number) = number {
        pulse.answer(number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(1);

    /// A loop that is given work; some of it never ends.
    async fn turns(mut work: mpsc::Receiver<bool>) {
        loop {
            tokio::select! {
                () = asked() => {}
                Some(ends) = work.recv() => {
                    if !ends {
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_loop_that_does_not_come_round_is_silent() {
        let (give, work) = mpsc::channel(1);
        let pulse = Pulse::new("part");
        let running = pulse.clone();
        tokio::spawn(async move { running.beat(turns(work)).await });
        for _ in 0..3 {
            // Idle, and asked again and again.
            assert!(pulse.silent(WITHIN, WITHIN).await.is_empty());
        }
        give.send(true).await.unwrap();
        assert!(pulse.silent(WITHIN, WITHIN).await.is_empty());
        give.send(false).await.unwrap();
        give.reserve().await.unwrap(); // taken
        assert_eq!(pulse.silent(WITHIN, WITHIN).await, ["part".into()]);
        // The question stays open.
        let question = *pulse.0.question.borrow();
        assert_eq!(pulse.silent(WITHIN, WITHIN).await, ["part".into()]);
        assert_eq!(*pulse.0.question.borrow(), question);
    }

    #[tokio::test]
    async fn what_waits_without_a_loop_is_not_silent() {
        let pulse = Pulse::new("part");
        let running = pulse.clone();
        tokio::spawn(async move { running.beat(std::future::pending::<()>()).await });
        assert!(pulse.silent(WITHIN, WITHIN).await.is_empty());
        assert!(pulse.silent(WITHIN, WITHIN).await.is_empty());
    }

    #[tokio::test]
    async fn who_asks_what_has_ended_does_not_wait() {
        let pulse = Pulse::new("part");
        let running = pulse.clone();
        let task = tokio::spawn(async move { running.beat(std::future::pending::<()>()).await });
        let (long, began) = (Duration::from_secs(600), Instant::now());
        assert!(pulse.silent(long, long).await.is_empty());
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(pulse.silent(long, long).await.is_empty());
        assert!(pulse.silent(long, long).await.is_empty());
        assert!(began.elapsed() < long);
    }

    #[tokio::test]
    async fn pieces_answer_for_themselves_while_they_run() {
        let pulse = Pulse::new("part");
        let running = pulse.clone();
        let (made, mut pieces) = mpsc::channel(2);
        tokio::spawn(async move {
            let whole = async move {
                let (give, work) = mpsc::channel(1);
                let tell = made.clone();
                let outer = tokio::spawn(piece("outer".into(), async move {
                    let (inner_give, inner_work) = mpsc::channel(1);
                    let inner = tokio::spawn(piece("inner".into(), turns(inner_work)));
                    tell.send((inner_give, inner)).await.unwrap();
                    turns(work).await;
                }));
                made.send((give, outer)).await.unwrap();
                std::future::pending::<()>().await;
            };
            running.beat(whole).await;
        });
        let first = pieces.recv().await.unwrap();
        let second = pieces.recv().await.unwrap();
        assert!(pulse.silent(WITHIN, WITHIN).await.is_empty());
        for (give, _) in [&first, &second] {
            give.send(false).await.unwrap();
            give.reserve().await.unwrap();
        }
        assert_eq!(
            pulse.silent(WITHIN, WITHIN).await,
            ["outer".into(), "inner".into()]
        );
        for (_, task) in [&first, &second] {
            task.abort();
        }
        for (_, task) in [first, second] {
            assert!(task.await.unwrap_err().is_cancelled());
        }
        assert!(
            pulse.silent(WITHIN, WITHIN).await.is_empty(),
            "what ended is not asked"
        );
    }
}
