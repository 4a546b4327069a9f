//! Becoming a node of the cluster, or being it again.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::Uri;
use ipnet::IpNet;
use k8s_openapi::api::{core::v1::Node, networking::v1::ServiceCIDR};
use kube::{Api, Client, Config, api::ListParams, runtime::wait::await_condition};

use super::{
    super::{Error, node_address, node_args::Machine, paths::Paths},
    token::TokenSource,
};
use crate::{
    addresses::family::{Family, PerFamily},
    bootstrap_token::BootstrapToken,
    joining::{
        certificate::{self, Purpose},
        client,
        discovery::{self, Cluster},
        membership::{KeyPair, Membership, Ranges},
    },
    kubelet::node as node_api,
    pki::{Held, Identity},
};

/// A certificate that nobody signs by then is not waited for.
const SIGNED_WITHIN: Duration = Duration::from_secs(60);
/// The same for a range of pod addresses.
const RANGE_WITHIN: Duration = Duration::from_secs(20);
/// The range of services that a cluster has from its beginning.
const FIRST_SERVICES: &str = "kubernetes";

/// Where the membership is kept.
pub fn record(paths: &Paths) -> PathBuf {
    paths.state.join("membership.json")
}

/// Keeps what the cluster has said when it removed this node for good: the next start needs not ask it.
pub fn remember_removal(paths: &Paths, why: &str) -> Result<(), Error> {
    let path = record(paths);
    if let Some(mut kept) = Membership::load(&path)? {
        kept.removed = Some(why.to_owned());
        kept.save(&path)?;
    }
    Ok(())
}

/// A machine that is a node of a cluster elsewhere must not become a cluster of its own by mistake.
pub fn refuse_member(machine: &Machine) -> Result<(), Error> {
    let Some(kept) = Membership::load(&record(&machine.paths))? else {
        return Ok(());
    };
    let (server, flag) = (kept.servers.join(","), &machine.root_flag);
    Err(format!(
        "this machine is the node {} of the cluster at {server}: start it with `vetch agent{flag}`, or \
         leave that cluster with `vetch reset{flag}` first",
        kept.node
    )
    .into())
}

/// A node of the cluster, known there.
pub struct Joined {
    pub membership: Membership,
    pub ranges: Ranges,
    /// Acts as the node.
    pub client: Client,
    pub known_by: Arc<Held>,
    pub serving: Arc<Held>,
    /// Acts as kube-proxy.
    pub proxy: Client,
    pub proxy_known_by: Arc<Held>,
    /// The first is that by which the server's machine is reached.
    pub addresses: PerFamily<IpAddr>,
}

/// Joins the cluster, or takes over what an earlier daemon has kept.
pub async fn join(
    machine: &Machine,
    servers: &[Uri],
    token: &TokenSource,
) -> Result<Joined, Error> {
    if machine.paths.state.join("store").exists() {
        let flag = &machine.root_flag;
        return Err(format!(
            "this machine holds a cluster of its own: remove it with `vetch reset{flag}` first, or join \
             from another --root"
        )
        .into());
    }
    let path = record(&machine.paths);
    let kept = Membership::load(&path)?;
    if let Some(why) = kept.as_ref().and_then(|kept| kept.removed.clone()) {
        return Err(why.into());
    }
    let mut membership = match kept {
        Some(kept) => {
            let before = kept.servers.clone();
            let membership = again(kept, machine, servers)?;
            if membership.servers != before {
                membership.save(&path)?;
            }
            membership
        }
        None => {
            let membership = first(&machine.name, servers, token.read()?.as_ref()).await?;
            membership.save(&path)?;
            membership
        }
    };
    let known_by = Held::new(membership.client.clone().into())?;
    if known_by.has_ended(SystemTime::now()) {
        known_by.replace(known_again(machine, &mut membership, token).await?)?;
        membership.save(&path)?;
    }
    let servers: Vec<Uri> = membership
        .servers
        .iter()
        .map(|server| server.parse())
        .collect::<Result<_, _>>()?;
    let known = match machine.described.addresses {
        Some(addresses) => addresses,
        None => PerFamily::one(own_address(&servers)?),
    };
    let client = client::client(&servers, &membership.ca, known_by.clone())?;
    // One that has expired is worth no more than none.
    let lasting = |pair: &Option<KeyPair>| {
        let held = Held::new(pair.clone()?.into()).ok()?;
        (!held.has_ended(SystemTime::now())).then(|| pair.clone())?
    };
    let (serving, proxy) = (lasting(&membership.serving), lasting(&membership.proxy));
    let introduced = match (&membership.ranges, &serving, &proxy) {
        (Some(ranges), Some(serving), Some(proxy)) => Introduced {
            ranges: ranges.clone(),
            serving: serving.clone(),
            proxy: proxy.clone(),
        },
        _ => {
            let mut introduced =
                introduce(&client, machine, &servers, &membership.ca, known).await?;
            // Its pods have addresses of the range that it knows; another one is noticed later.
            let ranges = membership.ranges.get_or_insert(introduced.ranges);
            introduced.ranges = ranges.clone();
            membership.serving = Some(introduced.serving.clone());
            membership.proxy = Some(introduced.proxy.clone());
            membership.save(&path)?;
            introduced
        }
    };
    let proxy_known_by = Held::new(introduced.proxy.into())?;
    let addresses = of_cluster(&introduced.ranges.pods, &known)?;
    Ok(Joined {
        proxy: client::client(&servers, &membership.ca, proxy_known_by.clone())?,
        proxy_known_by,
        serving: Held::new(introduced.serving.into())?,
        ranges: introduced.ranges,
        membership,
        client,
        known_by,
        addresses,
    })
}

/// The machine has joined before.
fn again(mut kept: Membership, machine: &Machine, servers: &[Uri]) -> Result<Membership, Error> {
    if kept.node != machine.name {
        let (flag, is, wanted) = (&machine.root_flag, &kept.node, &machine.name);
        return Err(format!(
            "this machine is the node {is}, and a node keeps its name: to make it {wanted}, `vetch \
             reset{flag}` and join again"
        )
        .into());
    }
    if !servers.is_empty() {
        kept.servers = servers.iter().map(plain).collect();
    }
    Ok(kept)
}

/// Without the slash that an address ends with.
fn plain(server: &Uri) -> String {
    server.to_string().trim_end_matches('/').to_owned()
}

/// A new certificate for a machine that was off until its last one had expired. It shows a token, and that it has
/// been the node.
async fn known_again(
    machine: &Machine,
    kept: &mut Membership,
    token: &TokenSource,
) -> Result<Identity, Error> {
    let (node, flag) = (&kept.node, &machine.root_flag);
    let Some(token) = token.read()? else {
        return Err(format!(
            "the certificate of the node {node} has expired: `vetch token create` on the server makes a token, with \
             which `vetch agent --token-file FILE{flag}` joins again"
        )
        .into());
    };
    let servers = kept.servers.iter().map(|server| server.parse());
    let servers = servers.collect::<Result<Vec<Uri>, _>>()?;
    let cluster = find(&servers, &token).await?;
    if cluster.ca_pem.trim() != kept.ca.trim() {
        return Err(format!(
            "the cluster at {} is another one than this machine is a node of: `vetch reset{flag}` here, and join it",
            cluster.server
        )
        .into());
    }
    let holder = holder(&cluster, &token)?;
    let former = kept.client.clone().into();
    let identity = certificate::request_again(holder, node, &former, SIGNED_WITHIN).await?;
    kept.client = identity.clone().into();
    tracing::info!("this machine is the node {node} again, after its certificate had expired");
    Ok(identity)
}

/// Finds out by the token about the cluster, and gets the node's certificate from it.
async fn first(
    name: &str,
    servers: &[Uri],
    token: Option<&BootstrapToken>,
) -> Result<Membership, Error> {
    let (false, Some(token)) = (servers.is_empty(), token) else {
        return Err(
            "this machine has joined no cluster yet: --server and --token or --token-file say which, and `vetch up` \
             and `vetch token create` print them on the first machine"
                .into(),
        );
    };
    let cluster = find(servers, token).await?;
    let holder = holder(&cluster, token)?;
    let identity = certificate::request(holder, name, Purpose::Client, SIGNED_WITHIN).await?;
    let servers = servers.iter().map(plain).collect();
    Ok(Membership::new(name, servers, &cluster.ca_pem, identity))
}

/// The cluster that the token is of, at the first of these that answers for it.
async fn find(servers: &[Uri], token: &BootstrapToken) -> Result<Cluster, Error> {
    let mut failed: Option<Error> = None;
    for server in servers {
        match discovery::discover(server, token).await {
            Ok(cluster) => return Ok(cluster),
            // What the first says matters most.
            Err(error) => failed = failed.or(Some(error.into())),
        }
    }
    Err(failed.unwrap_or_else(|| "there is no --server".into()))
}

/// Acts as the token's holder.
fn holder(cluster: &Cluster, token: &BootstrapToken) -> Result<Client, Error> {
    let mut config = Config::new(cluster.server.clone());
    config.root_cert = Some(certificates(&cluster.ca_pem)?);
    config.auth_info.token = Some(token.to_string().into());
    Ok(Client::try_from(config)?)
}

fn certificates(pem: &str) -> Result<Vec<Vec<u8>>, Error> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let all = CertificateDer::pem_slice_iter(pem.as_bytes());
    let all: Result<Vec<_>, _> = all.map(|one| one.map(|one| one.to_vec())).collect();
    Ok(all.map_err(|error| format!("the cluster's certificate authority: {error}"))?)
}

/// What the cluster gives a new node.
struct Introduced {
    ranges: Ranges,
    serving: KeyPair,
    proxy: KeyPair,
}

/// Makes the Node, so that the cluster gives it its range and signs what its own API shows.
async fn introduce(
    client: &Client,
    machine: &Machine,
    servers: &[Uri],
    ca: &str,
    known: PerFamily<IpAddr>,
) -> Result<Introduced, Error> {
    let name = machine.name.as_str();
    let description = &machine.described.description;
    // Which families the cluster has is known with the ranges.
    let candidates = candidates(&known);
    node_api::introduce(client, name, &candidates, &machine.paths.state, description)
        .await
        .map_err(|error| format!("register the node {name}: {error}"))?;
    let signed = async |purpose: Purpose<'_>| {
        let signed = certificate::request(client.clone(), name, purpose, SIGNED_WITHIN).await;
        signed.map_err(Error::from)
    };
    let services = async {
        let proxy = signed(Purpose::Proxy).await?;
        let known_by = Held::new(proxy.clone())?;
        let services = service_range(&client::client(servers, ca, known_by)?).await?;
        Ok::<_, Error>((proxy, services))
    };
    let own = async {
        let pods = pod_range(client, name).await?;
        let addresses: Vec<IpAddr> = of_cluster(&pods, &known)?.iter().copied().collect();
        Ok::<_, Error>((pods, signed(Purpose::Serving(&addresses)).await?))
    };
    let ((pods, serving), (proxy, services)) = tokio::try_join!(own, services)?;
    Ok(Introduced {
        ranges: Ranges { pods, services },
        serving: serving.into(),
        proxy: proxy.into(),
    })
}

/// All by which this machine may be a node.
fn candidates(known: &PerFamily<IpAddr>) -> Vec<IpAddr> {
    let others = Family::ALL
        .into_iter()
        .filter(|family| known.of(*family).is_none());
    let others = others.filter_map(node_address::outgoing);
    known.iter().copied().chain(others).collect()
}

/// Those of the cluster's families.
fn of_cluster(
    pods: &PerFamily<IpNet>,
    known: &PerFamily<IpAddr>,
) -> Result<PerFamily<IpAddr>, Error> {
    let families: Vec<Family> = pods.families().collect();
    node_address::addresses(&families, Some(known))
}

/// As the cluster has given them to the node, separated by a comma.
pub(super) fn pod_ranges(node: Option<&Node>) -> Option<String> {
    let spec = node?.spec.as_ref()?;
    let ranges = spec.pod_cidrs.clone().unwrap_or_default();
    match ranges.is_empty() {
        true => spec.pod_cidr.clone(),
        false => Some(ranges.join(",")),
    }
}

async fn pod_range(client: &Client, name: &str) -> Result<PerFamily<IpNet>, Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let given = await_condition(nodes, name, |node: Option<&Node>| {
        pod_ranges(node).is_some()
    });
    let node = match tokio::time::timeout(RANGE_WITHIN, given).await {
        Ok(node) => node?,
        Err(_) => {
            return Err(format!(
                "the cluster gives the node {name} no range of pod addresses: all may be taken; see `kubectl \
                 describe node {name}`"
            )
            .into());
        }
    };
    let text = pod_ranges(node.as_ref()).unwrap_or_default();
    let range = text.parse();
    Ok(range.map_err(|error| format!("the range of pod addresses {text:?}: {error}"))?)
}

async fn service_range(client: &Client) -> Result<PerFamily<IpNet>, Error> {
    let ranges: Api<ServiceCIDR> = Api::all(client.clone());
    let ranges = ranges.list(&ListParams::default()).await;
    let ranges = ranges.map_err(|error| format!("read the ranges of services: {error}"))?;
    let first = ranges
        .items
        .into_iter()
        .find(|range| range.metadata.name.as_deref() == Some(FIRST_SERVICES));
    let cidrs = first.and_then(|range| range.spec?.cidrs);
    let cidrs = cidrs.unwrap_or_default().join(",");
    cidrs.parse().map_err(|error| {
        format!(
            "the ServiceCIDR {FIRST_SERVICES} of the cluster, with the ranges {cidrs:?}: {error}"
        )
        .into()
    })
}

/// The address from which this machine reaches the servers. Connecting a UDP socket sends nothing; it only
/// asks the kernel for a route.
fn own_address(servers: &[Uri]) -> Result<IpAddr, Error> {
    use std::net::ToSocketAddrs;
    let mut failed = None;
    for server in servers {
        let host = server.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = (host, server.port_u16().unwrap_or_default()).to_socket_addrs();
        let asked = address.and_then(|mut found| {
            let to = found.next().ok_or(std::io::ErrorKind::NotFound)?;
            let from: SocketAddr = match to {
                SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                SocketAddr::V6(_) => ([0; 16], 0).into(),
            };
            let socket = UdpSocket::bind(from)?;
            socket.connect(to)?;
            Ok(socket.local_addr()?.ip())
        });
        match asked {
            Ok(address) => return Ok(address),
            Err(error) => failed = failed.or(Some(format!("{server} is not reached: {error}"))),
        }
    }
    Err(failed
        .unwrap_or_else(|| "there is no --server".to_owned())
        .into())
}
