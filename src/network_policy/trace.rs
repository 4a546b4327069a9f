//! Why a connection goes through, or does not, by the policies that judge it. Pure.

use std::{fmt, net::IpAddr};

use super::{
    model::{Chain, Direction, PodFacts},
    plan::{World, alone},
    ranges::is_v6,
    rules::Rules,
};

/// One end of a connection.
#[derive(Clone, Debug)]
pub enum End {
    Pod(Box<PodFacts>),
    /// Of a pod or of anybody.
    Address(IpAddr),
}

/// What the policies of one end say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// No policy selects this end in this direction, or it is no pod.
    NotIsolated,
    AllowedBy(Vec<String>),
    DeniedBy(Vec<String>),
}

impl Judgement {
    pub fn is_allowed(&self) -> bool {
        !matches!(self, Self::DeniedBy(_))
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIsolated => f.write_str("allowed: no policy isolates it"),
            Self::AllowedBy(policies) => write!(f, "allowed by {}", policies.join(", ")),
            Self::DeniedBy(policies) => {
                write!(
                    f,
                    "denied: isolated by {}, none of which allows it",
                    policies.join(", ")
                )
            }
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Connection {
    pub from: End,
    pub to: End,
    pub protocol: super::Protocol,
    pub port: u16,
}

/// Egress of the client, then ingress of the server.
pub fn trace(world: &World, connection: &Connection) -> [Judgement; 2] {
    let (from, to) = (&connection.from, &connection.to);
    let (client, server) = (address(from), address(to));
    if client.is_some() && client == server {
        return [Judgement::NotIsolated, Judgement::NotIsolated];
    }
    [
        judge(world, connection, Direction::Egress, from, server),
        judge(world, connection, Direction::Ingress, to, client),
    ]
}

fn address(end: &End) -> Option<IpAddr> {
    match end {
        End::Pod(pod) => pod.addresses.first().copied(),
        End::Address(address) => Some(*address),
    }
}

fn judge(
    world: &World,
    connection: &Connection,
    direction: Direction,
    end: &End,
    peer: Option<IpAddr>,
) -> Judgement {
    let pod = match end {
        End::Pod(pod) => Some(&**pod),
        End::Address(own) => world.pods.iter().find(|pod| pod.addresses.contains(own)),
    };
    let (Some(pod), Some(peer)) = (pod, peer) else {
        return Judgement::NotIsolated;
    };
    let isolating: Vec<&Rules> = world
        .policies
        .iter()
        .map(|policy| &**policy)
        .filter(|policy| {
            policy.namespace == pod.namespace
                && policy.of_direction(direction).is_some()
                && policy.select(&pod.labels)
        })
        .collect();
    if isolating.is_empty() {
        return Judgement::NotIsolated;
    }
    let allows = |policy: &Rules| {
        let allowed = alone(world, pod, direction, policy, is_v6(peer));
        let chain = Chain { direction, allowed };
        chain.passes(peer, connection.protocol.number(), connection.port)
    };
    let names = |policies: Vec<&Rules>| policies.iter().map(|policy| policy.name.clone()).collect();
    let allowing: Vec<&Rules> = isolating
        .iter()
        .copied()
        .filter(|policy| allows(policy))
        .collect();
    match allowing.is_empty() {
        true => Judgement::DeniedBy(names(isolating)),
        false => Judgement::AllowedBy(names(allowing)),
    }
}
