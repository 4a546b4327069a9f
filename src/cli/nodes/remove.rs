//! `vetch node rm`.
//!
//! Always true: the certificates of the node are refused before its Node is deleted, so that its machine cannot
//! register again; and only after its pods have left, since that machine ends them.

use std::{io::Write, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest as Csr,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Node, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;

use super::{
    drain::{self, Ending, drain},
    plan::{Manner, is_silent, leaving, obstacle},
};
use crate::{
    cli::Error,
    node_identity::{self, node_of},
    pki,
};

const LEASES: &str = "kube-node-lease";
/// Somebody else may write the record at the same time.
const TRIES: usize = 5;

/// What is to be done with whom.
pub struct Removal {
    pub client: Client,
    pub name: String,
    pub manner: Manner,
    /// For the pods to leave.
    pub timeout: Duration,
    /// `--root` as it was typed, for messages.
    pub flag: String,
}

impl Removal {
    pub async fn run(self, out: &mut dyn Write) -> Result<(), Error> {
        let (name, flag) = (&self.name, &self.flag);
        let nodes: Api<Node> = Api::all(self.client.clone());
        let Some(node) = nodes.get_opt(name).await? else {
            return Err(format!("there is no node {name}: `vetch node ls{flag}` shows all").into());
        };
        if let Some(why) = obstacle(&node, self.manner, flag) {
            return Err(why.into());
        }
        let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        nodes.patch(name, &PatchParams::default(), &cordon).await?;
        writeln!(out, "node {name} takes no new pods")?;
        self.empty(&node, out).await.map_err(|error| {
            let error = crate::causes::causes(error.as_ref());
            format!(
                "{error}; the node {name} stays cordoned: `vetch node rm {name} --force{flag}` removes it all the \
                 same, `kubectl uncordon {name}` takes it back"
            )
        })?;
        let removed = self.revoke().await?;
        self.delete_requests().await?;
        let own = DeleteParams::default().preconditions(Preconditions {
            uid: node.uid(),
            resource_version: None,
        });
        unless_gone(nodes.delete(name, &own).await.map(drop))?;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        unless_gone(
            leases
                .delete(name, &DeleteParams::default())
                .await
                .map(drop),
        )?;
        // Certificates tell whole seconds: one that is issued in this second would count as older.
        tokio::time::sleep(rest_of_second(removed, Timestamp::now())).await;
        writeln!(
            out,
            "node {name} is removed: `vetch reset` on its machine takes away what is left there"
        )?;
        Ok(())
    }

    /// Makes its pods leave.
    async fn empty(&self, node: &Node, out: &mut dyn Write) -> Result<(), Error> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let there = ListParams::default().fields(&format!("spec.nodeName={}", self.name));
        let leaving = leaving(&pods.list(&there).await?.items, self.manner);
        for pod in leaving.iter().filter(|pod| pod.is_alone) {
            let (namespace, name) = (&pod.namespace, &pod.name);
            writeln!(
                out,
                "pod {namespace}/{name} goes for good: nothing makes it anew"
            )?;
        }
        let ending = match is_silent(node) {
            true => Ending::Left,
            false => Ending::Awaited,
        };
        let mut said = Ok(());
        let drained: Result<(), drain::Error> =
            drain(&self.client, &leaving, self.timeout, ending, |pod| {
                if said.is_ok() {
                    said = writeln!(out, "pod {pod} has left");
                }
            })
            .await;
        drained?;
        Ok(said?)
    }

    /// Records that the node's certificates count no more; the time of that.
    async fn revoke(&self) -> Result<Timestamp, Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), node_identity::NAMESPACE);
        let mut tries = 0;
        loop {
            let now = Timestamp::now();
            match self.record(&maps, now).await {
                Err(kube::Error::Api(status))
                    if status.is_conflict() || status.is_already_exists() =>
                {
                    tries += 1;
                    if tries == TRIES {
                        return Err(format!(
                            "record that the node {} is removed: {}",
                            self.name, status.message
                        )
                        .into());
                    }
                }
                done => return Ok(done.map(|()| now)?),
            }
        }
    }

    async fn record(&self, maps: &Api<ConfigMap>, now: Timestamp) -> Result<(), kube::Error> {
        let params = PostParams::default();
        let record = |map: Option<_>| {
            Some(node_identity::with_removed(
                map.unwrap_or_default(),
                &self.name,
                now,
            ))
        };
        match maps.get_opt(node_identity::RECORD).await? {
            Some(mut map) => {
                map.data = record(map.data.take());
                maps.replace(node_identity::RECORD, &params, &map).await?;
            }
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(node_identity::RECORD.to_owned()),
                        ..ObjectMeta::default()
                    },
                    data: record(None),
                    ..ConfigMap::default()
                };
                maps.create(&params, &map).await?;
            }
        }
        Ok(())
    }

    /// Its certificate requests: those of its own, and the one that a token's holder made for it.
    async fn delete_requests(&self) -> Result<(), Error> {
        let requests: Api<Csr> = Api::all(self.client.clone());
        for request in requests.list(&ListParams::default()).await?.items {
            if is_of(&request, &self.name) {
                let deleted = requests
                    .delete(&request.name_any(), &DeleteParams::default())
                    .await;
                unless_gone(deleted.map(drop))?;
            }
        }
        Ok(())
    }
}

fn is_of(request: &Csr, node: &str) -> bool {
    let (user, groups) = (&request.spec.username, &request.spec.groups);
    let own = node_of(
        user.as_deref().unwrap_or_default(),
        groups.as_deref().unwrap_or_default(),
    );
    own == Some(node)
        || pki::Request::parse(&request.spec.request.0).is_ok_and(|request| {
            node_of(&request.common_name, &request.organizations) == Some(node)
        })
}

fn unless_gone(done: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match done {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        done => done,
    }
}

/// How much of the second of `time` is left.
fn rest_of_second(time: Timestamp, now: Timestamp) -> Duration {
    let whole = SignedDuration::from_secs(1);
    let passed = SignedDuration::from_nanos(time.subsec_nanosecond().into());
    let left = whole - passed - now.duration_since(time);
    // A clock that was set back does not make anybody wait.
    Duration::try_from(left.min(whole)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;
    use crate::pki::{Leaf, SigningRequest};

    #[test]
    fn whose_requests_go() {
        for (user, groups, leaf, want) in [
            (
                "system:node:n",
                "system:nodes",
                Leaf::node_client("n"),
                true,
            ),
            (
                "system:bootstrap:abcdef",
                "system:bootstrappers",
                Leaf::node_client("n"),
                true,
            ),
            (
                "system:bootstrap:abcdef",
                "system:bootstrappers",
                Leaf::node_client("m"),
                false,
            ),
            (
                "system:node:n",
                "system:nodes",
                Leaf::client("system:kube-proxy", &[]),
                true,
            ),
            ("jane", "people", Leaf::client("n", &[]), false),
            (
                "system:node:m",
                "system:nodes",
                Leaf::node_client("m"),
                false,
            ),
        ] {
            let mut request: Csr = serde_json::from_value(json!({"metadata": {"name": "c"},
                "spec": {"request": "", "signerName": "s", "username": user, "groups": [groups]}}))
            .expect("a request");
            let made = SigningRequest::new(&leaf).expect("made");
            request.spec.request = ByteString(made.pem.into_bytes());
            assert_eq!(is_of(&request, "n"), want, "{user} {leaf:?}");
        }
    }

    #[test]
    fn how_long_a_second_lasts() {
        let at = |time: &str| time.parse::<Timestamp>().expect("a time");
        for (time, now, want) in [
            ("2030-01-01T00:00:10.25Z", "2030-01-01T00:00:10.25Z", 750),
            ("2030-01-01T00:00:10.25Z", "2030-01-01T00:00:10.75Z", 250),
            ("2030-01-01T00:00:10Z", "2030-01-01T00:00:10Z", 1000),
            ("2030-01-01T00:00:10Z", "2030-01-01T00:00:11.5Z", 0),
            ("2030-01-01T00:00:10Z", "2030-01-01T00:00:00Z", 1000),
        ] {
            let rest = rest_of_second(at(time), at(now));
            assert_eq!(rest, Duration::from_millis(want), "{time} {now}");
        }
    }
}
