//! Asking everything that `vetch status` shows, each with a deadline.

use std::{fs, io, path::Path, time::Duration};

use http::Request;
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::{Api, Client, api::ListParams, client::Body};
use nix::fcntl::{Flock, FlockArg};

use super::{
    facts::{
        Certificate, CertificateKind, Check, Facts, Machine, NodeLine, Server, Store, TokenLine,
    },
    pods,
};
use crate::{
    bootstrap_token::{self, Expiration, KeptToken},
    causes::causes,
    cli::{Error, administrator, agent, node, paths::Paths},
    joining::{client, membership::Membership},
    node_identity,
    pki::{self, Held},
};

/// Every question has an answer by then, or none.
pub const WITHIN: Duration = Duration::from_secs(5);
/// A page of the server's own is no larger.
const MAX_BYTES: usize = 32 << 20;
/// The certificates that vouch for others.
const AUTHORITIES: [&str; 2] = ["ca", "front-proxy-ca"];

/// All facts. What cannot be had is one of their problems.
pub async fn gather(paths: &Paths, flag: &str) -> Facts {
    let mut facts = Facts::default();
    match daemon(&paths.lock()) {
        Ok(daemon) => facts.daemon = daemon,
        Err(error) => {
            let path = paths.lock();
            let problem = format!(
                "whether vetch runs is not known: {}: {error}",
                path.display()
            );
            facts.problems.push(problem);
        }
    }
    match node::recorded_cni(paths) {
        Ok(cni) => facts.cni = cni,
        Err(error) => facts.problems.push(causes(error.as_ref())),
    }
    facts.encrypts = node::encrypts(paths);
    match Membership::load(&agent::record(paths)) {
        Ok(Some(kept)) => of_agent(&mut facts, kept).await,
        Ok(None) if paths.state.join("store").exists() => of_server(&mut facts, paths, flag).await,
        Ok(None) => {}
        Err(error) => facts.problems.push(causes(&error)),
    }
    facts
}

/// The process that holds the lock of a daemon.
fn daemon(lock: &Path) -> io::Result<Option<u32>> {
    let file = match fs::File::open(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // A shared one for a moment: a daemon that starts meanwhile tries longer than that.
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err(_) => {
            let pid = fs::read_to_string(lock)?;
            Ok(Some(pid.trim().parse().unwrap_or_default()))
        }
    }
}

/// What `ask` answers in time.
async fn in_time<T, E: Into<Error>>(
    what: &str,
    ask: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(WITHIN, ask).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{what}: {}", causes(error.into().as_ref()))),
        Err(_) => Err(format!("{what}: no answer within {WITHIN:?}")),
    }
}

async fn of_server(facts: &mut Facts, paths: &Paths, flag: &str) {
    facts.machine = Machine::Server;
    match certificates(&paths.state.join("pki")) {
        Ok(found) => facts.certificates = found,
        Err(error) => facts
            .problems
            .push(format!("the certificates cannot be read: {error}")),
    }
    let config = match administrator::config(paths, flag).await {
        Ok(config) => config,
        Err(error) => {
            facts.problems.push(causes(error.as_ref()));
            return;
        }
    };
    let address = config.cluster_url.to_string();
    let address = address.trim_end_matches('/').to_owned();
    let client = match Client::try_from(config) {
        Ok(client) => client,
        Err(error) => {
            facts.problems.push(causes(&error));
            return;
        }
    };
    let live = in_time("/livez", page(&client, "/livez?verbose")).await;
    facts.server = Some(Server {
        address,
        error: live.as_ref().err().cloned(),
    });
    let Ok(live) = live else {
        return; // it answers nothing else
    };
    let everything = ListParams::default();
    let tokens = ListParams::default().fields(bootstrap_token::OF_TYPE);
    let nodes = Api::<Node>::all(client.clone());
    let pods = Api::<Pod>::all(client.clone());
    let secrets = Api::<Secret>::namespaced(client.clone(), bootstrap_token::NAMESPACE);
    let (ready, metrics, nodes, pods, tokens) = tokio::join!(
        in_time("/readyz", page(&client, "/readyz?verbose")),
        in_time("/metrics", page(&client, "/metrics")),
        in_time("the nodes", nodes.list(&everything)),
        in_time("the pods", pods.list(&everything)),
        in_time("the tokens", secrets.list(&tokens)),
    );
    facts.checks = checks("livez", &live);
    let mut problems = Problems(&mut facts.problems);
    if let Some(ready) = problems.unless(ready) {
        facts.checks.extend(checks("readyz", &ready));
    }
    facts.store = problems.unless(metrics).and_then(|page| store(&page));
    if let Some(nodes) = problems.unless(nodes) {
        facts.nodes = nodes.iter().map(NodeLine::of).collect();
    }
    if let Some(pods) = problems.unless(pods) {
        facts.pods = pods.iter().filter_map(pods::line).collect();
    }
    if let Some(tokens) = problems.unless(tokens) {
        facts.tokens = tokens.iter().filter_map(token).collect();
    }
}

async fn of_agent(facts: &mut Facts, kept: Membership) {
    facts.machine = Machine::Agent {
        node: kept.node.clone(),
        removed: kept.removed.clone(),
    };
    let pairs = [
        ("client", Some(&kept.client)),
        ("serving", kept.serving.as_ref()),
        ("proxy", kept.proxy.as_ref()),
    ];
    let pairs = pairs.iter().filter_map(|(name, pair)| {
        let pem = &pair.as_ref()?.certificate;
        certificate(name, CertificateKind::Renewed, pem.as_bytes())
    });
    let authority = certificate("ca", CertificateKind::Authority, kept.ca.as_bytes());
    facts.certificates = pairs.chain(authority).collect();
    let client = match own_client(&kept) {
        Ok(client) => client,
        Err(error) => {
            facts.problems.push(causes(error.as_ref()));
            return;
        }
    };
    let own = ListParams::default().fields(&format!("spec.nodeName={}", kept.node));
    let nodes = Api::<Node>::all(client.clone());
    let pods = Api::<Pod>::all(client);
    let asked = in_time("the own Node", async {
        match nodes.get_opt(&kept.node).await {
            Err(kube::Error::Api(status)) => Ok(Err(status)),
            found => found.map(Ok),
        }
    });
    let (node, pods) = tokio::join!(asked, in_time("the pods", pods.list(&own)));
    let mut error = None;
    match node {
        Ok(Ok(Some(node))) => facts.nodes = vec![NodeLine::of(&node)],
        Ok(Ok(None)) => facts
            .problems
            .push(format!("the cluster has no node {}", kept.node)),
        // The server answers, if not as one would like it to.
        Ok(Err(status)) => {
            let details = status.details.as_ref();
            let mut causes = details.iter().flat_map(|details| &details.causes);
            if causes.any(|cause| cause.reason == node_identity::REMOVED) {
                facts.machine = Machine::Agent {
                    node: kept.node.clone(),
                    removed: Some(status.message.clone()),
                };
            } else {
                let message = &status.message;
                let problem = format!("the cluster does not show this node its Node: {message}");
                facts.problems.push(problem);
            }
        }
        Err(why) => error = Some(why),
    }
    if error.is_none() {
        let pods = Problems(&mut facts.problems).unless(pods);
        facts.pods = pods.iter().flatten().filter_map(pods::line).collect();
    }
    facts.server = Some(Server {
        address: kept.servers.join(","),
        error,
    });
}

fn own_client(kept: &Membership) -> Result<Client, Error> {
    let servers = kept.servers.iter().map(|server| server.parse());
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    let held = Held::new(kept.client.clone().into())?;
    Ok(client::client(&servers, &kept.ca, held)?)
}

/// Takes note of what could not be had.
struct Problems<'a>(&'a mut Vec<String>);

impl Problems<'_> {
    fn unless<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.0.push(problem)).ok()
    }
}

/// A page of text, whatever its code: checks that fail are told with one of 500.
async fn page(client: &Client, path: &str) -> Result<String, Error> {
    let request = Request::get(path).body(Body::empty())?;
    let response = client.send(request).await?;
    let body = Limited::new(response.into_body(), MAX_BYTES)
        .collect()
        .await?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

/// The lines of a verbose answer: `[+]name ok`, `[-]name failed: reason withheld`.
fn checks(endpoint: &'static str, page: &str) -> Vec<Check> {
    let check = |line: &str| {
        let (well, rest) = match line.strip_prefix("[+]") {
            Some(rest) => (true, rest),
            None => (false, line.strip_prefix("[-]")?),
        };
        let name = rest.split_whitespace().next()?.to_owned();
        Some(Check {
            endpoint,
            name,
            well,
        })
    };
    page.lines().filter_map(check).collect()
}

/// What the metrics tell of the store.
fn store(page: &str) -> Option<Store> {
    let value = |name: &str| {
        let mut lines = page.lines();
        let line = lines.find(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        })?;
        let number: f64 = line.rsplit(' ').next()?.parse().ok()?;
        // Sizes and revisions are whole numbers far below the largest.
        (number >= 0.0).then_some(number as u64)
    };
    Some(Store {
        used_bytes: value("apiserver_storage_size_bytes")?,
        quota_bytes: value("etcd_server_quota_backend_bytes")?,
        revision: value("etcd_revision")?,
    })
}

fn token(secret: &Secret) -> Option<TokenLine> {
    let kept = KeptToken::of(secret)?;
    Some(TokenLine {
        id: kept.token.id().to_owned(),
        expires: match kept.expiration {
            Expiration::At(end) => Some(end),
            Expiration::Never => None,
            Expiration::Unreadable => Some(Timestamp::UNIX_EPOCH),
        },
        description: kept.description,
    })
}

/// Those of a cluster's own folder, by name.
fn certificates(dir: &Path) -> io::Result<Vec<Certificate>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let (Some("crt"), Some(name)) = (
            path.extension().and_then(|extension| extension.to_str()),
            path.file_stem().and_then(|name| name.to_str()),
        ) else {
            continue;
        };
        let kind = match AUTHORITIES.contains(&name) {
            true => CertificateKind::Authority,
            false => CertificateKind::Renewed,
        };
        found.extend(certificate(name, kind, &fs::read(&path)?));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn certificate(name: &str, kind: CertificateKind, pem: &[u8]) -> Option<Certificate> {
    let ends = Timestamp::try_from(pki::ends(pem)?).ok()?;
    Some(Certificate {
        name: name.to_owned(),
        kind,
        ends,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pages_say() {
        let page = "[+]ping ok\n[-]part/dns failed: reason withheld\nreadyz check failed\n";
        let found = checks("readyz", page);
        let found: Vec<_> = found.iter().map(|one| (&*one.name, one.well)).collect();
        assert_eq!(found, [("ping", true), ("part/dns", false)]);

        let page = "# HELP etcd_revision x\netcd_revision 12\netcd_revision_other 13\n\
                    apiserver_storage_size_bytes{storage_cluster_id=\"etcd-0\"} 1.5e+06\n\
                    etcd_server_quota_backend_bytes 268435456\n";
        let want = Store {
            used_bytes: 1_500_000,
            quota_bytes: 256 << 20,
            revision: 12,
        };
        assert_eq!(store(page), Some(want));
        assert_eq!(store("etcd_revision 12\n"), None);
    }

    #[test]
    fn who_holds_the_lock_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(daemon(&path).unwrap(), None);
        fs::write(&path, "77").unwrap();
        assert_eq!(daemon(&path).unwrap(), None, "it has ended");
        let file = fs::File::open(&path).unwrap();
        let _held = Flock::lock(file, FlockArg::LockExclusive).unwrap();
        assert_eq!(daemon(&path).unwrap(), Some(77));
    }

    #[test]
    fn certificates_of_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki::Pki::open(dir.path()).unwrap();
        let leaf = pki::Leaf::client("admin", &[]);
        pki.identity("admin", &leaf).unwrap();
        // Its thread writes into the folder.
        pki.token_keys().signing().unwrap();
        let found = certificates(dir.path()).unwrap();
        let found: Vec<_> = found.iter().map(|one| (&*one.name, one.kind)).collect();
        assert_eq!(
            found,
            [
                ("admin", CertificateKind::Renewed),
                ("ca", CertificateKind::Authority),
                ("front-proxy-ca", CertificateKind::Authority),
            ]
        );
    }
}
