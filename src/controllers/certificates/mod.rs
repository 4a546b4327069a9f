//! Certificate signing requests: those of kubelets for themselves are approved, approved ones are signed by the
//! built-in signers, old ones are removed.
//!
//! `approving.rs`, `signing.rs` and `cleaning.rs` each decide one of these, without I/O; the loop
//! here does what they say. The cluster's key is behind [`Authority`].
//! Always true: nothing is signed that is not approved, or that its signer does not sign.

mod approving;
mod cleaning;
mod signing;
#[cfg(test)]
mod testing;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use k8s_openapi::{
    ByteString,
    api::{
        authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec},
        certificates::v1::{
            CertificateSigningRequest as Csr, CertificateSigningRequestCondition as Condition,
        },
        core::v1::{ConfigMap, Node},
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use tokio_util::sync::CancellationToken;

use self::{approving::Recognized, signing::Signing};
use super::{
    error::{Doing, Error, OrGone},
    pods,
    shared::{Controller, Loop, Next, Stopped},
};
use crate::{
    deletion::Judged,
    informer::{Informer, Informers, Key},
    node_identity,
};

/// Requests handled at once.
const WORKERS: usize = 2;

/// What a request's subject and names are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// How many e-mail addresses and URIs it has.
    pub emails: usize,
    pub uris: usize,
}

/// Whom an earlier certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    pub user: String,
    pub groups: Vec<String>,
    pub issued: SystemTime,
}

/// Reads requests and signs them with the cluster's key.
pub trait Authority: Send + Sync {
    /// `request`: the PEM of `spec.request`.
    fn read(&self, request: &[u8]) -> Result<Requested, String>;

    /// A certificate of what is requested, for `usages` only, as PEM.
    fn sign(
        &self,
        request: &[u8],
        usages: &[&str],
        life: Duration,
        now: SystemTime,
    ) -> Result<String, String>;

    /// When a certificate of PEM ends.
    fn ends(&self, certificate: &[u8]) -> Option<SystemTime>;

    /// Whom `certificate`, as PEM, names, if the cluster has issued it to a client, for the key of `request`; also
    /// one that has expired.
    fn former(&self, certificate: &str, request: &[u8]) -> Option<Former>;
}

/// Runs until `shutdown`.
pub async fn run(
    informers: Informers,
    authority: Arc<dyn Authority>,
    ranges: Vec<IpNet>,
    shutdown: CancellationToken,
) -> Result<(), Stopped> {
    let requests: Informer<Csr> = informers.get();
    let controller = Certificates {
        client: informers.client().clone(),
        requests: requests.clone(),
        authority,
        ranges,
    };
    Loop::new(controller, &requests)
        .run(WORKERS, shutdown)
        .await
}

fn has(csr: &Csr, kind: &str) -> bool {
    condition(csr, kind).is_some()
}

fn condition<'a>(csr: &'a Csr, kind: &str) -> Option<&'a Condition> {
    conditions(csr).iter().find(|one| one.type_ == kind)
}

fn conditions(csr: &Csr) -> &[Condition] {
    let status = csr.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    conditions.unwrap_or_default()
}

/// The issued certificate.
fn certificate(csr: &Csr) -> Option<&[u8]> {
    let certificate = csr.status.as_ref()?.certificate.as_ref()?;
    (!certificate.0.is_empty()).then_some(certificate.0.as_slice())
}

fn usages(csr: &Csr) -> Vec<&str> {
    let usages = csr.spec.usages.iter().flatten();
    usages.map(String::as_str).collect()
}

struct Certificates {
    client: Client,
    requests: Informer<Csr>,
    authority: Arc<dyn Authority>,
    /// Of pods and services: no node has an address of these.
    ranges: Vec<IpNet>,
}

impl Controller for Certificates {
    const NAME: &'static str = "certificatesigningrequest-controller";

    async fn sync(&self, key: &Key) -> Result<Next, Error> {
        let held = self.requests.get(key);
        let Some(csr) = held.filter(|csr| !pods::is_terminating(csr.as_ref())) else {
            return Ok(Next::Settled);
        };
        let now = Timestamp::now();
        let ends = certificate(&csr).and_then(|pem| self.authority.ends(pem));
        let end = cleaning::plan(&csr, ends);
        if end.is_some_and(|end| end <= now) {
            self.delete(&csr).await?;
            return Ok(Next::Settled);
        }
        let cleaned = end.map(|end| pods::remaining(end, 0, now).unwrap_or_default());
        if let Signing::Wanted(signer) = signing::wanted(&csr) {
            self.sign(&csr, signer).await?;
            return Ok(Next::Settled);
        }
        let again = self.approve(&csr, now).await?;
        Ok(Next::after(again.into_iter().chain(cleaned).min()))
    }
}

impl Certificates {
    fn api(&self) -> Api<Csr> {
        Api::all(self.client.clone())
    }

    /// Signs an approved request, or says in its status why not.
    async fn sign(&self, csr: &Csr, signer: signing::Signer) -> Result<(), Error> {
        let name = csr.name_any();
        let invalid = |why: String| Error::invalid("request", format!("CSR {name}"), why);
        let (authority, wanted) = (self.authority.clone(), csr.clone());
        // Keys of others are checked, and the cluster's is used.
        let signed =
            tokio::task::spawn_blocking(move || -> Result<Result<String, String>, String> {
                let request = &wanted.spec.request.0;
                let requested = authority.read(request)?;
                let usages = usages(&wanted);
                if let Err(why) = signing::check(signer, &requested, &usages) {
                    return Ok(Err(why));
                }
                let life = signing::life(wanted.spec.expiration_seconds);
                let certificate = authority.sign(request, &usages, life, SystemTime::now());
                certificate.map(Ok)
            });
        let signed = signed.await.map_err(|error| invalid(error.to_string()))?;
        let mut csr = csr.clone();
        let status = csr.status.get_or_insert_default();
        match signed.map_err(invalid)? {
            Ok(certificate) => status.certificate = Some(ByteString(certificate.into_bytes())),
            Err(why) => {
                let failed = new_condition("Failed", "SignerValidationFailure", &why);
                status.conditions.get_or_insert_default().push(failed);
            }
        }
        self.api()
            .replace_status(&csr.name_any(), &PostParams::default(), &csr)
            .await
            .or_gone()
            .doing(|| format!("write the certificate of CSR {name}"))?;
        Ok(())
    }

    /// Approves the request of a kubelet that may have its client certificate; denies that of another for
    /// the name of a node that there is. When to ask again.
    async fn approve(&self, csr: &Csr, now: Timestamp) -> Result<Option<Duration>, Error> {
        if !approving::is_open(csr) {
            return Ok(None);
        }
        let name = csr.name_any();
        let requested = self.authority.read(&csr.spec.request.0);
        let requested =
            requested.map_err(|why| Error::invalid("request", format!("CSR {name}"), why))?;
        if approving::is_proxy(csr, &requested) {
            let message = "Auto approving the certificate of a node's service proxy.";
            self.decide(csr, new_condition("Approved", "AutoApproved", message))
                .await?;
            return Ok(None);
        }
        if approving::is_serving(csr, &requested) {
            let nodes = Api::<Node>::all(self.client.clone())
                .list(&ListParams::default())
                .await
                .doing(|| format!("ask whose addresses CSR {name} is for"))?;
            if approving::may_serve(&requested, &nodes.items, &self.ranges) {
                let message =
                    "Auto approving kubelet serving certificate: its addresses are the node's.";
                self.decide(csr, new_condition("Approved", "AutoApproved", message))
                    .await?;
                return Ok(None);
            }
        }
        for recognized in approving::recognized(csr, &requested) {
            if self.allowed(csr, recognized).await? {
                let is_own = csr.spec.username.as_deref() == Some(&requested.common_name);
                let taken = recognized == Recognized::Node
                    && !is_own
                    && self.is_node(approving::node(&requested)).await?
                    && !self.is_same_machine(csr, &requested).await?;
                let condition = match taken {
                    true => new_condition("Denied", "NodeExists", &approving::taken(&requested)),
                    false => new_condition("Approved", "AutoApproved", recognized.message()),
                };
                self.decide(csr, condition).await?;
                return Ok(None);
            }
        }
        let created = csr.creation_timestamp().map(|time| time.0);
        Ok(approving::ask_again(csr, &requested, created, now))
    }

    async fn decide(&self, csr: &Csr, condition: Condition) -> Result<(), Error> {
        let (name, mut csr) = (csr.name_any(), csr.clone());
        let status = csr.status.get_or_insert_default();
        status.conditions.get_or_insert_default().push(condition);
        self.api()
            .replace_subresource("approval", &name, &PostParams::default(), &csr)
            .await
            .or_gone()
            .doing(|| format!("decide over CSR {name}"))?;
        Ok(())
    }

    /// Whether the cluster has a node of that name. The server is asked: a cache may be late.
    async fn is_node(&self, name: &str) -> Result<bool, Error> {
        let node = Api::<Node>::all(self.client.clone()).get_opt(name).await;
        let node = node.doing(|| format!("ask whether there is a node {name}"))?;
        Ok(node.is_some())
    }

    /// Whether the machine that asks was this node before and has not been removed: it shows its last certificate,
    /// which has expired meanwhile, and holds the key of it.
    async fn is_same_machine(&self, csr: &Csr, requested: &Requested) -> Result<bool, Error> {
        let Some(certificate) = csr.annotations().get(node_identity::FORMER) else {
            return Ok(false);
        };
        let request = &csr.spec.request.0;
        let Some(former) = self.authority.former(certificate, request) else {
            return Ok(false);
        };
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), node_identity::NAMESPACE);
        let record = maps.get_opt(node_identity::RECORD).await;
        let record = record.doing(|| "ask which nodes were removed".to_owned())?;
        let record = record.and_then(|map| map.data).unwrap_or_default();
        Ok(approving::is_same(&former, requested, &record))
    }

    async fn allowed(&self, csr: &Csr, recognized: Recognized) -> Result<bool, Error> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: csr.spec.username.clone(),
                uid: csr.spec.uid.clone(),
                groups: csr.spec.groups.clone(),
                extra: csr.spec.extra.clone(),
                resource_attributes: Some(recognized.right()),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviewed = Api::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .doing(|| format!("ask what the requester of CSR {} may", csr.name_any()))?;
        Ok(reviewed.status.is_some_and(|status| status.allowed))
    }

    async fn delete(&self, csr: &Csr) -> Result<(), Error> {
        let params = Judged::State.params(&csr.metadata, DeleteParams::default());
        self.api()
            .delete(&csr.name_any(), &params)
            .await
            .or_gone()
            .doing(|| format!("delete CSR {} after its time", csr.name_any()))?;
        Ok(())
    }
}

fn new_condition(kind: &str, reason: &str, message: &str) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(Timestamp::now())),
        last_transition_time: None,
    }
}
