//! Cluster DNS: names of Services and pods from memory, everything else from upstream.
//!
//! Owns the listening sockets and the index of names; started by the node. Everything is read
//! from informers.
//! Always true: a query of the cluster's zone never leaves the node, and never waits for one that
//! does.
//!
//! `records.rs` says which names a Service gives, `answer.rs` turns a query into a reply, and `quick.rs`
//! the usual ones with less ado; `upstream` asks others and remembers; `serve.rs` and `datagrams.rs` do the I/O,
//! `shares.rs`, `rate.rs` and `turns.rs` say how much one client may have, and when.

mod answer;
mod datagrams;
mod objects;
mod quick;
mod rate;
mod records;
mod serve;
mod shares;
#[cfg(test)]
mod tests;
mod turns;
mod upstream;

pub use objects::{endpoint_slice, is_ours, is_slice_name, service, slice_name};

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use tokio::{net::UdpSocket, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::{records::Records, serve::Server, upstream::Upstream};
use crate::{
    accepting,
    informer::{
        Informers,
        services::{Joined, Services},
    },
    supervision::{caught_here, pulse},
};

/// Datagrams that the kernel holds while the daemon is busy, in bytes with the kernel's own.
const RECEIVE_BUFFER: usize = 2 << 20;

/// Services whose names are changed while nobody is answered.
const AT_ONCE: usize = 64;

#[derive(Clone, Debug)]
pub struct Config {
    /// UDP and TCP; e.g. port 53 of the pods' gateway.
    pub listen: Vec<SocketAddr>,
    /// e.g. `cluster.local`.
    pub domain: String,
    /// Who is answered: pods and nodes. Nobody else can use the resolver against others.
    pub clients: Vec<IpNet>,
    /// Names the upstream servers; read again when it changes.
    pub resolv_conf: PathBuf,
}

/// Answers until `shutdown`. Listens only once the first list of Services is in.
pub async fn run(
    informers: Informers,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let domain = config.domain.trim_matches('.').to_lowercase();
    let own = config.listen.iter().map(SocketAddr::ip).collect();
    let upstream = Upstream::new(config.resolv_conf, own);
    let server = Arc::new(Server::new(domain, upstream, config.clients));
    let mut services = Services::start(&informers).await;
    update(&server, services.all());
    let mut sockets = listen(&server, &config.listen).await?;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = pulse::asked() => {}
            changed = services.next() => match changed {
                Some(changed) => update(&server, changed),
                None => return Ok(()),
            },
            Some(ended) = sockets.join_next() => return Err(Error::Socket(ended.err())),
        }
    }
}

/// Serves until the set is dropped.
async fn listen(server: &Arc<Server>, addresses: &[SocketAddr]) -> Result<JoinSet<()>, Error> {
    let mut tasks = JoinSet::new();
    for address in addresses {
        let failed = |source| Error::Listen {
            address: *address,
            source,
        };
        let socket = UdpSocket::bind(address).await.map_err(failed)?;
        // More than others may have at once; without the right to it, what the kernel gives by itself.
        let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER);
        tasks.spawn(server.clone().udp(socket));
        tasks.spawn(
            server
                .clone()
                .tcp(accepting::listen(*address).map_err(failed)?),
        );
    }
    Ok(tasks)
}

fn update(server: &Server, changed: Vec<Joined>) {
    let records: Vec<(_, Records)> = changed
        .into_iter()
        .map(|joined| {
            let slices: Vec<&EndpointSlice> = joined.slices.iter().map(|slice| &**slice).collect();
            let records = joined.service.map(|service| {
                // A Service that cannot be served must not keep others from it.
                let made = caught_here(|| records::records(&service, &slices, &server.domain));
                made.unwrap_or_else(|panic| {
                    tracing::error!(service = %joined.key, %panic, "names are not served");
                    Records::default()
                })
            });
            (joined.key, records.unwrap_or_default())
        })
        .collect();
    let mut records = records.into_iter().peekable();
    while records.peek().is_some() {
        let mut index = server.index_mut();
        for (key, records) in records.by_ref().take(AT_ONCE) {
            index.update(&key, records);
        }
    }
}

/// Why names are not served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen for DNS on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("a socket of DNS is no longer served")]
    Socket(#[source] Option<tokio::task::JoinError>),
}
