//! `/configz`: the settings this node runs with, in the form of a `KubeletConfiguration`.
//!
//! Only what can be set is told; what this kubelet does not have is absent.

use http::Response;
use serde_json::{Value, json};

use super::answer::{Answer, Body, json as answer};
use crate::kubelet::{Config, container::SwapBehavior, eviction::Signal};

pub fn configz(config: &Config) -> Result<Response<Body>, Answer> {
    answer(&document(config))
}

fn document(config: &Config) -> Value {
    let resources = &config.resources;
    let hard: serde_json::Map<String, Value> = resources
        .eviction
        .thresholds
        .iter()
        .filter(|one| one.grace.is_none() && one.signal != Signal::AllocatableMemory)
        .map(|one| (one.signal.name().to_owned(), one.amount.to_string().into()))
        .collect();
    json!({"kubeletconfig": {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true, "cacheTTL": "2m0s"},
            "x509": {},
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"},
        },
        "cgroupRoot": config.cgroup_root,
        "cgroupDriver": "cgroupfs",
        "clusterDNS": config.cluster_dns,
        "clusterDomain": config.cluster_domain,
        "evictionHard": hard,
        "failSwapOn": false,
        "imageGCHighThresholdPercent": resources.image_gc.high_percent,
        "imageGCLowThresholdPercent": resources.image_gc.low_percent,
        "maxPods": config.max_pods,
        "memorySwap": {"swapBehavior": match config.swap {
            SwapBehavior::NoSwap => "NoSwap",
            SwapBehavior::LimitedSwap => "LimitedSwap",
        }},
        "podPidsLimit": config.pod_pids_limit.map_or(-1, |limit| i64::from(limit.get())),
        "podCIDR": config.pod_cidrs.to_string(),
        "port": config.port,
        "readOnlyPort": 0,
        "resolvConf": config.resolv_conf,
        "staticPodPath": config.manifest_dir,
        "streamingConnectionIdleTimeout": "4h0m0s",
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_told_as_they_are() {
        let config = Config {
            node: "n1".to_owned(),
            addresses: Vec::new(),
            port: 10250,
            pod_cidrs: "10.42.0.0/24".parse().unwrap(),
            state_dir: "/state".into(),
            log_dir: "/log".into(),
            manifest_dir: "/manifests".into(),
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            cgroup_root: "vetch".to_owned(),
            max_pods: 110,
            pod_pids_limit: None,
            swap: SwapBehavior::LimitedSwap,
            resources: Default::default(),
            dns: Default::default(),
            description: Default::default(),
            own_ports: Default::default(),
        };
        let told = &document(&config)["kubeletconfig"];
        assert_eq!(told["kind"], "KubeletConfiguration");
        assert_eq!(told["maxPods"], 110);
        assert_eq!(told["evictionHard"]["imagefs.available"], "15%");
        assert_eq!(told["podPidsLimit"], -1);
        assert_eq!(told["memorySwap"]["swapBehavior"], "LimitedSwap");
        assert_eq!(told["clusterDNS"], json!(["10.96.0.10"]));
        assert_eq!(told["podCIDR"], "10.42.0.0/24");
        assert_eq!(told["staticPodPath"], "/manifests");
    }
}
