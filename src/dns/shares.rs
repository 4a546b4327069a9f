//! Places that clients share, so that none of them can have all.
//!
//! Called for each TCP connection and each query that goes upstream. Always true: nobody has more than
//! the largest share, and a client without a place gets one: when all are taken, the client with the
//! most gives up its oldest.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// What is shared.
#[derive(Debug)]
pub struct Shares {
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    count: usize,
    next: u64,
    /// Oldest first.
    by_client: HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>,
}

/// One place, given back on drop.
#[derive(Debug)]
pub struct Place {
    shares: Arc<Shares>,
    client: IpAddr,
    number: u64,
    evicted: CancellationToken,
}

impl Shares {
    /// `all` places, of which one client may have `each`.
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            each,
            taken: Mutex::default(),
        })
    }

    /// `None` if the client has its share already.
    pub fn take(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut taken = self.lock();
        if taken.by_client.get(&client).map_or(0, VecDeque::len) >= self.each {
            return None;
        }
        if taken.count >= self.all {
            taken.evict();
        }
        let evicted = CancellationToken::new();
        let number = taken.next;
        taken.next += 1;
        taken.count += 1;
        let places = taken.by_client.entry(client).or_default();
        places.push_back((number, evicted.clone()));
        Some(Place {
            shares: self.clone(),
            client,
            number,
            evicted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Takes the oldest place from whoever has most.
    fn evict(&mut self) {
        let most = self.by_client.iter().max_by_key(|(_, places)| places.len());
        let Some(client) = most.map(|(client, _)| *client) else {
            return;
        };
        let oldest = self.by_client.get(&client).and_then(VecDeque::front);
        if let Some((number, evicted)) = oldest {
            evicted.cancel();
            let number = *number;
            self.give_back(client, number);
        }
    }

    fn give_back(&mut self, client: IpAddr, number: u64) {
        let Some(places) = self.by_client.get_mut(&client) else {
            return;
        };
        let before = places.len();
        places.retain(|(taken, _)| *taken != number);
        self.count -= before - places.len();
        if places.is_empty() {
            self.by_client.remove(&client);
        }
    }
}

impl Place {
    /// Who has it.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Resolves when somebody else needs the place.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shares.lock().give_back(self.client, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_all() {
        let shares = Shares::new(4, 3);
        let client = |last: u8| IpAddr::from([10, 0, 0, last]);
        let greedy: Vec<Place> = (0..3).filter_map(|_| shares.take(client(1))).collect();
        assert_eq!(greedy.len(), 3);
        assert!(shares.take(client(1)).is_none()); // has its share
        let other = shares.take(client(2)).unwrap();
        let third = shares.take(client(3)).unwrap(); // all were taken
        let evicted: Vec<bool> = greedy.iter().map(|p| p.evicted.is_cancelled()).collect();
        assert_eq!(evicted, [true, false, false]);
        assert!(!other.evicted.is_cancelled() && !third.evicted.is_cancelled());
        drop(greedy);
        assert_eq!(shares.lock().count, 2);
        drop((other, third));
        assert_eq!(shares.lock().count, 0);
        assert!(shares.lock().by_client.is_empty());
    }
}
