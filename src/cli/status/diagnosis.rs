//! What is wrong, and what to do about it, from what was found. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::facts::{CertificateKind, Facts, Health, Machine, NodeLine, PodLine, Trouble, span};

/// A pod that stays as it is for longer needs somebody.
const STAYS: SignedDuration = SignedDuration::from_mins(2);
/// The part of the store from which on it is said that it fills up, in percent.
const FULL_PERCENT: u64 = 80;
/// Certificates are renewed four months before they end: one that is left so long was not.
const OVERDUE: SignedDuration = SignedDuration::from_hours(24 * 60);
/// An authority is told so long before its end: everything must have another one by then.
const AUTHORITY: SignedDuration = SignedDuration::from_hours(24 * 180);
/// So many pods are named, and the others counted.
const MOST_PODS: usize = 10;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub what: String,
    pub remedy: String,
}

fn finding(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        what: what.into(),
        remedy: remedy.into(),
    }
}

/// All that is wrong, what explains the rest first. `flag`: `--root` as it was typed; `within`: how long
/// answers were waited for.
pub fn diagnose(facts: &Facts, now: Timestamp, flag: &str, within: Duration) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Machine::Agent {
        removed: Some(why), ..
    } = &facts.machine
    {
        return vec![finding(
            why,
            format!(
                "`vetch reset{flag}` takes away what is left here, and `vetch agent` with a new token joins again"
            ),
        )];
    }
    if let Some(finding) = daemon(facts, flag) {
        found.push(finding);
        if facts.machine == Machine::Nothing {
            return found;
        }
    }
    found.extend(server(facts, flag, within));
    found.extend(checks(facts, flag));
    found.extend(facts.problems.iter().map(|problem| {
        finding(
            problem,
            format!("`vetch logs{flag}` may say why; then look again"),
        )
    }));
    found.extend(store(facts, flag));
    let certificates = facts.certificates.iter();
    found.extend(certificates.filter_map(|one| {
        certificate(
            &one.name,
            one.kind,
            one.ends.duration_since(now),
            facts,
            flag,
        )
    }));
    found.extend(
        facts
            .nodes
            .iter()
            .flat_map(|node| node_findings(node, facts.encrypts, flag)),
    );
    found.extend(pods(&facts.pods, now));
    found
}

fn daemon(facts: &Facts, flag: &str) -> Option<Finding> {
    if facts.daemon.is_some() {
        return None;
    }
    Some(match facts.machine {
        Machine::Nothing => finding(
            "there is no cluster here",
            format!("`vetch up{flag}` starts one, `vetch agent{flag}` joins one"),
        ),
        Machine::Server => finding(
            "vetch is not running; pods that ran go on without it",
            format!("start it with `vetch up --detach{flag}`"),
        ),
        Machine::Agent { .. } => finding(
            "vetch is not running; pods that ran go on without it",
            format!("start it with `vetch agent --detach{flag}`"),
        ),
    })
}

fn server(facts: &Facts, flag: &str, within: Duration) -> Option<Finding> {
    let server = facts.server.as_ref()?;
    let error = server.error.as_ref()?;
    let what = format!(
        "the API server at {} does not answer: {error}",
        server.address
    );
    let is_server = facts.machine == Machine::Server;
    let remedy = match (is_server, facts.daemon) {
        // Said already.
        (true, None) => return None,
        (true, Some(_)) => format!(
            "it had {within:?}: the machine may be busy; `vetch logs{flag}` says more, and `vetch down{flag}` and \
             `vetch up --detach{flag}` start it anew"
        ),
        (false, _) => format!(
            "see on its machine that `vetch up` runs, and that TCP 6443 is open on the way; if it has moved, \
             `vetch agent --server URL{flag}`"
        ),
    };
    Some(finding(what, remedy))
}

/// Both endpoints look at the same things: each is told once.
fn checks(facts: &Facts, flag: &str) -> Vec<Finding> {
    let mut failed: Vec<&str> = Vec::new();
    for check in facts.checks.iter().filter(|check| !check.well) {
        if !failed.contains(&check.name.as_str()) {
            failed.push(&check.name);
        }
    }
    let logs =
        format!("`vetch logs{flag}` says why; parts that fail are started again by themselves");
    failed
        .into_iter()
        .map(|name| finding(format!("the check {name} fails"), &*logs))
        .collect()
}

fn store(facts: &Facts, flag: &str) -> Option<Finding> {
    let store = facts.store?;
    let percent = store.used_bytes.saturating_mul(100) / store.quota_bytes.max(1);
    if percent < FULL_PERCENT {
        return None;
    }
    let what = match percent {
        0..100 => format!("the store is {percent} % full"),
        _ => "the store is full: writes that add to it are refused".to_owned(),
    };
    let quota = (store.quota_bytes >> 20) * 2;
    Some(finding(
        what,
        format!(
            "delete what is not needed (`kubectl get --raw /metrics | grep apiserver_storage_objects` counts \
             objects), or start with more: `vetch up --store-quota {quota}Mi{flag}`"
        ),
    ))
}

fn certificate(
    name: &str,
    kind: CertificateKind,
    left: SignedDuration,
    facts: &Facts,
    flag: &str,
) -> Option<Finding> {
    let limit = match kind {
        CertificateKind::Authority => AUTHORITY,
        CertificateKind::Renewed => OVERDUE,
    };
    if left > limit {
        return None;
    }
    let what = match left.is_positive() {
        true => format!("the certificate {name} ends in {}", span(left.as_secs())),
        false => format!("the certificate {name} has expired"),
    };
    let remedy = match (kind, &facts.machine) {
        (CertificateKind::Authority, _) => {
            "an authority is not renewed: make a new cluster and move what runs here, before it ends".to_owned()
        }
        (CertificateKind::Renewed, Machine::Agent { .. }) if !left.is_positive() => format!(
            "join again with a token of `vetch token create`: `vetch agent --token-file FILE{flag}`"
        ),
        // The daemon renews them when it starts, too.
        (CertificateKind::Renewed, _) if facts.daemon.is_none() => {
            "it is renewed when vetch runs".to_owned()
        }
        (CertificateKind::Renewed, _) => format!(
            "it should have been renewed: see `vetch logs{flag}`, and whether the clock of this machine is right"
        ),
    };
    Some(finding(what, remedy))
}

/// By which a node says that CNI plugins give its pods no network.
const NO_NETWORK: &str = "reason:NetworkPluginNotReady";

fn node_findings(node: &NodeLine, encrypts: bool, flag: &str) -> Vec<Finding> {
    let name = &node.name;
    let mut found = Vec::new();
    match node.ready {
        Health::Ready => {}
        Health::NotReady => {
            let why = node.why.as_deref().unwrap_or("it does not say why");
            let remedy = match why.contains(NO_NETWORK) {
                true => "put a CNI configuration and its plugins into their folders on its machine; there `vetch \
                         check --cni-conf-dir DIR --cni-bin-dir DIR` says more"
                    .to_owned(),
                false => format!(
                    "`kubectl describe node {name}`, and `vetch logs` on its machine, say more"
                ),
            };
            found.push(finding(format!("the node {name} is not ready: {why}"), remedy));
        }
        Health::Unknown => found.push(finding(
            format!("the node {name} does not report"),
            format!(
                "start `vetch agent` on its machine, or see the network between; `vetch node rm {name} \
                 --force{flag}` gives it up"
            ),
        )),
    }
    // What a silent node said last says nothing.
    if node.ready == Health::Ready {
        found.extend(node.pressures.iter().map(|pressure| {
            finding(
                format!("the node {name} has {pressure}: it takes no new pods, and may evict some"),
                format!("free what is short; `kubectl describe node {name}` says what"),
            )
        }));
        if encrypts && node.public_key.is_none() {
            found.push(finding(
                format!(
                    "the node {name} has no WireGuard key, and pod encryption is requested: its pods and those of other \
                     nodes do not reach each other"
                ),
                format!(
                    "`vetch check` on its machine says whether its kernel has WireGuard; `kubectl describe node {name}` \
                     says more; `vetch up --pod-encryption none` does without"
                ),
            ));
        }
    }
    found
}

fn pods(pods: &[PodLine], now: Timestamp) -> Vec<Finding> {
    let needs = |pod: &&PodLine| match pod.trouble {
        Trouble::None => false,
        Trouble::Now => true,
        Trouble::IfItStays => pod
            .since
            .is_none_or(|since| now.duration_since(since) > STAYS),
    };
    let needing: Vec<&PodLine> = pods.iter().filter(needs).collect();
    let named = needing.iter().take(MOST_PODS).map(|pod| {
        let PodLine {
            namespace, name, ..
        } = pod;
        let why = pod.why.as_deref().filter(|why| !why.is_empty());
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        finding(
            format!(
                "the pod {namespace}/{name} does not run, {}{why}",
                pod.status
            ),
            format!("`kubectl describe pod {name} -n {namespace}` and `kubectl logs` say more"),
        )
    });
    let mut found: Vec<Finding> = named.collect();
    let more = needing.len().saturating_sub(MOST_PODS);
    if more > 0 {
        found.push(finding(
            format!("{more} more pods do not run"),
            "`kubectl get pods -A` shows all",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::facts::{Certificate, Check, Server, Store};

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().expect("a time")
    }

    /// Of a server where all is well.
    fn well() -> Facts {
        Facts {
            machine: Machine::Server,
            daemon: Some(7),
            server: Some(Server {
                address: "https://127.0.0.1:6443".to_owned(),
                error: None,
            }),
            nodes: vec![node(Health::Ready)],
            store: Some(Store {
                used_bytes: 10 << 20,
                quota_bytes: 256 << 20,
                revision: 5,
            }),
            certificates: vec![certificate("admin", CertificateKind::Renewed, 200)],
            checks: vec![check("etcd", true)],
            ..Facts::default()
        }
    }

    fn agent(removed: Option<&str>) -> Machine {
        Machine::Agent {
            node: "n".to_owned(),
            removed: removed.map(str::to_owned),
        }
    }

    #[test]
    fn a_node_without_a_key_is_told_where_there_must_be_one() {
        let key = Some("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".to_owned());
        for (encrypts, public_key, wrong) in [
            (false, None, false),
            (true, key.clone(), false),
            (true, None, true),
            (false, key, false),
        ] {
            let mut facts = well();
            facts.encrypts = encrypts;
            facts.nodes[0].public_key = public_key;
            let found = diagnose(&facts, now(), "", Duration::ZERO);
            let is_told = found.iter().any(|one| one.what.contains("WireGuard key"));
            assert_eq!(is_told, wrong, "{found:?}");
        }
    }

    fn node(ready: Health) -> NodeLine {
        NodeLine {
            name: "n".to_owned(),
            ready,
            ..NodeLine::default()
        }
    }

    fn certificate(name: &str, kind: CertificateKind, days: i64) -> Certificate {
        Certificate {
            name: name.to_owned(),
            kind,
            ends: now() + SignedDuration::from_hours(24 * days),
        }
    }

    fn check(name: &str, well: bool) -> Check {
        Check {
            endpoint: "readyz",
            name: name.to_owned(),
            well,
        }
    }

    fn pod(trouble: Trouble, minutes: i64) -> PodLine {
        PodLine {
            namespace: "shop".to_owned(),
            name: "p".to_owned(),
            node: None,
            status: "Pending".to_owned(),
            why: Some("no node fits".to_owned()),
            since: Some(now() - SignedDuration::from_mins(minutes)),
            trouble,
        }
    }

    fn found(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = well();
        change(&mut facts);
        diagnose(&facts, now(), " --root /x", Duration::from_secs(5))
    }

    #[test]
    fn nothing_is_wrong() {
        assert_eq!(found(|_| {}), []);
        // On its way, or another's to see to.
        let fine = [pod(Trouble::IfItStays, 1), pod(Trouble::None, 1000)];
        assert_eq!(found(|facts| facts.pods = fine.to_vec()), []);
        assert_eq!(found(|facts| facts.nodes[0].unschedulable = true), []);
    }

    #[test]
    fn what_is_wrong_and_what_helps() {
        type Change = Box<dyn FnOnce(&mut Facts)>;
        let unreachable = || Server {
            address: "https://192.0.2.1:6443".to_owned(),
            error: Some("refused".to_owned()),
        };
        let rows: Vec<(Change, &str, &str)> = vec![
            (
                Box::new(|facts| *facts = Facts::default()),
                "there is no cluster here",
                "vetch up --root /x",
            ),
            (
                Box::new(move |facts| {
                    (facts.daemon, facts.server) = (None, Some(unreachable()));
                }),
                "vetch is not running",
                "vetch up --detach --root /x",
            ),
            (
                Box::new(move |facts| {
                    (facts.machine, facts.daemon) = (agent(None), None);
                }),
                "vetch is not running",
                "vetch agent --detach --root /x",
            ),
            (
                Box::new(move |facts| facts.server = Some(unreachable())),
                "the API server at https://192.0.2.1:6443 does not answer: refused",
                "vetch logs --root /x",
            ),
            (
                Box::new(move |facts| {
                    (facts.machine, facts.server) = (agent(None), Some(unreachable()));
                }),
                "does not answer: refused",
                "vetch agent --server URL --root /x",
            ),
            (
                Box::new(|facts| facts.machine = agent(Some("the node n was removed"))),
                "the node n was removed",
                "vetch reset --root /x",
            ),
            (
                Box::new(|facts| {
                    facts.checks = vec![check("part/dns", false), check("part/dns", false)];
                }),
                "the check part/dns fails",
                "vetch logs --root /x",
            ),
            (
                Box::new(|facts| facts.problems = vec!["the tokens cannot be read".to_owned()]),
                "the tokens cannot be read",
                "vetch logs --root /x",
            ),
            (
                Box::new(|facts| {
                    facts.store.as_mut().expect("there").used_bytes = 210 << 20;
                }),
                "the store is 82 % full",
                "vetch up --store-quota 512Mi --root /x",
            ),
            (
                Box::new(|facts| {
                    facts.store.as_mut().expect("there").used_bytes = 256 << 20;
                }),
                "the store is full",
                "delete",
            ),
            (
                Box::new(|facts| {
                    facts.certificates = vec![certificate("ca", CertificateKind::Authority, 100)];
                }),
                "the certificate ca ends in 100d",
                "make a new cluster",
            ),
            (
                Box::new(|facts| {
                    facts.certificates = vec![certificate("admin", CertificateKind::Renewed, 50)];
                }),
                "the certificate admin ends in 50d",
                "vetch logs --root /x",
            ),
            (
                Box::new(|facts| {
                    facts.machine = agent(None);
                    facts.certificates = vec![certificate("client", CertificateKind::Renewed, -1)];
                }),
                "the certificate client has expired",
                "vetch agent --token-file FILE --root /x",
            ),
            (
                Box::new(|facts| {
                    facts.nodes = vec![node(Health::NotReady)];
                    let why = crate::kubelet::network::cni::Error::NotReady("no file".into());
                    facts.nodes[0].why = Some(why.to_string());
                }),
                "the node n is not ready: container runtime network not ready",
                "vetch check --cni-conf-dir",
            ),
            (
                Box::new(|facts| facts.nodes = vec![node(Health::NotReady)]),
                "the node n is not ready: it does not say why",
                "kubectl describe node n",
            ),
            (
                Box::new(|facts| facts.nodes = vec![node(Health::Unknown)]),
                "the node n does not report",
                "vetch node rm n --force --root /x",
            ),
            (
                Box::new(|facts| facts.nodes[0].pressures = vec!["DiskPressure".to_owned()]),
                "the node n has DiskPressure",
                "kubectl describe node n",
            ),
            (
                Box::new(|facts| facts.pods = vec![pod(Trouble::IfItStays, 3)]),
                "the pod shop/p does not run, Pending: no node fits",
                "kubectl describe pod p -n shop",
            ),
            (
                Box::new(|facts| facts.pods = vec![pod(Trouble::Now, 0)]),
                "the pod shop/p does not run",
                "kubectl describe pod p -n shop",
            ),
        ];
        for (change, what, remedy) in rows {
            let found = found(change);
            assert_eq!(found.len(), 1, "{what}: {found:#?}");
            assert!(found[0].what.contains(what), "{what}: {found:#?}");
            assert!(found[0].remedy.contains(remedy), "{what}: {found:#?}");
        }
    }

    #[test]
    fn many_pods_are_counted() {
        let found = found(|facts| facts.pods = vec![pod(Trouble::Now, 0); 25]);
        assert_eq!(found.len(), MOST_PODS + 1);
        assert_eq!(found[MOST_PODS].what, "15 more pods do not run");
    }
}
