//! What one host is shown of the credentials that fit it: one after the other, and none at last.

use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;

use super::super::Credentials;

pub struct Access {
    /// The last one is nobody.
    candidates: Vec<Credentials>,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    candidate: usize,
    /// What the host let us in with last.
    authorization: Option<HeaderValue>,
}

impl Access {
    pub fn new(mut candidates: Vec<Credentials>) -> Self {
        if candidates.last() != Some(&Credentials::Anonymous) {
            candidates.push(Credentials::Anonymous);
        }
        let access = Self {
            candidates,
            now: Mutex::default(),
        };
        access.enter(0);
        access
    }

    /// Which candidate is shown, and what is sent for it.
    pub fn current(&self) -> (usize, Option<HeaderValue>) {
        let now = self.now();
        (now.candidate, now.authorization.clone())
    }

    pub fn credentials(&self, candidate: usize) -> &Credentials {
        self.candidates
            .get(candidate)
            .unwrap_or(&Credentials::Anonymous)
    }

    /// Later requests carry this, as long as nobody has moved on.
    pub fn let_in(&self, candidate: usize, authorization: HeaderValue) {
        let mut now = self.now();
        if now.candidate == candidate {
            now.authorization = Some(authorization);
        }
    }

    /// Moves on from a candidate that is refused; false if it was the last.
    pub fn move_on(&self, from: usize) -> bool {
        let last = self.candidates.len() - 1;
        let current = self.now().candidate;
        if current == from && from < last {
            self.enter(from + 1);
        }
        current > from || from < last
    }

    fn enter(&self, candidate: usize) {
        let authorization = match self.credentials(candidate) {
            Credentials::Bearer(token) => secret(&format!("Bearer {token}")),
            _ => None,
        };
        *self.now() = Now {
            candidate,
            authorization,
        };
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value of a header that no log shows; none if it holds forbidden characters.
pub fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

pub fn basic(username: &str, password: &str) -> String {
    let pair = BASE64_STANDARD.encode(format!("{username}:{password}"));
    format!("Basic {pair}")
}

/// As whom a host was asked, for messages.
pub fn whom(credentials: &Credentials) -> String {
    match credentials {
        Credentials::Anonymous => "asked without credentials".to_owned(),
        Credentials::Basic { username, .. } => {
            format!("asked as user {:?}", super::super::excerpt(username, 100))
        }
        Credentials::Refresh(_) => "asked with an identity token".to_owned(),
        Credentials::Bearer(_) => "asked with a registry token".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_come_one_after_the_other() {
        let user = Credentials::Basic {
            username: "u".into(),
            password: "p".into(),
        };
        let access = Access::new(vec![user.clone(), Credentials::Bearer("t".into())]);
        assert_eq!(access.current(), (0, None));
        assert_eq!(access.credentials(0), &user);
        assert!(access.move_on(0));
        assert_eq!(access.current().1.unwrap(), "Bearer t");
        // Another request was refused for the first one too.
        assert!(access.move_on(0));
        assert_eq!(access.current().0, 1);
        // What comes late for a candidate that is passed changes nothing.
        access.let_in(0, HeaderValue::from_static("late"));
        assert_eq!(access.current().1.unwrap(), "Bearer t");
        assert!(access.move_on(1));
        assert_eq!(access.credentials(2), &Credentials::Anonymous);
        assert!(!access.move_on(2));
    }
}
