//! What the two endpoint controllers have in common: which pods stand behind a Service. Pure.

use k8s_openapi::{
    api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;

use super::pods;
use crate::{
    addresses::family::Family,
    informer::{Informer, Key},
};

pub const HEADLESS: &str = "service.kubernetes.io/headless";

fn family_of(address: &str) -> Family {
    match address.contains(':') {
        true => Family::V6,
        false => Family::V4,
    }
}

/// Services of the pod's namespace that select it.
pub fn services_of(pod: &Pod, services: &Informer<Service>) -> Vec<Key> {
    services
        .list_in(&pod.namespace().unwrap_or_default())
        .iter()
        .filter(|service| selects(service, pod))
        .map(|service| Key::of(service.as_ref()))
        .collect()
}

/// A Service without a selector, or one that is only a name, has endpoints of somebody else.
pub fn is_selecting(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() != Some("ExternalName")
            && spec
                .selector
                .as_ref()
                .is_some_and(|selector| !selector.is_empty())
    })
}

pub fn selects(service: &Service, pod: &Pod) -> bool {
    is_selecting(service)
        && service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.as_ref())
            .is_some_and(|selector| pods::has_labels(selector, pod.metadata.labels.as_ref()))
}

pub fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.publish_not_ready_addresses == Some(true))
}

/// Address families of the Service, the primary one first.
pub fn families(service: &Service) -> Vec<Family> {
    let spec = service.spec.clone().unwrap_or_default();
    let named: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .map(|family| match family.as_str() {
            "IPv6" => Family::V6,
            _ => Family::V4,
        })
        .collect();
    if !named.is_empty() {
        return named;
    }
    match spec.cluster_ip.as_deref() {
        Some(address) if address != "None" && !address.is_empty() => vec![family_of(address)],
        _ => vec![Family::V4, Family::V6],
    }
}

/// The pod's address of a family.
pub fn address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|one| one.ip.clone());
    // On a host without a network, pods in the host's network have its loopback address: nobody
    // else reaches them there, and no Service may lead there.
    let leads = |address: &String| {
        let ip = address.parse::<std::net::IpAddr>();
        !address.is_empty() && !ip.is_ok_and(|ip| ip.is_loopback())
    };
    listed
        .chain(status.pod_ip.clone())
        .find(|address| leads(address) && family_of(address) == family)
}

/// A Service's port as one pod serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    pub name: String,
    pub port: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

/// Ports of the Service on this pod; a named port that the pod lacks is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let all = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    all.into_iter()
        .flatten()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                port: target(port, pod)?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|container: &Container| container.ports.iter().flatten())
                .find(|one| {
                    one.name.as_ref() == Some(name)
                        && one.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|one| one.container_port)
        }
    }
}

/// The name under which a headless Service's DNS knows the pod.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name).then_some(hostname)
}

pub fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.namespace(),
        name: pod.metadata.name.clone(),
        uid: pod.uid(),
        ..ObjectReference::default()
    }
}
