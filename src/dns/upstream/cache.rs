//! Answers of the servers upstream, for as long as they may be remembered. Pure.
//!
//! Always true: there are never more than [`Limits`] says; an answer is charged to the client that it was fetched
//! for, and where there is no room, the client that is charged most loses what it has had longest unused. So who asks
//! for ever new names pushes out its own.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::message::{Age, Key, Lifetime, Said};

/// Whatever their owners say.
const LONGEST: Duration = Duration::from_secs(3600);
const LONGEST_ABSENCE: Duration = Duration::from_secs(300);
/// That a server cannot tell.
const FAILURE: Duration = Duration::from_secs(1);
/// An answer may be this much too old if there is no other, as CoreDNS has it (RFC 8767 allows days).
const STALE: Duration = Duration::from_secs(3600);
/// After which a name whose answer is too old is asked for again.
const ASKED_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks for what is of no use any more.
const SWEEP: Duration = Duration::from_secs(60);
/// Of memory, for each answer, beside its own bytes; about.
const OVERHEAD: usize = 320;

/// What is kept at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub entries: usize,
    /// Of memory.
    pub bytes: usize,
    /// Longer answers are not kept.
    pub one: usize,
}

pub const LIMITS: Limits = Limits {
    entries: 8192,
    bytes: 4 << 20,
    one: 16 << 10,
};

/// An answer that is there.
#[derive(Debug)]
pub struct Hit {
    pub said: Arc<Said>,
    pub age: Age,
}

#[derive(Debug)]
pub struct Cache {
    limits: Limits,
    entries: HashMap<Arc<Key>, Entry>,
    clients: HashMap<IpAddr, Charged>,
    bytes: usize,
    next: u64,
    swept: Option<Instant>,
    /// Of the servers that said all this.
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    said: Arc<Said>,
    since: Instant,
    fresh: Instant,
    /// When the servers were last asked again and could not tell.
    failed: Option<Instant>,
    client: IpAddr,
    /// Its place among the client's.
    number: u64,
    cost: usize,
    was_used: bool,
}

/// What one client is charged for.
#[derive(Debug, Default)]
struct Charged {
    bytes: usize,
    /// Oldest first.
    keys: BTreeMap<u64, Arc<Key>>,
}

impl Cache {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            clients: HashMap::new(),
            bytes: 0,
            next: 0,
            swept: None,
            generation: 0,
        }
    }

    /// Forgets everything if it is of other servers.
    pub fn of(&mut self, generation: u64) -> &mut Self {
        if self.generation != generation {
            *self = Self {
                generation,
                ..Self::new(self.limits)
            };
        }
        self
    }

    /// What may be said at once.
    pub fn get(&mut self, key: &Key, now: Instant) -> Option<Hit> {
        let entry = self.entries.get_mut(key)?;
        let is_waiting = |failed: Instant| now < failed + ASKED_AGAIN;
        let age = match entry.failed {
            _ if now < entry.fresh => entry.age(now),
            Some(failed) if is_waiting(failed) && now < entry.fresh + STALE => Age::Stale,
            _ => return None,
        };
        entry.was_used = true;
        Some(Hit {
            said: entry.said.clone(),
            age,
        })
    }

    /// Whether there is something to say if the servers do not answer.
    pub fn has_stale(&self, key: &Key, now: Instant) -> bool {
        let entry = self.entries.get(key);
        entry.is_some_and(|entry| !entry.said.failed() && now < entry.fresh + STALE)
    }

    /// Takes what a server said, for this client.
    pub fn put(&mut self, key: &Key, said: &Arc<Said>, client: IpAddr, now: Instant) {
        let lifetime = match said.lifetime() {
            Lifetime::Records(time) => time.min(LONGEST),
            Lifetime::Absence(time) => time.min(LONGEST_ABSENCE),
            Lifetime::Failure if self.has_stale(key, now) => {
                if let Some(entry) = self.entries.get_mut(key) {
                    entry.failed = Some(now);
                }
                return;
            }
            Lifetime::Failure => FAILURE,
            Lifetime::Not => Duration::ZERO,
        };
        // What is known is out of date even if what is new cannot be kept.
        self.remove(key);
        let cost = OVERHEAD + key.len() + said.bytes();
        if lifetime.is_zero() || said.bytes() > self.limits.one {
            return;
        }
        self.sweep(now);
        while self.entries.len() >= self.limits.entries || self.bytes + cost > self.limits.bytes {
            if !self.evict() {
                return;
            }
        }
        let (key, number) = (Arc::new(key.clone()), self.number());
        self.charge(client, number, key.clone(), cost);
        let entry = Entry {
            said: said.clone(),
            since: now,
            fresh: now + lifetime,
            failed: None,
            client,
            number,
            cost,
            was_used: false,
        };
        self.entries.insert(key, entry);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn charge(&mut self, client: IpAddr, number: u64, key: Arc<Key>, cost: usize) {
        let charged = self.clients.entry(client).or_default();
        charged.bytes += cost;
        charged.keys.insert(number, key);
        self.bytes += cost;
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.discharge(&entry);
        }
    }

    fn discharge(&mut self, entry: &Entry) {
        self.bytes -= entry.cost;
        if let Some(charged) = self.clients.get_mut(&entry.client) {
            charged.bytes -= entry.cost;
            charged.keys.remove(&entry.number);
            if charged.keys.is_empty() {
                self.clients.remove(&entry.client);
            }
        }
    }

    /// Takes one from whoever is charged most: the oldest that nobody has used since it last was the oldest.
    fn evict(&mut self) -> bool {
        let most = self
            .clients
            .iter()
            .max_by_key(|(_, charged)| charged.bytes)
            .map(|(client, charged)| (*client, charged.keys.len()));
        let Some((client, count)) = most else {
            return false;
        };
        // After as many, all have been looked at once.
        for _ in 0..=count {
            let next = self.next + 1;
            let Some(charged) = self.clients.get_mut(&client) else {
                return false;
            };
            let Some((_, key)) = charged.keys.pop_first() else {
                return false;
            };
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            if !entry.was_used {
                self.remove(&key);
                return true;
            }
            self.next = next;
            (entry.was_used, entry.number) = (false, next);
            charged.keys.insert(next, key);
        }
        false
    }

    /// Lets go of what is too old for anything, now and then.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now < swept + SWEEP) {
            return;
        }
        self.swept = Some(now);
        let old = |entry: &&Entry| {
            let failed = entry.said.failed();
            now >= entry.fresh + if failed { Duration::ZERO } else { STALE }
        };
        let gone = self.entries.iter().filter(|(_, entry)| old(entry));
        let gone: Vec<Arc<Key>> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.remove(&key);
        }
    }
}

impl Entry {
    fn age(&self, now: Instant) -> Age {
        let seconds = now.duration_since(self.since).as_secs();
        Age::Seconds(u32::try_from(seconds).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests;
