//! Datagrams that wait to be answered: clients take turns, so that who sends much waits for itself.
//! Pure.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    net::{IpAddr, SocketAddr},
};

/// What is kept for the next ones: so many buffers, none of them longer, and so many queues.
const SPARE: (usize, usize) = (256, 512);
const QUEUES: usize = 64;

/// Datagrams that wait: of all clients together, and of one.
const WAITING: (usize, usize) = (1024, 64);

#[derive(Debug, Default)]
pub struct Turns {
    count: usize,
    by_client: HashMap<IpAddr, VecDeque<Datagram>>,
    /// Each client with something in `by_client`, once.
    order: VecDeque<IpAddr>,
    /// Buffers and queues of those that were answered, for the next ones.
    spare: Vec<Vec<u8>>,
    queues: Vec<VecDeque<Datagram>>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Datagram {
    pub bytes: Vec<u8>,
    pub from: SocketAddr,
}

impl Turns {
    /// `false` if it is dropped: the client has its share, or nobody could be served in time.
    pub fn add(&mut self, bytes: &[u8], from: SocketAddr) -> bool {
        let client = from.ip();
        if self.count >= WAITING.0 {
            return false;
        }
        let queue = match self.by_client.entry(client) {
            Entry::Occupied(waiting) => waiting.into_mut(),
            Entry::Vacant(none) => {
                self.order.push_back(client);
                none.insert(self.queues.pop().unwrap_or_default())
            }
        };
        if queue.len() >= WAITING.1 {
            return false;
        }
        self.count += 1;
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.extend_from_slice(bytes);
        queue.push_back(Datagram { bytes: kept, from });
        true
    }

    /// The oldest of the client whose turn it is.
    pub fn take(&mut self) -> Option<Datagram> {
        let client = self.order.pop_front()?;
        let Entry::Occupied(mut waiting) = self.by_client.entry(client) else {
            return None;
        };
        let datagram = waiting.get_mut().pop_front()?;
        self.count -= 1;
        if waiting.get().is_empty() {
            let queue = waiting.remove();
            if self.queues.len() < QUEUES {
                self.queues.push(queue);
            }
        } else {
            self.order.push_back(client);
        }
        Some(datagram)
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes back the bytes of one that was answered.
    pub fn reuse(&mut self, mut bytes: Vec<u8>) {
        if self.spare.len() < SPARE.0 && bytes.capacity() <= SPARE.1 {
            bytes.clear();
            self.spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u32) -> SocketAddr {
        SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), 5353)
    }

    #[test]
    fn who_sends_much_waits_for_itself() {
        let mut turns = Turns::default();
        let taken = (0..1000).filter(|_| turns.add(b"flood", client(1))).count();
        assert_eq!(taken, WAITING.1);
        assert!(turns.add(b"first", client(2)) && turns.add(b"second", client(2)));
        let served: Vec<_> = std::iter::from_fn(|| turns.take()).take(5).collect();
        let served: Vec<_> = served.iter().map(|one| &one.bytes[..]).collect();
        let expected: [&[u8]; 5] = [b"flood", b"first", b"flood", b"second", b"flood"];
        assert_eq!(served, expected);
    }

    #[test]
    fn what_waits_is_bounded_and_goes() {
        let mut turns = Turns::default();
        let taken = (0..5000).filter(|n| turns.add(b"?", client(*n))).count();
        assert_eq!(taken, WAITING.0);
        assert_eq!(std::iter::from_fn(|| turns.take()).count(), WAITING.0);
        assert!(turns.by_client.is_empty() && turns.order.is_empty() && turns.count == 0);
    }
}
