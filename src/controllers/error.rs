//! Why a sync failed, and the few answers of the API server that controllers tell apart.

use kube::Error as Client;

/// Why one sync did not reach its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing}")]
    Api {
        doing: String,
        #[source]
        source: Box<Client>,
    },
    #[error("{what} of {of} is not valid: {why}")]
    Invalid {
        what: &'static str,
        of: String,
        why: String,
    },
}

impl Error {
    pub fn invalid(what: &'static str, of: impl ToString, why: impl ToString) -> Self {
        Self::Invalid {
            what,
            of: of.to_string(),
            why: why.to_string(),
        }
    }

    /// Somebody wrote first: look again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } if conflict(source))
    }
}

/// Attaches what was being done to a client error.
pub trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, Client> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Api {
            doing: what(),
            source: Box::new(source),
        })
    }
}

/// Turns "not found" into `None`: what should go is gone already.
pub trait OrGone<T> {
    fn or_gone(self) -> Result<Option<T>, Client>;
}

impl<T> OrGone<T> for Result<T, Client> {
    fn or_gone(self) -> Result<Option<T>, Client> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub fn conflict(error: &Client) -> bool {
    matches!(error, Client::Api(status) if status.is_conflict())
}

pub fn not_found(error: &Client) -> bool {
    matches!(error, Client::Api(status) if status.is_not_found())
}

pub fn already_exists(error: &Client) -> bool {
    matches!(error, Client::Api(status) if status.is_already_exists())
}

/// The namespace is being deleted: nothing new can be made in it, and that is no failure.
pub fn namespace_terminating(error: &Client) -> bool {
    let Client::Api(status) = error else {
        return false;
    };
    status.details.as_ref().is_some_and(|details| {
        details
            .causes
            .iter()
            .any(|cause| cause.reason == "NamespaceTerminating")
    })
}
