//! What of a WireGuard link must change. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use netns::wireguard::{self, Change, Device, PrivateKey, PublicKey};

/// A node that is reached by the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub node: String,
    pub endpoint: SocketAddr,
    /// The ranges of its pods.
    pub allowed: BTreeSet<(IpAddr, u8)>,
}

/// What a link shall have.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub private_key: &'a PrivateKey,
    pub port: u16,
    pub peers: &'a BTreeMap<PublicKey, Peer>,
}

/// From `found` to `wanted`: what goes, first, since a network belongs to one peer. `set`: as it was set last. An
/// endpoint is set again only if another one is wanted: the kernel follows a peer that sends from elsewhere, which only
/// the peer can do.
pub fn steps(found: &Device, wanted: &Wanted<'_>, set: &BTreeMap<PublicKey, Peer>) -> Vec<Change> {
    let mut steps = Vec::new();
    if found.private_key.as_ref() != Some(wanted.private_key) || found.port != wanted.port {
        steps.push(Change::Device {
            private_key: wanted.private_key.clone(),
            port: wanted.port,
        });
    }
    let gone = found.peers.iter().map(|peer| peer.key);
    let gone = gone.filter(|key| !wanted.peers.contains_key(key));
    steps.extend(gone.map(Change::Remove));
    for (key, peer) in wanted.peers {
        let there = found.peers.iter().find(|found| found.key == *key);
        let is_told = set
            .get(key)
            .is_some_and(|set| set.endpoint == peer.endpoint);
        let keeps = is_told && there.is_some_and(|there| there.endpoint.is_some());
        if keeps && there.is_some_and(|there| there.allowed == peer.allowed) {
            continue;
        }
        steps.push(Change::Peer(wireguard::Peer {
            key: *key,
            endpoint: (!keeps).then_some(peer.endpoint),
            allowed: peer.allowed.clone(),
        }));
    }
    steps
}

/// Which of the steps bring back what was `set`, in words.
pub fn undone(
    steps: &[Change],
    set: &BTreeMap<PublicKey, Peer>,
    wanted: &Wanted<'_>,
) -> Vec<String> {
    let word = |step: &Change| match step {
        Change::Device { .. } => Some("the key and the port of the WireGuard link".to_owned()),
        Change::Peer(peer) => {
            let node = &set.get(&peer.key)?.node;
            let is_same = wanted.peers.get(&peer.key) == set.get(&peer.key);
            is_same.then(|| format!("the WireGuard peer of the node {node}"))
        }
        // Somebody else's, or that of a node that is gone.
        Change::Remove(_) => None,
    };
    steps.iter().filter_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn allowed(range: &str) -> BTreeSet<(IpAddr, u8)> {
        let (address, length) = range.split_once('/').unwrap();
        [(address.parse().unwrap(), length.parse().unwrap())].into()
    }

    fn peer(node: &str, endpoint: &str, range: &str) -> Peer {
        Peer {
            node: node.to_owned(),
            endpoint: endpoint.parse().unwrap(),
            allowed: allowed(range),
        }
    }

    fn there(byte: u8, endpoint: &str, range: &str) -> wireguard::Peer {
        wireguard::Peer {
            key: key(byte),
            endpoint: (!endpoint.is_empty()).then(|| endpoint.parse().unwrap()),
            allowed: allowed(range),
        }
    }

    const B: &str = "192.0.2.2:51871";
    const ELSEWHERE: &str = "192.0.2.99:40000";

    #[test]
    fn from_what_is_there_to_what_is_wanted() {
        let own = PrivateKey::clamped([7; 32]);
        let set: BTreeMap<_, _> = [(key(2), peer("b", B, "10.42.2.0/24"))].into();
        let told = there(2, B, "10.42.2.0/24");
        let silent = wireguard::Peer {
            endpoint: None,
            ..told.clone()
        };
        for (what, peers, set, want) in [
            ("it is there", vec![told.clone()], &set, vec![]),
            (
                "it sends from elsewhere, which is its right",
                vec![there(2, ELSEWHERE, "10.42.2.0/24")],
                &set,
                vec![],
            ),
            (
                "of an earlier daemon: where it is may have changed",
                vec![there(2, ELSEWHERE, "10.42.2.0/24")],
                &BTreeMap::new(),
                vec![Change::Peer(told.clone())],
            ),
            ("it is lost", vec![], &set, vec![Change::Peer(told.clone())]),
            (
                "others have given it another network",
                vec![there(2, B, "10.9.0.0/16")],
                &set,
                vec![Change::Peer(silent)],
            ),
            (
                "it has a new key",
                vec![there(1, B, "10.42.2.0/24")],
                &BTreeMap::new(),
                vec![Change::Remove(key(1)), Change::Peer(told.clone())],
            ),
        ] {
            let device = Device {
                private_key: Some(own.clone()),
                public_key: Some(key(9)),
                port: 51871,
                peers,
            };
            let wanted = [(key(2), peer("b", B, "10.42.2.0/24"))].into();
            let wanted = Wanted {
                private_key: &own,
                port: 51871,
                peers: &wanted,
            };
            assert_eq!(steps(&device, &wanted, set), want, "{what}");
        }
    }

    #[test]
    fn a_link_gets_its_key_first() {
        let own = PrivateKey::clamped([7; 32]);
        let peers = [(key(2), peer("b", B, "10.42.2.0/24"))].into();
        let wanted = Wanted {
            private_key: &own,
            port: 51871,
            peers: &peers,
        };
        let device = Change::Device {
            private_key: own.clone(),
            port: 51871,
        };
        let found = steps(&Device::default(), &wanted, &BTreeMap::new());
        let told = there(2, B, "10.42.2.0/24");
        assert_eq!(found, [device, Change::Peer(told)]);
    }

    #[test]
    fn what_others_have_undone_is_told() {
        let own = PrivateKey::clamped([7; 32]);
        let moved = peer("c", ELSEWHERE, "10.42.3.0/24");
        let set = [
            (key(2), peer("b", B, "10.42.2.0/24")),
            (key(3), peer("c", B, "10.42.3.0/24")),
        ]
        .into();
        let peers = [(key(2), peer("b", B, "10.42.2.0/24")), (key(3), moved)].into();
        let wanted = Wanted {
            private_key: &own,
            port: 51871,
            peers: &peers,
        };
        let mut found = Device {
            private_key: Some(own.clone()),
            port: 51871,
            ..Device::default()
        };
        let all = steps(&found, &wanted, &set);
        assert_eq!(all.len(), 2);
        // The other one has moved, which nobody has undone.
        assert_eq!(
            undone(&all, &set, &wanted),
            ["the WireGuard peer of the node b"]
        );
        found.port = 7;
        let all = steps(&found, &wanted, &set);
        assert_eq!(undone(&all, &set, &wanted).len(), 2);
    }
}
