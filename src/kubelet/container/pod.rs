//! The pod's shared part: names, namespaces, cgroup. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{Facts, Refused, resources, sysctls};
use crate::runtime::{Identity, PodConfig};

/// The kernel's limit for host names.
const HOSTNAME_MAX: usize = 64;

/// The pod's shared part.
pub fn pod_config(pod: &Pod, facts: &Facts) -> Result<PodConfig, Refused> {
    let sandbox = |message: String| Refused {
        reason: "CreatePodSandboxError",
        message,
    };
    let spec = pod
        .spec
        .as_ref()
        .ok_or_else(|| sandbox("the pod has no spec".into()))?;
    if spec.host_users == Some(false) {
        return Err(sandbox(
            "user namespaces (hostUsers: false) are not supported by this version".into(),
        ));
    }
    let meta = &pod.metadata;
    let uid = meta.uid.clone().unwrap_or_default();
    let folder = match resources::qos_class(pod) {
        resources::QosClass::Guaranteed => "kubepods",
        resources::QosClass::Burstable => "kubepods/burstable",
        resources::QosClass::BestEffort => "kubepods/besteffort",
    };
    Ok(PodConfig {
        cgroup: format!("{folder}/pod{uid}"),
        identity: Identity {
            uid,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        },
        annotations: meta.annotations.clone().unwrap_or_default(),
        hostname: kernel_hostname(pod, facts).map_err(sandbox)?,
        host_network: spec.host_network == Some(true),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_processes: spec.share_process_namespace == Some(true),
        sysctls: sysctls::sysctls(spec)?,
        resources: Some(resources::pod_resources(pod, facts)),
    })
}

/// What containers see in HOSTNAME: with the host's network it is the node's.
pub fn shown_hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    match spec {
        Some(PodSpec {
            host_network: Some(true),
            node_name: Some(node),
            ..
        }) => node.clone(),
        _ => hostname(pod),
    }
}

/// `hostnameOverride`, else `hostname`, else the pod's name cut to a label's length.
pub fn hostname(pod: &Pod) -> String {
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let spec = pod.spec.as_ref();
    let of_spec =
        spec.and_then(|spec| given(&spec.hostname_override).or_else(|| given(&spec.hostname)));
    of_spec.unwrap_or_else(|| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let cut = name.get(..63).unwrap_or(name);
        cut.trim_end_matches(['-', '.']).to_owned()
    })
}

/// `host.subdomain.namespace.svc.domain`; without a subdomain there is none.
pub fn fqdn(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let overridden = spec
        .hostname_override
        .as_ref()
        .is_some_and(|name| !name.is_empty());
    let subdomain = spec
        .subdomain
        .as_ref()
        .filter(|name| !name.is_empty() && !overridden)?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = format!("{}.{subdomain}.{namespace}.svc", hostname(pod));
    Some(match cluster_domain {
        "" => name,
        domain => format!("{name}.{domain}"),
    })
}

fn kernel_hostname(pod: &Pod, facts: &Facts) -> Result<String, String> {
    let wants_full = pod.spec.as_ref().and_then(|spec| spec.set_hostname_as_fqdn) == Some(true);
    let name = match wants_full {
        true => fqdn(pod, &facts.cluster_domain).unwrap_or_else(|| hostname(pod)),
        false => hostname(pod),
    };
    if name.len() > HOSTNAME_MAX {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {name} is too long ({HOSTNAME_MAX} characters is the max, {} characters requested)",
            name.len()
        ));
    }
    Ok(name)
}

/// Any container of the pod, init containers included.
pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    let init = spec.init_containers.iter().flatten();
    spec.containers
        .iter()
        .chain(init)
        .find(|one| one.name == name)
}
