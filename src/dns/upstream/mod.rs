//! Queries of other zones: answered from memory, or by the servers that the node itself asks.
//!
//! Always true: a query ends within [`DEADLINE`]; all that ask the same at the same time wait for one query upstream,
//! which goes on for as long as somebody waits; what the servers of one resolv.conf said is not said any more once
//! it names others.
//!
//! `message.rs` reads and writes bytes, `cache.rs` remembers, `servers.rs` says who is asked, `race.rs` in which
//! order, `exchange.rs` asks.

mod cache;
mod exchange;
mod message;
mod race;
mod servers;

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use tokio::{sync::Semaphore, time::timeout};

pub use self::message::{Asked, Transport};
use self::{
    cache::{Cache, LIMITS},
    message::{Age, Key, Said},
    servers::Servers,
};

/// For all servers: clients give up after five seconds.
const DEADLINE: Duration = Duration::from_millis(4500);
/// If there is an old answer, which is better than none (RFC 8767, 5).
const DEADLINE_WITH_STALE: Duration = Duration::from_millis(1800);
/// Servers that are asked while another one may still answer, by all queries together.
const EXTRA: usize = 1024;

/// Who asks the servers upstream, and remembers what they say.
#[derive(Clone, Debug)]
pub struct Upstream(Arc<State>);

/// Locks are taken one at a time, and never while waiting.
#[derive(Debug)]
struct State {
    servers: Mutex<Servers>,
    cache: Mutex<Cache>,
    flights: Mutex<Flights>,
    extra: Arc<Semaphore>,
}

/// Queries under way.
#[derive(Default)]
struct Flights {
    next: u64,
    all: HashMap<Flight, (u64, WeakShared<Flying>)>,
}

/// What those have in common who wait for the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flight {
    key: Key,
    transport: Transport,
    generation: u64,
}

type Flying = BoxFuture<'static, Arc<Said>>;

/// Makes room for another flight once this one is over, or nobody waits for it any more.
struct Landing {
    state: Arc<State>,
    flight: Flight,
    number: u64,
}

impl Upstream {
    pub fn new(file: PathBuf, own: Vec<IpAddr>) -> Self {
        Self::of(Servers::new(file, own))
    }

    fn of(servers: Servers) -> Self {
        Self(Arc::new(State {
            servers: Mutex::new(servers),
            cache: Mutex::new(Cache::new(LIMITS)),
            flights: Mutex::default(),
            extra: Arc::new(Semaphore::new(EXTRA)),
        }))
    }

    /// That nobody is asked.
    pub fn failure(asked: &Asked, transport: Transport) -> Vec<u8> {
        Said::silence().reply(asked, Age::New, transport)
    }

    /// What is remembered.
    pub fn remembered(&self, asked: &Asked, transport: Transport) -> Option<Vec<u8>> {
        let now = Instant::now();
        let generation = lock(&self.0.servers).generation(now);
        let hit = lock(&self.0.cache).of(generation).get(&asked.key, now)?;
        Some(hit.said.reply(asked, hit.age, transport))
    }

    /// What is remembered, or what the servers say. What is learnt is charged to the client.
    pub async fn ask(&self, asked: &Asked, transport: Transport, client: IpAddr) -> Vec<u8> {
        if let Some(reply) = self.remembered(asked, transport) {
            return reply;
        }
        let said = self.fly(asked, transport, client).await;
        // If the servers fail, there may be an old answer.
        let old = match said.failed() {
            true => self.remembered(asked, transport),
            false => None,
        };
        old.unwrap_or_else(|| said.reply(asked, Age::New, transport))
    }

    /// The flight of those who ask the same; a new one, if there is none.
    fn fly(&self, asked: &Asked, transport: Transport, client: IpAddr) -> Shared<Flying> {
        let generation = lock(&self.0.servers).generation(Instant::now());
        let flight = Flight {
            key: asked.key.clone(),
            transport,
            generation,
        };
        let mut flights = lock(&self.0.flights);
        let under_way = flights.all.get(&flight);
        if let Some(flying) = under_way.and_then(|(_, flying)| flying.upgrade()) {
            return flying;
        }
        flights.next += 1;
        let landing = Landing {
            state: self.0.clone(),
            flight: flight.clone(),
            number: flights.next,
        };
        let number = landing.number;
        let flying = landing.fly(asked.clone(), client).boxed().shared();
        if let Some(weak) = flying.downgrade() {
            flights.all.insert(flight, (number, weak));
        }
        flying
    }
}

impl Landing {
    async fn fly(self, asked: Asked, client: IpAddr) -> Arc<Said> {
        let (state, key) = (&*self.state, &self.flight.key);
        let (begun, generation) = (Instant::now(), self.flight.generation);
        let servers = lock(&state.servers).in_turn(begun);
        let has_stale = lock(&state.cache).of(generation).has_stale(key, begun);
        let deadline = if has_stale {
            DEADLINE_WITH_STALE
        } else {
            DEADLINE
        };
        let transport = self.flight.transport;
        let ask = |server: SocketAddr| exchange::ask(server, &asked, transport);
        let asking = race::first(&servers, &state.extra, ask);
        let said = timeout(deadline, asking).await.ok().flatten();
        let (said, server) = said.unwrap_or_else(|| (Said::silence(), None));
        let (said, now) = (Arc::new(said), Instant::now());
        if let Some(server) = server {
            lock(&state.servers).answered(server);
        }
        // There may be other servers by now.
        if lock(&state.servers).generation(now) == generation {
            let mut cache = lock(&state.cache);
            cache.of(generation).put(key, &said, client, now);
        }
        said
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = lock(&self.state.flights);
        let number = flights.all.get(&self.flight).map(|(number, _)| *number);
        if number == Some(self.number) {
            flights.all.remove(&self.flight);
        }
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all.len();
        formatter
            .debug_struct("Flights")
            .field("all", &all)
            .finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
