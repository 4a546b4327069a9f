//! How a Service's status says what it was given. Pure.

use std::net::IpAddr;

use k8s_openapi::{
    api::core::v1::{LoadBalancerIngress, PortStatus, Service},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::plan::{Share, Source};
use crate::addresses::balancing::{CONDITION, POOL_CONDITION};

pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

impl Source {
    /// The condition of a status with such addresses.
    fn condition(self) -> &'static str {
        match self {
            Self::Nodes => CONDITION,
            Self::Pool => POOL_CONDITION,
        }
    }
}

fn is_ours(condition: &Condition) -> bool {
    [CONDITION, POOL_CONDITION].contains(&&*condition.type_)
}

/// The part of a status that is this controller's.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub ingress: Vec<LoadBalancerIngress>,
    /// All of them, with those of others.
    pub conditions: Vec<Condition>,
}

/// The status with this share; `None` if it says so already.
pub fn given(service: &Service, share: &Share) -> Option<Wanted> {
    let ingress = share.addresses.iter().map(|address| LoadBalancerIngress {
        ip: Some(address.to_string()),
        ip_mode: Some("VIP".to_owned()),
        ports: Some(ports(service)),
        ..LoadBalancerIngress::default()
    });
    let mut conditions = held_conditions(service);
    let before = conditions
        .iter()
        .find(|one| one.type_ == share.source.condition())
        .cloned();
    conditions.retain(|one| !is_ours(one));
    conditions.push(condition(share, before));
    changed(
        service,
        Wanted {
            ingress: ingress.collect(),
            conditions,
        },
    )
}

/// What was judged: proxies serve these ports and no others, whatever the Service asks for by then.
fn ports(service: &Service) -> Vec<PortStatus> {
    let spec = service.spec.iter();
    let ports = spec.flat_map(|spec| spec.ports.iter().flatten());
    ports
        .map(|port| PortStatus {
            port: port.port,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            error: None,
        })
        .collect()
}

/// The status without anything of ours; `None` if it is.
pub fn released(service: &Service) -> Option<Wanted> {
    let mut conditions = held_conditions(service);
    conditions.retain(|one| !is_ours(one));
    changed(
        service,
        Wanted {
            ingress: Vec::new(),
            conditions,
        },
    )
}

/// Whether this controller has written its status, and so whether its finalizer may be ours.
pub fn is_known(service: &Service) -> bool {
    held_conditions(service).iter().any(is_ours)
}

pub fn is_protected(service: &Service) -> bool {
    service.finalizers().iter().any(|one| one == FINALIZER)
}

pub fn ingress(service: &Service) -> &[LoadBalancerIngress] {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    balancer
        .and_then(|balancer| balancer.ingress.as_deref())
        .unwrap_or_default()
}

/// The addresses that it has, as far as they are any.
pub fn addresses(service: &Service) -> Vec<IpAddr> {
    let ips = ingress(service).iter();
    ips.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect()
}

fn changed(service: &Service, wanted: Wanted) -> Option<Wanted> {
    let same =
        ingress(service) == wanted.ingress && same_conditions(&held_conditions(service), &wanted);
    (!same).then_some(wanted)
}

/// Their order is nobody's.
fn same_conditions(held: &[Condition], wanted: &Wanted) -> bool {
    held.len() == wanted.conditions.len() && held.iter().all(|one| wanted.conditions.contains(one))
}

fn held_conditions(service: &Service) -> Vec<Condition> {
    let status = service.status.as_ref();
    status
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default()
}

fn condition(share: &Share, before: Option<Condition>) -> Condition {
    /// A condition's message takes no more.
    const LONGEST: usize = 32_768;
    let status = match share.addresses.is_empty() {
        true => "False",
        false => "True",
    };
    let reason = match share.refusals.first() {
        Some(refusal) => refusal.reason(),
        None => "Given",
    };
    let said: Vec<String> = share.refusals.iter().map(ToString::to_string).collect();
    let message = said.join("; ").chars().take(LONGEST).collect();
    let since = before.filter(|before| before.status == status);
    Condition {
        type_: share.source.condition().to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: since.map_or_else(
            || Time(Timestamp::now()),
            |before| before.last_transition_time,
        ),
        observed_generation: None,
    }
}
