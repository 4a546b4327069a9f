//! How many sessions (exec, attach, port-forward, followed logs) there may be at once.
//!
//! Each holds descriptors, and buffers as long as its client is slow; clients may go away without a
//! word. Always true: a place is given back when the session's future ends, however it ends.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use http::StatusCode;

use super::answer::Answer;

const MOST_OF_NODE: usize = 500;
const MOST_OF_POD: usize = 100;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Sessions {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_pod: HashMap<String, usize>,
}

/// One session's place.
pub struct Place {
    sessions: Sessions,
    uid: String,
}

impl Sessions {
    /// A place for a session with a pod, or 429.
    pub fn take(&self, uid: &str) -> Result<Place, Answer> {
        let mut held = self.held();
        let of_pod = held.by_pod.get(uid).copied().unwrap_or_default();
        let too_many = |whose: &str, most: usize| {
            let message = format!("too many sessions with {whose} at once, at most {most}");
            Err(Answer::new(StatusCode::TOO_MANY_REQUESTS, message))
        };
        if held.total >= MOST_OF_NODE {
            return too_many("this node's pods", MOST_OF_NODE);
        }
        if of_pod >= MOST_OF_POD {
            return too_many("this pod", MOST_OF_POD);
        }
        held.total += 1;
        held.by_pod.insert(uid.to_owned(), of_pod + 1);
        Ok(Place {
            sessions: self.clone(),
            uid: uid.to_owned(),
        })
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.sessions.held();
        held.total -= 1;
        match held.by_pod.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                held.by_pod.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_few_and_come_back() {
        let sessions = Sessions::default();
        let taken: Vec<Place> = (0..MOST_OF_POD)
            .map(|_| sessions.take("a").ok().unwrap())
            .collect();
        let refused = sessions.take("a").err().unwrap();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.message.contains("with this pod"));
        drop(sessions.take("b").ok().unwrap());
        let others: Vec<Place> = (MOST_OF_POD..MOST_OF_NODE)
            .map(|number| sessions.take(&number.to_string()).ok().unwrap())
            .collect();
        let refused = sessions.take("b").err().unwrap();
        assert!(refused.message.contains("this node's pods"));
        drop((taken, others));
        assert!(sessions.take("a").is_ok());
        assert!(sessions.held().by_pod.is_empty());
    }
}
