//! Why pods of other nodes are not reached, in the words of events, and when that is told. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::plan::PUBLIC_KEY;

/// What comes to be in order by itself is told after this only: a node tells its key a moment after it has its range.
const PATIENCE: Duration = Duration::from_secs(20);

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    pub message: String,
    /// It may come to be in order by itself.
    passes: bool,
}

impl Refusal {
    fn lasting(message: String) -> Self {
        let passes = false;
        Self { message, passes }
    }

    pub fn of(node: &str, why: &str) -> Self {
        Self::lasting(format!(
            "Pods of the node {node} cannot be reached from here: {why}"
        ))
    }

    pub fn no_key(node: &str) -> Self {
        let why = format!(
            "pod encryption (wireguard) is requested, and its Node has no key (annotation {PUBLIC_KEY}). `vetch check` on \
             its machine says whether its kernel has WireGuard; a vetch that is older than this one knows no encryption"
        );
        let passes = true;
        Self {
            passes,
            ..Self::of(node, &why)
        }
    }

    pub fn same_key(node: &str, other: &str) -> Self {
        let why = format!(
            "pod encryption (wireguard) is requested, and its Node has the key of the node {other} (annotation \
             {PUBLIC_KEY}): no two can have one. If its machine was copied from the other one, `vetch reset` there and join \
             again"
        );
        Self::of(node, &why)
    }

    pub fn no_wireguard() -> Self {
        Self::lasting(
            "Pods of other nodes cannot be reached from here: pod encryption (wireguard) is requested, and this kernel has \
             no WireGuard. `modprobe wireguard`, or boot a kernel with CONFIG_WIREGUARD (Linux 5.6 or later; Debian, Ubuntu \
             and Fedora have it), or start the server with --pod-encryption none"
                .to_owned(),
        )
    }

    pub fn unknown_encryption(what: &str) -> Self {
        Self::lasting(format!(
            "Pods of other nodes cannot be reached from here: the cluster requests the pod encryption {what:?}, which this \
             vetch does not know; put the server's version on this machine"
        ))
    }
}

/// The reasons at present, and which of them have been told.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<Refusal, State>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// As long as it was there.
    Since(Instant),
    Told,
}

impl Told {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From now on these; what is to be told.
    pub fn news(&mut self, refused: BTreeSet<Refusal>, now: Instant) -> Vec<String> {
        let mut news = Vec::new();
        let before = std::mem::take(&mut self.0);
        for refusal in refused {
            let state = before.get(&refusal).copied().unwrap_or(State::Since(now));
            let is_due = match state {
                State::Told => false,
                State::Since(since) => !refusal.passes || now >= since + PATIENCE,
            };
            let state = match is_due {
                true => State::Told,
                false => state,
            };
            if is_due {
                news.push(refusal.message.clone());
            }
            self.0.insert(refusal, state);
        }
        news
    }

    /// When one of them is to be told that was not.
    pub fn due(&self) -> Option<Instant> {
        let due = |state: &State| match state {
            State::Since(since) => Some(*since + PATIENCE),
            State::Told => None,
        };
        self.0.values().filter_map(due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_what_passes_is_not() {
        let (lasting, passing) = (Refusal::of("b", "why"), Refusal::no_key("c"));
        let start = Instant::now();
        let both = || BTreeSet::from([lasting.clone(), passing.clone()]);
        let mut told = Told::default();
        assert_eq!(told.news(both(), start), [&*lasting.message]);
        assert_eq!(told.due(), Some(start + PATIENCE));
        let later = start + PATIENCE / 2;
        assert!(told.news(both(), later).is_empty());
        // It had passed, and begins anew.
        assert!(told.news(BTreeSet::new(), later).is_empty());
        assert!(told.is_empty() && told.due().is_none());
        assert_eq!(told.news(both(), later), [&*lasting.message]);
        assert!(told.news(both(), start + PATIENCE).is_empty());
        assert_eq!(told.news(both(), later + PATIENCE), [&*passing.message]);
        assert!(told.news(both(), later + PATIENCE * 2).is_empty());
        assert_eq!(told.due(), None);
    }
}
