//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: programs of users that change or
//! refuse what is written.
//!
//! [`super::matching`] and `matchConditions` say who is asked, `review.rs` what, [`crate::apiserver::callout`] calls. The
//! configurations are compiled when they have changed and not with each request.
//! Always true:
//! - Configurations themselves are never shown to a webhook: nobody can lock himself in.
//! - Mutating webhooks are asked one after the other, by configuration's name; validating ones all
//!   at once, and the first refusal in that order counts.

mod review;

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use serde_json::Value;

use self::review::Verdict;
use super::{
    Authority, Operation, Plugin, Request,
    evaluation::{Conditions, Facts, OnFailure},
    matching::Matching,
    shown::{Shown, View, taken_back},
};
use crate::apiserver::{
    authz::Authorizer,
    callout::Caller,
    objects::Lookup,
    patch::{self, PatchType},
    registry::{
        Resource,
        kinds::{
            groups::admissionregistration::{REVIEW_VERSIONS, is_configuration},
            value::{items, number, text, texts},
        },
    },
    status::Status,
};

const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

/// One webhook, ready to be asked.
struct Hook {
    /// Configuration and name: what tells it from others.
    id: String,
    name: String,
    matching: Matching,
    conditions: Option<Conditions>,
    on_failure: OnFailure,
    timeout: Duration,
    version: &'static str,
    /// Asked again when others have changed the object after it.
    again: bool,
    caller: Caller,
}

#[derive(Default)]
struct Hooks {
    /// The configurations' last changes when this was made.
    of: (u64, u64),
    mutating: Vec<Hook>,
    validating: Vec<Hook>,
}

/// Who of the mutating webhooks is to be asked in the second round of one request.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Were asked, and want to be again if something changes after them.
    eligible: BTreeSet<String>,
    due: BTreeSet<String>,
    /// What the first round left.
    left: Option<Value>,
}

#[derive(Default)]
pub struct Webhooks {
    compiled: RwLock<Arc<Hooks>>,
    authority: Authority,
}

impl Webhooks {
    /// The webhooks of now. Without configurations this is two counters read.
    async fn hooks(&self, lookup: &dyn Lookup) -> Arc<Hooks> {
        let of = (lookup.changed(MUTATING), lookup.changed(VALIDATING));
        let held = self
            .compiled
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if held.of == of {
            return held;
        }
        let hooks = Arc::new(Hooks {
            of,
            mutating: compile(&lookup.list(MUTATING, "").await),
            validating: compile(&lookup.list(VALIDATING, "").await),
        });
        *self
            .compiled
            .write()
            .unwrap_or_else(PoisonError::into_inner) = hooks.clone();
        hooks
    }
}

fn compile(configurations: &[Arc<Value>]) -> Vec<Hook> {
    let mut ordered: Vec<&Arc<Value>> = configurations.iter().collect();
    ordered.sort_by_key(|one| text(one, "metadata.name").to_owned());
    ordered
        .into_iter()
        .flat_map(|one| {
            let configuration = text(one, "metadata.name");
            items(one, "webhooks")
                .iter()
                .map(move |hook| compiled(configuration, hook))
        })
        .collect()
}

fn compiled(configuration: &str, hook: &Value) -> Hook {
    let name = text(hook, "name");
    let versions = texts(hook, "admissionReviewVersions");
    let version = versions
        .iter()
        .find_map(|wanted| REVIEW_VERSIONS.into_iter().find(|known| known == wanted));
    let seconds = number(hook, "timeoutSeconds").unwrap_or(10);
    Hook {
        id: format!("{configuration}/{name}"),
        name: name.to_owned(),
        matching: Matching::of_webhook(hook),
        conditions: Conditions::new(hook, false),
        on_failure: OnFailure::of(hook),
        timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or(10)),
        version: version.unwrap_or("v1"),
        again: text(hook, "reinvocationPolicy") == "IfNeeded",
        caller: Caller::new(&hook["clientConfig"]),
    }
}

impl Hook {
    /// The row in whose version this webhook wants the request; `None`: it does not want it.
    async fn wants<'a>(
        &self,
        request: &Request<'a>,
        object: Option<&Value>,
        authority: &Authority,
        lookup: &dyn Lookup,
    ) -> Result<Option<&'a Resource>, Status> {
        let Some(row) = self.matching.row(request, object, lookup).await else {
            return Ok(None);
        };
        let Some(conditions) = &self.conditions else {
            return Ok(Some(row));
        };
        let view = View::new(request, row, object, lookup).await?;
        let shown = View::shown(view.as_ref(), row, object, request.old);
        let facts = Facts::new(request, &shown, authority, lookup).await?;
        match conditions.hold(&facts, &shown, None, self.on_failure) {
            Ok(holds) => Ok(holds.then_some(row)),
            Err(why) => Err(request.forbidden(&why)),
        }
    }

    /// Asks; `Ok(None)`: it could not be asked, and that does not matter.
    async fn ask(
        &self,
        request: &Request<'_>,
        shown: &Shown<'_>,
        lookup: &dyn Lookup,
    ) -> Result<Option<Verdict>, Status> {
        let uid = uuid::Uuid::new_v4().to_string();
        let question = review::question(request, shown, self.version, &uid);
        let seconds = Some(self.timeout.as_secs());
        let answer = self.caller.post(lookup, &question, self.timeout, seconds);
        let verdict = match answer.await {
            Ok(answer) => review::answer(&answer, &self.name, self.version, &uid),
            Err(error) => Err(format!("failed to call webhook: {error}")),
        };
        match verdict {
            Ok(verdict) => Ok(Some(verdict)),
            Err(why) => self.failed(&why).map(|()| None),
        }
    }

    fn failed(&self, why: &str) -> Result<(), Status> {
        let what = format!("failed calling webhook {:?}: {why}", self.name);
        match self.on_failure {
            OnFailure::Refuse => Err(Status::internal(what)),
            OnFailure::GoOn => {
                tracing::warn!(webhook = self.id, "{what}; going on without it");
                Ok(())
            }
        }
    }
}

/// Lets every mutating webhook that is due change the object.
async fn mutate_all(
    hooks: &[Hook],
    request: &mut Request<'_>,
    mut object: Option<&mut Value>,
    authority: &Authority,
    lookup: &dyn Lookup,
) -> Result<(), Status> {
    if request.round.second {
        let rounds = &mut request.round.webhooks;
        if rounds.left.as_ref() != object.as_deref() {
            rounds.due.append(&mut rounds.eligible);
        }
    }
    for hook in hooks {
        if request.round.second && !request.round.webhooks.due.contains(&hook.id) {
            continue;
        }
        let wants = hook.wants(request, object.as_deref(), authority, lookup);
        let Some(row) = wants.await? else {
            continue;
        };
        let view = View::new(request, row, object.as_deref(), lookup).await?;
        let shown = View::shown(view.as_ref(), row, object.as_deref(), request.old);
        let Some(verdict) = hook.ask(request, &shown, lookup).await? else {
            continue;
        };
        request.warnings.extend(verdict.warnings);
        if let Some(status) = verdict.refused {
            return Err(*status);
        }
        let patched = match (&verdict.patch, shown.object, request.operation) {
            (Some(patch), Some(before), Operation::Create | Operation::Update) => {
                let whole = object.as_deref();
                patched(hook, request, row, (before, whole), patch, lookup).await?
            }
            _ => None,
        };
        let different = patched.filter(|new| Some(new) != object.as_deref());
        if let (Some(new), Some(object)) = (different, object.as_deref_mut()) {
            *object = new;
            request.round.changed = true;
            let rounds = &mut request.round.webhooks;
            rounds.due.append(&mut rounds.eligible);
        }
        if hook.again {
            request.round.webhooks.eligible.insert(hook.id.clone());
        }
    }
    if !request.round.second {
        request.round.webhooks.left = object.as_deref().cloned();
    }
    Ok(())
}

/// The object after a webhook's patch, in the request's version, with nothing unknown in it.
/// `before` is what the webhook was shown, `whole` what it was made of.
async fn patched(
    hook: &Hook,
    request: &Request<'_>,
    row: &Resource,
    (before, whole): (&Value, Option<&Value>),
    patch: &[u8],
    lookup: &dyn Lookup,
) -> Result<Option<Value>, Status> {
    let after = async {
        let new = patch::apply(PatchType::Json, None, before, patch)?;
        taken_back(request, row, whole, new, lookup).await
    };
    match after.await {
        Ok(new) => Ok(Some(new)),
        Err(status) => hook.failed(&status.message).map(|()| None),
    }
}

/// Asks every validating webhook at once.
async fn validate_all(
    hooks: &[Hook],
    request: &mut Request<'_>,
    object: Option<&Value>,
    authority: &Authority,
    lookup: &dyn Lookup,
) -> Result<(), Status> {
    let mut wanted = Vec::new();
    for hook in hooks {
        if let Some(row) = hook.wants(request, object, authority, lookup).await? {
            wanted.push((hook, row));
        }
    }
    let asked = {
        let request = &*request;
        let each = wanted.into_iter().map(|(hook, row)| async move {
            let view = View::new(request, row, object, lookup).await?;
            let shown = View::shown(view.as_ref(), row, object, request.old);
            hook.ask(request, &shown, lookup).await
        });
        futures::future::join_all(each).await
    };
    let mut refusal = Ok(());
    for verdict in asked {
        match verdict {
            Ok(None) => {}
            Ok(Some(verdict)) => {
                request.warnings.extend(verdict.warnings);
                if let Some(status) = verdict.refused {
                    refusal = refusal.and(Err(*status));
                }
            }
            Err(status) => refusal = refusal.and(Err(status)),
        }
    }
    refusal
}

#[async_trait::async_trait]
impl Plugin for Webhooks {
    fn name(&self) -> &'static str {
        "AdmissionWebhook"
    }

    fn is_policy(&self) -> bool {
        true
    }

    fn authorizer(&self, authorizer: &Arc<Authorizer>) {
        self.authority.set(authorizer);
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        object: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let hooks = self.hooks(lookup).await;
        if !hooks.mutating.is_empty() && !is_configuration(request.resource) {
            let all = &hooks.mutating;
            mutate_all(all, request, Some(object), &self.authority, lookup).await?;
        }
        request.round.end();
        Ok(())
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let hooks = self.hooks(lookup).await;
        if is_configuration(request.resource) {
            return Ok(());
        }
        // A deletion has nothing to change, but those who change may refuse.
        if request.operation == Operation::Delete && !hooks.mutating.is_empty() {
            let all = &hooks.mutating;
            mutate_all(all, request, None, &self.authority, lookup).await?;
        }
        if hooks.validating.is_empty() {
            return Ok(());
        }
        let all = &hooks.validating;
        validate_all(all, request, object, &self.authority, lookup).await
    }
}
