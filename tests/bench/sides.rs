//! Clusters that are up at the same time, so that what differs between them is measured in turns.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};

use super::{
    bulk,
    lab::{Cluster, Host, text},
    pods,
    throughput::{enter, sleeper},
};

/// A cluster that many objects fit into, with a pod that serves and one that asks.
pub struct Side {
    pub cluster: Cluster,
    pub server: PathBuf,
    pub client: PathBuf,
    /// The server's.
    pub address: std::net::IpAddr,
}

impl Side {
    /// `number` tells its pods from those of the other sides.
    pub fn start(number: usize) -> Self {
        let cluster = roomy();
        cluster.import("busybox");
        super::await_account(&cluster);
        let (server, client) = on(&cluster, async |api| {
            let pods: Api<Pod> = Api::default_namespaced(api);
            let [server, client] = [1, 2].map(|end| format!("20{number}000{end}"));
            let server = sleeper(&pods, &server, None).await;
            (server, sleeper(&pods, &client, None).await)
        });
        Self {
            cluster,
            server: server.0,
            address: server.1,
            client: client.0,
        }
    }
}

/// A cluster with room for many Services.
pub fn roomy() -> Cluster {
    let cluster = Cluster::new();
    up(&cluster);
    cluster
}

pub fn up(cluster: &Cluster) {
    let flags = [bulk::SERVICE_RANGE, bulk::STORE];
    let output = cluster.vetch(&[&["up", "--detach"][..], &flags].concat());
    assert!(output.status.success(), "{}", text(&output));
}

/// Does something on a cluster's host as its administrator.
pub fn on<T: Send>(cluster: &Cluster, work: impl AsyncFnOnce(Client) -> T + Send) -> T {
    let root = cluster.root.path();
    within(&cluster.host, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { work(pods::client(root).await).await })
    })
}

/// Does something in a host's network, on a thread of its own.
pub fn within<T: Send>(host: &Host, work: impl FnOnce() -> T + Send) -> T {
    let space = format!("/proc/{}/ns/net", host.pid());
    std::thread::scope(|scope| {
        let working = scope.spawn(move || {
            enter(space.as_ref());
            work()
        });
        working.join().unwrap()
    })
}
