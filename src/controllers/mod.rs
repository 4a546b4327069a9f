//! Controllers: each brings one kind of object nearer to what is wanted.
//!
//! A folder or file each; `shared.rs` is the loop they share, `dependents` writes what belongs to
//! their objects. Called by `cli`; they know the API client and the informers only.
//! Always true:
//! - A controller acts as itself: what its role does not allow, it cannot do.
//! - Every controller may be stopped at any moment and goes on from what the API shows.

mod bootstrap;
mod certificates;
mod cluster_role;
mod cron_job;
mod daemon;
mod dependents;
mod deployment;
mod disruption;
mod endpoint;
mod endpoints;
mod endpointslice;
mod error;
mod garbage;
mod hash;
mod history;
mod job;
mod namespace;
mod node;
mod node_ipam;
mod pace;
mod percent;
mod pod_gc;
mod pods;
mod replicas;
mod revisions;
mod root_ca;
mod served;
mod service_account;
mod service_cidr;
mod service_lb;
mod shared;
mod stateful;
mod token;
mod ttl_after_finished;
mod volume;
mod written;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use self::shared::Stopped;
pub use self::{
    certificates::{Authority, Former, Requested},
    node_ipam::{ClusterRange, Ranges},
    service_lb::{Balancing, Reserved},
};
use crate::{
    addresses::family::PerFamily,
    informer::Informers,
    supervision::{Parts, Policy},
};

/// What the controllers are told at start.
#[derive(Clone)]
pub struct Config {
    /// The cluster's certificate authority, published in every namespace.
    pub ca_pem: String,
    /// How a machine that joins reaches the cluster: a kubeconfig without credentials.
    pub cluster_info: String,
    /// Signs the tokens that Secrets hold.
    pub make_token: MakeToken,
    /// Reads and signs certificate requests with the cluster's key.
    pub authority: Arc<dyn Authority>,
    /// The ranges of pod addresses.
    pub pod_ranges: Ranges,
    /// The ranges of service addresses.
    pub services: PerFamily<IpNet>,
    /// Where every node keeps the volumes of the provisioner `vetch.io/local`.
    pub volumes: std::path::PathBuf,
    /// Who gives addresses to Services of the type LoadBalancer.
    pub balancing: Balancing,
}

impl Config {
    /// Ranges whose addresses no machine has.
    fn virtual_ranges(&self) -> Vec<IpNet> {
        let pods = self.pod_ranges.cluster.iter().map(|pods| pods.range);
        pods.chain(self.services.iter().copied()).collect()
    }
}

/// Makes a token, or says why not. Not for threads that others need: a signature takes a while.
pub type MakeToken = Arc<dyn Fn(&TokenFor<'_>) -> Result<String, String> + Send + Sync>;

/// Whose token it is, and which Secret will hold it.
#[derive(Clone, Copy, Debug)]
pub struct TokenFor<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub secret: &'a str,
}

/// Starts one controller: with the caches that all share and a client of its own.
type Run = fn(Informers, Config, CancellationToken) -> BoxFuture<'static, Result<(), Stopped>>;

/// Every controller: its name, the service account of `kube-system` that it acts as (as the original has them,
/// but for `service-lb-controller`; `None`: the controller manager itself), and what runs it.
const CONTROLLERS: [(&str, Option<&str>, Run); 30] = [
    (
        "namespace-controller",
        Some("namespace-controller"),
        |informers, _, until| namespace::run(informers, until).boxed(),
    ),
    (
        "serviceaccount-controller",
        Some("service-account-controller"),
        |informers, _, until| service_account::run(informers, until).boxed(),
    ),
    (
        "root-ca-certificate-publisher-controller",
        Some("root-ca-cert-publisher"),
        |informers, config, until| root_ca::run(informers, config.ca_pem, until).boxed(),
    ),
    (
        "certificatesigningrequest-controller",
        Some("certificate-controller"),
        |informers, config, until| {
            let ranges = config.virtual_ranges();
            certificates::run(informers, config.authority, ranges, until).boxed()
        },
    ),
    (
        "bootstrap-signer-controller",
        Some("bootstrap-signer"),
        |informers, config, until| {
            bootstrap::signing::run(informers, config.cluster_info, until).boxed()
        },
    ),
    (
        "token-cleaner-controller",
        Some("token-cleaner"),
        |informers, _, until| bootstrap::cleaning::run(informers, until).boxed(),
    ),
    (
        "serviceaccount-token-controller",
        None,
        |informers, config, until| token::run(informers, config, until).boxed(),
    ),
    (
        "deployment-controller",
        Some("deployment-controller"),
        |informers, _, until| deployment::run(informers, until).boxed(),
    ),
    (
        "replicaset-controller",
        Some("replicaset-controller"),
        |informers, _, until| replicas::run_sets(informers, until).boxed(),
    ),
    (
        "replicationcontroller-controller",
        Some("replication-controller"),
        |informers, _, until| replicas::run_controllers(informers, until).boxed(),
    ),
    (
        "endpointslice-controller",
        Some("endpointslice-controller"),
        |informers, _, until| endpointslice::run(informers, until).boxed(),
    ),
    (
        "endpoints-controller",
        Some("endpoint-controller"),
        |informers, _, until| endpoints::run(informers, until).boxed(),
    ),
    (
        "daemonset-controller",
        Some("daemon-set-controller"),
        |informers, _, until| daemon::run(informers, until).boxed(),
    ),
    (
        "job-controller",
        Some("job-controller"),
        |informers, _, until| job::run(informers, until).boxed(),
    ),
    (
        "node-lifecycle-controller",
        Some("node-controller"),
        |informers, _, until| node::run(informers, until).boxed(),
    ),
    (
        "node-ipam-controller",
        Some("node-controller"),
        |informers, config, until| node_ipam::run(informers, config.pod_ranges, until).boxed(),
    ),
    (
        "taint-eviction-controller",
        Some("node-controller"),
        |informers, _, until| node::evict::run(informers, until).boxed(),
    ),
    (
        "pod-garbage-collector-controller",
        Some("pod-garbage-collector"),
        |informers, _, until| pod_gc::run(informers, until).boxed(),
    ),
    (
        "ttl-after-finished-controller",
        Some("ttl-after-finished-controller"),
        |informers, _, until| ttl_after_finished::run(informers, until).boxed(),
    ),
    (
        "garbage-collector-controller",
        Some("generic-garbage-collector"),
        |informers, _, until| garbage::run(informers, until).boxed(),
    ),
    (
        "clusterrole-aggregation-controller",
        Some("clusterrole-aggregation-controller"),
        |informers, _, until| cluster_role::run(informers, until).boxed(),
    ),
    (
        "statefulset-controller",
        Some("statefulset-controller"),
        |informers, _, until| stateful::run(informers, until).boxed(),
    ),
    (
        "cronjob-controller",
        Some("cronjob-controller"),
        |informers, _, until| cron_job::run(informers, until).boxed(),
    ),
    (
        "disruption-controller",
        Some("disruption-controller"),
        |informers, _, until| disruption::run(informers, until).boxed(),
    ),
    (
        "service-cidr-controller",
        Some("service-cidrs-controller"),
        |informers, _, until| service_cidr::run(informers, until).boxed(),
    ),
    (
        "service-lb-controller",
        Some("service-lb-controller"),
        |informers, config, until| {
            let ranges = config.virtual_ranges();
            service_lb::run(informers, config.balancing, ranges, until).boxed()
        },
    ),
    (
        "persistentvolume-binder-controller",
        Some("persistent-volume-binder"),
        |informers, config, until| volume::run(informers, config.volumes, until).boxed(),
    ),
    (
        "ephemeral-volume-controller",
        Some("ephemeral-volume-controller"),
        |informers, _, until| volume::ephemeral::run(informers, until).boxed(),
    ),
    (
        "persistentvolumeclaim-protection-controller",
        Some("pvc-protection-controller"),
        |informers, _, until| volume::protect::run_claims(informers, until).boxed(),
    ),
    (
        "persistentvolume-protection-controller",
        Some("pv-protection-controller"),
        |informers, _, until| volume::protect::run_volumes(informers, until).boxed(),
    ),
];

/// Starts every controller as a part of its own. `informers` watch for all of them, and act as the
/// controller manager; `client_of` gives a client that acts as a service account of `kube-system`.
pub fn start(
    parts: &Parts,
    informers: &Informers,
    client_of: impl Fn(&str) -> kube::Client,
    config: &Config,
) {
    for (name, account, run) in CONTROLLERS {
        let informers = match account {
            Some(account) => informers.acting_with(client_of(account)),
            None => informers.clone(),
        };
        let config = config.clone();
        parts.start(format!("part/{name}"), Policy::Restart, move |shutdown| {
            run(informers.clone(), config.clone(), shutdown)
        });
    }
}
