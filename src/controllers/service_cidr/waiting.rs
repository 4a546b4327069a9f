//! ServiceCIDRs that wait for an address to go, and the watch that sees it go.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::networking::v1::IPAddress;
use kube::{
    Api, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use tokio::sync::watch;

use super::MANAGED;
use crate::{informer::Key, queue::Queue};

/// By name of the ServiceCIDR, the address found last that keeps it.
type Held = BTreeMap<String, IpAddr>;

#[derive(Clone, Debug)]
pub struct Waiting(watch::Sender<Held>);

impl Default for Waiting {
    fn default() -> Self {
        Self(watch::Sender::new(Held::new()))
    }
}

impl Waiting {
    pub fn wait(&self, cidr: &str, address: IpAddr) {
        self.0
            .send_if_modified(|held| held.insert(cidr.to_owned(), address) != Some(address));
    }

    pub fn over(&self, cidr: &str) {
        self.0.send_if_modified(|held| held.remove(cidr).is_some());
    }

    fn by(&self, address: IpAddr) -> Vec<String> {
        let held = self.0.borrow();
        let kept = held.iter().filter(|(_, by)| **by == address);
        kept.map(|(name, _)| name.clone()).collect()
    }

    fn all(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }
}

/// Brings a ServiceCIDR back when the address for which it waits has gone. Watches only while one waits.
pub async fn follow(
    addresses: Api<PartialObjectMeta<IPAddress>>,
    watches: watcher::Config,
    waiting: Waiting,
    queue: Arc<Queue<Key>>,
) {
    let mut held = waiting.0.subscribe();
    let add = |names: Vec<String>| {
        for name in names {
            queue.add(Key::new("", name));
        }
    };
    loop {
        // The sender is held by `waiting`, so this ends only by becoming true.
        let _ = held.wait_for(|held| !held.is_empty()).await;
        let events = watcher::watcher(addresses.clone(), watches.clone().labels(MANAGED));
        let events = events.default_backoff();
        pin_mut!(events);
        let mut until = waiting.0.subscribe();
        loop {
            let event = tokio::select! {
                _ = until.wait_for(Held::is_empty) => break,
                event = events.next() => event,
            };
            match event {
                Some(Ok(Event::Delete(gone))) => {
                    if let Ok(address) = gone.name_any().parse() {
                        add(waiting.by(address));
                    }
                }
                // What went before it began to watch.
                Some(Ok(Event::InitDone)) => add(waiting.all()),
                Some(Ok(Event::Init | Event::InitApply(_) | Event::Apply(_))) => {}
                Some(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "addresses cannot be watched, will retry");
                }
                None => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_an_address() {
        let waiting = Waiting::default();
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        waiting.wait("a", address("10.0.0.1"));
        waiting.wait("b", address("10.0.0.1"));
        waiting.wait("a", address("10.0.0.2"));
        assert_eq!(waiting.by(address("10.0.0.1")), ["b"]);
        assert_eq!(waiting.by(address("10.0.0.2")), ["a"]);
        waiting.over("a");
        assert_eq!(waiting.all(), ["b"]);
    }
}
