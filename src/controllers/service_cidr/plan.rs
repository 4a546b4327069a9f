//! What a ServiceCIDR needs: judged by itself, the others, and the addresses that are given. Pure.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::ServiceCIDR,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::ResourceExt;

use crate::addresses::ranges::{offers, overlap};

pub const READY: &str = "Ready";

/// What its Ready condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ready,
    /// It goes as soon as no address depends on it.
    Terminating,
}

pub fn is_ending(cidr: &ServiceCIDR) -> bool {
    cidr.metadata.deletion_timestamp.is_some()
}

pub fn ranges(cidr: &ServiceCIDR) -> Vec<IpNet> {
    let spec = cidr.spec.iter();
    let texts = spec.flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// The names of those that have addresses in common with it, itself among them.
pub fn touched(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>]) -> Vec<String> {
    let own = ranges(cidr);
    let meets = |other: &ServiceCIDR| {
        let mut theirs = ranges(other).into_iter();
        theirs.any(|their| own.iter().any(|own| overlap(own, &their)))
    };
    let others = all.iter().filter(|other| meets(other));
    let mut names: Vec<String> = others.map(|other| other.name_any()).collect();
    names.push(cidr.name_any());
    names
}

/// Its ranges that lie in no other ServiceCIDR that stays: those on which addresses can depend. With none
/// of them it may go at once.
pub fn alone(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>]) -> Vec<IpNet> {
    let others: Vec<IpNet> = staying(cidr, all).flat_map(ranges).collect();
    let mut own = ranges(cidr);
    own.retain(|range| !others.iter().any(|other| other.contains(range)));
    own
}

/// Whether no other ServiceCIDR that stays has the address, and this one has.
pub fn depends(address: IpAddr, cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>]) -> bool {
    let has = |one: &ServiceCIDR| ranges(one).iter().any(|range| offers(range, address));
    has(cidr) && !staying(cidr, all).any(has)
}

/// The others: of two that are the same and are deleted together, the addresses must not lose both.
fn staying<'a>(
    cidr: &'a ServiceCIDR,
    all: &'a [Arc<ServiceCIDR>],
) -> impl Iterator<Item = &'a ServiceCIDR> {
    let others = all.iter().map(|other| &**other);
    others.filter(|other| other.name_any() != cidr.name_any() && !is_ending(other))
}

/// The conditions with this verdict; `None` if they say so already.
pub fn conditions(cidr: &ServiceCIDR, verdict: Verdict) -> Option<Vec<Condition>> {
    let (status, reason, message) = match verdict {
        Verdict::Ready => ("True", "", "Kubernetes Service CIDR is ready"),
        Verdict::Terminating => (
            "False",
            "Terminating",
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
        ),
    };
    let held = cidr.status.as_ref();
    let mut conditions: Vec<Condition> = held
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let before = conditions.iter().find(|one| one.type_ == READY);
    if before
        .is_some_and(|one| (&*one.status, &*one.reason, &*one.message) == (status, reason, message))
    {
        return None;
    }
    let since = before.filter(|one| one.status == status);
    let condition = Condition {
        type_: READY.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: since.map_or_else(
            || Time(Timestamp::now()),
            |one| one.last_transition_time.clone(),
        ),
        observed_generation: None,
    };
    conditions.retain(|one| one.type_ != READY);
    conditions.push(condition);
    Some(conditions)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cidr(name: &str, cidrs: &[&str]) -> Arc<ServiceCIDR> {
        let object = json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn ending(name: &str, cidrs: &[&str]) -> Arc<ServiceCIDR> {
        let mut ending = ServiceCIDR::clone(&cidr(name, cidrs));
        ending.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        Arc::new(ending)
    }

    #[test]
    fn what_depends_on_a_range_alone() {
        let all = [
            cidr("wide", &["10.0.0.0/8"]),
            cidr("narrow", &["10.1.0.0/16", "fd00::/64"]),
            cidr("twin", &["192.168.0.0/24"]),
            cidr("other-twin", &["192.168.0.0/24"]),
            ending("going", &["10.0.0.0/8"]),
        ];
        for (name, want) in [
            (0, &["10.0.0.0/8"][..]),
            (1, &["fd00::/64"]),
            (2, &[]),
            (3, &[]),
            (4, &[]),
        ] {
            let got: Vec<String> = alone(&all[name], &all)
                .iter()
                .map(IpNet::to_string)
                .collect();
            assert_eq!(got, want, "{name}");
        }
        for (address, index, want) in [
            ("10.1.0.5", 0, false),
            ("10.1.0.5", 1, false),
            ("10.2.0.5", 0, true),
            ("10.2.0.5", 4, false),
            // Nobody gives it but the wide one.
            ("10.1.0.0", 0, true),
            ("fd00::5", 1, true),
            ("192.168.0.5", 2, false),
            ("172.16.0.5", 2, false),
        ] {
            let got = depends(address.parse().unwrap(), &all[index], &all);
            assert_eq!(got, want, "{address} {index}");
        }
        let mut names = touched(&all[1], &all);
        names.sort();
        names.dedup();
        assert_eq!(names, ["going", "narrow", "wide"]);
    }

    #[test]
    fn conditions_are_written_once() {
        let fresh = cidr("a", &["10.0.0.0/24"]);
        let ready = conditions(&fresh, Verdict::Ready).unwrap();
        assert_eq!((ready.len(), &*ready[0].status), (1, "True"));
        let mut held = ServiceCIDR::clone(&fresh);
        held.status.get_or_insert_default().conditions = Some(ready);
        assert_eq!(conditions(&held, Verdict::Ready), None);
        let going = conditions(&held, Verdict::Terminating).unwrap();
        assert_eq!((going.len(), &*going[0].reason), (1, "Terminating"));
    }
}
