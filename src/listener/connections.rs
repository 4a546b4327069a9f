//! The connections of one listener: how many there may be, and which goes for a new one.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many connections a listener holds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    total: usize,
    /// From one address that is not this machine's own.
    per_address: usize,
}

impl Limits {
    /// At most `most`, and no more than this part of the process's descriptors: the rest is for
    /// what the daemon itself does.
    pub fn new(most: usize, part_of_descriptors: u64) -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let part = usize::try_from(descriptors / part_of_descriptors).unwrap_or(usize::MAX);
        let total = most.min(part).max(16);
        Self {
            total,
            per_address: total / 2,
        }
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Many clients of one machine share its loopback addresses.
    fn of(&self, address: IpAddr) -> usize {
        match address.to_canonical().is_loopback() {
            true => self.total,
            false => self.per_address,
        }
    }
}

/// How much is lost with a connection: the least goes first, the oldest of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nothing was asked yet.
    New,
    /// Between two requests.
    Idle,
}

pub struct Connections {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Rises with each change of a connection, so that it orders them by age.
    clock: u64,
    count: usize,
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Default)]
struct Address {
    count: usize,
    /// Those that may be cut off.
    waiting: BTreeMap<(Stage, u64), CancellationToken>,
}

impl Address {
    fn evict(&mut self) -> bool {
        let first = self.waiting.pop_first();
        first.is_some_and(|(_, token)| {
            token.cancel();
            true
        })
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Cuts one off, of the address that has the most of them.
    fn evict(&mut self) -> bool {
        let waiting = |address: &&mut Address| address.waiting.len();
        let most = self.addresses.values_mut().max_by_key(waiting);
        most.is_some_and(Address::evict)
    }
}

impl Connections {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, where need be that of one that asks nothing.
    pub fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Slot> {
        let mut state = self.lock();
        let address = state.addresses.entry(from).or_default();
        let full = address.count >= self.limits.of(from);
        if full && !address.evict() || !full && state.count >= self.limits.total && !state.evict() {
            if state
                .addresses
                .get(&from)
                .is_some_and(|address| address.count == 0)
            {
                state.addresses.remove(&from);
            }
            return None;
        }
        let now = state.tick();
        let token = CancellationToken::new();
        state.count += 1;
        let address = state.addresses.entry(from).or_default();
        address.count += 1;
        let place = (Stage::New, now);
        address.waiting.insert(place, token.clone());
        drop(state);
        Some(Slot {
            connections: self.clone(),
            from,
            token,
            use_of: Mutex::new(Use {
                asking: 0,
                asked: false,
                since: Instant::now(),
                place: Some(place),
            }),
        })
    }

    /// Descriptors are out: cuts one off that asks nothing.
    pub fn make_room(&self) {
        self.lock().evict();
    }
}

/// One connection's place, given back when dropped.
pub struct Slot {
    connections: Arc<Connections>,
    from: IpAddr,
    token: CancellationToken,
    /// Locked before the state of all connections.
    use_of: Mutex<Use>,
}

struct Use {
    /// Requests under way.
    asking: usize,
    asked: bool,
    /// When it came, or its last request ended.
    since: Instant,
    /// Where it waits among those that may be cut off.
    place: Option<(Stage, u64)>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Use> {
        self.use_of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, used: &mut Use) {
        if let Some(place) = used.place.take() {
            let mut state = self.connections.lock();
            if let Some(address) = state.addresses.get_mut(&self.from) {
                address.waiting.remove(&place);
            }
        }
    }

    /// Resolves when another connection needs the place.
    pub async fn evicted(&self) {
        self.token.cancelled().await;
    }

    /// A request begins; it ends with what comes back.
    pub fn ask(self: &Arc<Self>) -> Asking {
        let mut used = self.lock();
        used.asking += 1;
        used.asked = true;
        self.leave(&mut used);
        drop(used);
        Asking(self.clone())
    }

    pub fn has_asked(&self) -> bool {
        self.lock().asked
    }

    /// When it may have been idle for too long.
    pub fn look_again(&self, first: Duration, idle: Duration) -> Instant {
        let used = self.lock();
        match (used.asking, used.asked) {
            (0, false) => used.since + first,
            (0, true) => used.since + idle,
            _ => Instant::now() + idle,
        }
    }

    pub fn is_overdue(&self, first: Duration, idle: Duration) -> bool {
        let used = self.lock();
        let limit = if used.asked { idle } else { first };
        used.asking == 0 && used.since.elapsed() >= limit
    }

    /// It is not cut off any more: what became of it is not HTTP.
    pub fn settle(&self) {
        let mut used = self.lock();
        // Never the last to end, so that it does not go back to wait.
        used.asking += 1;
        self.leave(&mut used);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let place = self.lock().place.take();
        let mut state = self.connections.lock();
        state.count -= 1;
        if let Some(address) = state.addresses.get_mut(&self.from) {
            address.count -= 1;
            if let Some(place) = place {
                address.waiting.remove(&place);
            }
            if address.count == 0 {
                state.addresses.remove(&self.from);
            }
        }
    }
}

/// A request under way.
pub struct Asking(Arc<Slot>);

impl Drop for Asking {
    fn drop(&mut self) {
        let mut used = self.0.lock();
        used.asking -= 1;
        if used.asking > 0 {
            return;
        }
        used.since = Instant::now();
        let mut state = self.0.connections.lock();
        let place = (Stage::Idle, state.tick());
        if let Some(address) = state.addresses.get_mut(&self.0.from) {
            address.waiting.insert(place, self.0.token.clone());
            used.place = Some(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(total: usize, per_address: usize) -> Arc<Connections> {
        Connections::new(Limits { total, per_address })
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn admitted(connections: &Arc<Connections>, last: u8) -> Option<Arc<Slot>> {
        connections.admit(address(last)).map(Arc::new)
    }

    #[test]
    fn the_oldest_that_asks_nothing_goes() {
        let all = connections(3, 3);
        let idle = admitted(&all, 1).expect("room");
        drop(idle.ask());
        let new = admitted(&all, 1).expect("room");
        let busy = admitted(&all, 1).expect("room");
        let request = busy.ask();
        let fourth = admitted(&all, 1).expect("the new one's place");
        assert!(new.token.is_cancelled() && !idle.token.is_cancelled());
        drop(new);
        let asked = fourth.ask();
        let _fifth = admitted(&all, 1).expect("the idle one's place");
        assert!(idle.token.is_cancelled());
        drop((request, asked));
        assert!(!busy.token.is_cancelled() && !fourth.token.is_cancelled());
    }

    #[test]
    fn one_address_does_not_take_the_places_of_others() {
        let all = connections(4, 2);
        let first: Vec<_> = (0..2).filter_map(|_| admitted(&all, 1)).collect();
        let asking: Vec<_> = first.iter().map(Slot::ask).collect();
        assert!(admitted(&all, 1).is_none(), "all of its places are in use");
        let others = [admitted(&all, 2), admitted(&all, 3)].map(|slot| slot.expect("room"));
        // Full now: of those that wait one goes, whoever comes.
        let _fifth = admitted(&all, 4).expect("a place that another waited at");
        assert_eq!(
            others
                .iter()
                .filter(|slot| slot.token.is_cancelled())
                .count(),
            1
        );
        drop(asking);
        drop(first);
        drop(others);
        let state = all.lock();
        assert_eq!((state.count, state.addresses.len()), (1, 1));
    }

    #[test]
    fn an_upgraded_connection_keeps_its_place() {
        let all = connections(1, 1);
        let slot = admitted(&all, 1).expect("room");
        let request = slot.ask();
        slot.settle();
        drop(request);
        assert!(admitted(&all, 1).is_none());
        assert!(!slot.token.is_cancelled());
        drop(slot);
        assert!(admitted(&all, 1).is_some());
    }

    #[test]
    fn what_is_overdue() {
        let (now, later) = (Duration::ZERO, Duration::from_secs(90));
        let all = connections(2, 2);
        let slot = admitted(&all, 1).expect("room");
        assert!(slot.is_overdue(now, later) && !slot.is_overdue(later, now));
        let request = slot.ask();
        assert!(!slot.is_overdue(now, now));
        drop(request);
        assert!(slot.is_overdue(later, now) && !slot.is_overdue(now, later));
    }
}
